//! Memory that a run takes and returns, counted by the allocator. A program of its own, because other tests would be counted too.

#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

use burn::tensor::{DType, Device};
use tiling::{HostTensor, Stop, TileOp};
use vae_core::{Model, Registry, VaeEntry, VaeOp};

struct Counting;

static HELD: AtomicIsize = AtomicIsize::new(0);
static LARGE: AtomicUsize = AtomicUsize::new(0);

/// Bytes from which on the kernels keep a block for the next one.
const LARGE_BYTES: usize = 4 << 20;

fn count(bytes: isize) {
    HELD.fetch_add(bytes, Ordering::Relaxed);
    if bytes >= LARGE_BYTES.cast_signed() {
        LARGE.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ENTRY: VaeEntry = VaeEntry::of::<vae_wan::Wan>("vae-wan");

/// Runs a clip in its pieces. Large blocks that each piece had from the system.
fn large_blocks(op: &dyn TileOp, clip: &HostTensor) -> Vec<usize> {
    let mut run = op.begin(&[0], &Stop::default());
    let piece = |frames: std::ops::Range<usize>| {
        let piece = op.upload(clip.frames(frames.start, frames.len())).unwrap();
        let before = LARGE.load(Ordering::Relaxed);
        let answer = run(piece).unwrap();
        let taken = LARGE.load(Ordering::Relaxed) - before;
        assert!(op.download(answer).unwrap().data().iter().all(|value| value.is_finite()));
        taken
    };
    op.chunks(clip.shape()[2]).into_iter().map(piece).collect()
}

#[test]
fn a_run_takes_blocks_again_and_leaves_none() {
    for (name, side, at_most) in [("wan21", 64, [16, 15]), ("wan22", 48, [21, 8])] {
        let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
        let registry = Registry::from_entries([&ENTRY]).unwrap();
        let model = Model::open(&registry, path.as_ref(), "wan", None).unwrap();
        let vae: std::sync::Arc<dyn vae_core::Vae> = model.load(&Device::flex(), DType::F32).unwrap().into();
        let spec = vae.spec();
        let noise = |shape| HostTensor::from_fn(shape, |[_, c, t, y, x]| ((c * 31 + t * 7 + y * 17 + x * 3) % 23) as f32 / 11.0 - 1.0);
        let latents = noise([1, spec.latent_channels, 5, side, side]);
        let samples = noise([1, spec.input_channels, 17, side * spec.spatial_ratio, side * spec.spatial_ratio]);
        let decode = VaeOp::decode(vae.clone());
        let encode = VaeOp::encode(vae.clone());
        for ((op, clip), at_most) in [(&decode as &dyn TileOp, &latents), (&encode, &samples)].into_iter().zip(at_most) {
            let before = HELD.load(Ordering::Relaxed);
            let taken = large_blocks(op, clip);
            let held = HELD.load(Ordering::Relaxed) - before;
            assert!(held < 1 << 20, "{name}: {held} bytes are held after a run");
            assert!(taken[2..].iter().all(|&taken| taken <= at_most), "{name}: {taken:?}");
        }
    }
}
