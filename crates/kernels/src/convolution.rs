use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::algorithms::{Downsample2x, Into, Pointwise, Sums, Tiles, WinogradF2, WinogradF4};
use crate::memory::{Scratch, Shared, Workspace};
use crate::norms::{Gather, Moments, Statistics, square_of};
use crate::products::{Depth, Stretch, multiply};
use crate::reading::{LINE, LINES, Lines, Span};
use crate::vectors::dispatch;
use crate::{Algorithm, BlockedImage, Input, LANES, Lanes, TILES, padded};

/// Bytes of transformed input that stay in the processor's last cache.
const FAR: usize = 8 << 20;
/// Bytes of sums at all places that are held at once.
const SUMS: usize = 256 << 10;
/// Frames of one task.
const FRAMES: usize = 4;
/// Bytes of transformed kernels that are held at once.
const KERNELS: usize = 64 << 20;

/// A convolution over height and width, or also over frames.
#[derive(Debug, Clone, Copy)]
pub struct Convolution<'a> {
    /// Which kernels, and how.
    pub algorithm: Algorithm,
    /// Output channels, input channels, kernel_frames, height and width of the kernel.
    pub weight: &'a [f32],
    /// A value for each output channel.
    pub bias: &'a [f32],
    /// Of the input and of the output.
    pub channels: [usize; 2],
    /// Frames that a frame of the output sees.
    pub kernel_frames: usize,
    /// What the next norm will need.
    pub gather: Gather,
}

/// Which frames a frame of the output sees: up to the one with the index `context + stride * frame`. What would lie before the first is zero.
#[derive(Debug, Clone, Copy)]
pub struct TemporalWindow {
    /// The last frame that the first one of the output sees.
    pub context: usize,
    /// Frames of the input from one frame of the output to the next.
    pub stride: usize,
    /// Frames of the output.
    pub frames: usize,
}

impl Convolution<'_> {
    /// Convolves frames of one size. With `onto`, adds to those.
    ///
    /// # Panics
    /// When lengths or sizes do not fit one another.
    #[must_use]
    pub fn run(&self, input: &[Input], window: TemporalWindow, onto: Option<Vec<BlockedImage>>) -> Vec<BlockedImage> {
        match self.algorithm {
            Algorithm::WinogradF4 => self.run_as::<4, WinogradF4>(input, window, onto),
            Algorithm::WinogradF2 => self.run_as::<2, WinogradF2>(input, window, onto),
            Algorithm::Pointwise => self.run_as::<1, Pointwise>(input, window, onto),
            Algorithm::Downsample2x => self.run_as::<1, Downsample2x>(input, window, onto),
        }
    }

    fn run_as<const OUT: usize, T: Tiles<OUT>>(&self, input: &[Input], window: TemporalWindow, onto: Option<Vec<BlockedImage>>) -> Vec<BlockedImage> {
        let [channels_in, channels_out] = self.channels;
        assert_eq!(self.weight.len(), channels_in * channels_out * self.kernel_frames * self.algorithm.kernel(), "weights");
        assert_eq!(self.bias.len(), channels_out, "bias");
        let Some(first) = input.first().filter(|_| window.frames > 0) else { return Vec::new() };
        let last = window.context + window.stride * (window.frames - 1);
        assert!(last < input.len(), "frames");
        assert!(input.iter().all(|input| input.size() == first.size() && input.image.channels() == channels_in), "input");
        let size = self.algorithm.output_size(first.size());
        let length = channels_out.div_ceil(LANES) * size[0] * size[1];
        let add = onto.is_some();
        let workspace = first.image.workspace();
        let output = match onto {
            Some(images) => Shared::written(images.into_iter().map(BlockedImage::into_px).collect()),
            None => Shared::fresh(window.frames, length, workspace),
        };
        // Only tiles of 4x4 px are those whose moments are taken.
        let gather = if OUT == 4 || self.gather != Gather::Moments { self.gather } else { Gather::Nothing };
        let for_each = |what: Gather, count: usize| if gather == what { count } else { 0 };
        let area = size[0] * size[1];
        let parts = groups::<4>(size, true).len();
        let moments = Shared::written(vec![vec![Lanes::ZERO; 2 * channels_out.div_ceil(LANES) * parts]; for_each(Gather::Moments, window.frames)]);
        let lengths = Shared::written(vec![vec![0.0; area]; for_each(Gather::Lengths, window.frames)]);
        assert_eq!(output.size(), [window.frames, length], "output");
        // Of kernels that reach further back than there are frames only the last kernel_frames meet something.
        let kernel_frames = self.kernel_frames.min(last + 1);
        if length > 0 {
            let groups = groups::<OUT>(size, T::IN > T::STEP);
            let rows = T::VALUES * channels_in.div_ceil(LANES);
            let blocks = channels_out.div_ceil(LANES);
            let per_block = T::PLACES * kernel_frames * rows * LANES;
            let blocks_at_once = (KERNELS / (per_block * size_of::<Lanes>()).max(1)).clamp(1, blocks);
            let mut transformed = workspace.scratch();
            let transformed = transformed.px(blocks_at_once * per_block);
            for start in (0..blocks).step_by(blocks_at_once) {
                let blocks = start..(start + blocks_at_once).min(blocks);
                let kernels = &mut transformed[..blocks.len() * per_block];
                self.transform_kernels::<OUT, T>(kernel_frames, blocks.clone(), per_block, kernels);
                let whole = Whole {
                    convolution: self,
                    kernel_frames,
                    input,
                    window,
                    size,
                    output: &output,
                    add,
                    gather,
                    moments: &moments,
                    lengths: &lengths,
                    groups: &groups,
                    bias: &padded(self.bias),
                    first_block: start,
                    per_block,
                    kernels,
                    workspace,
                };
                whole.run::<OUT, T>(blocks);
            }
        }
        // SAFETY: the groups cover every px of every frame, and the tasks write them in every block.
        #[expect(unsafe_code, reason = "to not clear what is overwritten")]
        let (images, moments, lengths) = unsafe { (output.finish(), moments.finish(), lengths.finish()) };
        let images = images.into_iter().map(|px| BlockedImage::filled(px, channels_out, size, workspace));
        match gather {
            Gather::Nothing => images.collect(),
            Gather::Moments => images.zip(moments).map(|(image, moments)| image.with(Statistics::Moments(moments))).collect(),
            Gather::Lengths => images.zip(lengths).map(|(image, lengths)| image.with(Statistics::Lengths(lengths))).collect(),
        }
    }

    /// By block of output channels, place, tap, value and input channel.
    fn transform_kernels<const OUT: usize, T: Tiles<OUT>>(
        &self,
        kernel_frames: usize,
        blocks: Range<usize>,
        per_block: usize,
        transformed: &mut [Lanes],
    ) {
        transformed.par_chunks_mut(per_block.max(1)).zip(blocks).for_each(|(part, block)| {
            dispatch(Kernels::<OUT, T> { convolution: self, kernel_frames, block, part, algorithm: std::marker::PhantomData });
        });
    }
}

