//! Convolutions, norms and attention of VAEs on the CPU, without a tensor library.
//!
//! # Order of data
//!
//! A [`BlockedImage`] stores 16 channels of a px next to one another, so that everything here works on vectors of channels as they are stored. The data of a
//! layer takes one path: an [`Input`] is an image with a [`Prologue`] (norm, activation, upsampling), which a [`Convolution`] applies while it reads; the
//! convolution writes its output, optionally onto a residual, and collects the [`Statistics`] that the next norm is made from. So none of these operations
//! needs a pass over memory of its own. [`attend`] takes whole images, [`Attention`] keys and values part by part.
//!
//! A group norm has two steps. [`GroupMoments`] are computed from an image, and can be merged with those of other tiles; [`Norm::group_norm`] makes a norm
//! from them.
//!
//! # Algorithms
//!
//! All convolutions are matrix products over input channels, with one driver for all [`Algorithm`]s:
//!
//! * 3x3 with stride 1: Winograd's F(4x4, 3x3) or F(2x2, 3x3), after A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (2015).
//! * 1x1, and 3x3 with stride 2: direct products.
//! * Kernels over several frames: the products of all frames are added to the same sums.
//!
//! [`Algorithm::select`] returns `None` for kernels that are not supported. Attention computes all scores of some queries, then their softmax, then the
//! products with the values.
//!
//! # Threads and instruction sets
//!
//! Work is divided among the threads of the caller's rayon pool by px and output channels, never along a sum, so that results have the same bits for any
//! number of threads. Vector instructions are chosen at run time by `pulp`; what is compiled for them is always inlined into the `with_simd` of a task. Scalar
//! code, AVX2 and AVX-512 give the same bits.
//!
//! # Modules
//!
//! Each knows only earlier ones: `lanes, math, vectors, groups < activation, memory, statistics < image < group_moments < norms < prologue < products <
//! algorithms < convolution, attention`. `unsafe` code is in `memory`, and where its functions are called.

#![expect(clippy::inline_always, reason = "functions are compiled for an instruction set where they are inlined")]

mod activation;
mod algorithms;
mod attention;
mod convolution;
mod group_moments;
mod groups;
mod image;
mod lanes;
mod math;
mod memory;
mod norms;
mod products;
mod prologue;
mod statistics;
mod vectors;

pub use activation::Activation;
pub use algorithms::{Algorithm, Padding};
pub use attention::{Attention, attend};
pub use convolution::{Convolution, TemporalWindow};
pub use group_moments::{GroupMoments, Moments};
pub use image::{BlockedImage, Part};
pub use memory::{Cancelled, Workspace};
pub use norms::Norm;
pub use prologue::{Input, Prologue};
pub use statistics::Statistics;
