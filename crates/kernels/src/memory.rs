//! The one place for `unsafe` here.
//!
//! A task writes the px of its tiles in each block of its output channels. These stretches of memory lie between those of other tasks, so they cannot be
//! handed out as slices beforehand: [`Shared`] is written by all tasks at once, each its own px. Memory that is written from end to end is not cleared before.

#![expect(unsafe_code, reason = "see above")]

use crate::Px;

/// Images that threads write together.
pub(crate) struct Shared {
    images: Vec<Vec<Px>>,
    starts: Vec<*mut Px>,
    length: usize,
    add: bool,
}

// SAFETY: all access goes through `put`, whose callers keep to px of their own.
unsafe impl Sync for Shared {}

impl Shared {
    /// Images of `length` px that are not written yet.
    pub(crate) fn fresh(count: usize, length: usize) -> Self {
        Self::new((0..count).map(|_| large(length)).collect(), length, false)
    }

    /// Images that are added to.
    pub(crate) fn onto(images: Vec<Vec<Px>>) -> Self {
        let length = images.first().map_or(0, Vec::len);
        assert!(images.iter().all(|image| image.len() == length));
        Self::new(images, length, true)
    }

    fn new(mut images: Vec<Vec<Px>>, length: usize, add: bool) -> Self {
        let starts = images.iter_mut().map(Vec::as_mut_ptr).collect();
        Self { images, starts, length, add }
    }

    /// Images and the px of each.
    pub(crate) fn size(&self) -> [usize; 2] {
        [self.starts.len(), self.length]
    }

    /// Writes or adds px of an image from the index `at` on.
    ///
    /// # Safety
    /// No other thread reads or writes the same px at the same time.
    ///
    /// # Panics
    /// When they reach over the end.
    #[inline(always)]
    pub(crate) unsafe fn put(&self, image: usize, at: usize, px: &[Px]) {
        assert!(at <= self.length && px.len() <= self.length - at);
        // SAFETY: the px lie within the image's memory, which `self` keeps, and are this thread's alone.
        let first = unsafe { self.starts[image].add(at) };
        for (index, &(mut px)) in px.iter().enumerate() {
            // SAFETY: see above; an image that is added to is made of initialised px.
            unsafe {
                if self.add {
                    let before = *first.add(index);
                    for (value, before) in px.0.iter_mut().zip(before.0) {
                        *value += before;
                    }
                }
                first.add(index).write(px);
            }
        }
    }

    /// The images.
    ///
    /// # Safety
    /// Every px has been written.
    pub(crate) unsafe fn finish(self) -> Vec<Vec<Px>> {
        let Self { mut images, length, .. } = self;
        for image in &mut images {
            debug_assert!(length <= image.capacity());
            // SAFETY: the caller has written them.
            unsafe { image.set_len(length) };
        }
        images
    }
}

/// Room for so many px. Where the system can, large blocks lie in large pages, of which a processor remembers where they are.
pub(crate) fn large(count: usize) -> Vec<Px> {
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
