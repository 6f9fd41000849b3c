use std::sync::Arc;

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::*;
use crate::activation::Activation;
use crate::algorithms::Padding;
use crate::memory::Workspace;
use crate::norms::{Factors, Norm};
use crate::prologue::Prologue;
use crate::vectors::tests::with_each_instruction_set;

/// One frame of the output for one of the input.
const ONE: TemporalWindow = TemporalWindow { context: 0, stride: 1, frames: 1 };

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

#[expect(clippy::struct_excessive_bools, reason = "each is independent of the others")]
#[derive(Debug)]
struct Case {
    algorithm: Algorithm,
    padding: Padding,
    channels: [usize; 2],
    kernel_frames: usize,
    size: [usize; 2],
    frames: usize,
    window: TemporalWindow,
    upsample: bool,
    /// 0: none, 1: a factor and an offset for each channel, 2: a factor for each px.
    norm: usize,
    activation: Activation,
    has_bias: bool,
    has_residual: bool,
    /// Whether a clone of the residual shares its memory.
    is_shared: bool,
    statistics: Statistics,
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

    fn run(&self, data: &Data) -> Vec<f32> {
        let area = self.size[0] * self.size[1];
        let [channels_in, channels_out] = self.channels;
        let workspace = Workspace::default();
        let image = |frame: usize| BlockedImage::from_planes(&data.input[frame * area..], self.frames * area, channels_in, self.size, &workspace);
        let images: Vec<BlockedImage> = (0..self.frames).map(image).collect();
        let prologue = |frame: usize| {
            let factors = match self.norm {
                0 => None,
                1 => Some(Factors::PerChannel { scale: padded(&data.scale), shift: padded(&data.shift) }),
                _ => Some(Factors::PerPx { inverse: data.inverse[frame * area..][..area].to_vec(), gain: padded(&data.scale) }),
            };
            Prologue { norm: factors.map(|factors| Arc::new(Norm(factors))), activation: self.activation, upsample: self.upsample }
        };
        let prologues: Vec<Prologue> = (0..self.frames).map(prologue).collect();
        let inputs: Vec<Input> = images.iter().zip(&prologues).map(|(image, prologue)| Input { image, prologue }).collect();
        let convolution = Convolution {
            algorithm: self.algorithm,
            weight: &data.weight,
            bias: self.has_bias.then_some(&data.bias),
            channels: self.channels,
            kernel_frames: self.kernel_frames,
            padding: self.padding,
            statistics: self.statistics,
        };
        let size = self.output_size();
        let area = size[0] * size[1];
        let stride = self.window.frames * area;
        let residual = |frame: usize| BlockedImage::from_planes(&data.residual[frame * area..], stride, channels_out, size, &workspace);
        let residual: Option<Vec<BlockedImage>> = self.has_residual.then(|| (0..self.window.frames).map(residual).collect());
        let shared = residual.clone().filter(|_| self.is_shared);
        let output = convolution.run(&inputs, self.window, residual);
        drop(shared);
        for image in &output {
            crate::statistics::check(image.statistics(), image.lanes(), size);
        }
        let mut values = vec![0.0; channels_out * stride];
        for (frame, image) in output.iter().enumerate() {
            let beyond = image.lanes().iter().enumerate().flat_map(|(at, px)| (at / area * LANES..).zip(px.0));
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
            let (y, x) = if self.upsample { (y.div_euclid(2), x.div_euclid(2)) } else { (y, x) };
            if y < 0 || x < 0 || y >= height.cast_signed() || x >= width.cast_signed() {
                return 0.0;
            }
            let at = y as usize * width + x as usize;
            let value = f64::from(data.input[(channel * self.frames + frame) * height * width + at]);
            let value = match self.norm {
                0 => value,
                1 => value * f64::from(data.scale[channel]) + f64::from(data.shift[channel]),
                _ => value * f64::from(data.inverse[frame * height * width + at]) * f64::from(data.scale[channel]),
            };
            match self.activation {
                Activation::None => value,
                Activation::Silu => value / (1.0 + (-value).exp()),
                Activation::Relu => value.max(0.0),
            }
        };
        let (side, stride) = (self.algorithm.kernel_side(), self.algorithm.stride());
        let [top, left] = [self.padding.top, self.padding.left].map(usize::cast_signed);
        let mut values = Vec::new();
        let [rows, columns] = self.output_size();
        for out in 0..channels_out {
            for frame in 0..self.window.frames {
                for y in 0..rows {
                    for x in 0..columns {
                        let mut sum = if self.has_bias { f64::from(data.bias[out]) } else { 0.0 };
                        if self.has_residual {
                            sum += f64::from(data.residual[values.len()]);
                        }
                        for channel in 0..channels_in {
                            for kernel_frame in 0..self.kernel_frames {
                                let Some(input_frame) =
                                    (self.window.context + self.window.stride * frame + kernel_frame + 1).checked_sub(self.kernel_frames)
                                else {
                                    continue;
                                };
                                for at in 0..side * side {
                                    let kernel = data.weight[((out * channels_in + channel) * self.kernel_frames + kernel_frame) * side * side + at];
                                    let (row, column) = (y * stride + at / side, x * stride + at % side);
                                    sum += f64::from(kernel) * px(channel, input_frame, row.cast_signed() - top, column.cast_signed() - left);
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
    let padding = match (noise.below(3), algorithm) {
        (0, _) => Padding { top: noise.below(3), bottom: noise.below(3), left: noise.below(3), right: noise.below(3) },
        (_, Algorithm::Pointwise) => Padding::NONE,
        (1, Algorithm::Downsample2x) => Padding::BOTTOM_RIGHT,
        _ => Padding::all(1),
    };
    let some = if cfg!(miri) { 5 } else { 40 };
    Case {
        algorithm,
        padding,
        channels: [1 + noise.below(21), 1 + noise.below(if cfg!(miri) { 9 } else { 70 })],
        kernel_frames,
        size: if noise.below(5) == 0 { [1 + noise.below(2), 1 + noise.below(2)] } else { [1 + noise.below(some), 1 + noise.below(3 * some)] },
        frames,
        window: TemporalWindow { context, stride, frames: (frames - context).div_ceil(stride) },
        upsample: noise.below(4) == 0,
        norm: noise.below(3),
        activation: [Activation::None, Activation::Silu, Activation::Relu][noise.below(3)],
        has_bias: noise.below(4) > 0,
        has_residual: noise.below(3) == 0,
        is_shared: noise.below(2) == 0,
        statistics: [Statistics::None, Statistics::Moments, Statistics::SquaredNorms][noise.below(3)],
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
fn instruction_sets_do_not_change_a_bit() {
    let mut noise = Noise(3);
    for number in 0..if cfg!(miri) { 1 } else { 40 } {
        let case = some_case(&mut noise);
        let data = case.data(number);
        let answers = with_each_instruction_set(|| case.run(&data));
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{case:?}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "too much")]
fn the_position_in_a_tile_changes_only_rounding() {
    let (channels, [height, width]) = (40, [21, 26]);
    let mut noise = Noise(4);
    let values = noise.values(channels * height * width);
    let (weight, bias) = (noise.values(channels * channels * 9), noise.values(channels));
    // The image without its first rows and columns, so that every px has another position in its tile.
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
        let input = Input { image: &image, prologue: &Prologue::default() };
        let output = convolution.run(&[input], ONE, None).remove(0);
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
            // Px at the border depend on zeros in place of what was cut off.
            for (channel, (y, x)) in (0..channels).flat_map(|channel| (1..size[0]).flat_map(move |y| (1..size[1]).map(move |x| (channel, (y, x))))) {
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
fn f2_rounds_less_than_f4() {
    let case = |algorithm| Case {
        algorithm,
        padding: Padding::all(1),
        channels: [64, 16],
        kernel_frames: 1,
        size: [40, 40],
        frames: 1,
        window: ONE,
        upsample: false,
        norm: 0,
        activation: Activation::None,
        has_bias: true,
        has_residual: false,
        is_shared: false,
        statistics: Statistics::None,
    };
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

/// A convolution that keeps all threads of a small pool busy.
fn large_case() -> Case {
    Case {
        algorithm: Algorithm::WinogradF4,
        padding: Padding::all(1),
        channels: [24, 40],
        kernel_frames: 1,
        size: [96, 96],
        frames: 1,
        window: ONE,
        upsample: false,
        norm: 1,
        activation: Activation::Silu,
        has_bias: true,
        has_residual: false,
        is_shared: false,
        statistics: Statistics::Moments,
    }
}

#[test]
#[cfg_attr(miri, ignore = "too much")]
fn callers_of_one_pool_do_not_block_each_other() {
    let (case, data) = (large_case(), large_case().data(6));
    let expected = case.run(&data);
    let image = BlockedImage::from_planes(&data.input, 96 * 96, 24, [32, 32], &Workspace::default());
    let attended = crate::attend(&image, &image, &image);
    let done = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        // A thread that waits for others takes on work of other callers.
        let once = || case.run(&data) == expected && crate::attend(&image, &image, &image).lanes() == attended.lanes();
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
        bias: Some(&bias),
        channels: [24, 40],
        kernel_frames: 1,
        padding: Padding::all(1),
        statistics: Statistics::None,
    };
    let run = |prologue: &Prologue| convolution.run(&[Input { image: &image, prologue }], ONE, None).remove(0);
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
#[cfg_attr(miri, ignore = "too much")]
fn a_cancelled_workspace_ends_what_runs_in_it() {
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
        bias: Some(&bias),
        channels: [24, 24],
        kernel_frames: 1,
        padding: Padding::all(1),
        statistics: Statistics::None,
    };
    let input = Input { image: &image, prologue: &Prologue::default() };
    let convolve = || convolution.run(&[input], ONE, None).remove(0);
    let small = BlockedImage::from_planes(&vec![1.0; 24 * 32 * 32], 32 * 32, 24, [32, 32], &workspace);
    let attend = || crate::attend(&small, &small, &small);
    for run in [&convolve as &(dyn Fn() -> BlockedImage + Sync), &attend] {
        limit.store(usize::MAX, Ordering::Relaxed);
        let expected = pool.install(run);
        let tasks = asked.swap(0, Ordering::Relaxed);
        limit.store(2, Ordering::Relaxed);
        let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.install(run))).unwrap_err();
        assert!(payload.is::<crate::Cancelled>());
        // Only the first tasks ran.
        assert!(tasks > 20, "{tasks}");
        limit.store(usize::MAX, Ordering::Relaxed);
        assert!(pool.install(run).lanes() == expected.lanes());
        asked.store(0, Ordering::Relaxed);
    }
}
