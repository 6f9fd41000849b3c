//! The one place for `unsafe` here.
//!
//! A task writes the px of its tiles in each block of its output channels. These stretches of memory lie between those of other tasks, so they cannot be
//! handed out as slices beforehand: [`Shared`] is written by all tasks at once, each its own px. Memory that is written from end to end is not cleared before.

#![expect(unsafe_code, reason = "see above")]

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Lanes;

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

impl Value for Lanes {
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

impl Shared<Lanes> {
    /// Lists of `length` px that are not written yet.
    pub(crate) fn fresh(count: usize, length: usize, workspace: &Workspace) -> Self {
        Self::new((0..count).map(|_| workspace.room(length)).collect(), length)
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

/// Lanes that a block has at least to be kept for the next one of its size.
const KEPT_PX: usize = (4 << 20) / size_of::<Lanes>();

/// What one run of a model has of its own: memory that goes from image to image, and the question whether to go on. Clones are one workspace.
///
/// Blocks that the system gives it fills with zeros first, which takes longer than some layers: so those of images that are gone are kept for images to come.
/// Every image knows the workspace that it was made in, and what is made of it is made there, too. With the last image and the last clone all memory goes back
/// to the system.
#[derive(Clone, Default)]
pub struct Workspace(Arc<Inner>);

#[derive(Default)]
struct Inner {
    blocks: Mutex<Blocks>,
    /// What no task uses, written from end to end.
    scratch: Mutex<Vec<Vec<Lanes>>>,
    is_cancelled: Option<Box<dyn Fn() -> bool + Send + Sync>>,
}

/// Large blocks. Those that nobody uses are kept as far as all together are no larger than those in use have been at the most: what is kept takes no memory
/// that was not needed anyway.
#[derive(Default)]
struct Blocks {
    /// That nobody uses, the oldest first.
    kept: Vec<Vec<Lanes>>,
    /// Lanes of blocks in use, now and at the most.
    used: usize,
    peak: usize,
}

impl Blocks {
    fn kept_px(&self) -> usize {
        self.kept.iter().map(Vec::capacity).sum()
    }

    /// One of that size, if it is kept, and those that go to the system for it.
    fn take(&mut self, count: usize) -> (Option<Vec<Lanes>>, Vec<Vec<Lanes>>) {
        self.used += count;
        self.peak = self.peak.max(self.used);
        let found = self.kept.iter().rposition(|px| px.capacity() == count).map(|at| self.kept.remove(at));
        let mut over = (self.kept_px() + self.used).saturating_sub(self.peak);
        let oldest = self.kept.iter().take_while(|px| {
            let goes = over > 0;
            over = over.saturating_sub(px.capacity());
            goes
        });
        let oldest = oldest.count();
        (found, self.kept.drain(..oldest).collect())
    }

    fn give_back(&mut self, px: Vec<Lanes>) {
        self.used = self.used.saturating_sub(px.capacity());
        self.kept.push(px);
    }
}

/// With this as its payload a panic leaves kernels whose workspace is cancelled. No panic hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancelled;

impl fmt::Debug for Workspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Workspace")
    }
}

impl Workspace {
    /// A workspace whose kernels end, by unwinding with [`Cancelled`], soon after `is_cancelled` says so. It is asked by every task, on any thread.
    pub fn cancellable(is_cancelled: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { is_cancelled: Some(Box::new(is_cancelled)), ..Inner::default() }))
    }

    /// Unwinds with [`Cancelled`] when there is no use in going on.
    pub fn check(&self) {
        if self.0.is_cancelled.as_ref().is_some_and(|is_cancelled| is_cancelled()) {
            std::panic::resume_unwind(Box::new(Cancelled));
        }
    }

    /// Keeps a block for the next one of its size.
    fn keep(&self, mut px: Vec<Lanes>) {
        if px.capacity() >= KEPT_PX {
            px.clear();
            lock(&self.0.blocks).give_back(px);
        }
    }

    /// Room for so many px.
    pub(crate) fn room(&self, count: usize) -> Vec<Lanes> {
        if count >= KEPT_PX {
            let (found, over) = lock(&self.0.blocks).take(count);
            drop(over);
            if let Some(px) = found {
                return px;
            }
        }
        from_system(count)
    }

    /// What a task needs for itself.
    pub(crate) fn scratch(&self) -> Scratch {
        Scratch { px: Vec::new(), workspace: self.clone() }
    }

    /// Bytes that nobody uses.
    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> usize {
        (lock(&self.0.blocks).kept_px() + lock(&self.0.scratch).iter().map(Vec::capacity).sum::<usize>()) * size_of::<Lanes>()
    }
}

/// A panic while memory is kept leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lanes whose memory goes back to their workspace.
#[derive(Debug)]
pub(crate) struct Buffer {
    px: Vec<Lanes>,
    workspace: Workspace,
}

impl Buffer {
    pub(crate) fn new(px: Vec<Lanes>, workspace: Workspace) -> Self {
        Self { px, workspace }
    }

    pub(crate) fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    pub(crate) fn into_px(mut self) -> Vec<Lanes> {
        std::mem::take(&mut self.px)
    }
}

impl Deref for Buffer {
    type Target = [Lanes];

    fn deref(&self) -> &[Lanes] {
        &self.px
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.workspace.keep(std::mem::take(&mut self.px));
    }
}

/// Memory that goes back to its workspace as it was left. It belongs to a task, not to a thread: a thread that waits within one task may take on another.
pub(crate) struct Scratch {
    px: Vec<Lanes>,
    workspace: Workspace,
}

