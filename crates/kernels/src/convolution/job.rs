//! The tasks of a convolution: each reads and transforms some groups of tiles of some frames, multiplies them with kernels, and writes the output.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::window::TemporalWindow;
use crate::algorithms::{Padding, TileAlgorithm, TileSums, TileTarget};
use crate::groups::{TILES, TileGroup};
use crate::lanes::{LANES, Lanes};
use crate::memory::{Scratch, SharedBuffers, Workspace};
use crate::products::{Depth, MAX_PAIRS, Operands, multiply};
use crate::prologue::{Input, LINE, LINES, Lines, Span};
use crate::statistics::{PartialMoments, Statistics, sum_of_squares};
use crate::vectors::dispatch;

/// Bytes of transformed input of a task, so that it stays in the last-level cache.
const TRANSFORMED_BYTES: usize = 8 << 20;
/// Bytes of sums that a task holds, at all positions.
const SUMS_BYTES: usize = 256 << 10;
/// Frames of a task where the kernel has several frames.
const FRAMES_PER_TASK: usize = 4;

/// What the tasks share. Each is responsible for some groups of tiles of some frames in some blocks of output channels.
pub(super) struct Job<'a> {
    pub(super) channels_in: usize,
    pub(super) kernel_frames: usize,
    pub(super) input: &'a [Input<'a>],
    pub(super) window: TemporalWindow,
    pub(super) padding: Padding,
    /// Height and width of the output.
    pub(super) size: [usize; 2],
    /// A buffer for each frame.
    pub(super) output: &'a SharedBuffers<Lanes>,
    /// Whether the output is added to what its buffers hold.
    pub(super) add: bool,
    pub(super) statistics: Statistics,
    /// For each frame `[blocks, groups of tiles, 2]`; empty unless moments are collected.
    pub(super) moments: &'a SharedBuffers<Lanes>,
    /// For each frame `[px]`; empty unless squared norms are collected.
    pub(super) squared_norms: &'a SharedBuffers<f32>,
    pub(super) groups: &'a [TileGroup],
    /// For each block of output channels.
    pub(super) bias: &'a [Lanes],
    /// The first block of output channels in `kernels`.
    pub(super) first_block: usize,
    /// Transformed kernels: see [`Weight::transform`](super::weight::Weight::transform).
    pub(super) kernels: &'a [Lanes],
    pub(super) block_stride: usize,
    pub(super) workspace: &'a Workspace,
}

impl Job<'_> {
    /// Runs all tasks, each for this many blocks of output channels.
    pub(super) fn run<const OUT: usize, T: TileAlgorithm<OUT>>(&self, blocks: usize) {
        let rows = T::UNROLLED * self.channels_in.div_ceil(LANES);
        let threads = rayon::current_num_threads();
        let frames = if self.kernel_frames > 1 { self.window.frames.min(FRAMES_PER_TASK) } else { 1 };
        let frames_in = (frames - 1) * self.window.stride + self.kernel_frames;
        let group_bytes = frames_in * rows * TILES * size_of::<Lanes>();
        // Every task reads all kernels, so it takes more groups of tiles the larger these are.
        let kernel_bytes = blocks * self.block_stride * size_of::<Lanes>();
        let groups_per_task = ((kernel_bytes / 3).min(TRANSFORMED_BYTES) / (T::POSITIONS * group_bytes).max(1)).max(2);
        let mut ranges = self.groups.len().div_ceil(groups_per_task);
        let frame_batches = self.window.frames.div_ceil(frames);
        if ranges * frame_batches < 4 * threads {
            // The same amount for each thread.
            ranges = ranges.next_multiple_of(threads).min(self.groups.len());
        }
        // Where the image is small, blocks of output channels are divided among the threads as well. Squared norms are summed over all of them in one task.
        let block_ranges =
            if self.statistics == Statistics::SquaredNorms { 1 } else { threads.div_ceil(ranges * frame_batches).min(blocks.div_ceil(2)) };
        let share = |count: usize, shares: usize, at: usize| count * at / shares..count * (at + 1) / shares;
        let run = |scratch: &mut Scratch, task: usize| {
            self.workspace.check();
            let (range, batch, block_range) = (task / block_ranges / frame_batches, task / block_ranges % frame_batches, task % block_ranges);
            let task = Task::<OUT, T> {
                job: self,
                groups: &self.groups[share(self.groups.len(), ranges, range)],
                frames: share(self.window.frames, frame_batches, batch),
                blocks: share(blocks, block_ranges, block_range),
                algorithm: PhantomData,
            };
            dispatch(TaskWithScratch { task, scratch });
        };
        (0..ranges * frame_batches * block_ranges).into_par_iter().for_each_init(|| self.workspace.scratch(), run);
    }
}

