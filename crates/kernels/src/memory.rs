//! Memory of images and tasks; the only `unsafe` code of the crate.
//!
//! A task of a convolution writes the px of its tiles in each of its blocks of output channels. These ranges interleave with those of other tasks, so they
//! cannot be handed out as mutable slices: all tasks write to one [`SharedBuffers`], each to px of its own. Memory that is overwritten entirely is not
//! cleared before.

#![expect(unsafe_code, reason = "concurrent writes to disjoint px, uninitialised output, and functions of the system")]

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::lanes::Lanes;

/// Values that can be added in place.
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

/// Buffers of equal length that several threads write to at once.
pub(crate) struct SharedBuffers<T> {
    buffers: Vec<Vec<T>>,
    starts: Vec<*mut T>,
    length: usize,
}

// SAFETY: all access goes through `write`, whose callers do not access the same values at once.
unsafe impl<T: Send> Sync for SharedBuffers<T> {}

impl SharedBuffers<Lanes> {
    /// Uninitialised buffers.
    pub(crate) fn uninitialised(count: usize, length: usize, workspace: &Workspace) -> Self {
        Self::new((0..count).map(|_| workspace.allocate(length)).collect(), length)
    }

    /// Multiplies the px of the first buffer from the index `at` on by a factor each, and adds `px`.
    ///
    /// # Safety
    /// No other thread reads or writes the same px at the same time, and those in the buffer are initialised.
    ///
    /// # Panics
    /// When the range reaches beyond the end of the buffer.
    #[inline(always)]
    pub(crate) unsafe fn add_to_scaled(&self, at: usize, px: &[Lanes], factors: &[f32]) {
        assert!(at <= self.length && px.len() <= self.length - at);
        // SAFETY: the range lies within the buffer, which `self` owns, and no other thread accesses it.
        let places = unsafe { std::slice::from_raw_parts_mut(self.starts[0].add(at), px.len()) };
        for ((place, px), &factor) in places.iter_mut().zip(px).zip(factors) {
            for (place, &value) in place.0.iter_mut().zip(&px.0) {
                *place = place.mul_add(factor, value);
            }
        }
    }
}

impl<T: Value> SharedBuffers<T> {
    /// Buffers whose values can be added to.
    pub(crate) fn initialised(buffers: Vec<Vec<T>>) -> Self {
        let length = buffers.first().map_or(0, Vec::len);
        assert!(buffers.iter().all(|buffer| buffer.len() == length), "buffers differ in length");
        Self::new(buffers, length)
    }

    fn new(mut buffers: Vec<Vec<T>>, length: usize) -> Self {
        let starts = buffers.iter_mut().map(Vec::as_mut_ptr).collect();
        Self { buffers, starts, length }
    }

    /// Number of buffers, and the length of each.
    pub(crate) fn size(&self) -> [usize; 2] {
        [self.starts.len(), self.length]
    }

    /// Writes values to a buffer from the index `at` on. With `add` they are added to the values in the buffer, and `values` become the sums.
    ///
    /// # Safety
    /// No other thread reads or writes the same values at the same time. With `add` the values in the buffer are initialised.
    ///
    /// # Panics
    /// When the range reaches beyond the end of the buffer.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, buffer: usize, at: usize, values: &mut [T], add: bool) {
        assert!(at <= self.length && values.len() <= self.length - at);
        // SAFETY: the range lies within the buffer, which `self` owns, and no other thread accesses it.
        let first = unsafe { self.starts[buffer].add(at) };
        for (index, value) in values.iter_mut().enumerate() {
            // SAFETY: as above; what is read is initialised.
            unsafe {
                let place = first.add(index);
                if add {
                    *value = value.plus(place.read());
                }
                place.write(*value);
            }
        }
    }

    /// Copies values to a buffer from the index `at` on.
    ///
    /// # Safety
    /// No other thread reads or writes the same values at the same time.
    ///
    /// # Panics
    /// When the range reaches beyond the end of the buffer.
    pub(crate) unsafe fn copy(&self, buffer: usize, at: usize, values: &[T]) {
        assert!(at <= self.length && values.len() <= self.length - at);
        // SAFETY: the range lies within the buffer, which `self` owns, and no other thread accesses it; it cannot overlap with `values`, which are borrowed.
        unsafe { self.starts[buffer].add(at).copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    }

    /// The buffers as vectors.
    ///
    /// # Safety
    /// Every value has been written.
    pub(crate) unsafe fn into_vecs(self) -> Vec<Vec<T>> {
        let Self { mut buffers, length, .. } = self;
        for buffer in &mut buffers {
            debug_assert!(length <= buffer.capacity());
            // SAFETY: the caller has written all values.
            unsafe { buffer.set_len(length) };
        }
        buffers
    }
}

