use burn::tensor::{DType, Tensor, TensorData};
use tiling::{DiffusersKind, Grid, GridContext, GridKind, HostTensor, Off, TileOp};
use vae_core::coder::{Coder, Layer};
use vae_core::testing::{assert_close, computable, device, math_modes, psnr, run_tiled};
use vae_core::{Components, Context, MathMode, Posterior, VaeOp, Weights};

use super::{data, golden, load};
use crate::{AutoencoderKl, KlConfig};

/// The greatest difference from diffusers on outputs of order 1.
const F32: f32 = 2e-4;
/// Twice what diffusers in the half type differs from itself in f32 on these files: 0.023 and 0.24.
const F16: f32 = 5e-2;
const BF16: f32 = 5e-1;

fn tiled(op: &dyn TileOp, spec: &vae_core::VaeSpec, input: &HostTensor, kind: &str) -> (HostTensor, usize) {
    let context = GridContext::new(op.geometry().scale, &spec.grid);
    let grid: Box<dyn Grid> = if kind == "tiled" { DiffusersKind::default().build(&context).unwrap() } else { Box::new(Off) };
    run_tiled(op, grid.as_ref(), input)
}

fn check_whole(config: &str, dtype: DType, math_mode: MathMode, tolerance: f32) {
    let golden = golden(config);
    let vae = load(&data(config), dtype);
    let mut most_tiles = 0;
    for name in golden.names().iter().filter(|name| name.ends_with("decoded")) {
        let (case, kind) = name.strip_suffix(".decoded").unwrap().rsplit_once('.').unwrap();
        let latents = golden.tensor(&format!("{case}.latents"));
        let (decoded, tiles) = tiled(&VaeOp::decode(vae.clone()).with_math_mode(math_mode), vae.spec(), &latents, kind);
        assert_close(&decoded, &golden.tensor(name), tolerance, &format!("{config} {name}"));
        assert!(dtype != DType::F32 || psnr(&decoded, &golden.tensor(name)) >= 90.0, "{config} {name}");
        most_tiles = most_tiles.max(tiles);

        let samples = golden.tensor(&format!("{case}.samples"));
        let (moments, _) = tiled(&VaeOp::encode(vae.clone()).with_math_mode(math_mode), vae.spec(), &samples, kind);
        let [mean, log_variance] = Posterior::split(&moments);
        assert_close(&mean, &golden.tensor(&format!("{case}.{kind}.mean")), tolerance, &format!("{config} {case} {kind} mean"));
        assert_close(&log_variance, &golden.tensor(&format!("{case}.{kind}.logvar")), tolerance, &format!("{config} {case} {kind} logvar"));
    }
    assert!(most_tiles >= 6, "no case of {config} was cut into tiles");
}

/// With fewer products and with all.
fn equals_diffusers(config: &str) {
    for math_mode in math_modes() {
        check_whole(config, DType::F32, math_mode, F32);
    }
}

#[test]
fn sd_like_equals_diffusers() {
    equals_diffusers("sd");
}

#[test]
fn flux_like_equals_diffusers() {
    equals_diffusers("flux");
}

#[test]
fn odd_equals_diffusers() {
    equals_diffusers("odd");
}

#[test]
fn half_types_are_near() {
    let golden = golden("flux");
    for dtype in computable(&[DType::F16, DType::BF16]) {
        let (tolerance, least) = if dtype == DType::F16 { (F16, 55.0) } else { (BF16, 36.0) };
        check_whole("flux", dtype, MathMode::default(), tolerance);
        let decoded = VaeOp::decode(load(&data("flux"), dtype)).apply(&golden.tensor("1x10x9.latents")).unwrap();
        let psnr = psnr(&decoded, &golden.tensor("1x10x9.untiled.decoded"));
        assert!(psnr >= least, "{dtype:?}: {psnr} dB");
    }
}

fn modules(config: &str) -> AutoencoderKl {
    let model = super::open(&data(config));
    let parsed: KlConfig = serde_json::from_value(without_private(&model.config)).unwrap();
    let weights: Weights = vae_core::Checkpoint::open(&data(config), None).unwrap().weights().unwrap();
    weights.apply(AutoencoderKl::new(&parsed, Components::Both, &device()).unwrap(), DType::F32).unwrap()
}

fn without_private(config: &serde_json::Value) -> serde_json::Value {
    config.as_object().unwrap().iter().filter(|(name, _)| !name.starts_with('_')).map(|(k, v)| (k.clone(), v.clone())).collect()
}

#[test]
fn single_blocks_equal_diffusers() {
    for config in ["sd", "flux", "odd"] {
        let golden = golden(config);
        let modules = modules(config);
        let check = |name: &str, layers: Vec<Layer>| {
            let input = golden.tensor(&format!("block.{name}.in"));
            let shape = input.shape();
            let mut stream = Coder::new(shape[1], layers).stream(&Context::default());
            let y = stream(Tensor::from_data(TensorData::new(input.into_data(), shape), &device())).unwrap();
            let got = HostTensor::new(y.dims(), y.into_data().try_into_vec().unwrap()).unwrap();
            assert_close(&got, &golden.tensor(&format!("block.{name}.out")), F32, &format!("{config} {name}"));
        };
        modules.check_blocks(&check);
    }
}
