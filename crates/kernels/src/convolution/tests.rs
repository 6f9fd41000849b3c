use std::sync::Arc;

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::*;
use crate::activation::Activation;
use crate::attention::attend;
use crate::memory::{Cancelled, Workspace};
use crate::norms::{Factors, Norm};
use crate::prologue::Prologue;
use crate::statistics;
use crate::vectors::tests::with_each_instruction_set;

/// One frame of the output for each frame of the input.
const ONE_FRAME: TemporalWindow = TemporalWindow { context: 0, stride: 1, frames: 1 };

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

#[derive(Debug, Clone, Copy, PartialEq)]
enum NormCase {
    None,
    PerChannel,
    PerPx,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    algorithm: Algorithm,
    channels: [usize; 2],
    kernel_frames: usize,
    padding: Padding,
    with_bias: bool,
    size: [usize; 2],
    frames: usize,
    window: TemporalWindow,
    upsample: bool,
    norm: NormCase,
    activation: Activation,
    with_residual: bool,
    statistics: Statistics,
}

impl Case {
    /// One frame, padded so that height and width stay or are halved, and nothing before or after.
    fn plain(algorithm: Algorithm, channels: [usize; 2], size: [usize; 2]) -> Self {
        let padding = match algorithm {
            Algorithm::WinogradF4 | Algorithm::WinogradF2 => Padding::all(1),
            Algorithm::Pointwise => Padding::NONE,
            Algorithm::Downsample2x => Padding::BOTTOM_RIGHT,
        };
        Self {
            algorithm,
            channels,
            kernel_frames: 1,
            padding,
            with_bias: true,
            size,
            frames: 1,
            window: ONE_FRAME,
            upsample: false,
            norm: NormCase::None,
            activation: Activation::None,
            with_residual: false,
            statistics: Statistics::None,
        }
    }
}

struct Data {
    weight: Vec<f32>,
    bias: Vec<f32>,
    input: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
    inverse: Vec<f32>,
    residual: Vec<f32>,
}

impl Case {
    fn output_size(&self) -> [usize; 2] {
        self.algorithm.output_size(self.size.map(|side| if self.upsample { 2 * side } else { side }), self.padding)
    }

    fn data(&self, seed: u64) -> Data {
        let mut noise = Noise(seed);
        let [channels_in, channels_out] = self.channels;
        let area = self.size[0] * self.size[1];
        let [height, width] = self.output_size();
        Data {
            weight: noise.values(channels_in * channels_out * self.kernel_frames * self.algorithm.kernel_side().pow(2)),
            bias: noise.values(channels_out),
            input: noise.values(channels_in * self.frames * area),
            scale: noise.values(channels_in),
            shift: noise.values(channels_in),
            inverse: noise.values(self.frames * area),
            residual: noise.values(channels_out * self.window.frames * height * width),
        }
    }

