//! How the C library hands out memory.

/// Keeps large blocks for the next tensor. By default glibc maps and unmaps every block above 32 MiB, and each tensor then pays a page fault for every 4 KiB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "mallopt is a C function")]
pub(crate) fn tune() {
    const BLOCK: libc::c_int = 1 << 30;
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