/// Smallest allocation that is recycled: 4 MiB.
const MIN_RECYCLED: usize = (4 << 20) / size_of::<Lanes>();

/// The state of one run of a model: recycled memory, and whether the run is cancelled. Clones share one state.
///
/// The operating system clears the memory that it hands out, which takes longer than some layers do. Therefore the memory of dropped images is recycled for
/// later ones. Every image belongs to a workspace, and what is computed from it belongs to the same. When the last image and the last clone are dropped, all
/// memory returns to the system.
#[derive(Clone, Default)]
pub struct Workspace(Arc<Inner>);

#[derive(Default)]
struct Inner {
    free: Mutex<FreeList>,
    /// Initialised scratch memory that no task uses.
    scratch: Mutex<Vec<Vec<Lanes>>>,
    is_cancelled: Option<Box<dyn Fn() -> bool + Send + Sync>>,
}

/// Large allocations. Free ones are retained as long as free and used ones together do not exceed the peak of the used ones, so that recycling does not
/// raise the peak of memory.
#[derive(Default)]
struct FreeList {
    /// Free allocations, the oldest first.
    free: Vec<Vec<Lanes>>,
    /// Total capacity of the allocations in use, in `Lanes`.
    used: usize,
    /// The largest value of `used` so far.
    peak: usize,
}

impl FreeList {
    fn free_capacity(&self) -> usize {
        self.free.iter().map(Vec::capacity).sum()
    }

    /// A free allocation of about that capacity if there is one, and those that are to be returned to the system.
    fn take(&mut self, count: usize) -> (Option<Vec<Lanes>>, Vec<Vec<Lanes>>) {
        // Tiles differ by the few rows and columns that they share with others.
        let fits = |lanes: &Vec<Lanes>| (count..=count + count / 32).contains(&lanes.capacity());
        let found = self.free.iter().rposition(fits).map(|at| self.free.remove(at));
        self.used += found.as_ref().map_or(count, Vec::capacity);
        self.peak = self.peak.max(self.used);
        let mut excess = (self.free_capacity() + self.used).saturating_sub(self.peak);
        let oldest = self.free.iter().take_while(|lanes| {
            let is_returned = excess > 0;
            excess = excess.saturating_sub(lanes.capacity());
            is_returned
        });
        let oldest = oldest.count();
        (found, self.free.drain(..oldest).collect())
    }

    fn release(&mut self, lanes: Vec<Lanes>) {
        self.used = self.used.saturating_sub(lanes.capacity());
        self.free.push(lanes);
    }
}

/// The payload with which kernels unwind when their workspace is cancelled. No panic hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancelled;

impl fmt::Debug for Workspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Workspace")
    }
}

