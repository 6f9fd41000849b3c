//! How a convolution becomes matrix products: which values of the input are multiplied, and how the output follows from the sums.
//!
//! 3x3 kernels with stride 1 use Winograd's minimal filtering. The output is divided into tiles of 4x4 or 2x2 px. A tile of the input, with a border of one
//! px, and the kernels are transformed, multiplied at each position of the transformed tile, summed over the input channels (a matrix product at each
//! position), and the sums are transformed back. That takes 36 products in place of 144 for 16 px, or 16 in place of 36 for 4 px.
//!
//! Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), F(4x4, 3x3) and F(2x2, 3x3). The transforms are those of Toom
//! and Cook for the points 0, 3/4, -3/4, 3/2, -3/2 and infinity, whose rounding error is smaller than that of the usual 0, 1, -1, 2, -2; and for 0, 1, -1 and
//! infinity.

use pulp::Simd;

use crate::lanes::Lanes;
use crate::products::MAX_PAIRS;
use crate::prologue::Lines;
use crate::vectors::{load, per_lanes, store};

/// 4x4 tiles of an output from which on [`Algorithm::WinogradF4`] is faster than [`Algorithm::WinogradF2`]. With fewer the transform of the kernels takes
/// more time than the saved products.
const MIN_F4_TILES: usize = 26;

/// How a kernel is convolved over height and width. Zero padding is up to the [`Convolution`](crate::Convolution).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// 3x3, stride 1, by Winograd's F(4x4, 3x3): 2.25 products per px and pair of channels, with about twice the rounding error of direct products.
    WinogradF4,
    /// 3x3, stride 1, by Winograd's F(2x2, 3x3): 4 products per px and pair of channels, with less rounding error than direct products have.
    WinogradF2,
    /// 1x1, stride 1, by direct products.
    Pointwise,
    /// 3x3, stride 2, by direct products.
    Downsample2x,
}

impl Algorithm {
    /// The fastest algorithm for a kernel with these frames, height and width, these strides over height and width, and an output of this height and width.
    /// [`Algorithm::WinogradF4`] is taken only if the larger rounding error is allowed.
    ///
    /// `None`: this crate has no algorithm for such a kernel, and the caller needs another implementation.
    #[must_use]
    pub fn select(kernel: [usize; 3], stride: [usize; 2], output_size: [usize; 2], allow_f4: bool) -> Option<Self> {
        let [kernel_frames, kernel @ ..] = kernel;
        if !(1..=MAX_PAIRS).contains(&kernel_frames) {
            return None;
        }
        let [rows, columns] = output_size.map(|side| side.div_ceil(4));
        match (kernel, stride) {
            ([1, 1], [1, 1]) => Some(Self::Pointwise),
            ([3, 3], [1, 1]) if allow_f4 && rows * columns >= MIN_F4_TILES => Some(Self::WinogradF4),
            ([3, 3], [1, 1]) => Some(Self::WinogradF2),
            ([3, 3], [2, 2]) => Some(Self::Downsample2x),
            _ => None,
        }
    }

    /// Height and width of the kernel.
    #[must_use]
    pub fn kernel_side(self) -> usize {
        if self == Self::Pointwise { 1 } else { 3 }
    }

    /// Input px from one px of the output to the next, in both directions.
    #[must_use]
    pub fn stride(self) -> usize {
        if self == Self::Downsample2x { 2 } else { 1 }
    }

    /// Height and width of the output for those of the input: 0 where the padded input is smaller than the kernel.
    #[must_use]
    pub fn output_size(self, [height, width]: [usize; 2], padding: Padding) -> [usize; 2] {
        let Padding { top, bottom, left, right } = padding;
        let padded = [height.saturating_add_signed(top + bottom), width.saturating_add_signed(left + right)];
        padded.map(|side| (side + self.stride()).saturating_sub(self.kernel_side()) / self.stride())
    }
}

/// Rows and columns of zeros around the input of a convolution, in px. Where it is negative, so many are not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Padding {
    /// Rows above.
    pub top: isize,
    /// Rows below.
    pub bottom: isize,
    /// Columns to the left.
    pub left: isize,
    /// Columns to the right.
    pub right: isize,
}

