//! Times single kernels on a GPU, each in a JSON line: `gpu_bench bandwidth|matrix-rate|convolutions|norms --device cuda:0 --dtype bf16 [--seconds 0.2]`.

#![expect(clippy::print_stdout, reason = "it prints its results")]

use burn::tensor::{DType, Device};
use serde_json::json;
use vae_core::DeviceName;
use vae_core::testing::gpu_bench;

/// Name, `[t, h, w]`, channels in and out, and kernel.
type Shape = (&'static str, [usize; 3], [usize; 2], [usize; 3]);

/// Those of SDXL at 1024x1024, and of Wan 2.1 at 480x832 with four frames at once.
const CONVOLUTIONS: [Shape; 14] = [
    ("sdxl conv_in", [1, 128, 128], [4, 512], [1, 3, 3]),
    ("sdxl mid", [1, 128, 128], [512, 512], [1, 3, 3]),
    ("sdxl attention", [1, 128, 128], [512, 512], [1, 1, 1]),
    ("sdxl up 1", [1, 256, 256], [512, 512], [1, 3, 3]),
    ("sdxl up 2 first", [1, 512, 512], [512, 256], [1, 3, 3]),
    ("sdxl up 2", [1, 512, 512], [256, 256], [1, 3, 3]),
    ("sdxl up 3 first", [1, 1024, 1024], [256, 128], [1, 3, 3]),
    ("sdxl up 3", [1, 1024, 1024], [128, 128], [1, 3, 3]),
    ("sdxl conv_out", [1, 1024, 1024], [128, 3], [1, 3, 3]),
    ("wan mid", [1, 60, 104], [384, 384], [3, 3, 3]),
    ("wan up 0", [2, 120, 208], [384, 384], [3, 3, 3]),
    ("wan up 2", [4, 240, 416], [192, 192], [3, 3, 3]),
    ("wan up 3", [4, 480, 832], [96, 96], [3, 3, 3]),
    ("wan conv_out", [4, 480, 832], [96, 3], [3, 3, 3]),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let what = args.next().ok_or("bandwidth, matrix-rate, convolutions or norms?")?;
    let (mut device, mut dtype, mut seconds, mut share) = ("cuda".to_owned(), DType::BF16, 0.2, 1);
    while let (Some(key), Some(value)) = (args.next(), args.next()) {
        match key.as_str() {
            "--device" => device = value,
            "--seconds" => seconds = value.parse()?,
            // Sides are divided by it, for slow devices.
            "--share" => share = value.parse()?,
            "--dtype" => {
                dtype = match value.as_str() {
                    "f32" => DType::F32,
                    "f16" => DType::F16,
                    "bf16" => DType::BF16,
                    _ => return Err("f32, f16 or bf16?".into()),
                }
            }
            _ => return Err(format!("{key}?").into()),
        }
    }
    let device = device.parse::<DeviceName>()?.open()?;
    run(&what, &device, dtype, seconds, share)
}

fn run(what: &str, device: &Device, dtype: DType, seconds: f64, share: usize) -> Result<(), Box<dyn std::error::Error>> {
    let bandwidth = |what: &str, (seconds, bytes): (f64, usize)| {
        println!("{}", json!({"what": what, "seconds": seconds, "gigabytes_per_second": bytes as f64 / seconds / 1e9}));
    };
    let convolution = |name: &str, size: [usize; 3], channels: [usize; 2], kernel: [usize; 3]| {
        let [t, h, w] = [size[0], (size[1] / share).max(1), size[2] / share];
        let products: usize = [t, h, w].iter().chain(&channels).chain(&kernel).product();
        for (candidate, result) in gpu_bench::convolution(device, dtype, [t, h, w], channels, kernel, seconds) {
            let rate = result.as_ref().ok().map(|seconds| 2.0 * products as f64 / seconds / 1e12);
            println!(
                "{}",
                json!({"what": name, "candidate": candidate, "seconds": result.as_ref().ok(), "teraflops": rate, "error": result.as_ref().err()})
            );
        }
    };
    match what {
        "bandwidth" => bandwidth("copy", gpu_bench::copy(device, dtype, [4096 / share, 4096, 32], seconds)),
        "matrix-rate" => convolution("8192x8192 by 8192", [1, 1, 8192], [8192 / share, 8192 / share], [1, 1, 1]),
        "convolutions" => CONVOLUTIONS.into_iter().for_each(|(name, size, channels, kernel)| convolution(name, size, channels, kernel)),
        "norms" => {
            for (name, [h, w, c]) in [("group norm 512", [256, 256, 512]), ("group norm 256", [512, 512, 256]), ("group norm 128", [1024, 1024, 128])]
            {
                bandwidth(name, gpu_bench::group_norm(device, dtype, [h / share, w / share, c], seconds));
            }
            for (name, [t, h, w, c]) in [("RMS norm 384", [2, 120, 208, 384]), ("RMS norm 96", [4, 480, 832, 96])] {
                bandwidth(name, gpu_bench::rms_norm(device, dtype, [t, h / share, w / share, c], seconds));
            }
        }
        _ => return Err("bandwidth, matrix-rate, convolutions or norms?".into()),
    }
    Ok(())
}
