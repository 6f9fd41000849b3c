//! How a convolution becomes products of matrices: which values of the input, and what is made of the sums.
//!
//! The 3x3 kernels with stride 1 go by Winograd's algorithm. The picture is cut into tiles of 4x4 or 2x2 px, each read with a border of one px. Tiles and
//! kernels are transformed, multiplied place by place, summed over the input channels (which is a product of matrices at each place), and the sums
//! transformed back: 36 products in place of 144 for 16 px, or 16 in place of 36 for 4 px.
//!
//! Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks"; the transforms are those of Toom and Cook for the points 0, 3/4, -3/4,
//! 3/2, -3/2 and infinity, which round less than the usual 0, 1, -1, 2, -2, and for 0, 1, -1 and infinity.

use crate::reading::Line;
use crate::{CHUNK, Chunk, OCT, Row};

/// Which kernels are convolved, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// 3x3 px with a border of one px of zeros, 4x4 px at a time: 2.25 products for each px and pair of channels. The rounding is about twice that of direct
    /// products.
    Wide,
    /// The same, 2x2 px at a time: 4 products in place of 9, with less rounding than they have.
    Narrow,
    /// 1x1 px.
    Point,
    /// 3x3 px with stride 2, and zeros below and to the right where the picture ends.
    Halving,
}

impl Form {
    /// Px of a kernel.
    pub(crate) fn kernel(self) -> usize {
        if self == Self::Point { 1 } else { 9 }
    }

    /// Height and width of what comes out.
    #[must_use]
    pub fn output_size(self, [height, width]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Wide | Self::Narrow | Self::Point => [height, width],
            // One row and one column of zeros are added.
            Self::Halving => [height / 2, width / 2],
        }
    }
}

/// Where a chunk of one channel's transformed values goes.
pub(crate) struct Into<'a> {
    pub(crate) rows: &'a mut [Row],
    /// Rows from one place to the next, and the first of the channel.
    pub(crate) per_place: usize,
    pub(crate) first: usize,
    pub(crate) chunk: usize,
}

impl Into<'_> {
    #[inline(always)]
    fn put(&mut self, place: usize, value: usize, values: Chunk) {
        self.rows[place * self.per_place + self.first + value].0[self.chunk] = values;
    }
}

/// The sums of a chunk in one output channel.
#[derive(Clone, Copy)]
pub(crate) struct Sums<'a> {
    pub(crate) rows: &'a [Row],
    /// Rows from one place to the next, and the channel's.
    pub(crate) per_place: usize,
    pub(crate) at: usize,
    pub(crate) chunk: usize,
}

impl Sums<'_> {
    #[inline(always)]
    fn at(&self, place: usize) -> Chunk {
        self.rows[place * self.per_place + self.at].0[self.chunk]
    }
}

/// A form as the tasks see it. `OUT` is the side of a tile in px of the output.
pub(crate) trait Tiles<const OUT: usize>: Copy + Sync {
    /// Px of the input from one tile to the next, and px on the side of what a tile reads.
    const STEP: usize;
    const IN: usize;
    /// Px that a tile reads before its own first.
    const BEFORE: usize;
    /// Products of matrices, and how many values of each channel each of them sums.
    const PLACES: usize;
    const VALUES: usize;

    /// Transforms the kernels of a channel, for eight output channels: `PLACES` times `VALUES`.
    fn kernels(px: &[[f64; OCT]], transformed: &mut [[f64; OCT]]);

    /// Transforms `CHUNK` tiles that lie side by side in bands of `ACROSS`, one band below the other: each at its place.
    fn input<const ACROSS: usize>(lines: &[Line], into: Into);

    /// The px of a chunk of tiles, row by row and column by column, from the sums at each place.
    fn output(sums: Sums) -> [[Chunk; OUT]; OUT];
}

/// [`Form::Wide`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wide;
/// [`Form::Narrow`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Narrow;
/// [`Form::Point`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point;
/// [`Form::Halving`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Halving;

/// The points of the wide transforms, besides 0 and infinity.
const P: f64 = 0.75;
const Q: f64 = 1.5;

impl Tiles<4> for Wide {
    const STEP: usize = 4;
    const IN: usize = 6;
    const BEFORE: usize = 1;
    const PLACES: usize = 36;
    const VALUES: usize = 1;

    #[inline(always)]
    fn kernels(px: &[[f64; OCT]], transformed: &mut [[f64; OCT]]) {
        kernels(px, &[0.0, P, -P, Q, -Q], transformed);
    }

    #[inline(always)]
    fn input<const ACROSS: usize>(lines: &[Line], into: Into) {
        winograd_input::<4, 6, ACROSS>(lines, along_wide_input, into);
    }

    #[inline(always)]
    fn output(sums: Sums) -> [[Chunk; 4]; 4] {
        winograd_output::<4, 6>(sums, along_wide_output)
    }
}

impl Tiles<2> for Narrow {
    const STEP: usize = 2;
    const IN: usize = 4;
    const BEFORE: usize = 1;
    const PLACES: usize = 16;
    const VALUES: usize = 1;

