//! Layers of the VAEs on the CPU. Throughput is in floating point operations of the direct convolution, to compare with the peak of the processor
//! (multiply-adds in registers). One thread unless `RAYON_NUM_THREADS` is set.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kernels::{
    Activation, Algorithm, BlockedImage, Convolution, GroupMoments, Input, Norm, Padding, Prologue, Statistics, TemporalWindow, Workspace,
};
use pulp::{Arch, Simd, WithSimd};

/// Multiply-adds in registers, with as many independent sums as hide their latency.
struct MultiplyAdds(usize);

impl WithSimd for MultiplyAdds {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let mut sums = [simd.splat_f32s(1.0); 12];
        let (a, b) = (simd.splat_f32s(black_box(0.999)), simd.splat_f32s(black_box(1e-3)));
        for _ in 0..self.0 / (2 * sums.len() * S::F32_LANES) {
            for sum in &mut sums {
                *sum = simd.mul_add_f32s(*sum, a, b);
            }
        }
        sums.into_iter().fold(0.0, |all, sum| all + simd.reduce_sum_f32s(sum))
    }
}

fn peak(criterion: &mut Criterion) {
    const OPERATIONS: usize = 1 << 28;
    let mut group = criterion.benchmark_group("peak");
    group.throughput(Throughput::Elements(OPERATIONS as u64)).sample_size(20).measurement_time(Duration::from_secs(2));
    group.bench_function("multiply-adds of one thread", |bencher| bencher.iter(|| Arch::new().dispatch(MultiplyAdds(OPERATIONS))));
    group.finish();
}

fn pool() -> rayon::ThreadPool {
    let threads = std::env::var("RAYON_NUM_THREADS").ok().and_then(|threads| threads.parse().ok()).unwrap_or(1);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads")
}

struct Layer {
    name: &'static str,
    algorithm: Algorithm,
    channels: [usize; 2],
    kernel_frames: usize,
    /// Height and width of the input.
    size: [usize; 2],
    frames: usize,
    upsample: bool,
    normed: bool,
}

impl Layer {
    const fn new(name: &'static str, algorithm: Algorithm, channels: [usize; 2], side: usize) -> Self {
        Self { name, algorithm, channels, kernel_frames: 1, size: [side; 2], frames: 1, upsample: false, normed: false }
    }
}

