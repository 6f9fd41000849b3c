//! How a convolution becomes products of matrices: which values of the input, and what is made of the sums.
//!
//! The 3x3 kernels with stride 1 go by Winograd's algorithm. The picture is cut into tiles of 4x4 or 2x2 px, each read with a border of one px. Tiles and
//! kernels are transformed, multiplied place by place, summed over the input channels (which is a product of matrices at each place), and the sums
//! transformed back: 36 products in place of 144 for 16 px, or 16 in place of 36 for 4 px.
//!
//! Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks"; the transforms are those of Toom and Cook for the points 0, 3/4, -3/4,
//! 3/2, -3/2 and infinity, which round less than the usual 0, 1, -1, 2, -2, and for 0, 1, -1 and infinity.

use pulp::Simd;

use crate::Lanes;
use crate::reading::Lines;
use crate::vectors::{load, per_px, store};

/// Which kernels are convolved, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// 3x3 px with a border of one px of zeros, 4x4 px at a time: 2.25 products for each px and pair of channels. The rounding is about twice that of direct
    /// products.
    WinogradF4,
    /// The same, 2x2 px at a time: 4 products in place of 9, with less rounding than they have.
    WinogradF2,
    /// 1x1 px.
    Pointwise,
    /// 3x3 px with stride 2, and zeros below and to the right where the picture ends.
    Downsample2x,
}

impl Algorithm {
    /// Lanes of a kernel.
    pub(crate) fn kernel(self) -> usize {
        if self == Self::Pointwise { 1 } else { 9 }
    }

    /// Height and width of what comes out.
    #[must_use]
    pub fn output_size(self, [height, width]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::WinogradF4 | Self::WinogradF2 | Self::Pointwise => [height, width],
            // One row and one column of zeros are added.
            Self::Downsample2x => [height / 2, width / 2],
        }
    }
}

/// Where a tile's transformed values of a block go.
pub(crate) struct Into<'a> {
    pub(crate) slab: &'a mut [Lanes],
    /// Lanes from one place to the next, and from one value to the next.
    pub(crate) per_place: usize,
    pub(crate) per_value: usize,
    pub(crate) first: usize,
}

/// The sums of a tile in a block of output channels.
#[derive(Clone, Copy)]
pub(crate) struct Sums<'a> {
    pub(crate) px: &'a [Lanes],
    /// Lanes from one place to the next.
    pub(crate) per_place: usize,
    pub(crate) first: usize,
}

/// A algorithm as the tasks see it. `OUT` is the side of a tile in px of the output.
pub(crate) trait Tiles<const OUT: usize>: Copy + Sync {
    /// Lanes of the input from one tile to the next, and px on the side of what a tile reads.
    const STEP: usize;
    const IN: usize;
    /// Lanes that a tile reads before its own first.
    const BEFORE: usize;
    /// Products of matrices, and how many values of each channel each of them sums.
    const PLACES: usize;
    const VALUES: usize;

    /// Transforms the kernels of a channel, for a block of output channels: `PLACES` times `VALUES`.
    fn kernels<S: Simd>(simd: S, px: &[Lanes], transformed: &mut [Lanes]);

    /// Transforms the tile whose px begin at a line and column.
    fn input<S: Simd>(simd: S, lines: &Lines, at: [usize; 2], into: Into);

    /// The px of a tile, row by row and column by column, from the sums at each place.
    fn output<S: Simd>(simd: S, sums: Sums) -> [[Lanes; OUT]; OUT];
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

/// A transform along one axis of a tile: of the `IN` values read, and of `IN` sums to `OUT` px.
trait Axis<const OUT: usize, const IN: usize> {
    fn input<S: Simd>(simd: S, d: [S::f32s; IN]) -> [S::f32s; IN];
    fn output<S: Simd>(simd: S, m: [S::f32s; IN]) -> [S::f32s; OUT];
}

/// The points of the wide transforms, besides 0 and infinity.
const P: f64 = 0.75;
const Q: f64 = 1.5;

impl Tiles<4> for WinogradF4 {
    const STEP: usize = 4;
    const IN: usize = 6;
    const BEFORE: usize = 1;
    const PLACES: usize = 36;
    const VALUES: usize = 1;