/// Transforms the kernels of a block of output channels, in as many kernel_frames as meet something.
struct Kernels<'a, const OUT: usize, T> {
    convolution: &'a Convolution<'a>,
    kernel_frames: usize,
    block: usize,
    part: &'a mut [Lanes],
    algorithm: std::marker::PhantomData<T>,
}

impl<const OUT: usize, T: Tiles<OUT>> WithSimd for Kernels<'_, OUT, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        /// Channels whose values at a place are written together.
        const TOGETHER: usize = 4;
        let Convolution { weight, channels: [channels_in, channels_out], kernel_frames: all_taps, algorithm, .. } = *self.convolution;
        let area = algorithm.kernel();
        let per_place = self.part.len() / T::PLACES;
        let per_tap = per_place / self.kernel_frames;
        let per_value = per_tap / T::VALUES;
        let first = LANES * self.block;
        let outs = (channels_out - first).min(LANES);
        let per_out = channels_in * all_taps * area;
        let weight = &weight[first * per_out..(first + outs) * per_out];
        let mut px = [[Lanes::ZERO; 9]; TOGETHER];
        let mut values = [[Lanes::ZERO; 36]; TOGETHER];
        for tap in 0..self.kernel_frames {
            for channel in (0..channels_in).step_by(TOGETHER) {
                let count = (channels_in - channel).min(TOGETHER);
                for (lane, weight) in weight.chunks_exact(per_out).enumerate() {
                    for (at, px) in px.iter_mut().enumerate().take(count) {
                        let start = ((channel + at + 1) * all_taps - self.kernel_frames + tap) * area;
                        for (px, &value) in px.iter_mut().zip(&weight[start..start + area]) {
                            px.0[lane] = value;
                        }
                    }
                }
                for (px, values) in px.iter().zip(&mut values).take(count) {
                    T::kernels(simd, &px[..area], &mut values[..T::PLACES * T::VALUES]);
                }
                for place in 0..T::PLACES {
                    for value in 0..T::VALUES {
                        let first = place * per_place + tap * per_tap + value * per_value + channel;
                        for (part, values) in self.part[first..first + count].iter_mut().zip(&values) {
                            *part = values[place * T::VALUES + value];
                        }
                    }
                }
            }
        }
    }
}

/// Tiles that go through everything together: bands of tiles side by side, one below the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    row: usize,
    column: usize,
    across: usize,
    /// Its number down each band.
    index: usize,
}

impl Group {
    /// Rows of tiles.
    fn down(self) -> usize {
        TILES / self.across
    }