impl Padding {
    /// No padding.
    pub const NONE: Self = Self::all(0);
    /// One px at the bottom and to the right, as diffusers pads before a convolution with stride 2.
    pub const BOTTOM_RIGHT: Self = Self { bottom: 1, right: 1, ..Self::NONE };

    /// The same on all four sides.
    #[must_use]
    pub const fn all(px: isize) -> Self {
        Self { top: px, bottom: px, left: px, right: px }
    }
}

/// Where a transformed tile of a block of input channels is stored.
pub(crate) struct TileTarget<'a> {
    pub(crate) transformed: &'a mut [Lanes],
    /// Distance from one position of the transformed tile to the next.
    pub(crate) position_stride: usize,
    /// Distance from one unrolled px to the next.
    pub(crate) unrolled_stride: usize,
    pub(crate) first: usize,
}

/// The sums of a tile in a block of output channels.
#[derive(Clone, Copy)]
pub(crate) struct TileSums<'a> {
    pub(crate) lanes: &'a [Lanes],
    /// Distance from one position of the transformed tile to the next.
    pub(crate) position_stride: usize,
    pub(crate) first: usize,
}

/// An algorithm as the tasks of a convolution use it. `OUT` is the side of an output tile in px.
pub(crate) trait TileAlgorithm<const OUT: usize>: Copy + Sync {
    /// Input px from one tile to the next.
    const STEP: usize;
    /// Side of an input tile in px.
    const IN: usize;
    /// Positions of a transformed tile, each of which is a matrix product.
    const POSITIONS: usize;
    /// Input px that one product sums over (`im2col`).
    const UNROLLED: usize;

    /// Transforms the kernels of an input channel for a block of output channels: `[POSITIONS, UNROLLED]`.
    fn kernels<S: Simd>(simd: S, kernel: &[Lanes], transformed: &mut [Lanes]);

    /// Transforms the input tile that begins at a line and column.
    fn input<S: Simd>(simd: S, lines: &Lines, at: [usize; 2], target: TileTarget);

    /// The output tile, row by row, from the sums at each position.
    fn output<S: Simd>(simd: S, sums: TileSums) -> [[Lanes; OUT]; OUT];
}

/// [`Algorithm::WinogradF4`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct WinogradF4;
/// [`Algorithm::WinogradF2`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct WinogradF2;
/// [`Algorithm::Pointwise`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pointwise;
/// [`Algorithm::Downsample2x`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Downsample2x;

/// The transforms along one axis of a tile: `IN` px to `IN` positions, and `IN` sums to `OUT` px.
trait Axis<const OUT: usize, const IN: usize> {
    fn input<S: Simd>(simd: S, d: [S::f32s; IN]) -> [S::f32s; IN];
    fn output<S: Simd>(simd: S, m: [S::f32s; IN]) -> [S::f32s; OUT];
}

/// The points of F(4x4, 3x3) besides 0 and infinity: these and their negatives.
const P: f64 = 0.75;
const Q: f64 = 1.5;

impl TileAlgorithm<4> for WinogradF4 {
    const STEP: usize = 4;
    const IN: usize = 6;
    const POSITIONS: usize = 36;
    const UNROLLED: usize = 1;

    #[inline(always)]
    fn kernels<S: Simd>(simd: S, kernel: &[Lanes], transformed: &mut [Lanes]) {
        transform_kernels::<S, 6>(simd, kernel, const { &points([0.0, P, -P, Q, -Q]) }, transformed);
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, lines: &Lines, at: [usize; 2], target: TileTarget) {
        winograd_input::<S, Self, 4, 6>(simd, lines, at, target);
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, sums: TileSums) -> [[Lanes; 4]; 4] {
        winograd_output::<S, Self, 4, 6>(simd, sums)
    }
}

impl TileAlgorithm<2> for WinogradF2 {
    const STEP: usize = 2;
    const IN: usize = 4;
    const POSITIONS: usize = 16;
    const UNROLLED: usize = 1;