    #[inline(always)]
    fn kernels<S: Simd>(simd: S, px: &[Lanes], transformed: &mut [Lanes]) {
        kernels::<S, 6>(simd, px, const { &points([0.0, P, -P, Q, -Q]) }, transformed);
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, lines: &Lines, at: [usize; 2], into: Into) {
        winograd_input::<S, Self, 4, 6>(simd, lines, at, into);
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, sums: Sums) -> [[Lanes; 4]; 4] {
        winograd_output::<S, Self, 4, 6>(simd, sums)
    }
}

impl Tiles<2> for WinogradF2 {
    const STEP: usize = 2;
    const IN: usize = 4;
    const BEFORE: usize = 1;
    const PLACES: usize = 16;
    const VALUES: usize = 1;

    #[inline(always)]
    fn kernels<S: Simd>(simd: S, px: &[Lanes], transformed: &mut [Lanes]) {
        kernels::<S, 4>(simd, px, const { &points([0.0, 1.0, -1.0]) }, transformed);
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, lines: &Lines, at: [usize; 2], into: Into) {
        winograd_input::<S, Self, 2, 4>(simd, lines, at, into);
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, sums: Sums) -> [[Lanes; 2]; 2] {
        winograd_output::<S, Self, 2, 4>(simd, sums)
    }
}

impl Tiles<1> for Pointwise {
    const STEP: usize = 1;
    const IN: usize = 1;
    const BEFORE: usize = 0;
    const PLACES: usize = 1;
    const VALUES: usize = 1;

    #[inline(always)]
    fn kernels<S: Simd>(_: S, px: &[Lanes], transformed: &mut [Lanes]) {
        transformed[0] = px[0];
    }

    #[inline(always)]
    fn input<S: Simd>(_: S, lines: &Lines, [y, x]: [usize; 2], into: Into) {
        into.slab[into.first] = lines[y][x];
    }

    #[inline(always)]
    fn output<S: Simd>(_: S, sums: Sums) -> [[Lanes; 1]; 1] {
        [[sums.px[sums.first]]]
    }
}

impl Tiles<1> for Downsample2x {
    const STEP: usize = 2;
    const IN: usize = 3;
    const BEFORE: usize = 0;
    const PLACES: usize = 1;
    const VALUES: usize = 9;

    #[inline(always)]
    fn kernels<S: Simd>(_: S, px: &[Lanes], transformed: &mut [Lanes]) {
        transformed.copy_from_slice(px);
    }

    #[inline(always)]
    fn input<S: Simd>(_: S, lines: &Lines, at: [usize; 2], into: Into) {
        for y in 0..3 {
            for x in 0..3 {
                into.slab[into.first + (3 * y + x) * into.per_value] = lines[at[0] + y][at[1] + x];
            }
        }
    }

