//! Convolutions and norms of VAEs on the CPU: plain slices in, plain slices out.
//!
//! Pictures lie as Burn's CPU backend has them: channel by channel, row by row. A [`Convolution`] normalises, activates and doubles what it reads while it
//! reads it, and adds to what is there while it writes, so that none of these takes a pass over memory of its own.
//!
//! Work is divided among the threads of the caller's rayon pool by pixels and output channels, never along a sum, so that every answer has the same bits on
//! any number of threads. Vector code for the processor at hand is chosen at run time by `pulp`: what is to become such code is always inlined into the
//! `with_simd` of a task.

#![expect(clippy::inline_always, reason = "vector code is made where a function is inlined")]

mod convolution;
mod forms;
mod math;
mod memory;
mod norms;

mod products;
mod reading;

pub use convolution::{Convolution, Course, Strides};
pub use forms::Form;

pub use memory::Target;
pub use norms::{GroupRule, normalise_groups, normalise_pixels};
pub use reading::{Frame, Norm};

/// Tiles (or px) side by side that go through everything together.
const CHUNK: usize = 16;
/// Chunks that go through the products together: with eight output channels, their sums fit 32 registers of 16 values, with four 16 of 8.
const CHUNKS: usize = 3;
/// Output channels whose kernels lie side by side.
const OCT: usize = 8;

/// One value of each tile of a chunk.
type Chunk = [f32; CHUNK];

/// One value of each tile of a panel.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Row([Chunk; CHUNKS]);

impl Row {
    const ZERO: Self = Self([[0.0; CHUNK]; CHUNKS]);
}
