//! Convolutions with kernels of 3x3 px by Winograd's algorithm F(4x4, 3x3): 36 products in place of 144 for 16 px.
//!
//! The picture is cut into tiles of 4x4 px, each read with a border of one px. Tiles and kernels are transformed, multiplied place by place, summed over the
//! input channels (which is a product of matrices at each of the 36 places), and the sums transformed back.
//!
//! Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks"; the transforms are those of Toom and Cook for the points 0, 3/4, -3/4,
//! 3/2, -3/2 and infinity, which round less than the usual 0, 1, -1, 2, -2.
//!
//! Everything is divided by tiles and output channels, never along a sum, so that the answer does not depend on the number of threads.

#![expect(clippy::inline_always, reason = "vector code is made where a function is inlined")]

use pulp::{Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

/// Px on the side of a tile of the output, and of the input.
const OUT: usize = 4;
const IN: usize = OUT + 2;
/// Places of a transformed tile.
const PLACES: usize = IN * IN;
/// Tiles that are transformed together: a whole number of triples of vectors of 4, 8 and 16.
const LANES: usize = 48;
/// Vectors of tiles that go through the products together. With four output channels, their sums fit the registers.
const VECTORS: usize = 3;
/// Output channels of one product.
const QUAD: usize = 4;
/// Output channels whose sums lie in memory at once, at most.
const CHANNELS_AT_ONCE: usize = 64;

/// One value of each of so many tiles.
type Lanes = [f32; LANES];
/// Tiles whose transform fits the registers.
const CHUNK: usize = 16;
type Chunk = [f32; CHUNK];

/// Transformed kernels of a convolution, by four output channels, place, input channel.
pub(super) struct Kernels {
    values: Vec<[f32; QUAD]>,
    channels_in: usize,
    channels_out: usize,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernels").field("channels", &[self.channels_in, self.channels_out]).finish_non_exhaustive()
    }
}

impl Kernels {
    /// Whether the algorithm takes such a convolution and gains by it.
    pub(super) fn suit([channels_in, channels_out]: [usize; 2], [height, width]: [usize; 2]) -> bool {
        let tiles = height.div_ceil(OUT) * width.div_ceil(OUT);
        // Tiles that reach over the edge are work for nothing, and transforms do not pay for few channels.
        channels_in >= 16 && channels_out >= 16 && channels_out.is_multiple_of(QUAD) && tiles >= LANES / 2 && 2 * tiles * PLACES <= 9 * height * width
    }

    /// Transforms kernels; `kernel(out, in)` gives the nine values of one, row by row.
    pub(super) fn new([channels_in, channels_out]: [usize; 2], kernel: impl Fn(usize, usize) -> [f32; 9] + Sync) -> Self {
        let mut values = vec![[0.0; QUAD]; PLACES * channels_out / QUAD * channels_in];
        values.par_chunks_mut((PLACES * channels_in).max(1)).enumerate().for_each(|(quad, part)| {
            for channel in 0..channels_in {
                let quad: [[f32; PLACES]; QUAD] = std::array::from_fn(|lane| transformed_kernel(kernel(quad * QUAD + lane, channel)));
                for place in 0..PLACES {
                    part[place * channels_in + channel] = quad.map(|kernel| kernel[place]);
                }
            }
        });
        Self { values, channels_in, channels_out }
    }

    /// The kernels at a place, for four output channels and the last `channels` input channels.
    fn quad(&self, place: usize, quad: usize, channels: usize) -> &[[f32; QUAD]] {
        let end = (quad * PLACES + place + 1) * self.channels_in;
        &self.values[end - channels..end]
    }