    #[inline(always)]
    fn kernels(px: &[[f64; OCT]], transformed: &mut [[f64; OCT]]) {
        kernels(px, &[0.0, 1.0, -1.0], transformed);
    }

    #[inline(always)]
    fn input<const ACROSS: usize>(lines: &[Line], into: Into) {
        winograd_input::<2, 4, ACROSS>(lines, along_narrow_input, into);
    }

    #[inline(always)]
    fn output(sums: Sums) -> [[Chunk; 2]; 2] {
        winograd_output::<2, 4>(sums, along_narrow_output)
    }
}

impl Tiles<1> for Point {
    const STEP: usize = 1;
    const IN: usize = 1;
    const BEFORE: usize = 0;
    const PLACES: usize = 1;
    const VALUES: usize = 1;

    #[inline(always)]
    fn kernels(px: &[[f64; OCT]], transformed: &mut [[f64; OCT]]) {
        transformed[0] = px[0];
    }

    #[inline(always)]
    fn input<const ACROSS: usize>(lines: &[Line], mut into: Into) {
        into.put(0, 0, spread::<ACROSS, 1>(|band, at| lines[band].0[at]));
    }

    #[inline(always)]
    fn output(sums: Sums) -> [[Chunk; 1]; 1] {
        [[sums.at(0)]]
    }
}

impl Tiles<1> for Halving {
    const STEP: usize = 2;
    const IN: usize = 3;
    const BEFORE: usize = 0;
    const PLACES: usize = 1;
    const VALUES: usize = 9;

    #[inline(always)]
    fn kernels(px: &[[f64; OCT]], transformed: &mut [[f64; OCT]]) {
        transformed.copy_from_slice(px);
    }

    #[inline(always)]
    fn input<const ACROSS: usize>(lines: &[Line], mut into: Into) {
        for y in 0..3 {
            for x in 0..3 {
                into.put(0, 3 * y + x, spread::<ACROSS, 2>(|band, at| lines[2 * band + y].0[at + x]));
            }
        }
    }

    #[inline(always)]
    fn output(sums: Sums) -> [[Chunk; 1]; 1] {
        [[sums.at(0)]]
    }
}

/// Every `STEP`th value of each band.
#[inline(always)]
fn spread<const ACROSS: usize, const STEP: usize>(value: impl Fn(usize, usize) -> f32) -> Chunk {
    let mut chunk = [0.0; CHUNK];
    for band in 0..CHUNK / ACROSS {
        for at in 0..ACROSS {
            chunk[band * ACROSS + at] = value(band, STEP * at);
        }
    }
    chunk
}

#[inline(always)]
fn winograd_input<const OUT: usize, const IN: usize, const ACROSS: usize>(
    lines: &[Line],
    along: impl Fn(&[[f32; CHUNK]; IN]) -> [[f32; CHUNK]; IN],
    mut into: Into,
) {
    // First down the columns, as they lie.
    const PARTS: usize = crate::reading::LINE / CHUNK;
    let parts = (OUT * (ACROSS - 1) + IN).div_ceil(CHUNK);
    let mut down = [[[[0.0_f32; CHUNK]; PARTS]; IN]; 4];
    for (band, down) in down.iter_mut().enumerate().take(CHUNK / ACROSS) {
        for part in 0..parts {
            let column = along(&std::array::from_fn(|y| lines[band * OUT + y].0.as_chunks().0[part]));
            for (down, values) in down.iter_mut().zip(column) {
                down[part] = values;
            }
        }
    }
    for y in 0..IN {
        let down: [_; 4] = std::array::from_fn(|band| down[band][y].as_flattened());
        // Then along the rows, where the values of every `OUT`th column belong together.
        let mut apart = [[0.0_f32; 2 * CHUNK]; OUT];
        let mut across = [[0.0_f32; CHUNK]; IN];
        if ACROSS == CHUNK {
            let row = down[0];
            for at in 0..CHUNK {
                for (x, apart) in apart.iter_mut().enumerate() {
                    apart[at] = row[OUT * at + x];
                }
            }
            for x in 0..IN - OUT {
                apart[x][CHUNK] = row[OUT * CHUNK + x];
            }
            for (x, across) in across.iter_mut().enumerate() {
                across.copy_from_slice(&apart[x % OUT][x / OUT..][..CHUNK]);
            }
        } else {
            for (x, across) in across.iter_mut().enumerate() {
                for (band, row) in down.iter().enumerate().take(CHUNK / ACROSS) {
                    for at in 0..ACROSS {
                        across[band * ACROSS + at] = row[OUT * at + x];
                    }
                }
            }
        }
        for (x, values) in along(&across).into_iter().enumerate() {
            into.put(y * IN + x, 0, values);
        }
    }
}

