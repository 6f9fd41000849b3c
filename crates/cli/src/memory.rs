//! The peak memory of this process, where the system reports it (Linux).

use crate::allocator;

/// The peak of resident memory, in bytes, since the process began or [`forget_peak`].
pub(crate) fn peak() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Resets the peak. See proc(5), `clear_refs`.
pub(crate) fn forget_peak() {
    allocator::give_back();
    // Where that cannot be had, the peak is that of all runs so far.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