    /// Convolves one picture, with a border of zeros of one px. `input(channel)` gives the px of the last `channels` input channels, row by row, and the
    /// others are zero; `output` has the px of all output channels.
    ///
    /// # Panics
    /// When the planes have other sizes or numbers.
    pub(super) fn convolve<'a>(
        &self,
        size: [usize; 2],
        channels: usize,
        input: impl Fn(usize) -> &'a [f32] + Sync,
        bias: &[f32],
        output: &mut [&mut [f32]],
        scratch: &mut Scratch,
    ) {
        assert!(output.len() == self.channels_out && bias.len() == self.channels_out);
        let [height, width] = size;
        let [rows, columns] = [height.div_ceil(OUT), width.div_ceil(OUT)];
        let tiles = rows * columns;
        let panels = rayon::current_num_threads().min(tiles.div_ceil(LANES));
        // Something for every thread, where there are few channels.
        let at_once = self.channels_out.div_ceil(rayon::current_num_threads()).next_multiple_of(QUAD).min(CHANNELS_AT_ONCE);
        scratch.input.resize(panels * PLACES * channels, [0.0; LANES]);
        for first in (0..tiles).step_by(panels * LANES) {
            let places = |panel: usize| {
                let start = first + panel * LANES;
                Places { start, count: (tiles - start).min(LANES), columns, size }
            };
            let filled = (tiles - first).div_ceil(LANES).min(panels);
            scratch.input.par_chunks_mut(PLACES * channels).take(filled).enumerate().for_each(|(panel, part)| {
                pulp::Arch::new().dispatch(Transform { places: places(panel), channels, input: &input, transformed: part });
            });
            let transformed = &scratch.input[..];
            let chunks = output.par_chunks_mut(at_once).zip(bias.par_chunks(at_once)).enumerate();
            chunks.for_each_init(
                || vec![[0.0; LANES]; PLACES * CHANNELS_AT_ONCE],
                |sums, (chunk, (planes, bias))| {
                    for panel in 0..filled {
                        let input = &transformed[panel * PLACES * channels..][..PLACES * channels];
                        pulp::Arch::new().dispatch(Products {
                            kernels: self,
                            channels,
                            first_quad: chunk * at_once / QUAD,
                            quads: planes.len() / QUAD,
                            input,
                            sums,
                        });
                        pulp::Arch::new().dispatch(Output { places: places(panel), sums, bias, planes });
                    }
                },
            );
        }
    }
}

/// Memory that one convolution after the other uses.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    input: Vec<Lanes>,
}

/// Which tiles lie in a panel.
struct Places {
    start: usize,
    count: usize,
    columns: usize,
    size: [usize; 2],
}

/// Transforms a panel's tiles of all channels.
struct Transform<'a, F> {
    places: Places,
    channels: usize,
    input: &'a F,
    transformed: &'a mut [Lanes],
}

impl<'p, F: Fn(usize) -> &'p [f32]> WithSimd for Transform<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let mut tiles = [[0.0; LANES]; PLACES];
        for channel in 0..self.channels {
            transform_input(&self.places, (self.input)(channel), &mut tiles, &mut self.transformed[channel..], self.channels);
        }
    }
}

/// Transforms sums back and writes a panel's tiles.
struct Output<'a, 'p> {
    places: Places,
    sums: &'a [Lanes],
    bias: &'a [f32],
    planes: &'a mut [&'p mut [f32]],
}

impl WithSimd for Output<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (channel, (plane, &bias)) in self.planes.iter_mut().zip(self.bias).enumerate() {
            write_output(&self.places, self.sums, channel, bias, plane);
        }
    }
}

/// Sums over input channels: a product of matrices at each place.
struct Products<'a> {
    kernels: &'a Kernels,
    channels: usize,
    first_quad: usize,
    quads: usize,
    /// Place, input channel.
    input: &'a [Lanes],
    /// Place, output channel.
    sums: &'a mut [Lanes],
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            4 | 8 | 16 => self.run(simd),
            _ => self.run_plain(),
        }
    }
}