impl Scratch {
    /// So many px, with whatever was left in them.
    pub(crate) fn px(&mut self, count: usize) -> &mut [Lanes] {
        if self.px.len() < count {
            self.give_back();
            let mut kept = lock(&self.workspace.0.scratch);
            let sizes = || kept.iter().map(Vec::len).enumerate();
            let smallest = sizes().filter(|&(_, size)| size >= count).min_by_key(|&(_, size)| size);
            // One that is too small is replaced.
            let found = smallest.or_else(|| sizes().max_by_key(|&(_, size)| size));
            self.px = found.map(|(at, _)| kept.swap_remove(at)).unwrap_or_default();
            drop(kept);
            if self.px.len() < count {
                self.px = Vec::new();
                self.px = from_system(count);
                self.px.resize(count, Lanes::ZERO);
            }
        }
        &mut self.px[..count]
    }

    fn give_back(&mut self) {
        if !self.px.is_empty() {
            lock(&self.workspace.0.scratch).push(std::mem::take(&mut self.px));
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Where the system can, large blocks lie in large pages, of which a processor remembers where they are.
fn from_system(count: usize) -> Vec<Lanes> {
    let px: Vec<Lanes> = Vec::with_capacity(count);
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        const PAGE: usize = 2 << 20;
        let start = px.as_ptr().addr().next_multiple_of(PAGE);
        let end = (px.as_ptr().addr() + count * size_of::<Lanes>()) / PAGE * PAGE;
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
    use crate::BlockedImage;

    #[test]
    fn threads_write_and_add_side_by_side() {
        const PER_THREAD: usize = 3;
        let of = |at: usize| Lanes([at as f32; 16]);
        let shared = Shared::fresh(2, 4 * PER_THREAD, &Workspace::default());
        assert_eq!(shared.size(), [2, 12]);
        let write = |thread: usize, add: bool| {
            for list in 0..2 {
                let first = thread * PER_THREAD;
                let mut px: Vec<Lanes> = (first..first + PER_THREAD).map(|at| of(at + list)).collect();
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

    fn image(channels: usize, size: [usize; 2], workspace: &Workspace) -> BlockedImage {
        BlockedImage::zeros(channels, size, workspace)
    }

    #[test]
    fn blocks_go_to_the_next_of_their_size() {
        let (workspace, size) = (Workspace::default(), [300, 300]);
        let first = image(16, size, &workspace);
        let place = first.px().as_ptr();
        drop(first.clone());
        assert_eq!(workspace.kept_bytes(), 0);
        drop(first);
        assert_eq!(workspace.kept_bytes(), 300 * 300 * size_of::<Lanes>());
        let next = image(16, size, &workspace);
        assert_eq!(next.px().as_ptr(), place);
        assert_eq!(workspace.kept_bytes(), 0);
    }

    #[test]
    fn no_more_is_kept_than_has_been_in_use() {
        let workspace = Workspace::default();
        let kept_rows = || workspace.kept_bytes() / size_of::<Lanes>() / 1000;
        let rows = |rows: usize| image(16, [rows, 1000], &workspace);
        drop([rows(100), rows(200)]);
        assert_eq!(kept_rows(), 300);
        // The oldest go.
        let other = rows(150);
        assert_eq!(kept_rows(), 0);
        drop(other);
        let [first, second, third] = [rows(100), rows(70), rows(80)];
        assert_eq!(kept_rows(), 0);
        drop((first, second));
        assert_eq!(kept_rows(), 170);
        let fourth = rows(90);
        assert_eq!(kept_rows(), 70);
        // What is small does not count.
        drop(rows(1));
        assert_eq!(kept_rows(), 70);
        drop((third, fourth));
        assert_eq!(kept_rows(), 240);
    }

    #[test]
    fn nothing_is_kept_beyond_the_last_image() {
        let workspace = Workspace::default();
        let remembered = Arc::downgrade(&workspace.0);
        workspace.scratch().px(123);
        let [first, last] = [image(16, [300, 300], &workspace), image(16, [300, 300], &workspace)];
        drop(workspace);
        drop(first);
        let kept = remembered.upgrade().map(|inner| Workspace(inner).kept_bytes());
        assert_eq!(kept, Some((123 + 300 * 300) * size_of::<Lanes>()));
        drop(last);
        assert!(remembered.upgrade().is_none());
    }

    #[test]
    fn scratch_is_kept_by_its_size() {
        let workspace = Workspace::default();
        let [mut small, mut large] = [(); 2].map(|()| workspace.scratch());
        small.px(10).fill(Lanes([1.0; 16]));
        large.px(1000).fill(Lanes([2.0; 16]));
        drop((small, large));
        let mut scratch = workspace.scratch();
        assert_eq!(scratch.px(5), [Lanes([1.0; 16]); 5]);
        assert_eq!(scratch.px(11), [Lanes([2.0; 16]); 11]);
        assert_eq!(scratch.px(1001), vec![Lanes::ZERO; 1001]);
        drop(scratch);
        assert_eq!(workspace.kept_bytes(), (10 + 1001) * size_of::<Lanes>());
    }

    #[test]
    fn large_blocks_are_as_large_as_asked() {
        for count in [0, 1, (5 << 20) / size_of::<Lanes>()] {
            let mut px = Workspace::default().room(count);
            let before = px.as_ptr();
            px.resize(count, Lanes::ZERO);
            assert_eq!(px.as_ptr(), before);
        }
    }
}