    fn convolution<'a>(&self, data: &'a Data) -> Convolution<'a> {
        Convolution {
            algorithm: self.algorithm,
            weight: &data.weight,
            bias: self.with_bias.then_some(&data.bias),
            channels: self.channels,
            kernel_frames: self.kernel_frames,
            padding: self.padding,
            statistics: self.statistics,
        }
    }

    fn run(&self, data: &Data) -> Vec<f32> {
        let area = self.size[0] * self.size[1];
        let [channels_in, channels_out] = self.channels;
        let workspace = Workspace::default();
        let image = |frame: usize| {
            let input = data.input.get(frame * area..).unwrap_or_default();
            BlockedImage::from_planes(input, self.frames * area, channels_in, self.size, &workspace)
        };
        let images: Vec<BlockedImage> = (0..self.frames).map(image).collect();
        let prologue = |frame: usize| {
            let factors = match self.norm {
                NormCase::None => None,
                NormCase::PerChannel => Some(Factors::PerChannel { scale: padded(&data.scale), shift: padded(&data.shift) }),
                NormCase::PerPx => Some(Factors::PerPx { inverse: data.inverse[frame * area..][..area].to_vec(), gain: padded(&data.scale) }),
            };
            Prologue { norm: factors.map(|factors| Arc::new(Norm(factors))), activation: self.activation, upsample: self.upsample }
        };
        let prologues: Vec<Prologue> = (0..self.frames).map(prologue).collect();
        let inputs: Vec<Input> = images.iter().zip(&prologues).map(|(image, prologue)| Input { image, prologue }).collect();
        let size = self.output_size();
        let area = size[0] * size[1];
        let stride = self.window.frames * area;
        let residual = |frame: usize| BlockedImage::from_planes(&data.residual[frame * area..], stride, channels_out, size, &workspace);
        let residual = self.with_residual.then(|| (0..self.window.frames).map(residual).collect());
        // With a clone the memory of the residual cannot be reused.
        let clone = residual.clone().filter(|_| self.activation == Activation::Silu);
        let output = self.convolution(data).run(&inputs, self.window, residual);
        drop(clone);
        let mut values = vec![0.0; channels_out * stride];
        for (frame, image) in output.iter().enumerate() {
            assert_eq!((image.size(), image.channels()), (size, channels_out));
            statistics::check(image.statistics(), image.lanes(), size);
            let expected = match self.statistics {
                Statistics::None => false,
                Statistics::Moments => self.algorithm == Algorithm::WinogradF4,
                Statistics::SquaredNorms => true,
            };
            assert_eq!(image.statistics().is_some(), expected);
            let padded = image.lanes().iter().enumerate().flat_map(|(at, px)| (at / area * LANES..).zip(px.0));
            assert!(padded.filter(|&(channel, _)| channel >= channels_out).all(|(_, value)| value == 0.0), "{self:?}");
            image.to_planes(&mut values[frame * area..], stride);
        }
        values
    }

    /// The definition, in f64.
    fn expected(&self, data: &Data) -> Vec<f64> {
        let [channels_in, channels_out] = self.channels;
        let [height, width] = self.size;
        let px = |channel: usize, frame: usize, y: isize, x: isize| {
            let (y, x) = if self.upsample { (y.div_euclid(2), x.div_euclid(2)) } else { (y, x) };
            if y < 0 || x < 0 || y >= height.cast_signed() || x >= width.cast_signed() {
                return 0.0;
            }
            let at = y as usize * width + x as usize;
            let value = f64::from(data.input[(channel * self.frames + frame) * height * width + at]);
            let value = match self.norm {
                NormCase::None => value,
                NormCase::PerChannel => value * f64::from(data.scale[channel]) + f64::from(data.shift[channel]),
                NormCase::PerPx => value * f64::from(data.inverse[frame * height * width + at]) * f64::from(data.scale[channel]),
            };
            match self.activation {
                Activation::None => value,
                Activation::Silu => value / (1.0 + (-value).exp()),
                Activation::Relu => value.max(0.0),
            }
        };
        let (side, stride) = (self.algorithm.kernel_side(), self.algorithm.stride());
        let mut values = Vec::new();
        let [rows, columns] = self.output_size();
        for out in 0..channels_out {
            for frame in 0..self.window.frames {
                for y in 0..rows {
                    for x in 0..columns {
                        let mut sum = if self.with_bias { f64::from(data.bias[out]) } else { 0.0 };
                        if self.with_residual {
                            sum += f64::from(data.residual[values.len()]);
                        }
                        for channel in 0..channels_in {
                            for kernel_frame in 0..self.kernel_frames {
                                let last = self.window.context + self.window.stride * frame;
                                let Some(frame) = (last + kernel_frame + 1).checked_sub(self.kernel_frames) else { continue };
                                for at in 0..side * side {
                                    let kernel = (out * channels_in + channel) * self.kernel_frames + kernel_frame;
                                    let weight = f64::from(data.weight[kernel * side * side + at]);
                                    let row = (y * stride + at / side).cast_signed() - self.padding.top;
                                    let column = (x * stride + at % side).cast_signed() - self.padding.left;
                                    sum += weight * px(channel, frame, row, column);
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

fn random_case(noise: &mut Noise) -> Case {
    let algorithm = [Algorithm::WinogradF4, Algorithm::WinogradF2, Algorithm::Pointwise, Algorithm::Downsample2x][noise.below(4)];
    let kernel_frames = [1, 1, 2, 3][noise.below(4)];
    let frames = 1 + noise.below(if kernel_frames > 1 { 7 } else { 3 });
    let stride = 1 + noise.below(2);
    let context = noise.below(frames.min(3));
    let side = if cfg!(miri) { 5 } else { 40 };
    let channels = [1 + noise.below(21), 1 + noise.below(if cfg!(miri) { 9 } else { 70 })];
    let size = if noise.below(5) == 0 { [1 + noise.below(2), 1 + noise.below(2)] } else { [1 + noise.below(side), 1 + noise.below(3 * side)] };
    let plain = Case::plain(algorithm, channels, size);
    let [top, bottom, left, right] = std::array::from_fn(|_| noise.below(5).cast_signed() - 2);
    Case {
        kernel_frames,
        padding: if noise.below(2) == 0 { Padding { top, bottom, left, right } } else { plain.padding },
        with_bias: noise.below(4) > 0,
        frames,
        window: TemporalWindow { context, stride, frames: (frames - context).div_ceil(stride) },
        upsample: noise.below(4) == 0,
        norm: [NormCase::None, NormCase::PerChannel, NormCase::PerPx][noise.below(3)],
        activation: [Activation::None, Activation::Silu, Activation::Relu][noise.below(3)],
        with_residual: noise.below(3) == 0,
        statistics: [Statistics::None, Statistics::Moments, Statistics::SquaredNorms][noise.below(3)],
        ..plain
    }
}

/// Compares with the definition.
fn check(case: Case, seed: u64) {
    let data = case.data(seed);
    let (got, expected) = (case.run(&data), case.expected(&data));
    assert_eq!(got.len(), expected.len());
    let root = |sum: f64| (sum / expected.len() as f64).sqrt();
    let scale = root(expected.iter().map(|value| value * value).sum()).max(0.1);
    let error = root(got.iter().zip(&expected).map(|(&got, &expected)| (f64::from(got) - expected).powi(2)).sum());
    assert!(expected.is_empty() || error < 3e-6 * scale, "{case:?}: {error} of {scale}");
}

#[test]
fn every_convolution_equals_its_definition() {
    let mut noise = Noise(1);
    for seed in 0..if cfg!(miri) { 6 } else { 150 } {
        check(random_case(&mut noise), seed);
    }
}

#[test]
fn paddings_of_stride_2_equal_their_definition() {
    for padding in [Padding::NONE, Padding::BOTTOM_RIGHT, Padding::all(1), Padding { top: 2, bottom: 0, left: 1, right: 3 }] {
        for size in [[1, 1], [2, 3], [8, 9], if cfg!(miri) { [3, 4] } else { [33, 50] }] {
            check(Case { padding, ..Case::plain(Algorithm::Downsample2x, [5, 17], size) }, 7);
        }
    }
}

#[test]
fn small_and_empty_shapes_equal_their_definition() {
    for algorithm in [Algorithm::WinogradF4, Algorithm::WinogradF2, Algorithm::Pointwise, Algorithm::Downsample2x] {
        for size in [[1, 1], [0, 0], [0, 5], [3, 0]] {
            for channels in [[1, 1], [3, 17], [17, 3], [0, 5], [5, 0]] {
                for padding in [Padding::NONE, Padding::all(1), Padding::all(2)] {
                    for statistics in [Statistics::Moments, Statistics::SquaredNorms] {
                        for with_bias in [false, true] {
                            check(Case { padding, with_bias, statistics, ..Case::plain(algorithm, channels, size) }, 8);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut noise = Noise(2);
    for number in 0..if cfg!(miri) { 1 } else { 12 } {
        let case = random_case(&mut noise);
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
        let case = random_case(&mut noise);
        let data = case.data(number);
        let answers = with_each_instruction_set(|| case.run(&data));
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{case:?}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn the_position_in_a_tile_only_changes_the_rounding() {
    let (channels, [height, width]) = (40, [21, 26]);
    let mut noise = Noise(4);
    let values = noise.values(channels * height * width);
    let (weight, bias) = (noise.values(channels * channels * 9), noise.values(channels));
    // Without its first rows and columns every px of the image has another position in its tile.
    let run = |algorithm, [down, right]: [usize; 2]| {
        let size = [height - down, width - right];
        let planes = values.chunks(height * width).flat_map(|plane| plane.chunks(width).skip(down).flat_map(|row| &row[right..]));
        let image = BlockedImage::from_planes(&planes.copied().collect::<Vec<_>>(), size[0] * size[1], channels, size, &Workspace::default());
        let convolution = Convolution {
            algorithm,
            weight: &weight,
            bias: Some(&bias),
            channels: [channels; 2],
            kernel_frames: 1,
            padding: Padding::all(1),
            statistics: Statistics::None,
        };
        let output = convolution.run(&[Input { image: &image, prologue: &Prologue::default() }], ONE_FRAME, None).remove(0);
        let mut planes = vec![0.0; channels * size[0] * size[1]];
        output.to_planes(&mut planes, size[0] * size[1]);
        planes
    };
    for algorithm in [Algorithm::WinogradF4, Algorithm::WinogradF2] {
        let whole = run(algorithm, [0, 0]);
        for [down, right] in [[1, 1], [2, 3], [3, 2], [0, 5]] {
            let crop = run(algorithm, [down, right]);
            let size = [height - down, width - right];
            let mut differs = false;
            // Px at the border read padding in place of what was cropped.
            for (channel, (y, x)) in (0..channels).flat_map(|channel| (1..size[0]).flat_map(move |y| (1..size[1]).map(move |x| (channel, (y, x))))) {
                let [a, b] = [crop[(channel * size[0] + y) * size[1] + x], whole[(channel * height + y + down) * width + x + right]];
                assert!((a - b).abs() < 1e-4, "{algorithm:?} {down} {right}: {a} {b}");
                differs |= a != b;
            }
            assert!(differs);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn f2_rounds_less_than_f4() {
    let case = |algorithm| Case::plain(algorithm, [64, 16], [40, 40]);
    let data = case(Algorithm::WinogradF4).data(5);
    let error = |algorithm| {
        let (got, expected) = (case(algorithm).run(&data), case(algorithm).expected(&data));
        (got.iter().zip(&expected).map(|(&got, &expected)| (f64::from(got) - expected).powi(2)).sum::<f64>()
            / expected.iter().map(|value| value * value).sum::<f64>())
        .sqrt()
    };
    let (f4, f2) = (error(Algorithm::WinogradF4), error(Algorithm::WinogradF2));
    assert!(f4 < 1.6e-6 && f2 < 0.5 * f4, "{f4} {f2}");
}

/// A convolution with work for all threads of a small pool.
fn large_case() -> Case {
    Case {
        norm: NormCase::PerChannel,
        activation: Activation::Silu,
        statistics: Statistics::Moments,
        ..Case::plain(Algorithm::WinogradF4, [24, 40], [96, 96])
    }
}

#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn callers_of_one_pool_do_not_interfere() {
    let (case, data) = (large_case(), large_case().data(6));
    let expected = case.run(&data);
    let image = BlockedImage::from_planes(&data.input, 96 * 96, 24, [32, 32], &Workspace::default());
    let attended = attend(&image, &image, &image);
    let done = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        // While a thread waits for the others of its pool it runs tasks of other callers.
        let once = || case.run(&data) == expected && attend(&image, &image, &image).lanes() == attended.lanes();
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
#[cfg_attr(miri, ignore = "too slow")]
fn threads_and_memory_are_usable_after_a_panic() {
    let workspace = Workspace::default();
    let image = BlockedImage::from_planes(&vec![1.0; 24 * 96 * 96], 96 * 96, 24, [96, 96], &workspace);
    let case = Case::plain(Algorithm::WinogradF4, [24, 40], [96, 96]);
    let data = case.data(9);
    let run = |prologue: &Prologue| case.convolution(&data).run(&[Input { image: &image, prologue }], ONE_FRAME, None).remove(0);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let expected = pool.install(|| run(&Prologue::default()));
    let free = workspace.free_bytes();
    // A norm of an image with fewer channels.
    let norm = Norm(Factors::PerChannel { scale: padded(&[1.0]), shift: padded(&[1.0]) });
    let other = Prologue { norm: Some(Arc::new(norm)), ..Prologue::default() };
    for _ in 0..5 {
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.install(|| run(&other))));
        assert!(panicked.is_err());
        assert!(pool.install(|| run(&Prologue::default())).lanes() == expected.lanes());
    }
    assert!(workspace.free_bytes() <= free + 3 * (1 << 20), "{} and {free}", workspace.free_bytes());
}

#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn kernels_of_a_cancelled_workspace_unwind() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let [counted, limit] = [calls.clone(), Arc::new(AtomicUsize::new(usize::MAX))];
    let workspace = Workspace::cancellable({
        let limit = limit.clone();
        move || counted.fetch_add(1, Ordering::Relaxed) >= limit.load(Ordering::Relaxed)
    });
    let image = BlockedImage::from_planes(&vec![1.0; 24 * 96 * 96], 96 * 96, 24, [96, 96], &workspace);
    let case = Case::plain(Algorithm::WinogradF4, [24, 24], [96, 96]);
    let data = case.data(10);
    let prologue = Prologue::default();
    let convolve = || case.convolution(&data).run(&[Input { image: &image, prologue: &prologue }], ONE_FRAME, None).remove(0);
    let small = BlockedImage::from_planes(&vec![1.0; 24 * 32 * 32], 32 * 32, 24, [32, 32], &workspace);
    let attend = || attend(&small, &small, &small);
    for run in [&convolve as &(dyn Fn() -> BlockedImage + Sync), &attend] {
        limit.store(usize::MAX, Ordering::Relaxed);
        let expected = pool.install(run);
        let tasks = calls.swap(0, Ordering::Relaxed);
        limit.store(2, Ordering::Relaxed);
        let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.install(run))).unwrap_err();
        assert!(payload.is::<Cancelled>());
        // There were more tasks than the first two, which ran.
        assert!(tasks > 20, "{tasks}");
        limit.store(usize::MAX, Ordering::Relaxed);
        assert!(pool.install(run).lanes() == expected.lanes());
        calls.store(0, Ordering::Relaxed);
    }
}