    #[inline(always)]
    fn kernels<S: Simd>(simd: S, kernel: &[Lanes], transformed: &mut [Lanes]) {
        transform_kernels::<S, 4>(simd, kernel, const { &points([0.0, 1.0, -1.0]) }, transformed);
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, lines: &Lines, at: [usize; 2], target: TileTarget) {
        winograd_input::<S, Self, 2, 4>(simd, lines, at, target);
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, sums: TileSums) -> [[Lanes; 2]; 2] {
        winograd_output::<S, Self, 2, 4>(simd, sums)
    }
}

impl TileAlgorithm<1> for Pointwise {
    const STEP: usize = 1;
    const IN: usize = 1;
    const POSITIONS: usize = 1;
    const UNROLLED: usize = 1;

    #[inline(always)]
    fn kernels<S: Simd>(_: S, kernel: &[Lanes], transformed: &mut [Lanes]) {
        transformed[0] = kernel[0];
    }

    #[inline(always)]
    fn input<S: Simd>(_: S, lines: &Lines, [y, x]: [usize; 2], target: TileTarget) {
        target.transformed[target.first] = lines[y][x];
    }

    #[inline(always)]
    fn output<S: Simd>(_: S, sums: TileSums) -> [[Lanes; 1]; 1] {
        [[sums.lanes[sums.first]]]
    }
}

impl TileAlgorithm<1> for Downsample2x {
    const STEP: usize = 2;
    const IN: usize = 3;
    const POSITIONS: usize = 1;
    const UNROLLED: usize = 9;

    #[inline(always)]
    fn kernels<S: Simd>(_: S, kernel: &[Lanes], transformed: &mut [Lanes]) {
        transformed.copy_from_slice(kernel);
    }

    #[inline(always)]
    fn input<S: Simd>(_: S, lines: &Lines, at: [usize; 2], target: TileTarget) {
        for y in 0..3 {
            for x in 0..3 {
                target.transformed[target.first + (3 * y + x) * target.unrolled_stride] = lines[at[0] + y][at[1] + x];
            }
        }
    }

    #[inline(always)]
    fn output<S: Simd>(_: S, sums: TileSums) -> [[Lanes; 1]; 1] {
        [[sums.lanes[sums.first]]]
    }
}

#[inline(always)]
fn winograd_input<S: Simd, A: Axis<OUT, IN>, const OUT: usize, const IN: usize>(simd: S, lines: &Lines, at: [usize; 2], target: TileTarget) {
    let TileTarget { transformed, position_stride, first, .. } = target;
    let transformed = &mut transformed[first..=first + (IN * IN - 1) * position_stride];
    for vector in 0..per_lanes::<S>() {
        let mut half = [[simd.splat_f32s(0.0); IN]; IN];
        for x in 0..IN {
            let column = A::input(simd, std::array::from_fn(|y| load::<S>(&lines[at[0] + y][at[1] + x], vector)));
            for (half, value) in half.iter_mut().zip(column) {
                half[x] = value;
            }
        }
        for (y, half) in half.into_iter().enumerate() {
            for (x, value) in A::input(simd, half).into_iter().enumerate() {
                store::<S>(&mut transformed[(y * IN + x) * position_stride], vector, value);
            }
        }
    }
}

#[inline(always)]
fn winograd_output<S: Simd, A: Axis<OUT, IN>, const OUT: usize, const IN: usize>(simd: S, sums: TileSums) -> [[Lanes; OUT]; OUT] {
    let TileSums { lanes, position_stride, first } = sums;
    let sums = &lanes[first..=first + (IN * IN - 1) * position_stride];
    let mut px = [[Lanes::ZERO; OUT]; OUT];
    for vector in 0..per_lanes::<S>() {
        let mut half = [[simd.splat_f32s(0.0); IN]; OUT];
        for x in 0..IN {
            let column = A::output(simd, std::array::from_fn(|y| load::<S>(&sums[(y * IN + x) * position_stride], vector)));
            for (half, value) in half.iter_mut().zip(column) {
                half[x] = value;
            }
        }
        for (px, half) in px.iter_mut().zip(half) {
            for (px, value) in px.iter_mut().zip(A::output(simd, half)) {
                store::<S>(px, vector, value);
            }
        }
    }
    px
}