#[inline(always)]
fn winograd_output<const OUT: usize, const IN: usize>(sums: Sums, along: impl Fn(&[[f32; CHUNK]; IN]) -> [[f32; CHUNK]; OUT]) -> [[Chunk; OUT]; OUT] {
    let mut half = [[[0.0; CHUNK]; IN]; OUT];
    for x in 0..IN {
        let column = along(&std::array::from_fn(|y| sums.at(y * IN + x)));
        for (half, values) in half.iter_mut().zip(column) {
            half[x] = values;
        }
    }
    let mut px = [[[0.0; CHUNK]; OUT]; OUT];
    for (px, half) in px.iter_mut().zip(&half) {
        *px = along(half);
    }
    px
}

/// `G g G'` for a kernel `g`, for the points given and infinity.
#[inline(always)]
fn kernels(px: &[[f64; OCT]], points: &[f64], transformed: &mut [[f64; OCT]]) {
    let side = points.len() + 1;
    let row = |at: usize| {
        let Some(&point) = points.get(at) else { return [0.0, 0.0, 1.0] };
        let others: f64 = points.iter().enumerate().filter(|&(other, _)| other != at).map(|(_, &other)| point - other).product();
        [1.0 / others, point / others, point * point / others]
    };
    let mut half = [[[0.0; OCT]; 3]; 6];
    for (y, half) in half.iter_mut().enumerate().take(side) {
        let [a, b, c] = row(y);
        for (x, half) in half.iter_mut().enumerate() {
            for lane in 0..OCT {
                half[lane] = a * px[x][lane] + b * px[3 + x][lane] + c * px[6 + x][lane];
            }
        }
    }
    for x in 0..side {
        let [a, b, c] = row(x);
        for y in 0..side {
            for lane in 0..OCT {
                transformed[y * side + x][lane] = a * half[y][0][lane] + b * half[y][1][lane] + c * half[y][2][lane];
            }
        }
    }
}

/// `B' d` along one axis, for six values of each tile.
#[inline(always)]
fn along_wide_input(d: &[Chunk; 6]) -> [Chunk; 6] {
    const P2: f32 = (P * P) as f32;
    const Q2: f32 = (Q * Q) as f32;
    const SUM: f32 = (P * P + Q * Q) as f32;
    const PRODUCT: f32 = (P * P * Q * Q) as f32;
    let mut out = [[0.0; CHUNK]; 6];
    for lane in 0..CHUNK {
        let (d0, d1, d2, d3, d4, d5) = (d[0][lane], d[1][lane], d[2][lane], d[3][lane], d[4][lane], d[5][lane]);
        let (even_p, odd_p) = (d4 - Q2 * d2, P as f32 * (d3 - Q2 * d1));
        let (even_q, odd_q) = (d4 - P2 * d2, Q as f32 * (d3 - P2 * d1));
        out[0][lane] = PRODUCT * d0 - SUM * d2 + d4;
        out[1][lane] = even_p + odd_p;
        out[2][lane] = even_p - odd_p;
        out[3][lane] = even_q + odd_q;
        out[4][lane] = even_q - odd_q;
        out[5][lane] = PRODUCT * d1 - SUM * d3 + d5;
    }
    out
}

/// `A' m` along one axis, for six values of each tile.
#[inline(always)]
fn along_wide_output(m: &[Chunk; 6]) -> [Chunk; 4] {
    const P1: f32 = P as f32;
    const Q1: f32 = Q as f32;
    let mut out = [[0.0; CHUNK]; 4];
    for lane in 0..CHUNK {
        let (m0, m1, m2, m3, m4, m5) = (m[0][lane], m[1][lane], m[2][lane], m[3][lane], m[4][lane], m[5][lane]);
        let (sum_p, difference_p) = (m1 + m2, m1 - m2);
        let (sum_q, difference_q) = (m3 + m4, m3 - m4);
        out[0][lane] = m0 + sum_p + sum_q;
        out[1][lane] = P1 * difference_p + Q1 * difference_q;
        out[2][lane] = (P1 * P1) * sum_p + (Q1 * Q1) * sum_q;
        out[3][lane] = (P1 * P1 * P1) * difference_p + (Q1 * Q1 * Q1) * difference_q + m5;
    }
    out
}

/// `B' d` along one axis, for four values of each tile.
#[inline(always)]
fn along_narrow_input(d: &[Chunk; 4]) -> [Chunk; 4] {
    let mut out = [[0.0; CHUNK]; 4];
    for lane in 0..CHUNK {
        let (d0, d1, d2, d3) = (d[0][lane], d[1][lane], d[2][lane], d[3][lane]);
        out[0][lane] = d2 - d0;
        out[1][lane] = d2 + d1;
        out[2][lane] = d2 - d1;
        out[3][lane] = d3 - d1;
    }
    out
}

/// `A' m` along one axis, for four values of each tile.
#[inline(always)]
fn along_narrow_output(m: &[Chunk; 4]) -> [Chunk; 2] {
    let mut out = [[0.0; CHUNK]; 2];
    for lane in 0..CHUNK {
        let (m0, m1, m2, m3) = (m[0][lane], m[1][lane], m[2][lane], m[3][lane]);
        out[0][lane] = m0 + m1 + m2;
        out[1][lane] = m1 - m2 + m3;
    }
    out
}
