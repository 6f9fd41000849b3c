mod job;
mod weight;
mod window;

use crate::algorithms::{Algorithm, Downsample2x, Padding, Pointwise, TileAlgorithm, WinogradF2, WinogradF4};
use crate::groups::tile_groups;
use crate::image::BlockedImage;
use crate::lanes::{LANES, Lanes, padded};
use crate::memory::SharedBuffers;
use crate::products::MAX_PAIRS;
use crate::prologue::Input;
use crate::statistics::{Collected, Statistics};

use job::Job;
use weight::Weight;
pub use window::TemporalWindow;

/// Bytes of transformed kernels that are held at once.
const KERNEL_BYTES: usize = 64 << 20;

/// A convolution over height and width, and over frames if the kernel has several of them.
#[derive(Debug, Clone, Copy)]
pub struct Convolution<'a> {
    /// How the kernel is convolved, which also implies its height, width and stride.
    pub algorithm: Algorithm,
    /// `[output channels, input channels, kernel_frames, height, width]`.
    pub weight: &'a [f32],
    /// `[output channels]`.
    pub bias: Option<&'a [f32]>,
    /// Input and output channels.
    pub channels: [usize; 2],
    /// Frames of the kernel: 1 to [`Convolution::MAX_KERNEL_FRAMES`].
    pub kernel_frames: usize,
    /// Zeros around each input frame.
    pub padding: Padding,
    /// What is collected for the norm that follows. Moments are collected by [`Algorithm::WinogradF4`] only.
    pub statistics: Statistics,
}

impl Convolution<'_> {
    /// The largest number of frames of a kernel.
    pub const MAX_KERNEL_FRAMES: usize = MAX_PAIRS;

    /// Convolves frames of one size and number of channels. The result is added to the `residual`, which has the shape of the output.
    ///
    /// # Panics
    /// When shapes do not fit: lengths of weight and bias, sizes or channels of the frames, a residual of another shape, a window that reaches beyond the
    /// frames, or a kernel of too many frames.
    #[must_use]
    pub fn run(&self, input: &[Input], window: TemporalWindow, residual: Option<Vec<BlockedImage>>) -> Vec<BlockedImage> {
        match self.algorithm {
            Algorithm::WinogradF4 => self.run_with::<4, WinogradF4>(input, window, residual),
            Algorithm::WinogradF2 => self.run_with::<2, WinogradF2>(input, window, residual),
            Algorithm::Pointwise => self.run_with::<1, Pointwise>(input, window, residual),
            Algorithm::Downsample2x => self.run_with::<1, Downsample2x>(input, window, residual),
        }
    }

    fn run_with<const OUT: usize, T: TileAlgorithm<OUT>>(
        &self,
        input: &[Input],
        window: TemporalWindow,
        residual: Option<Vec<BlockedImage>>,
    ) -> Vec<BlockedImage> {
        let [channels_in, channels_out] = self.channels;
        let weight = Weight { values: self.weight, channels: self.channels, frames: self.kernel_frames, area: self.algorithm.kernel_side().pow(2) };
        assert!((1..=Self::MAX_KERNEL_FRAMES).contains(&weight.frames), "kernel of {} frames", weight.frames);
        assert_eq!(weight.values.len(), channels_in * channels_out * weight.frames * weight.area, "weight");
        assert!(self.bias.is_none_or(|bias| bias.len() == channels_out), "bias");
        let Some(first) = input.first().filter(|_| window.frames > 0) else { return Vec::new() };
        let frames_in = window.end(window.frames - 1);
        assert!(frames_in <= input.len(), "window of {frames_in} of {} frames", input.len());
        assert!(input.iter().all(|input| input.size() == first.size() && input.image.channels() == channels_in), "frames");
        let size = self.algorithm.output_size(first.size(), self.padding);
        let area = size[0] * size[1];
        let blocks = channels_out.div_ceil(LANES);
        let add = residual.is_some();
        let workspace = first.image.workspace();
        let output = match residual {
            Some(images) => {
                assert!(images.iter().all(|image| image.size() == size && image.channels() == channels_out), "residual");
                SharedBuffers::initialised(images.into_iter().map(BlockedImage::into_lanes).collect())
            }
            None => SharedBuffers::uninitialised(window.frames, blocks * area, workspace),
        };
        assert_eq!(output.size(), [window.frames, blocks * area], "residual");
        // Moments are over groups of 4x4 tiles.
        let statistics = if OUT == 4 || self.statistics != Statistics::Moments { self.statistics } else { Statistics::None };
        let frames_of = |wanted: Statistics| if statistics == wanted { window.frames } else { 0 };
        let groups = tile_groups::<OUT>(size, T::IN > T::STEP);
        let moments = SharedBuffers::initialised(vec![vec![Lanes::ZERO; 2 * blocks * groups.len()]; frames_of(Statistics::Moments)]);
        let squared_norms = SharedBuffers::initialised(vec![vec![0.0; area]; frames_of(Statistics::SquaredNorms)]);
        // Earlier frames of the kernel meet zeros only.
        let kernel_frames = self.kernel_frames.min(frames_in);
        if blocks * area > 0 {
            let block_stride = T::POSITIONS * kernel_frames * T::UNROLLED * channels_in.next_multiple_of(LANES);
            let blocks_at_once = (KERNEL_BYTES / (block_stride * size_of::<Lanes>()).max(1)).clamp(1, blocks);
            let bias = self.bias.map_or_else(|| vec![Lanes::ZERO; blocks], padded);
            let mut scratch = workspace.scratch();
            let kernels = scratch.lanes(blocks_at_once * block_stride);
            for first_block in (0..blocks).step_by(blocks_at_once) {
                let blocks = first_block..(first_block + blocks_at_once).min(blocks);
                let kernels = &mut kernels[..blocks.len() * block_stride];
                weight.transform::<OUT, T>(kernel_frames, blocks.clone(), block_stride, kernels);
                let job = Job {
                    channels_in,
                    kernel_frames,
                    input,
                    window,
                    padding: self.padding,
                    size,
                    output: &output,
                    add,
                    statistics,
                    moments: &moments,
                    squared_norms: &squared_norms,
                    groups: &groups,
                    bias: &bias,
                    first_block,
                    kernels,
                    block_stride,
                    workspace,
                };
                job.run::<OUT, T>(blocks.len());
            }
        }
        // SAFETY: the groups of tiles cover every px, and the tasks write them in every frame and block.
        #[expect(unsafe_code, reason = "the output is not cleared before it is written")]
        let (images, moments, squared_norms) = unsafe { (output.into_vecs(), moments.into_vecs(), squared_norms.into_vecs()) };
        let images = images.into_iter().map(|lanes| BlockedImage::from_lanes(lanes, channels_out, size, workspace));
        match statistics {
            Statistics::None => images.collect(),
            Statistics::Moments => images.zip(moments).map(|(image, moments)| image.with_statistics(Collected::Moments(moments))).collect(),
            Statistics::SquaredNorms => {
                images.zip(squared_norms).map(|(image, squares)| image.with_statistics(Collected::SquaredNorms(squares))).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests;