fn layers(criterion: &mut Criterion) {
    let layers = [
        Layer::new("512 to 512, 64 px", Algorithm::WinogradF4, [512, 512], 64),
        Layer::new("512 to 512, 128 px", Algorithm::WinogradF4, [512, 512], 128),
        Layer::new("256 to 256, 256 px", Algorithm::WinogradF4, [256, 256], 256),
        Layer::new("128 to 128, 512 px", Algorithm::WinogradF4, [128, 128], 512),
        Layer { normed: true, ..Layer::new("norm, SiLU, 128 to 128, 512 px", Algorithm::WinogradF4, [128, 128], 512) },
        Layer { upsample: true, ..Layer::new("upsampled, 256 to 256, 512 px", Algorithm::WinogradF4, [256, 256], 256) },
        Layer { kernel_frames: 3, frames: 4, ..Layer::new("3x3x3, 96 to 96, 4 frames of 128 px", Algorithm::WinogradF4, [96, 96], 128) },
        Layer { kernel_frames: 3, frames: 4, ..Layer::new("3x3x3, 192 to 192, 4 frames of 128 px", Algorithm::WinogradF4, [192, 192], 128) },
        Layer::new("F(2x2, 3x3), 512 to 512, 64 px", Algorithm::WinogradF2, [512, 512], 64),
        Layer::new("F(2x2, 3x3), 128 to 128, 512 px", Algorithm::WinogradF2, [128, 128], 512),
        Layer::new("first, 4 to 512, 64 px", Algorithm::WinogradF4, [4, 512], 64),
        Layer::new("last, 128 to 3, 512 px", Algorithm::WinogradF4, [128, 3], 512),
        Layer::new("1x1, 512 to 256, 256 px", Algorithm::Pointwise, [512, 256], 256),
        Layer::new("1x1, 512 to 512, 64 px", Algorithm::Pointwise, [512, 512], 64),
        Layer::new("stride 2, 128 to 128, 512 px", Algorithm::Downsample2x, [128, 128], 512),
        Layer::new("stride 2, 512 to 512, 128 px", Algorithm::Downsample2x, [512, 512], 128),
    ];
    let pool = pool();
    let mut group = criterion.benchmark_group("layers");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for layer in layers {
        let Layer { name, algorithm, channels: [channels_in, channels_out], kernel_frames, size, frames, upsample, normed } = layer;
        let area = size[0] * size[1];
        let noise = |count: usize| (0..count).map(|at| (at as f32 * 0.7).sin()).collect::<Vec<_>>();
        let kernel = algorithm.kernel_side().pow(2);
        let (weight, bias) = (noise(channels_in * channels_out * kernel_frames * kernel), noise(channels_out));
        let workspace = Workspace::default();
        let image = |frame: usize| BlockedImage::from_planes(&noise(channels_in * area + frame)[frame..], area, channels_in, size, &workspace);
        let images: Vec<BlockedImage> = (0..frames + kernel_frames - 1).map(image).collect();
        let norm = normed.then(|| {
            let moments = GroupMoments::of_image(&images[0], 32);
            Arc::new(Norm::group_norm(&moments, &noise(channels_in), &noise(channels_in), 1e-6))
        });
        let activation = if normed { Activation::Silu } else { Activation::None };
        let prologue = Prologue { norm, activation, upsample };
        let input: Vec<Input> = images.iter().map(|image| Input { image, prologue: &prologue }).collect();
        let padding = match algorithm {
            Algorithm::WinogradF4 | Algorithm::WinogradF2 => Padding::all(1),
            Algorithm::Pointwise => Padding::NONE,
            Algorithm::Downsample2x => Padding::BOTTOM_RIGHT,
        };
        let convolution = Convolution {
            algorithm,
            weight: &weight,
            bias: Some(&bias),
            channels: [channels_in, channels_out],
            kernel_frames,
            padding,
            statistics: if normed { Statistics::Moments } else { Statistics::None },
        };
        let [height, width] = algorithm.output_size(input[0].size(), padding);
        let window = TemporalWindow { context: kernel_frames - 1, stride: 1, frames };
        group.throughput(Throughput::Elements((2 * channels_in * channels_out * kernel_frames * kernel * height * width * frames) as u64));
        group.bench_function(name, |bencher| bencher.iter(|| pool.install(|| convolution.run(&input, window, None))));
    }
    group.finish();
}

/// Statistics of norms, and attention in operations of its two products.
fn others(criterion: &mut Criterion) {
    let pool = pool();
    let image = |channels: usize, side: usize| {
        let area = side * side;
        let values: Vec<f32> = (0..channels * area).map(|at| (at as f32 * 0.7).sin()).collect();
        BlockedImage::from_planes(&values, area, channels, [side; 2], &Workspace::default())
    };
    let mut group = criterion.benchmark_group("others");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let (wide, parameters) = (image(128, 512), vec![1.0; 128]);
    group.throughput(Throughput::Bytes((128 * 512 * 512 * size_of::<f32>()) as u64));
    group.bench_function("moments of groups, 128 channels, 512 px", |bencher| {
        bencher.iter(|| pool.install(|| GroupMoments::of_image(&wide, 32)));
    });
    group.bench_function("norms of px, 128 channels, 512 px", |bencher| {
        bencher.iter(|| pool.install(|| Norm::rms_norm(&wide, &parameters)));
    });
    let small = image(512, 64);
    group.throughput(Throughput::Elements(4 * 512 * 4096 * 4096));
    group.bench_function("attention, 512 channels, 64 px", |bencher| {
        bencher.iter(|| pool.install(|| kernels::attend(&small, &small, &small)));
    });
    group.finish();
}

criterion_group!(benches, peak, layers, others);
criterion_main!(benches);