impl Products<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let channels = self.channels;
        for place in 0..PLACES {
            let input = &self.input[place * channels..][..channels];
            for quad in 0..self.quads {
                let kernels = self.kernels.quad(place, self.first_quad + quad, channels);
                let out = &mut self.sums[place * CHANNELS_AT_ONCE + quad * QUAD..][..QUAD];
                for first in (0..LANES / S::F32_LANES).step_by(VECTORS) {
                    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; QUAD];
                    for (input, kernels) in input.iter().zip(kernels) {
                        let vectors = &S::as_simd_f32s(input).0[first..first + VECTORS];
                        let vectors: [S::f32s; VECTORS] = std::array::from_fn(|at| vectors[at]);
                        for (sums, &kernel) in sums.iter_mut().zip(kernels) {
                            let kernel = simd.splat_f32s(kernel);
                            for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                                *sum = simd.mul_add_f32s(vector, kernel, *sum);
                            }
                        }
                    }
                    for (out, sums) in out.iter_mut().zip(sums) {
                        S::as_mut_simd_f32s(out).0[first..first + VECTORS].copy_from_slice(&sums);
                    }
                }
            }
        }
    }

    /// For processors without vectors that fit.
    fn run_plain(self) {
        let channels = self.channels;
        for place in 0..PLACES {
            for quad in 0..self.quads {
                let out = &mut self.sums[place * CHANNELS_AT_ONCE + quad * QUAD..][..QUAD];
                out.fill([0.0; LANES]);
                for (input, kernels) in
                    self.input[place * channels..][..channels].iter().zip(self.kernels.quad(place, self.first_quad + quad, channels))
                {
                    for (out, &kernel) in out.iter_mut().zip(kernels) {
                        for (out, &value) in out.iter_mut().zip(input) {
                            *out += value * kernel;
                        }
                    }
                }
            }
        }
    }
}

/// The points of the transforms, besides 0 and infinity.
const P: f64 = 0.75;
const Q: f64 = 1.5;

/// `G g G'` for a kernel `g`, in f64, rounded once.
fn transformed_kernel(kernel: [f32; 9]) -> [f32; PLACES] {
    let points = [0.0, P, -P, Q, -Q];
    let mut rows = [[0.0_f64; 3]; IN];
    for (at, &point) in points.iter().enumerate() {
        let others: f64 = points.iter().enumerate().filter(|&(other, _)| other != at).map(|(_, &other)| point - other).product();
        rows[at] = [1.0 / others, point / others, point * point / others];
    }
    rows[IN - 1] = [0.0, 0.0, 1.0];
    let mut half = [[0.0_f64; 3]; IN];
    for (half, row) in half.iter_mut().zip(&rows) {
        for (x, half) in half.iter_mut().enumerate() {
            *half = (0..3).map(|y| row[y] * f64::from(kernel[3 * y + x])).sum();
        }
    }
    let mut transformed = [0.0; PLACES];
    for (y, half) in half.iter().enumerate() {
        for (x, row) in rows.iter().enumerate() {
            transformed[y * IN + x] = (0..3).map(|at| row[at] * half[at]).sum::<f64>() as f32;
        }
    }
    transformed
}

