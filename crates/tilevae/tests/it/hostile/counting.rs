//! The allocator of the tests, which knows how much is in use.

#![expect(unsafe_code, reason = "an allocator is unsafe by nature; this one hands everything on to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes in use.
pub(crate) static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// What is refused, so that a test that goes wrong does not take the machine with it.
static CEILING: AtomicUsize = AtomicUsize::new(usize::MAX);

struct Counting;

impl Counting {
    /// Counts bytes that are asked for, whether the system could give them or not.
    fn take(bytes: usize) -> bool {
        let live = LIVE.fetch_add(bytes, Relaxed).wrapping_add(bytes);
        PEAK.fetch_max(live, Relaxed);
        let is_given = live <= CEILING.load(Relaxed);
        if !is_given {
            Self::put_back(bytes);
        }
        is_given
    }

    fn put_back(bytes: usize) {
        LIVE.fetch_sub(bytes, Relaxed);
    }
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if Self::take(layout.size()) { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if Self::take(layout.size()) { unsafe { System.alloc_zeroed(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::put_back(layout.size());
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !Self::take(size.saturating_sub(layout.size())) {
            return std::ptr::null_mut();
        }
        Self::put_back(layout.size().saturating_sub(size));
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// What `run` gives, and the most bytes that were in use at once above what was when it began, by all threads. No more than `ceiling` are given.
pub(crate) fn peak_of<T>(ceiling: usize, run: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    CEILING.store(before.saturating_add(ceiling), Relaxed);
    let result = run();
    CEILING.store(usize::MAX, Relaxed);
    (result, PEAK.load(Relaxed).saturating_sub(before))
}
