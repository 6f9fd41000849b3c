//! Against what diffusers makes of the checkpoint in `tests/data`, which `tools/make_fixtures.py tiny` writes.

use std::path::Path;

use tilevae::tiling::{Canvas, Corner};
use tilevae::{Config, Direction, Error, HostTensor, Pipeline, RunOptions};
use vae_core::testing::{Golden, assert_close};

use super::*;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny");
const UNTILED: &str = "tiling.kind = \"off\"";
const TILED: &str = "tiling = { kind = \"tiny\", tile_px = 64, overlap = 0.25 }\nblend.kind = \"tiny\"";
const CASES: [&str; 2] = ["2x3x2", "1x13x9"];

vae_core::vae_conformance!(Tiny, MODEL, Device::flex());

fn config(keys: &str) -> Config {
    Config::from_toml(&format!("model.path = {MODEL:?}\n{keys}")).unwrap()
}

fn pipeline(keys: &str) -> Pipeline {
    Pipeline::load(&config(keys)).unwrap()
}

fn golden() -> Golden {
    Golden::read(&Path::new(MODEL).join("golden.safetensors"))
}

#[test]
fn the_registry_holds_all_families() {
    let registry = vae_core::Registry::linked().unwrap();
    assert_eq!(registry.entries().map(|entry| entry.name).collect::<Vec<_>>(), ["kl", "qwen-image", "tiny", "wan"]);
    assert_eq!(registry.get("AutoencoderTiny").unwrap().origin, env!("CARGO_PKG_NAME"));
}

#[test]
fn it_equals_diffusers_untiled_and_tiled() {
    let golden = golden();
    for (mode, keys, most_tiles) in [("untiled", UNTILED, 1), ("tiled", TILED, 6)] {
        let pipeline = pipeline(keys);
        let mut tiles = 0;
        for case in CASES {
            let tensor = |what: &str| golden.tensor(&format!("{case}.{what}"));
            let decoded = pipeline.decode(&tensor("latents"), RunOptions::default()).unwrap();
            assert_close(&decoded, &tensor(&format!("{mode}.decoded")), 1e-4, &format!("{mode} decode of {case}"));
            let encoded = pipeline.encode(&tensor("samples"), RunOptions::default()).unwrap();
            assert_close(&encoded.latents, &tensor(&format!("{mode}.encoded")), 1e-4, &format!("{mode} encode of {case}"));
            tiles = tiles.max(encoded.stats.tiles);
        }
        assert_eq!(tiles, most_tiles);
    }
}

#[test]
fn the_family_brings_its_tiles() {
    let rows = |keys: &str| {
        let plan = pipeline(keys).plan(Direction::Decode, [1, 4, 1, 64, 60]).unwrap();
        plan.tiles.rows.iter().map(|span| [span.start, span.length]).collect::<Vec<_>>()
    };
    // Tiles of 64 latent px with strides of 56, in sample px.
    assert_eq!(rows(""), [[0, 512], [448, 64]]);
    assert_eq!(rows("tiling.tile_px = 320"), [[0, 320], [280, 232]]);
    // It lists no layers: nothing chooses tiles by memory.
    let refused = Pipeline::load(&config("tiling.memory_mib = 100")).unwrap_err();
    assert!(refused.is_usage() && refused.to_string().contains("does not list its layers"), "{refused}");
    let refused = Pipeline::load(&config("tiling = { kind = \"family\", stride_px = 56 }")).unwrap_err();
    assert!(refused.is_usage() && refused.to_string().contains("tiny") && refused.to_string().contains("stride_px"), "{refused}");
    let pipeline = pipeline("");
    assert_eq!(pipeline.spec().tiling.decode.as_ref().unwrap().blend, BlendConfig::of(&TinyBlend {}).unwrap());
    assert_eq!(tiling::BlendPolicy::corner(&TinyBlend {}), Corner::Mask);
}

#[test]
fn tiles_that_cannot_be_cut_are_refused() {
    for (keys, word) in [("tile_px = 60", "60"), ("overlap = 0.75", "0.75"), ("tile = 64", "tile_px")] {
        let text = format!("model.path = {MODEL:?}\ntiling = {{ kind = \"tiny\", {keys} }}");
        let error = Config::from_toml(&text).and_then(|config| Pipeline::load(&config)?.plan(Direction::Decode, [1, 4, 1, 9, 9])).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(word), "{error}");
    }
}

#[test]
fn a_posterior_that_there_is_not_is_refused() {
    for kind in ["sample", "moments"] {
        let pipeline = pipeline(&format!("io.posterior = {kind:?}"));
        let error = pipeline.encode(&HostTensor::zeros([1, 3, 1, 16, 16]), RunOptions::default()).unwrap_err();
        assert!(error.is_usage() && matches!(&error, Error::ConfigValue { key, .. } if key == "io.posterior"), "{error}");
    }
}

#[test]
fn an_encode_goes_to_a_sink() {
    let samples = golden().tensor("1x13x9.samples");
    let pipeline = pipeline(TILED);
    let plan = pipeline.plan(Direction::Encode, samples.shape()).unwrap();
    let mut canvas = Canvas::default();
    assert_eq!(pipeline.run(&plan, &samples, &mut canvas, RunOptions::default()).unwrap().tiles, 6);
    assert_close(&canvas.into_tensor(), &golden().tensor("1x13x9.tiled.encoded"), 1e-4, "an encode to a sink");
}

#[test]
fn an_executor_of_its_own_gives_the_same_bytes() {
    let latents = golden().tensor("1x13x9.latents");
    let expected = pipeline(TILED).decode(&latents, RunOptions::default()).unwrap();
    let own = pipeline(TILED).with_executor(Box::new(Zigzag)).unwrap();
    assert_eq!(own.decode(&latents, RunOptions::default()).unwrap(), expected);
}

#[test]
fn a_failure_of_the_family_is_in_its_words() {
    let config = TinyConfig {
        decoder_block_out_channels: vec![8, 16],
        num_decoder_blocks: vec![1, 1],
        num_encoder_blocks: vec![1, 1],
        ..TinyConfig::default()
    };
    let error = Tiny::spec(&config).unwrap_err();
    assert!(matches!(error, VaeError::Family(_)) && error.to_string().contains("[8, 16]"), "{error}");
}
