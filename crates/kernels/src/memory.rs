//! The one place for `unsafe` here.
//!
//! A task writes the px of its tiles in each block of its output channels. These stretches of memory lie between those of other tasks, so they cannot be
//! handed out as slices beforehand: [`Shared`] is written by all tasks at once, each its own px. Memory that is written from end to end is not cleared before.

#![expect(unsafe_code, reason = "see above")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Px;

/// What is summed in place.
pub(crate) trait Value: Copy {
    fn plus(self, other: Self) -> Self;
}

impl Value for f32 {
    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self + other
    }
}

impl Value for Px {
    #[inline(always)]
    fn plus(mut self, other: Self) -> Self {
        for (value, other) in self.0.iter_mut().zip(other.0) {
            *value += other;
        }
        self
    }
}

/// Lists of one length that threads write together.
pub(crate) struct Shared<T> {
    lists: Vec<Vec<T>>,
    starts: Vec<*mut T>,
    length: usize,
}

// SAFETY: all access goes through `put`, whose callers keep to values of their own.
unsafe impl<T: Send> Sync for Shared<T> {}

impl Shared<Px> {
    /// Lists of `length` px that are not written yet.
    pub(crate) fn fresh(count: usize, length: usize) -> Self {
        Self::new((0..count).map(|_| large(length)).collect(), length)
    }
}

impl<T: Value> Shared<T> {
    /// Lists that have been written from end to end.
    pub(crate) fn written(lists: Vec<Vec<T>>) -> Self {
        let length = lists.first().map_or(0, Vec::len);
        assert!(lists.iter().all(|list| list.len() == length));
        Self::new(lists, length)
    }

    fn new(mut lists: Vec<Vec<T>>, length: usize) -> Self {
        let starts = lists.iter_mut().map(Vec::as_mut_ptr).collect();
        Self { lists, starts, length }
    }

    /// Lists and the values of each.
    pub(crate) fn size(&self) -> [usize; 2] {
        [self.starts.len(), self.length]
    }

    /// Writes values of a list from the index `at` on; when `add` says so, added to what is there, and changes `values` to the sums.
    ///
    /// # Safety
    /// No other thread reads or writes the same values at the same time. What is added to has been written.
    ///
    /// # Panics
    /// When they reach over the end.
    #[inline(always)]
    pub(crate) unsafe fn put(&self, list: usize, at: usize, values: &mut [T], add: bool) {
        assert!(at <= self.length && values.len() <= self.length - at);
        // SAFETY: the values lie within the list's memory, which `self` keeps, and are this thread's alone.
        let first = unsafe { self.starts[list].add(at) };
        for (index, value) in values.iter_mut().enumerate() {
            // SAFETY: see above; what is added to has been written.
            unsafe {
                let place = first.add(index);
                if add {
                    *value = value.plus(place.read());
                }
                place.write(*value);
            }
        }
    }

    /// The lists.
    ///
    /// # Safety
    /// Every value has been written.
    pub(crate) unsafe fn finish(self) -> Vec<Vec<T>> {
        let Self { mut lists, length, .. } = self;
        for list in &mut lists {
            debug_assert!(length <= list.capacity());
            // SAFETY: the caller has written them.
            unsafe { list.set_len(length) };
        }
        lists
    }
}

/// Px that a block has at least to be kept for the next one of its size.
const KEPT_PX: usize = (4 << 20) / size_of::<Px>();

/// Blocks that nobody uses: those that the system gives it fills with zeros first, which takes longer than some layers.
static KEPT: Mutex<Vec<Vec<Px>>> = Mutex::new(Vec::new());

fn kept() -> MutexGuard<'static, Vec<Vec<Px>>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a block for the next one of its size.
pub(crate) fn keep(mut px: Vec<Px>) {
    if px.capacity() >= KEPT_PX {
        px.clear();
        kept().push(px);
    }
}

/// Gives the blocks that are kept for the next ones back to the system.
pub fn release() {
    let blocks = std::mem::take(&mut *kept());
    drop(blocks);
}