/// The matrix `G` of the Toom-Cook transform for the points given and infinity.
const fn points<const POINTS: usize, const IN: usize>(points: [f64; POINTS]) -> [[f64; 3]; IN] {
    let mut rows = [[0.0, 0.0, 1.0]; IN];
    let mut at = 0;
    while at < POINTS {
        let (point, mut others, mut other) = (points[at], 1.0, 0);
        while other < POINTS {
            if other != at {
                others *= point - points[other];
            }
            other += 1;
        }
        rows[at] = [1.0 / others, point / others, point * point / others];
        at += 1;
    }
    rows
}

/// `G g G'` for a kernel `g`.
#[inline(always)]
fn transform_kernels<S: Simd, const IN: usize>(simd: S, kernel: &[Lanes], points: &[[f64; 3]; IN], transformed: &mut [Lanes]) {
    for vector in 0..per_lanes::<S>() {
        let mut half = [[simd.splat_f32s(0.0); 3]; IN];
        for x in 0..3 {
            let [g0, g1, g2] = [&kernel[x], &kernel[3 + x], &kernel[6 + x]].map(|lanes| load::<S>(lanes, vector));
            for (half, &[a, b, c]) in half.iter_mut().zip(points) {
                half[x] = scaled_add(simd, a, g0, scaled_add(simd, b, g1, scaled(simd, c, g2)));
            }
        }
        for (half, transformed) in half.into_iter().zip(transformed.chunks_exact_mut(IN)) {
            for (transformed, &[a, b, c]) in transformed.iter_mut().zip(points) {
                let value = scaled_add(simd, a, half[0], scaled_add(simd, b, half[1], scaled(simd, c, half[2])));
                store::<S>(transformed, vector, value);
            }
        }
    }
}

#[inline(always)]
fn scaled<S: Simd>(simd: S, factor: f64, value: S::f32s) -> S::f32s {
    simd.mul_f32s(simd.splat_f32s(factor as f32), value)
}

#[inline(always)]
fn scaled_add<S: Simd>(simd: S, factor: f64, value: S::f32s, sum: S::f32s) -> S::f32s {
    simd.mul_add_f32s(simd.splat_f32s(factor as f32), value, sum)
}

impl Axis<4, 6> for WinogradF4 {
    /// `B' d`.
    #[inline(always)]
    fn input<S: Simd>(simd: S, [d0, d1, d2, d3, d4, d5]: [S::f32s; 6]) -> [S::f32s; 6] {
        let (even_p, odd_p) = (scaled_add(simd, -Q * Q, d2, d4), scaled_add(simd, -Q * Q, d1, d3));
        let (even_q, odd_q) = (scaled_add(simd, -P * P, d2, d4), scaled_add(simd, -P * P, d1, d3));
        [
            scaled_add(simd, P * P * Q * Q, d0, scaled_add(simd, -(P * P + Q * Q), d2, d4)),
            scaled_add(simd, P, odd_p, even_p),
            scaled_add(simd, -P, odd_p, even_p),
            scaled_add(simd, Q, odd_q, even_q),
            scaled_add(simd, -Q, odd_q, even_q),
            scaled_add(simd, P * P * Q * Q, d1, scaled_add(simd, -(P * P + Q * Q), d3, d5)),
        ]
    }

    /// `A' m`.
    #[inline(always)]
    fn output<S: Simd>(simd: S, [m0, m1, m2, m3, m4, m5]: [S::f32s; 6]) -> [S::f32s; 4] {
        let (sum_p, difference_p) = (simd.add_f32s(m1, m2), simd.sub_f32s(m1, m2));
        let (sum_q, difference_q) = (simd.add_f32s(m3, m4), simd.sub_f32s(m3, m4));
        [
            simd.add_f32s(simd.add_f32s(m0, sum_p), sum_q),
            scaled_add(simd, P, difference_p, scaled(simd, Q, difference_q)),
            scaled_add(simd, P * P, sum_p, scaled(simd, Q * Q, sum_q)),
            scaled_add(simd, P * P * P, difference_p, scaled_add(simd, Q * Q * Q, difference_q, m5)),
        ]
    }
}

