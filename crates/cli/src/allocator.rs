//! How the C library hands out memory.

/// Keeps blocks of up to 4 MiB for the next tensor, which else would pay a page fault for every 4 KiB. Larger ones go back to the system at once, so that
/// they leave no holes; `kernels` keeps those that it will need again.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "mallopt is a C function")]
pub(crate) fn tune() {
    const BLOCK: libc::c_int = 1 << 22;
    // SAFETY: mallopt takes plain integers and is called before other threads exist; a refused value leaves the default.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, BLOCK);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn tune() {}

/// Gives back to the system what is kept but not used.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "malloc_trim is a C function")]
pub(crate) fn give_back() {
    // SAFETY: malloc_trim takes a plain integer, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back() {}