    #[inline(always)]
    fn output<S: Simd>(_: S, sums: Sums) -> [[Lanes; 1]; 1] {
        [[sums.px[sums.first]]]
    }
}

#[inline(always)]
fn winograd_input<S: Simd, A: Axis<OUT, IN>, const OUT: usize, const IN: usize>(simd: S, lines: &Lines, at: [usize; 2], into: Into) {
    let Into { slab, per_place, first, .. } = into;
    let slab = &mut slab[first..=first + (IN * IN - 1) * per_place];
    for vector in 0..per_px::<S>() {
        let mut half = [[simd.splat_f32s(0.0); IN]; IN];
        for x in 0..IN {
            let column = A::input(simd, std::array::from_fn(|y| load::<S>(&lines[at[0] + y][at[1] + x], vector)));
            for (half, value) in half.iter_mut().zip(column) {
                half[x] = value;
            }
        }
        for (y, half) in half.into_iter().enumerate() {
            for (x, value) in A::input(simd, half).into_iter().enumerate() {
                store::<S>(&mut slab[(y * IN + x) * per_place], vector, value);
            }
        }
    }
}

#[inline(always)]
fn winograd_output<S: Simd, A: Axis<OUT, IN>, const OUT: usize, const IN: usize>(simd: S, sums: Sums) -> [[Lanes; OUT]; OUT] {
    let Sums { px, per_place, first } = sums;
    let sums = &px[first..=first + (IN * IN - 1) * per_place];
    let mut px = [[Lanes::ZERO; OUT]; OUT];
    for vector in 0..per_px::<S>() {
        let mut half = [[simd.splat_f32s(0.0); IN]; OUT];
        for x in 0..IN {
            let column = A::output(simd, std::array::from_fn(|y| load::<S>(&sums[(y * IN + x) * per_place], vector)));
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

/// `G` for the points given and infinity.
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
fn kernels<S: Simd, const IN: usize>(simd: S, px: &[Lanes], points: &[[f64; 3]; IN], transformed: &mut [Lanes]) {
    for vector in 0..per_px::<S>() {
        let mut half = [[simd.splat_f32s(0.0); 3]; IN];
        for x in 0..3 {
            let [g0, g1, g2] = [&px[x], &px[3 + x], &px[6 + x]].map(|px| load::<S>(px, vector));
            for (half, &[a, b, c]) in half.iter_mut().zip(points) {
                half[x] = scaled_onto(simd, a, g0, scaled_onto(simd, b, g1, scaled(simd, c, g2)));
            }
        }
        for (half, transformed) in half.into_iter().zip(transformed.chunks_exact_mut(IN)) {
            for (transformed, &[a, b, c]) in transformed.iter_mut().zip(points) {
                let value = scaled_onto(simd, a, half[0], scaled_onto(simd, b, half[1], scaled(simd, c, half[2])));
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
fn scaled_onto<S: Simd>(simd: S, factor: f64, value: S::f32s, sum: S::f32s) -> S::f32s {
    simd.mul_add_f32s(simd.splat_f32s(factor as f32), value, sum)
}

impl Axis<4, 6> for WinogradF4 {
    /// `B' d`.
    #[inline(always)]
    fn input<S: Simd>(simd: S, [d0, d1, d2, d3, d4, d5]: [S::f32s; 6]) -> [S::f32s; 6] {
        let (even_p, odd_p) = (scaled_onto(simd, -Q * Q, d2, d4), scaled_onto(simd, -Q * Q, d1, d3));
        let (even_q, odd_q) = (scaled_onto(simd, -P * P, d2, d4), scaled_onto(simd, -P * P, d1, d3));
        [
            scaled_onto(simd, P * P * Q * Q, d0, scaled_onto(simd, -(P * P + Q * Q), d2, d4)),
            scaled_onto(simd, P, odd_p, even_p),
            scaled_onto(simd, -P, odd_p, even_p),
            scaled_onto(simd, Q, odd_q, even_q),
            scaled_onto(simd, -Q, odd_q, even_q),
            scaled_onto(simd, P * P * Q * Q, d1, scaled_onto(simd, -(P * P + Q * Q), d3, d5)),
        ]
    }

    /// `A' m`.
    #[inline(always)]
    fn output<S: Simd>(simd: S, [m0, m1, m2, m3, m4, m5]: [S::f32s; 6]) -> [S::f32s; 4] {
        let (sum_p, difference_p) = (simd.add_f32s(m1, m2), simd.sub_f32s(m1, m2));
        let (sum_q, difference_q) = (simd.add_f32s(m3, m4), simd.sub_f32s(m3, m4));
        [
            simd.add_f32s(simd.add_f32s(m0, sum_p), sum_q),
            scaled_onto(simd, P, difference_p, scaled(simd, Q, difference_q)),
            scaled_onto(simd, P * P, sum_p, scaled(simd, Q * Q, sum_q)),
            scaled_onto(simd, P * P * P, difference_p, scaled_onto(simd, Q * Q * Q, difference_q, m5)),
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