impl Workspace {
    /// A workspace whose kernels unwind with [`Cancelled`] soon after `is_cancelled` returns true. Every task calls it, on any thread.
    pub fn cancellable(is_cancelled: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { is_cancelled: Some(Box::new(is_cancelled)), ..Inner::default() }))
    }

    /// Unwinds with [`Cancelled`] if the run is cancelled.
    pub fn check(&self) {
        if self.0.is_cancelled.as_ref().is_some_and(|is_cancelled| is_cancelled()) {
            std::panic::resume_unwind(Box::new(Cancelled));
        }
    }

    /// Takes back an allocation.
    fn recycle(&self, mut lanes: Vec<Lanes>) {
        if lanes.capacity() >= MIN_RECYCLED {
            lanes.clear();
            lock(&self.0.free).release(lanes);
        }
    }

    /// An empty vector with a capacity of `count`, recycled or new.
    pub(crate) fn allocate(&self, count: usize) -> Vec<Lanes> {
        if count >= MIN_RECYCLED {
            let (found, returned) = lock(&self.0.free).take(count);
            drop(returned);
            if let Some(lanes) = found {
                return lanes;
            }
        }
        allocate_from_system(count)
    }

    /// Gives memory that is free back to the system, with what the C library keeps for later allocations.
    pub fn return_free_memory(&self) {
        let free = std::mem::take(&mut lock(&self.0.free).free);
        drop(free);
        drop(std::mem::take(&mut *lock(&self.0.scratch)));
        #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
        // SAFETY: malloc_trim takes a plain integer, and may be called at any time.
        unsafe {
            libc::malloc_trim(0);
        }
    }

    /// Scratch memory of a task.
    pub(crate) fn scratch(&self) -> Scratch {
        Scratch { lanes: Vec::new(), workspace: self.clone() }
    }

    /// Bytes that are free to be used again.
    #[cfg(test)]
    pub(crate) fn free_bytes(&self) -> usize {
        (lock(&self.0.free).free_capacity() + lock(&self.0.scratch).iter().map(Vec::capacity).sum::<usize>()) * size_of::<Lanes>()
    }
}

/// Poisoning is ignored: no code that may panic runs between two changes of one list.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory that its workspace recycles when it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    lanes: Vec<Lanes>,
    workspace: Workspace,
}

impl Buffer {
    pub(crate) fn new(lanes: Vec<Lanes>, workspace: Workspace) -> Self {
        Self { lanes, workspace }
    }

    pub(crate) fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Its memory, which is no longer recycled.
    pub(crate) fn into_lanes(mut self) -> Vec<Lanes> {
        std::mem::take(&mut self.lanes)
    }
}

impl Deref for Buffer {
    type Target = [Lanes];

    fn deref(&self) -> &[Lanes] {
        &self.lanes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.workspace.recycle(std::mem::take(&mut self.lanes));
    }
}

/// Memory that returns to its workspace with its contents. It belongs to a task, not to a thread, since a thread that waits within one task may run another.
pub(crate) struct Scratch {
    lanes: Vec<Lanes>,
    workspace: Workspace,
}

impl Scratch {
    /// Memory of a length, with arbitrary contents.
    pub(crate) fn lanes(&mut self, count: usize) -> &mut [Lanes] {
        if self.lanes.len() < count {
            self.release();
            let mut free = lock(&self.workspace.0.scratch);
            let sizes = || free.iter().map(Vec::len).enumerate();
            let smallest = sizes().filter(|&(_, size)| size >= count).min_by_key(|&(_, size)| size);
            // If all are too small, the largest is replaced by a new one.
            let found = smallest.or_else(|| sizes().max_by_key(|&(_, size)| size));
            self.lanes = found.map(|(at, _)| free.swap_remove(at)).unwrap_or_default();
            drop(free);
            if self.lanes.len() < count {
                self.lanes = Vec::new();
                self.lanes = allocate_from_system(count);
                self.lanes.resize(count, Lanes::ZERO);
            }
        }
        &mut self.lanes[..count]
    }

    fn release(&mut self) {
        if !self.lanes.is_empty() {
            lock(&self.workspace.0.scratch).push(std::mem::take(&mut self.lanes));
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.release();
    }
}

/// Asks for huge pages where the system has them, which saves misses of the processor's translation buffer.
fn allocate_from_system(count: usize) -> Vec<Lanes> {
    let lanes: Vec<Lanes> = Vec::with_capacity(count);
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        const PAGE: usize = 2 << 20;
        let start = lanes.as_ptr().addr().next_multiple_of(PAGE);
        let end = (lanes.as_ptr().addr() + count * size_of::<Lanes>()) / PAGE * PAGE;
        if start < end {
            // SAFETY: the pages lie within the memory that was just allocated. The advice does not change their contents, and may be refused.
            unsafe { libc::madvise(lanes.as_ptr().with_addr(start).cast_mut().cast(), end - start, libc::MADV_HUGEPAGE) };
        }
    }
    lanes
}

#[cfg(test)]
mod tests;