/// Room for so many px.
pub(crate) fn large(count: usize) -> Vec<Px> {
    if count >= KEPT_PX {
        let mut kept = kept();
        if let Some(at) = kept.iter().rposition(|px| px.capacity() == count) {
            return kept.swap_remove(at);
        }
        drop(kept);
        // Pictures have another size from here on.
        release();
    }
    from_system(count)
}

/// Where the system can, large blocks lie in large pages, of which a processor remembers where they are.
fn from_system(count: usize) -> Vec<Px> {
    let px: Vec<Px> = Vec::with_capacity(count);
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        const PAGE: usize = 2 << 20;
        let start = px.as_ptr().addr().next_multiple_of(PAGE);
        let end = (px.as_ptr().addr() + count * size_of::<Px>()) / PAGE * PAGE;
        if start < end {
            // SAFETY: the pages lie within the block that was just allocated; the advice does not change what is in them, and may be refused.
            unsafe { libc::madvise(px.as_ptr().with_addr(start).cast_mut().cast(), end - start, libc::MADV_HUGEPAGE) };
        }
    }
    px
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_write_and_add_side_by_side() {
        const PER_THREAD: usize = 3;
        let of = |at: usize| Px([at as f32; 16]);
        let shared = Shared::fresh(2, 4 * PER_THREAD);
        assert_eq!(shared.size(), [2, 12]);
        let write = |thread: usize, add: bool| {
            for list in 0..2 {
                let first = thread * PER_THREAD;
                let mut px: Vec<Px> = (first..first + PER_THREAD).map(|at| of(at + list)).collect();
                // SAFETY: each thread has px of its own; those that are added to have been written.
                unsafe { shared.put(list, first, &mut px, add) };
                let times = if add { 2.0 } else { 1.0 };
                assert!(px.iter().enumerate().all(|(at, px)| px.0 == [times * (first + at + list) as f32; 16]));
            }
        };
        for add in [false, true] {
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    scope.spawn(move || write(thread, add));
                }
            });
        }
        // SAFETY: all px have been written.
        let lists = unsafe { shared.finish() };
        assert!(lists.iter().enumerate().all(|(list, px)| px.iter().enumerate().all(|(at, px)| px.0 == [2.0 * (at + list) as f32; 16])));
    }

    #[test]
    fn nothing_is_written_beyond_the_end() {
        let shared = Shared::written(vec![vec![1.0_f32; 5]]);
        for (at, count) in [(5, 1), (4, 2), (0, 6), (usize::MAX, 1)] {
            let beyond = std::panic::AssertUnwindSafe(|| {
                // SAFETY: nobody else writes; the list has been written.
                unsafe { shared.put(0, at, &mut vec![2.0; count], true) };
            });
            assert!(std::panic::catch_unwind(beyond).is_err(), "{at} {count}");
        }
        // SAFETY: the list was written before.
        assert_eq!(unsafe { shared.finish() }, [vec![1.0; 5]]);
    }

    #[test]
    fn blocks_go_to_the_next_of_their_size() {
        let size = KEPT_PX + 12345;
        // Other tests that ask for other sizes at the same time have what is kept given back.
        let is_reused = (0..1000).any(|_| {
            let block = large(size);
            let place = block.as_ptr();
            keep(block);
            let next = large(size);
            assert!(next.is_empty() && next.capacity() == size);
            next.as_ptr() == place
        });
        assert!(is_reused);
        keep(large(size));
        release();
        assert!(kept().iter().all(|px| px.capacity() != size));
        keep(Vec::with_capacity(1));
        assert!(kept().iter().all(|px| px.capacity() >= KEPT_PX));
    }

    #[test]
    fn large_blocks_are_as_large_as_asked() {
        for count in [0, 1, (5 << 20) / size_of::<Px>()] {
            let mut px = large(count);
            let before = px.as_ptr();
            px.resize(count, Px::ZERO);
            assert_eq!(px.as_ptr(), before);
        }
    }
}