impl Axis<2, 4> for WinogradF2 {
    /// `B' d`.
    #[inline(always)]
    fn input<S: Simd>(simd: S, [d0, d1, d2, d3]: [S::f32s; 4]) -> [S::f32s; 4] {
        [simd.sub_f32s(d2, d0), simd.add_f32s(d2, d1), simd.sub_f32s(d2, d1), simd.sub_f32s(d3, d1)]
    }

    /// `A' m`.
    #[inline(always)]
    fn output<S: Simd>(simd: S, [m0, m1, m2, m3]: [S::f32s; 4]) -> [S::f32s; 2] {
        [simd.add_f32s(simd.add_f32s(m0, m1), m2), simd.add_f32s(simd.sub_f32s(m1, m2), m3)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_sizes_are_those_of_pytorch() {
        // floor((side + padding - kernel) / stride) + 1, and nothing where the kernel does not fit.
        for (algorithm, padding, side, expected) in [
            (Algorithm::WinogradF4, Padding::all(1), 7, 7),
            (Algorithm::WinogradF2, Padding::NONE, 7, 5),
            (Algorithm::WinogradF2, Padding::NONE, 2, 0),
            (Algorithm::Pointwise, Padding::NONE, 7, 7),
            (Algorithm::Pointwise, Padding::all(2), 0, 4),
            (Algorithm::Pointwise, Padding::all(-2), 7, 3),
            (Algorithm::WinogradF4, Padding { top: 1, left: 1, ..Padding::all(-1) }, 7, 5),
            (Algorithm::Pointwise, Padding::all(-2), 3, 0),
            (Algorithm::Downsample2x, Padding::BOTTOM_RIGHT, 7, 3),
            (Algorithm::Downsample2x, Padding::BOTTOM_RIGHT, 8, 4),
            (Algorithm::Downsample2x, Padding::BOTTOM_RIGHT, 1, 0),
            (Algorithm::Downsample2x, Padding::all(1), 7, 4),
            (Algorithm::Downsample2x, Padding::all(1), 8, 4),
            (Algorithm::Downsample2x, Padding::all(1), 1, 1),
            (Algorithm::Downsample2x, Padding::all(1), 0, 0),
        ] {
            assert_eq!(algorithm.output_size([side, side], padding), [expected; 2], "{algorithm:?} {padding:?} {side}");
        }
    }

    #[test]
    fn kernels_without_an_algorithm_are_known_beforehand() {
        let select = |kernel, stride| Algorithm::select(kernel, stride, [64, 64], true);
        assert_eq!(select([1, 3, 3], [1, 1]), Some(Algorithm::WinogradF4));
        assert_eq!(Algorithm::select([1, 3, 3], [1, 1], [64, 64], false), Some(Algorithm::WinogradF2));
        assert_eq!(Algorithm::select([3, 3, 3], [1, 1], [8, 8], true), Some(Algorithm::WinogradF2));
        assert_eq!(select([3, 1, 1], [1, 1]), Some(Algorithm::Pointwise));
        assert_eq!(select([2, 3, 3], [2, 2]), Some(Algorithm::Downsample2x));
        for (kernel, stride) in [
            ([0, 3, 3], [1, 1]),
            ([4, 3, 3], [1, 1]),
            ([1, 5, 5], [1, 1]),
            ([1, 1, 3], [1, 1]),
            ([1, 4, 4], [2, 2]),
            ([1, 3, 3], [2, 1]),
            ([1, 3, 3], [0, 0]),
            ([1, 1, 1], [2, 2]),
        ] {
            assert_eq!(select(kernel, stride), None, "{kernel:?} {stride:?}");
        }
    }
}
