//! Convolutions, norms and attention of VAEs on the CPU, for pictures whose channels lie in blocks.
//!
//! An [`BlockedImage`] holds 16 channels of a px side by side, so that everything here works on vectors of channels as they lie. A [`Convolution`] normalises,
//! activates and doubles what it reads while it reads it, and adds to what is there while it writes, so that none of these takes a pass over memory of its
//! own.
//!
//! Work is divided among the threads of the caller's rayon pool by px and output channels, never along a sum, so that every answer has the same bits on any
//! number of threads. Vector code for the processor at hand is chosen at run time by `pulp`: what is to become such code is always inlined into the
//! `with_simd` of a task.

#![expect(clippy::inline_always, reason = "vector code is made where a function is inlined")]

mod algorithms;
mod attention;
mod convolution;
mod image;
mod math;
mod memory;
mod norms;
mod products;
mod reading;
mod vectors;

pub use algorithms::Algorithm;
pub use attention::attend;
pub use convolution::{Convolution, TemporalWindow};
pub use image::BlockedImage;
pub use memory::{Cancelled, Workspace};
pub use norms::{Gather, GroupRule, Norm};
pub use reading::Input;

/// Channels that lie side by side.
const LANES: usize = 16;
/// Tiles (or px) that go through the products together.
const TILES: usize = 8;

/// The channels of a block in one px.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
struct Lanes([f32; LANES]);

impl Lanes {
    const ZERO: Self = Self([0.0; LANES]);
}

/// Where a list of values for each channel is filled up with zeros.
fn padded(values: &[f32]) -> Vec<Lanes> {
    let px = |values: &[f32]| Lanes(std::array::from_fn(|lane| values.get(lane).copied().unwrap_or(0.0)));
    values.chunks(LANES).map(px).collect()
}