struct Task<'a, const OUT: usize, T> {
    job: &'a Job<'a>,
    groups: &'a [TileGroup],
    frames: Range<usize>,
    /// Blocks of output channels, relative to `Job::first_block`.
    blocks: Range<usize>,
    algorithm: PhantomData<T>,
}

struct TaskWithScratch<'a, 's, const OUT: usize, T> {
    task: Task<'a, OUT, T>,
    scratch: &'s mut Scratch,
}

impl<const OUT: usize, T: TileAlgorithm<OUT>> WithSimd for TaskWithScratch<'_, '_, OUT, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.task.run(simd, self.scratch);
    }
}

impl<const OUT: usize, T: TileAlgorithm<OUT>> Task<'_, OUT, T> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, scratch: &mut Scratch) {
        let Job { channels_in, kernel_frames, window, .. } = *self.job;
        let depth = Depth::new(channels_in);
        let rows = T::UNROLLED * depth.blocks;
        let frames_in = window.end(self.frames.start).saturating_sub(kernel_frames)..window.end(self.frames.end - 1);
        // Transformed input: [frames, POSITIONS, groups, rows, TILES]. One element more per position, so that positions are not a multiple of the page size
        // apart, which would map them to the same cache set.
        let group_stride = rows * TILES;
        let position_stride = self.groups.len() * group_stride + 1;
        let frame_stride = T::POSITIONS * position_stride;
        // Sums: [POSITIONS, groups, frames, blocks at once, TILES].
        let units = self.groups.len() * self.frames.len();
        let blocks_at_once =
            (SUMS_BYTES / (T::POSITIONS * units * TILES * size_of::<Lanes>())).next_multiple_of(2).clamp(2, self.blocks.len().max(2));
        let sums_stride = blocks_at_once * units * TILES + 1;
        let [transformed_len, sums_len, lines_len] = [frames_in.len() * frame_stride, T::POSITIONS * sums_stride, LINES * LINE];
        let (transformed, rest) = scratch.lanes(transformed_len + sums_len + lines_len).split_at_mut(transformed_len);
        let (sums, lines) = rest.split_at_mut(sums_len);
        let (lines, _) = lines.as_chunks_mut();
        for (input, transformed) in self.job.input[frames_in.clone()].iter().zip(transformed.chunks_mut(frame_stride)) {
            self.read(simd, input, lines, transformed, position_stride);
        }
        let kernel_frame_stride = rows * LANES;
        for first in self.blocks.clone().step_by(blocks_at_once) {
            let blocks = first..(first + blocks_at_once).min(self.blocks.end);
            for position in 0..T::POSITIONS {
                for pair in blocks.clone().step_by(2) {
                    let count = (blocks.end - pair).min(2);
                    let kernels = [pair, pair + count - 1].map(|block| {
                        &self.job.kernels[block * self.job.block_stride + position * kernel_frames * kernel_frame_stride..]
                            [..kernel_frames * kernel_frame_stride]
                    });
                    for group in 0..self.groups.len() {
                        for (at, frame) in self.frames.clone().enumerate() {
                            let end = window.end(frame);
                            let begin = end.saturating_sub(kernel_frames);
                            // Frames before the first are zero.
                            let missing = kernel_frames - (end - begin);
                            let mut operands = [Operands::EMPTY; MAX_PAIRS];
                            for (at, operands) in operands.iter_mut().enumerate().take(end - begin) {
                                let start = (begin + at - frames_in.start) * frame_stride + position * position_stride + group * group_stride;
                                *operands = Operands {
                                    kernels: kernels.map(|kernels| &kernels[(missing + at) * kernel_frame_stride..][..kernel_frame_stride]),
                                    values: &transformed[start..][..group_stride],
                                };
                            }
                            let unit = group * self.frames.len() + at;
                            let sums = &mut sums[position * sums_stride + (unit * blocks_at_once + pair - first) * TILES..][..count * TILES];
                            multiply(simd, &operands[..end - begin], depth, sums);
                        }
                    }
                }
            }
            for group in 0..self.groups.len() {
                for (at, frame) in self.frames.clone().enumerate() {
                    let unit = group * self.frames.len() + at;
                    for block in blocks.clone() {
                        let sums = TileSums { lanes: sums, position_stride: sums_stride, first: (unit * blocks_at_once + block - first) * TILES };
                        self.write(simd, self.groups[group], frame, self.job.first_block + block, sums);
                    }
                }
            }
        }
    }

    /// Reads and transforms all groups of tiles of one frame.
    #[inline(always)]
    fn read<S: Simd>(&self, simd: S, input: &Input, lines: &mut Lines, transformed: &mut [Lanes], position_stride: usize) {
        let blocks = input.image.blocks();
        let Padding { top: padding_top, left: padding_left, .. } = self.job.padding;
        for block in 0..blocks {
            // Column of tiles of the last group, and the row of px after it.
            let mut next = (usize::MAX, usize::MAX);
            for (at, group) in self.groups.iter().enumerate() {
                let count = T::STEP * (group.down() - 1) + T::IN;
                let top = T::STEP * group.row;
                let mut known = 0;
                if T::IN > T::STEP && next == (group.column, top + T::IN - T::STEP) {
                    // The group below the last one shares lines with it.
                    known = T::IN - T::STEP;
                    lines.copy_within(count - known..count, 0);
                }
                for (y, line) in lines.iter_mut().enumerate().take(count).skip(known) {
                    let span = Span {
                        row: (top + y).cast_signed() - padding_top,
                        column: (T::STEP * group.column).cast_signed() - padding_left,
                        count: T::STEP * (group.across - 1) + T::IN,
                    };
                    input.read(simd, block, span, line);
                }
                next = (group.column, top + count);
                for tile in 0..TILES {
                    let first = (at * T::UNROLLED * blocks + block) * TILES + tile;
                    let target = TileTarget { transformed, position_stride, unrolled_stride: blocks * TILES, first };
                    T::input(simd, lines, [T::STEP * (tile / group.across), T::STEP * (tile % group.across)], target);
                }
            }
        }
    }

    /// Writes a group of tiles of one frame in a block of output channels, and collects statistics.
    #[inline(always)]
    fn write<S: Simd>(&self, simd: S, group: TileGroup, frame: usize, block: usize, sums: TileSums) {
        let [height, width] = self.job.size;
        let Job { output, add, statistics, moments, squared_norms, .. } = *self.job;
        let bias = self.job.bias[block];
        let mut partial = PartialMoments::EMPTY;
        for tile in 0..TILES {
            let [top, left] = group.tile(tile).map(|at| OUT * at);
            if top >= height || left >= width {
                continue;
            }
            let mut px = T::output(simd, TileSums { first: sums.first + tile, ..sums });
            for (y, px) in px.iter_mut().enumerate().take(height - top) {
                let px = &mut px[..OUT.min(width - left)];
                for px in px.iter_mut() {
                    for (value, bias) in px.0.iter_mut().zip(bias.0) {
                        *value += bias;
                    }
                }
                let at = (top + y) * width + left;
                // SAFETY: no other task writes these tiles of this frame in this block; with `add` the buffers are initialised.
                #[expect(unsafe_code, reason = "see `SharedBuffers::write`")]
                unsafe {
                    output.write(frame, block * height * width + at, px, add);
                }
                match statistics {
                    Statistics::None => {}
                    Statistics::Moments => partial.add(px),
                    Statistics::SquaredNorms => {
                        let mut squares = [0.0; OUT];
                        for (square, px) in squares.iter_mut().zip(px.iter()) {
                            *square = sum_of_squares(px);
                        }
                        // SAFETY: with these statistics a task writes its tiles in all blocks; the buffers are initialised with zeros.
                        #[expect(unsafe_code, reason = "see `SharedBuffers::write`")]
                        unsafe {
                            squared_norms.write(frame, at, &mut squares[..px.len()], true);
                        }
                    }
                }
            }
        }
        if statistics == Statistics::Moments {
            let groups = moments.size()[1] / 2 / self.job.bias.len();
            // SAFETY: no other task writes this group of this frame in this block.
            #[expect(unsafe_code, reason = "see `SharedBuffers::write`")]
            unsafe {
                moments.write(frame, 2 * (block * groups + group.index), &mut partial.finish(), false);
            }
        }
    }
}