/// `B' d` along one axis, for six values of each tile.
#[inline(always)]
fn along_input(d: &[Chunk; IN]) -> [Chunk; IN] {
    const P2: f32 = (P * P) as f32;
    const Q2: f32 = (Q * Q) as f32;
    const SUM: f32 = (P * P + Q * Q) as f32;
    const PRODUCT: f32 = (P * P * Q * Q) as f32;
    let mut out = [[0.0; CHUNK]; IN];
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
fn along_output(m: &[Chunk; IN]) -> [Chunk; OUT] {
    const P1: f32 = P as f32;
    const Q1: f32 = Q as f32;
    let mut out = [[0.0; CHUNK]; OUT];
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

/// The values of a panel's tiles at each of their places, read from a plane. Kept from channel to channel.
type Tiles = [Lanes; PLACES];

/// Transforms the tiles of a panel from one plane. `transformed[place * channels]` takes those at a place.
#[inline(always)]
fn transform_input(places: &Places, plane: &[f32], tiles: &mut Tiles, transformed: &mut [Lanes], channels: usize) {
    read_tiles(places, plane, tiles);
    for chunk in 0..LANES / CHUNK {
        let mut half = [[0.0; CHUNK]; PLACES];
        for x in 0..IN {
            let column = along_input(&std::array::from_fn(|y| tiles[y * IN + x].as_chunks().0[chunk]));
            for (y, values) in column.into_iter().enumerate() {
                half[y * IN + x] = values;
            }
        }
        for y in 0..IN {
            let row = along_input(&std::array::from_fn(|x| half[y * IN + x]));
            for (x, values) in row.into_iter().enumerate() {
                transformed[(y * IN + x) * channels].as_chunks_mut().0[chunk] = values;
            }
        }
    }
}

#[inline(always)]
fn read_tiles(places: &Places, plane: &[f32], tiles: &mut Tiles) {
    places.runs(|lane, tile_row, tile_column, count| {
        let [height, width] = places.size;
        // The px of a run with the border, zeros where there is no picture, and every fourth of them together.
        let mut line = [0.0_f32; OUT * (LANES + 1)];
        let mut apart = [[0.0_f32; LANES + 1]; OUT];
        let left = OUT * tile_column;
        let from = left.saturating_sub(1);
        let to = (left + OUT * count + 1).min(width);
        let offset = usize::from(left == 0);
        for y in 0..IN {
            let row = (OUT * tile_row + y).wrapping_sub(1);
            let tiles = &mut tiles[y * IN..][..IN];
            if row >= height {
                for values in tiles {
                    values[lane..lane + count].fill(0.0);
                }
                continue;
            }
            // line[x] is px left + x - 1.
            line[offset..offset + to - from].copy_from_slice(&plane[row * width + from..row * width + to]);
            for (at, px) in line.as_chunks::<OUT>().0.iter().enumerate().take(count + 1) {
                for (apart, &px) in apart.iter_mut().zip(px) {
                    apart[at] = px;
                }
            }
            for (x, values) in tiles.iter_mut().enumerate() {
                values[lane..lane + count].copy_from_slice(&apart[x % OUT][x / OUT..x / OUT + count]);
            }
        }
    });
}

/// The px of a panel's tiles in one output channel.
#[inline(always)]
fn write_output(places: &Places, sums: &[Lanes], channel: usize, bias: f32, plane: &mut [f32]) {
    let mut px = [[[0.0; OUT]; LANES]; OUT];
    for chunk in 0..LANES / CHUNK {
        let at = |y: usize, x: usize| sums[(y * IN + x) * CHANNELS_AT_ONCE + channel].as_chunks().0[chunk];
        let mut half = [[[0.0; CHUNK]; IN]; OUT];
        for x in 0..IN {
            let column = along_output(&std::array::from_fn(|y| at(y, x)));
            for (half, values) in half.iter_mut().zip(column) {
                half[x] = values;
            }
        }
        for (px, half) in px.iter_mut().zip(&half) {
            let row = along_output(half);
            for (lane, px) in px[chunk * CHUNK..][..CHUNK].iter_mut().enumerate() {
                *px = [row[0][lane] + bias, row[1][lane] + bias, row[2][lane] + bias, row[3][lane] + bias];
            }
        }
    }
    places.runs(|lane, tile_row, tile_column, count| {
        let [height, width] = places.size;
        for (y, px) in px.iter().enumerate().take(height - OUT * tile_row) {
            let start = (OUT * tile_row + y) * width + OUT * tile_column;
            let length = (OUT * count).min(width - OUT * tile_column);
            plane[start..start + length].copy_from_slice(&px[lane..].as_flattened()[..length]);
        }
    });
}

impl Places {
    /// Calls `run(lane, row, column, count)` for stretches of tiles that lie side by side.
    #[inline(always)]
    fn runs(&self, mut run: impl FnMut(usize, usize, usize, usize)) {
        let mut lane = 0;
        while lane < self.count {
            let tile = self.start + lane;
            let column = tile % self.columns;
            let count = (self.columns - column).min(self.count - lane);
            run(lane, tile / self.columns, column, count);
            lane += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize, seed: u64) -> Vec<f32> {
        crate::normal_noise(seed, 0).take(count).collect()
    }

    /// The definition, in f64.
    fn direct([channels_in, channels_out]: [usize; 2], [height, width]: [usize; 2], input: &[f32], kernels: &[f32], bias: &[f32]) -> Vec<f64> {
        let mut output = Vec::new();
        for out in 0..channels_out {
            for y in 0..height {
                for x in 0..width {
                    let mut sum = f64::from(bias[out]);
                    for channel in 0..channels_in {
                        for (at, &kernel) in kernels[(out * channels_in + channel) * 9..][..9].iter().enumerate() {
                            let (row, column) = ((y + at / 3).wrapping_sub(1), (x + at % 3).wrapping_sub(1));
                            if row < height && column < width {
                                sum += f64::from(kernel) * f64::from(input[(channel * height + row) * width + column]);
                            }
                        }
                    }
                    output.push(sum);
                }
            }
        }
        output
    }

    fn run(channels: [usize; 2], [height, width]: [usize; 2], input: &[f32], kernels: &[f32], bias: &[f32]) -> Vec<f32> {
        let packed = Kernels::new(channels, |out, channel| std::array::from_fn(|at| kernels[(out * channels[0] + channel) * 9 + at]));
        let mut output = vec![f32::NAN; channels[1] * height * width];
        let mut planes: Vec<&mut [f32]> = output.chunks_mut(height * width).collect();
        packed.convolve(
            [height, width],
            channels[0],
            |channel| &input[channel * height * width..][..height * width],
            bias,
            &mut planes,
            &mut Scratch::default(),
        );
        drop(planes);
        output
    }

    #[test]
    fn it_equals_the_definition_for_any_size() {
        for (case, (channels, size)) in [
            ([1, 4], [1, 1]),
            ([3, 4], [4, 4]),
            ([2, 8], [5, 7]),
            ([5, 4], [1, 130]),
            ([5, 12], [130, 1]),
            ([7, 68], [9, 13]),
            ([16, 132], [33, 18]),
            ([40, 64], [24, 99]),
        ]
        .into_iter()
        .enumerate()
        {
            let [height, width] = size;
            let seed = case as u64;
            let input = noise(channels[0] * height * width, seed);
            let kernels = noise(channels[0] * channels[1] * 9, seed + 100);
            let bias = noise(channels[1], seed + 200);
            let expected = direct(channels, size, &input, &kernels, &bias);
            let got = run(channels, size, &input, &kernels, &bias);
            let scale = (expected.iter().map(|value| value * value).sum::<f64>() / expected.len() as f64).sqrt();
            let error = got.iter().zip(&expected).map(|(&got, &expected)| (f64::from(got) - expected).powi(2)).sum::<f64>() / expected.len() as f64;
            assert!(error.sqrt() < 3e-6 * scale, "{channels:?} {size:?}: {} of {scale}", error.sqrt());
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (channels, size) = ([20, 136], [37, 41]);
        let input = noise(channels[0] * size[0] * size[1], 1);
        let kernels = noise(channels[0] * channels[1] * 9, 2);
        let bias = noise(channels[1], 3);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(channels, size, &input, &kernels, &bias))
        };
        let one = on(1);
        assert!(on(2) == one && on(5) == one);
    }

    #[test]
    fn the_plain_products_equal_those_of_vectors() {
        let kernels = Kernels::new([9, 8], |out, channel| std::array::from_fn(|at| (out * 7 + channel * 3 + at) as f32 / 50.0));
        let input: Vec<Lanes> = (0..PLACES * 9).map(|row| std::array::from_fn(|lane| ((row * 5 + lane) as f32).sin())).collect();
        let sums = |plain: bool| {
            let mut sums = vec![[0.0; LANES]; PLACES * CHANNELS_AT_ONCE];
            let products = Products { kernels: &kernels, channels: 9, first_quad: 0, quads: 2, input: &input, sums: &mut sums };
            if plain {
                products.run_plain();
            } else {
                pulp::Arch::new().dispatch(products);
            }
            sums
        };
        let pairs = sums(true).into_iter().flatten().zip(sums(false).into_iter().flatten()).collect::<Vec<_>>();
        assert!(pairs.iter().all(|(a, b)| (a - b).abs() < 1e-5) && pairs.iter().any(|(a, _)| *a != 0.0));
    }
}