    /// Row and column of a tile.
    #[inline(always)]
    pub(crate) fn tile(self, tile: usize) -> [usize; 2] {
        [self.row + tile / self.across, self.column + tile % self.across]
    }

    /// Lanes of tiles of 4x4 px that lie in the picture.
    pub(crate) fn px(self, [height, width]: [usize; 2]) -> usize {
        (4 * self.down()).min(height - 4 * self.row) * (4 * self.across).min(width - 4 * self.column)
    }
}

/// All tiles of an output: down each band, where those below one another share px of the input, and else along the rows.
pub(crate) fn groups<const OUT: usize>([height, width]: [usize; 2], down: bool) -> Vec<Group> {
    let [rows, columns] = [height.div_ceil(OUT), width.div_ceil(OUT)];
    let mut groups = Vec::new();
    let mut column = 0;
    while column < columns {
        let across = match columns - column {
            0..=2 => 2,
            3..=6 => 4,
            _ => 8,
        };
        for row in (0..rows).step_by(TILES / across) {
            groups.push(Group { row, column, across, index: groups.len() });
        }
        column += across;
    }
    if !down {
        groups.sort_by_key(|group| (TILES - group.across, group.row));
    }
    groups
}

/// What the tasks of a convolution share.
struct Whole<'a> {
    convolution: &'a Convolution<'a>,
    kernel_frames: usize,
    input: &'a [Input<'a>],
    window: TemporalWindow,
    /// Of the output.
    size: [usize; 2],
    output: &'a Shared<Lanes>,
    /// Whether the output is added to.
    add: bool,
    gather: Gather,
    moments: &'a Shared<Lanes>,
    lengths: &'a Shared<f32>,
    groups: &'a [Group],
    bias: &'a [Lanes],
    /// The first block of output channels whose kernels are there.
    first_block: usize,
    per_block: usize,
    kernels: &'a [Lanes],
    workspace: &'a Workspace,
}

impl Whole<'_> {
    fn run<const OUT: usize, T: Tiles<OUT>>(&self, blocks: Range<usize>) {
        let rows = T::VALUES * self.convolution.channels[0].div_ceil(LANES);
        let threads = rayon::current_num_threads();
        let frames = if self.kernel_frames > 1 { self.window.frames.min(FRAMES) } else { 1 };
        let seen = (frames - 1) * self.window.stride + self.kernel_frames;
        let group = seen * rows * TILES * size_of::<Lanes>();
        // Each task reads all kernels: the more of them, the more it does with them.
        let kernels = blocks.len() * self.per_block * size_of::<Lanes>();
        let at_once = ((kernels / 3).min(FAR) / (T::PLACES * group).max(1)).max(2);
        let mut ranges = self.groups.len().div_ceil(at_once);
        let frame_batches = self.window.frames.div_ceil(frames);
        if ranges * frame_batches < 4 * threads {
            // As much for each thread.
            ranges = ranges.next_multiple_of(threads).min(self.groups.len());
        }
        // Something for every thread, where the picture is small.
        let parts = if self.gather == Gather::Lengths { 1 } else { threads.div_ceil(ranges * frame_batches).min(blocks.len().div_ceil(2)) };
        let share = |whole: usize, of: usize, at: usize| whole * at / of..whole * (at + 1) / of;
        let run = |scratch: &mut Scratch, task: usize| {
            self.workspace.check();
            let (range, batch, part) = (task / parts / frame_batches, task / parts % frame_batches, task % parts);
            let task = Task::<OUT, T> {
                whole: self,
                groups: &self.groups[share(self.groups.len(), ranges, range)],
                frames: share(self.window.frames, frame_batches, batch),
                blocks: share(blocks.len(), parts, part),
                algorithm: std::marker::PhantomData,
            };
            dispatch(Work { task, scratch });
        };
        (0..ranges * frame_batches * parts).into_par_iter().for_each_init(|| self.workspace.scratch(), run);
    }
}

/// Some tiles of some frames in some output channels.
struct Task<'a, const OUT: usize, T> {
    whole: &'a Whole<'a>,
    groups: &'a [Group],
    frames: Range<usize>,
    /// Counted from the first whose kernels are there.
    blocks: Range<usize>,
    algorithm: std::marker::PhantomData<T>,
}

struct Work<'a, 's, const OUT: usize, T> {
    task: Task<'a, OUT, T>,
    scratch: &'s mut Scratch,
}

impl<const OUT: usize, T: Tiles<OUT>> WithSimd for Work<'_, '_, OUT, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.task.run(simd, self.scratch);
    }
}

