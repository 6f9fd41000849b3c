//! The one place for `unsafe` here.
//!
//! A task writes the px of its tiles in each of its output channels. These stretches of memory lie between those of other tasks, so they cannot be handed
//! out as slices beforehand: [`Shared`] is written by all tasks at once, each its own px. Memory that is written from end to end is not cleared before.

#![expect(unsafe_code, reason = "see above")]

use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Where answers go.
#[derive(Debug)]
pub enum Target<'a> {
    /// Every value is written.
    Fresh(&'a mut [MaybeUninit<f32>]),
    /// Every value is added to what is there.
    Onto(&'a mut [f32]),
}

/// A target that threads share.
pub(crate) struct Shared<'a> {
    start: *mut f32,
    length: usize,
    add: bool,
    target: PhantomData<&'a mut [f32]>,
}

// SAFETY: all access goes through `put`, whose callers keep to values of their own.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(target: Target<'a>) -> Self {
        let (start, length, add) = match target {
            Target::Fresh(values) => (values.as_mut_ptr().cast(), values.len(), false),
            Target::Onto(values) => (values.as_mut_ptr(), values.len(), true),
        };
        Self { start, length, add, target: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Writes or adds values from the index `at` on.
    ///
    /// # Safety
    /// No other thread reads or writes the same values at the same time.
    ///
    /// # Panics
    /// When they reach over the end.
    #[inline(always)]
    pub(crate) unsafe fn put(&self, at: usize, values: &[f32]) {
        assert!(at <= self.length && values.len() <= self.length - at);
        // SAFETY: the range lies within the target, which is borrowed for as long as `self` lives, and is this thread's alone.
        let place = unsafe { std::slice::from_raw_parts_mut(self.start.add(at).cast::<MaybeUninit<f32>>(), values.len()) };
        if self.add {
            for (place, &value) in place.iter_mut().zip(values) {
                // SAFETY: a target that is added to is made of initialised values.
                place.write(unsafe { place.assume_init_read() } + value);
            }
        } else {
            for (place, &value) in place.iter_mut().zip(values) {
                place.write(value);
            }
        }
    }
}

/// The values of a target that a kernel has filled.
///
/// # Safety
/// Every value up to the capacity that was asked for has been written.
pub(crate) unsafe fn filled(mut values: Vec<f32>, length: usize) -> Vec<f32> {
    debug_assert!(length <= values.capacity());
    // SAFETY: the caller has written them.
    unsafe { values.set_len(length) };
    values
}

/// Has the processor fetch what lies at `at`, which it needs soon.
#[inline(always)]
pub(crate) fn prefetch(values: &[f32], at: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if let Some(value) = values.get(at) {
        // SAFETY: every x86-64 processor has the instruction, and it changes nothing.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (values, at);
}
