//! Norms, and what convolutions need to apply them.

use pulp::{Arch, Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::math::{silu, sum};

/// How channels are normalised in groups.
#[derive(Debug, Clone, Copy)]
pub struct GroupRule {
    pub groups: usize,
    pub epsilon: f64,
}
