//! Seamless tiles against the whole.

use tiling::{HostTensor, Span};
use vae_core::testing::assert_close;
use vae_core::{FrameRule, VaeSpec};

use crate::{Config, Direction, Pipeline, RunOptions};

const KL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vae-kl/tests/data");
const WAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vae-wan/tests/data");

/// What rounding may change: the goldens allow twice as much between an untiled run and diffusers.
const TOLERANCE: f32 = 1e-4;

fn pipeline(model: &str, keys: &str) -> Pipeline {
    Pipeline::load(&Config::from_toml(&format!("model.path = {model:?}\nio.latent_space = \"vae\"\n{keys}")).unwrap()).unwrap()
}

fn noise(shape: [usize; 5], seed: u64) -> HostTensor {
    HostTensor::new(shape, vae_core::normal_noise(seed, 0).take(shape.iter().product()).collect()).unwrap()
}

/// Latents of a size in latent px, or samples of so many latent px and a remainder of px.
fn input(spec: &VaeSpec, direction: Direction, batch: usize, [height, width]: [usize; 2], remainder: usize) -> HostTensor {
    let frames = match spec.frames {
        FrameRule::Image => 1,
        FrameRule::Causal { .. } => 3,
    };
    let noise = noise([batch, spec.latent_channels, frames, height, width], 5);
    if direction == Direction::Decode {
        return noise;
    }
    let [frames, height, width] = spec.decode_geometry().output([frames, height, width]);
    // Samples are smooth, with some noise on top.
    let smooth = |[b, c, t, y, x]: [usize; 5]| ((b + c + t) as f32 + y as f32 * 0.21 + x as f32 * 0.13).sin() * 0.7;
    let mut samples = HostTensor::from_fn([batch, spec.input_channels, frames, height + remainder, width + remainder / 2], smooth);
    samples.data_mut().iter_mut().zip(vae_core::normal_noise(7, 0)).for_each(|(value, noise)| *value += 0.2 * noise);
    samples
}

fn run(pipeline: &Pipeline, direction: Direction, input: &HostTensor) -> HostTensor {
    match direction {
        Direction::Decode => pipeline.decode(input, RunOptions::default()).unwrap(),
        Direction::Encode => {
            let encoded = pipeline.encode(input, RunOptions::default()).unwrap();
            HostTensor::join_batch(std::iter::once(encoded.latents).chain(encoded.moments.into_iter().flatten()).collect())
        }
    }
}

/// Compares tiles of `tile` latent px with the whole.
fn check(model: &str, tile: usize, sizes: &[[usize; 2]]) {
    let ratio = pipeline(model, "").spec().spatial_ratio;
    for precision in ["fast", "strict"] {
        let whole = pipeline(model, &format!("tiling.kind = \"off\"\nio.posterior = \"moments\"\nmodel.precision = {precision:?}"));
        let keys =
            format!("tiling = {{ kind = \"seamless\", tile_px = {} }}\nio.posterior = \"moments\"\nmodel.precision = {precision:?}", tile * ratio);
        let tiled = pipeline(model, &keys);
        for (at, &size) in sizes.iter().enumerate() {
            for direction in [Direction::Decode, Direction::Encode] {
                let input = input(whole.spec(), direction, 1 + at % 2, size, if direction == Direction::Encode { at % ratio } else { 0 });
                let plan = tiled.plan(direction, input.shape()).unwrap();
                assert_eq!(plan.staged.is_some(), size.iter().any(|&side| side > tile));
                let (expected, got) = (run(&whole, direction, &input), run(&tiled, direction, &input));
                assert_close(&got, &expected, TOLERANCE, &format!("{model} {direction:?} of {size:?} in tiles of {tile}, {precision}"));
            }
        }
    }
}

const SIZES: [[usize; 2]; 4] = [[9, 14], [3, 11], [17, 2], [7, 7]];

#[test]
fn image_models_in_tiles_give_the_whole() {
    for model in ["sd", "flux", "odd"] {
        for tile in [1, 4, 5] {
            check(&format!("{KL}/{model}"), tile, &SIZES[..if tile == 1 { 2 } else { 4 }]);
        }
    }
}

#[test]
fn video_models_in_tiles_give_the_whole() {
    for model in ["wan21", "wan22", "odd", "qwen"] {
        for tile in [2, 5] {
            check(&format!("{WAN}/{model}"), tile, &SIZES[..2]);
        }
    }
}

#[test]
fn tiles_of_a_seamless_grid_share_no_px() {
    let tiled = pipeline(&format!("{KL}/sd"), "tiling = { kind = \"seamless\", tile_px = 40 }");
    let plan = tiled.plan(Direction::Decode, [1, 4, 1, 11, 23]).unwrap();
    let covers = |spans: &[Span], end| spans.windows(2).all(|pair| pair[0].end() == pair[1].start) && spans[spans.len() - 1].end() == end;
    assert!(covers(&plan.tiles.rows, 88) && covers(&plan.tiles.columns, 184), "{plan:?}");
}