impl<const OUT: usize, T: Tiles<OUT>> Task<'_, OUT, T> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, scratch: &mut Scratch) {
        let Whole { convolution, kernel_frames, window, .. } = *self.whole;
        let depth = Depth::new(convolution.channels[0]);
        let rows = T::VALUES * depth.per_value;
        // Frames of the input that frames of the output see.
        let last = |frame: usize| window.context + window.stride * frame + 1;
        let seen = last(self.frames.start).saturating_sub(kernel_frames)..last(self.frames.end - 1);
        // A px more than there is, so that places do not lie a multiple of a page apart.
        let per_group = rows * TILES;
        let per_place = self.groups.len() * per_group + 1;
        let per_slab = T::PLACES * per_place;
        let units = self.groups.len() * self.frames.len();
        let at_once = (SUMS / (T::PLACES * units * TILES * size_of::<Lanes>())).next_multiple_of(2).clamp(2, self.blocks.len().max(2));
        let per_sums = at_once * units * TILES + 1;
        let [slabs, sums, lines] = [seen.len() * per_slab, T::PLACES * per_sums, LINES * LINE];
        let (slabs, rest) = scratch.px(slabs + sums + lines).split_at_mut(slabs);
        let (sums, lines) = rest.split_at_mut(sums);
        let (lines, _) = lines.as_chunks_mut();
        for (input, slab) in self.whole.input[seen.clone()].iter().zip(slabs.chunks_mut(per_slab)) {
            self.read(simd, input, lines, slab, per_place);
        }
        let per_tap = rows * LANES;
        for first in self.blocks.clone().step_by(at_once) {
            let blocks = first..(first + at_once).min(self.blocks.end);
            for place in 0..T::PLACES {
                for pair in blocks.clone().step_by(2) {
                    let count = (blocks.end - pair).min(2);
                    let kernels = [pair, pair + count - 1].map(|block| {
                        &self.whole.kernels[block * self.whole.per_block + place * kernel_frames * per_tap..][..kernel_frames * per_tap]
                    });
                    for group in 0..self.groups.len() {
                        for (at, frame) in self.frames.clone().enumerate() {
                            let end = last(frame);
                            let begin = end.saturating_sub(kernel_frames);
                            let missing = kernel_frames - (end - begin);
                            let mut stretches = [Stretch::EMPTY; 3];
                            for (at, stretch) in stretches.iter_mut().enumerate().take(end - begin) {
                                let slab = &slabs[(begin + at - seen.start) * per_slab + place * per_place + group * per_group..][..per_group];
                                *stretch = Stretch { kernels: kernels.map(|kernels| &kernels[(missing + at) * per_tap..][..per_tap]), values: slab };
                            }
                            let unit = group * self.frames.len() + at;
                            let sums = &mut sums[place * per_sums + (unit * at_once + pair - first) * TILES..][..count * TILES];
                            multiply(simd, &stretches[..end - begin], depth, sums);
                        }
                    }
                }
            }
            for group in 0..self.groups.len() {
                for (at, frame) in self.frames.clone().enumerate() {
                    let unit = group * self.frames.len() + at;
                    for block in blocks.clone() {
                        let sums = Sums { px: sums, per_place: per_sums, first: (unit * at_once + block - first) * TILES };
                        self.write(simd, self.groups[group], frame, self.whole.first_block + block, sums);
                    }
                }
            }
        }
    }

    /// Transforms all groups of one frame.
    #[inline(always)]
    fn read<S: Simd>(&self, simd: S, input: &Input, lines: &mut Lines, slab: &mut [Lanes], per_place: usize) {
        let blocks = input.image.blocks();
        for block in 0..blocks {
            // The column and the row after the last one that was read.
            let mut next = (usize::MAX, usize::MAX);
            for (at, group) in self.groups.iter().enumerate() {
                let count = T::STEP * (group.down() - 1) + T::IN;
                let top = T::STEP * group.row;
                let mut known = 0;
                if T::IN > T::STEP && next == (group.column, top + T::IN - T::STEP) {
                    known = T::IN - T::STEP;
                    lines.copy_within(count - known..count, 0);
                }
                for (y, line) in lines.iter_mut().enumerate().take(count).skip(known) {
                    let span = Span {
                        row: (top + y).cast_signed() - T::BEFORE.cast_signed(),
                        column: (T::STEP * group.column).cast_signed() - T::BEFORE.cast_signed(),
                        count: T::STEP * (group.across - 1) + T::IN,
                    };
                    input.read(simd, block, span, line);
                }
                next = (group.column, top + count);
                for tile in 0..TILES {
                    let first = (at * T::VALUES * blocks + block) * TILES + tile;
                    let into = Into { slab, per_place, per_value: blocks * TILES, first };
                    T::input(simd, lines, [T::STEP * (tile / group.across), T::STEP * (tile % group.across)], into);
                }
            }
        }
    }

    /// Writes a group of one frame in a block of output channels.
    #[inline(always)]
    fn write<S: Simd>(&self, simd: S, group: Group, frame: usize, block: usize, sums: Sums) {
        let [height, width] = self.whole.size;
        let Whole { output, add, gather, moments, lengths, .. } = *self.whole;
        let bias = self.whole.bias[block];
        let mut gathered = Moments::NONE;
        for tile in 0..TILES {
            let [top, left] = group.tile(tile).map(|at| OUT * at);
            if top >= height || left >= width {
                continue;
            }
            let mut px = T::output(simd, Sums { first: sums.first + tile, ..sums });
            for (y, px) in px.iter_mut().enumerate().take(height - top) {
                let px = &mut px[..OUT.min(width - left)];
                for px in px.iter_mut() {
                    for (value, bias) in px.0.iter_mut().zip(bias.0) {
                        *value += bias;
                    }
                }
                let at = (top + y) * width + left;
                // SAFETY: no other task has these tiles of this frame in this block; what is added to was written.
                #[expect(unsafe_code, reason = "see `Shared`")]
                unsafe {
                    output.put(frame, block * height * width + at, px, add);
                }
                match gather {
                    Gather::Nothing => {}
                    Gather::Moments => gathered.add(px),
                    Gather::Lengths => {
                        let mut squares = [0.0; OUT];
                        for (square, px) in squares.iter_mut().zip(px.iter()) {
                            *square = square_of(px);
                        }
                        // SAFETY: where lengths are gathered, a task has these tiles in all blocks; the list was written with zeros.
                        #[expect(unsafe_code, reason = "see `Shared`")]
                        unsafe {
                            lengths.put(frame, at, &mut squares[..px.len()], true);
                        }
                    }
                }
            }
        }
        if gather == Gather::Moments {
            let parts = moments.size()[1] / 2 / self.whole.bias.len();
            // SAFETY: no other task has this group of this frame in this block.
            #[expect(unsafe_code, reason = "see `Shared`")]
            unsafe {
                moments.put(frame, 2 * (block * parts + group.index), &mut gathered.finish(), false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Norm;
    use crate::norms::{Channels, Pixels};
    use crate::vectors::tests::with_each_kind_of_vectors;

    /// Repeatable values between -1 and 1.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.0 >> 33
        }

        fn below(&mut self, limit: usize) -> usize {
            self.next() as usize % limit
        }

        fn values(&mut self, count: usize) -> Vec<f32> {
            (0..count).map(|_| (self.next() as f64 / f64::from(1_u32 << 30) - 1.0) as f32).collect()
        }
    }

    #[derive(Debug)]
    struct Case {
        algorithm: Algorithm,
        channels: [usize; 2],
        kernel_frames: usize,
        size: [usize; 2],
        frames: usize,
        window: TemporalWindow,
        upsampled: bool,
        /// 0: none, 1: channels, 2: px.
        norm: usize,
        silu: bool,
        onto: bool,
        gather: Gather,
    }

    struct Data {
        weight: Vec<f32>,
        bias: Vec<f32>,
        input: Vec<f32>,
        scale: Vec<f32>,
        shift: Vec<f32>,
        inverse: Vec<f32>,
        before: Vec<f32>,
    }

    impl Case {
        fn output_size(&self) -> [usize; 2] {
            self.algorithm.output_size(self.size.map(|side| if self.upsampled { 2 * side } else { side }))
        }

        fn data(&self, seed: u64) -> Data {
            let mut noise = Noise(seed);
            let [channels_in, channels_out] = self.channels;
            let area = self.size[0] * self.size[1];
            let [height, width] = self.output_size();
            Data {
                weight: noise.values(channels_in * channels_out * self.kernel_frames * self.algorithm.kernel()),
                bias: noise.values(channels_out),
                input: noise.values(channels_in * self.frames * area),
                scale: noise.values(channels_in),
                shift: noise.values(channels_in),
                inverse: noise.values(self.frames * area),
                before: noise.values(channels_out * self.window.frames * height * width),
            }
        }

        fn run(&self, data: &Data) -> Vec<f32> {
            let area = self.size[0] * self.size[1];
            let [channels_in, channels_out] = self.channels;
            let workspace = Workspace::default();
            let image = |frame: usize| BlockedImage::from_planes(&data.input[frame * area..], self.frames * area, channels_in, self.size, &workspace);
            let images: Vec<BlockedImage> = (0..self.frames).map(image).collect();
            let norms: Vec<Norm> = (0..self.frames)
                .map(|frame| match self.norm {
                    0 => Norm::None,
                    1 => Norm::Channels(Channels { scale: padded(&data.scale), shift: padded(&data.shift), silu: self.silu }),
                    _ => {
                        let inverse = data.inverse[frame * area..][..area].to_vec();
                        Norm::Pixels(Pixels { inverse, gain: padded(&data.scale), silu: self.silu })
                    }
                })
                .collect();
            let inputs: Vec<Input> = images.iter().zip(&norms).map(|(image, norm)| Input { image, norm, upsampled: self.upsampled }).collect();
            let convolution = Convolution {
                algorithm: self.algorithm,
                weight: &data.weight,
                bias: &data.bias,
                channels: self.channels,
                kernel_frames: self.kernel_frames,
                gather: self.gather,
            };
            let size = self.output_size();
            let area = size[0] * size[1];
            let stride = self.window.frames * area;
            let before = |frame: usize| BlockedImage::from_planes(&data.before[frame * area..], stride, channels_out, size, &workspace);
            let onto = self.onto.then(|| (0..self.window.frames).map(before).collect());
            // Someone else may hold what is added to.
            let kept = onto.clone().filter(|_| self.silu);
            let output = convolution.run(&inputs, self.window, onto);
            drop(kept);
            for image in &output {
                image.check_statistics();
            }
            let mut values = vec![0.0; channels_out * stride];
            for (frame, image) in output.iter().enumerate() {
                let beyond = image.px().iter().enumerate().flat_map(|(at, px)| (at / area * LANES..).zip(px.0));
                assert!(beyond.filter(|&(channel, _)| channel >= channels_out).all(|(_, value)| value == 0.0), "{self:?}");
                image.to_planes(&mut values[frame * area..], stride);
            }
            values
        }

        /// The definition, in f64.
        fn expected(&self, data: &Data) -> Vec<f64> {
            let [channels_in, channels_out] = self.channels;
            let [height, width] = self.size;
            let px = |channel: usize, frame: usize, y: isize, x: isize| {
                let (y, x) = if self.upsampled { (y.div_euclid(2), x.div_euclid(2)) } else { (y, x) };
                if y < 0 || x < 0 || y >= height.cast_signed() || x >= width.cast_signed() {
                    return 0.0;
                }
                let at = y as usize * width + x as usize;
                let value = f64::from(data.input[(channel * self.frames + frame) * height * width + at]);
                let value = match self.norm {
                    0 => return value,
                    1 => value * f64::from(data.scale[channel]) + f64::from(data.shift[channel]),
                    _ => value * f64::from(data.inverse[frame * height * width + at]) * f64::from(data.scale[channel]),
                };
                if self.silu { value / (1.0 + (-value).exp()) } else { value }
            };
            let side = if self.algorithm == Algorithm::Pointwise { 1 } else { 3 };
            let (stride, before) = match self.algorithm {
                Algorithm::WinogradF4 | Algorithm::WinogradF2 => (1, 1),
                Algorithm::Pointwise => (1, 0),
                Algorithm::Downsample2x => (2, 0),
            };
            let mut values = Vec::new();
            let [rows, columns] = self.output_size();
            for out in 0..channels_out {
                for frame in 0..self.window.frames {
                    for y in 0..rows {
                        for x in 0..columns {
                            let mut sum = f64::from(data.bias[out]);
                            if self.onto {
                                sum += f64::from(data.before[values.len()]);
                            }
                            for channel in 0..channels_in {
                                for tap in 0..self.kernel_frames {
                                    let Some(seen) = (self.window.context + self.window.stride * frame + tap + 1).checked_sub(self.kernel_frames)
                                    else {
                                        continue;
                                    };
                                    for at in 0..side * side {
                                        let kernel = data.weight[((out * channels_in + channel) * self.kernel_frames + tap) * side * side + at];
                                        let (row, column) = (y * stride + at / side, x * stride + at % side);
                                        sum += f64::from(kernel) * px(channel, seen, row.cast_signed() - before, column.cast_signed() - before);
                                    }
                                }
                            }
                            values.push(sum);
                        }
                    }
                }
            }
            values
        }
    }

    fn some_case(noise: &mut Noise) -> Case {
        let algorithm = [Algorithm::WinogradF4, Algorithm::WinogradF2, Algorithm::Pointwise, Algorithm::Downsample2x][noise.below(4)];
        let kernel_frames = if noise.below(3) == 0 { 3 } else { 1 };
        let frames = 1 + noise.below(if kernel_frames == 3 { 7 } else { 3 });
        let stride = 1 + noise.below(2);
        let context = noise.below(frames.min(3));
        let upsampled = noise.below(4) == 0 && algorithm != Algorithm::Downsample2x;
        let some = if cfg!(miri) { 5 } else { 40 };
        Case {
            algorithm,
            channels: [1 + noise.below(21), 1 + noise.below(if cfg!(miri) { 9 } else { 70 })],
            kernel_frames,
            size: if noise.below(5) == 0 { [1 + noise.below(2), 1 + noise.below(2)] } else { [1 + noise.below(some), 1 + noise.below(3 * some)] },
            frames,
            window: TemporalWindow { context, stride, frames: (frames - context).div_ceil(stride) },
            upsampled,
            norm: noise.below(3),
            silu: noise.below(2) == 0,
            onto: noise.below(3) == 0,
            gather: [Gather::Nothing, Gather::Moments, Gather::Lengths][noise.below(3)],
        }
    }

    #[test]
    fn every_convolution_equals_its_definition() {
        let mut noise = Noise(1);
        for number in 0..if cfg!(miri) { 6 } else { 150 } {
            let case = some_case(&mut noise);
            let data = case.data(number);
            let (got, expected) = (case.run(&data), case.expected(&data));
            assert_eq!(got.len(), expected.len());
            let root = |sum: f64| (sum / expected.len() as f64).sqrt();
            let scale = root(expected.iter().map(|value| value * value).sum()).max(0.1);
            let error = root(got.iter().zip(&expected).map(|(&got, &expected)| (f64::from(got) - expected).powi(2)).sum());
            assert!(expected.is_empty() || error < 3e-6 * scale, "{case:?}: {error} of {scale}");
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let mut noise = Noise(2);
        for number in 0..if cfg!(miri) { 1 } else { 12 } {
            let case = some_case(&mut noise);
            let data = case.data(number);
            let on = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| case.run(&data));
            let one = on(1);
            assert!(on(2) == one && on(5) == one, "{case:?}");
        }
    }

    #[test]
    fn vectors_do_not_change_a_bit() {
        let mut noise = Noise(3);
        for number in 0..if cfg!(miri) { 1 } else { 40 } {
            let case = some_case(&mut noise);
            let data = case.data(number);
            let answers = with_each_kind_of_vectors(|| case.run(&data));
            assert!(answers.iter().all(|answer| *answer == answers[0]), "{case:?}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too much")]
    fn where_in_a_tile_a_px_lies_changes_only_its_rounding() {
        let (channels, [height, width]) = (40, [21, 26]);
        let mut noise = Noise(4);
        let values = noise.values(channels * height * width);
        let (weight, bias) = (noise.values(channels * channels * 9), noise.values(channels));
        // The picture without its first rows and columns, so that every px comes to lie elsewhere in its tile.
        let run = |algorithm, [down, right]: [usize; 2]| {
            let size = [height - down, width - right];
            let planes = values.chunks(height * width).flat_map(|plane| plane.chunks(width).skip(down).flat_map(|row| &row[right..]));
            let image = BlockedImage::from_planes(&planes.copied().collect::<Vec<_>>(), size[0] * size[1], channels, size, &Workspace::default());
            let convolution =
                Convolution { algorithm, weight: &weight, bias: &bias, channels: [channels; 2], kernel_frames: 1, gather: Gather::Nothing };
            let input = Input { image: &image, norm: &Norm::None, upsampled: false };
            let output = convolution.run(&[input], TemporalWindow { context: 0, stride: 1, frames: 1 }, None).remove(0);
            let mut planes = vec![0.0; channels * size[0] * size[1]];
            output.to_planes(&mut planes, size[0] * size[1]);
            planes
        };
        for algorithm in [Algorithm::WinogradF4, Algorithm::WinogradF2] {
            let whole = run(algorithm, [0, 0]);
            for [down, right] in [[1, 1], [2, 3], [3, 2], [0, 5]] {
                let part = run(algorithm, [down, right]);
                let size = [height - down, width - right];
                let mut differs = false;
                // What touches the border sees zeros in place of what was cut off.
                for (channel, (y, x)) in
                    (0..channels).flat_map(|channel| (1..size[0]).flat_map(move |y| (1..size[1]).map(move |x| (channel, (y, x)))))
                {
                    let [a, b] = [part[(channel * size[0] + y) * size[1] + x], whole[(channel * height + y + down) * width + x + right]];
                    assert!((a - b).abs() < 1e-4, "{algorithm:?} {down} {right}: {a} {b}");
                    differs |= a != b;
                }
                assert!(differs);
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too much")]
    fn narrow_tiles_round_less_than_wide_ones() {
        let case = |algorithm| Case {
            algorithm,
            channels: [64, 16],
            kernel_frames: 1,
            size: [40, 40],
            frames: 1,
            window: TemporalWindow { context: 0, stride: 1, frames: 1 },
            upsampled: false,
            norm: 0,
            silu: false,
            onto: false,
            gather: Gather::Nothing,
        };
        let data = case(Algorithm::WinogradF4).data(5);
        let error = |algorithm| {
            let (got, expected) = (case(algorithm).run(&data), case(algorithm).expected(&data));
            (got.iter().zip(&expected).map(|(&got, &expected)| (f64::from(got) - expected).powi(2)).sum::<f64>()
                / expected.iter().map(|value| value * value).sum::<f64>())
            .sqrt()
        };
        let (wide, narrow) = (error(Algorithm::WinogradF4), error(Algorithm::WinogradF2));
        assert!(wide < 1.6e-6 && narrow < 0.5 * wide, "{wide} {narrow}");
    }

    /// A convolution that keeps all threads of a small pool busy.
    fn large_case() -> Case {
        Case {
            algorithm: Algorithm::WinogradF4,
            channels: [24, 40],
            kernel_frames: 1,
            size: [96, 96],
            frames: 1,
            window: TemporalWindow { context: 0, stride: 1, frames: 1 },
            upsampled: false,
            norm: 1,
            silu: true,
            onto: false,
            gather: Gather::Moments,
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too much")]
    fn callers_of_one_pool_do_not_meet() {
        let (case, data) = (large_case(), large_case().data(6));
        let expected = case.run(&data);
        let image = BlockedImage::from_planes(&data.input, 96 * 96, 24, [32, 32], &Workspace::default());
        let attended = crate::attend(&image, &image, &image);
        let done = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            // A thread that waits for the others takes on what another caller wants.
            let once = || case.run(&data) == expected && crate::attend(&image, &image, &image).px() == attended.px();
            let repeated = || (0..10).all(|_| once());
            let from_outside = std::thread::scope(|scope| {
                let callers: Vec<_> = (0..4).map(|_| scope.spawn(|| pool.install(repeated))).collect();
                callers.into_iter().all(|caller| caller.join().unwrap())
            });
            let from_within = pool.install(|| (0..24).into_par_iter().all(|_| once()));
            done.0.send((from_outside, from_within)).unwrap();
        });
        assert_eq!(done.1.recv_timeout(std::time::Duration::from_mins(2)), Ok((true, true)));
    }

    #[test]
    #[cfg_attr(miri, ignore = "too much")]
    fn a_panic_leaves_threads_and_memory_usable() {
        let workspace = Workspace::default();
        let image = BlockedImage::from_planes(&vec![1.0; 24 * 96 * 96], 96 * 96, 24, [96, 96], &workspace);
        let (weight, bias) = (vec![0.1; 24 * 40 * 9], vec![0.0; 40]);
        let convolution = Convolution {
            algorithm: Algorithm::WinogradF4,
            weight: &weight,
            bias: &bias,
            channels: [24, 40],
            kernel_frames: 1,
            gather: Gather::Nothing,
        };
        let run = |norm: &Norm| {
            convolution.run(&[Input { image: &image, norm, upsampled: false }], TemporalWindow { context: 0, stride: 1, frames: 1 }, None).remove(0)
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let expected = pool.install(|| run(&Norm::None));
        let kept = workspace.kept_bytes();
        // A norm of an image with fewer channels.
        let other = Norm::Channels(Channels { scale: padded(&[1.0]), shift: padded(&[1.0]), silu: false });
        for _ in 0..5 {
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.install(|| run(&other))));
            assert!(panicked.is_err());
            assert!(pool.install(|| run(&Norm::None)).px() == expected.px());
        }
        assert!(workspace.kept_bytes() <= kept + 3 * (1 << 20), "{} and {kept}", workspace.kept_bytes());
    }

    #[test]
    #[cfg_attr(miri, ignore = "too much")]
    fn a_cancelled_workspace_ends_what_runs_in_it() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicUsize, Ordering};
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let [counted, limit] = [asked.clone(), Arc::new(AtomicUsize::new(usize::MAX))];
        let workspace = Workspace::cancellable({
            let limit = limit.clone();
            move || counted.fetch_add(1, Ordering::Relaxed) >= limit.load(Ordering::Relaxed)
        });
        let image = BlockedImage::from_planes(&vec![1.0; 24 * 96 * 96], 96 * 96, 24, [96, 96], &workspace);
        let (weight, bias) = (vec![0.1; 24 * 24 * 9], vec![0.0; 24]);
        let convolution = Convolution {
            algorithm: Algorithm::WinogradF4,
            weight: &weight,
            bias: &bias,
            channels: [24, 24],
            kernel_frames: 1,
            gather: Gather::Nothing,
        };
        let input = Input { image: &image, norm: &Norm::None, upsampled: false };
        let convolve = || convolution.run(&[input], TemporalWindow { context: 0, stride: 1, frames: 1 }, None).remove(0);
        let small = BlockedImage::from_planes(&vec![1.0; 24 * 32 * 32], 32 * 32, 24, [32, 32], &workspace);
        let attend = || crate::attend(&small, &small, &small);
        for run in [&convolve as &(dyn Fn() -> BlockedImage + Sync), &attend] {
            limit.store(usize::MAX, Ordering::Relaxed);
            let expected = pool.install(run);
            let tasks = asked.swap(0, Ordering::Relaxed);
            limit.store(2, Ordering::Relaxed);
            let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.install(run))).unwrap_err();
            assert!(payload.is::<crate::Cancelled>());
            // The first tasks were done, the others not.
            assert!(tasks > 20, "{tasks}");
            limit.store(usize::MAX, Ordering::Relaxed);
            assert!(pool.install(run).px() == expected.px());
            asked.store(0, Ordering::Relaxed);
        }
    }
}
