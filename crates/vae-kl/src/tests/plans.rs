use burn::module::Module;
use burn::tensor::Device;
use serde_json::{Value, json};
use tiling::{DiffusersKind, GridContext, GridKind, TilePlan};
use vae_core::{Components, VaeError, VaeSpec};

use super::ENTRY;
use crate::{AutoencoderKl, KlConfig};

fn published(fields: &Value) -> Value {
    let mut config = json!({
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.30.0", "_name_or_path": "../checkpoints/vae", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 1024,
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]
    });
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    config
}

/// Checks tiles and overlap of a decode to 2048x2048 px and the number of parameters.
fn check(fields: &Value, tiles: usize, overlap: usize, parameters: usize) -> VaeSpec {
    let config = published(fields);
    let spec = ENTRY.spec(&config).unwrap();
    let grid = DiffusersKind::default().build(&GridContext::new(spec.decode_geometry().scale, &spec.grid)).unwrap();
    let plan = TilePlan::new(grid.as_ref(), spec.decode_geometry(), [1, 256, 256]).unwrap();
    assert_eq!((plan.tiles.len(), plan.output), (tiles, [1, 2048, 2048]));
    assert_eq!(plan.tiles[1].overlap, [0, overlap]);
    let mut fields = config;
    fields.as_object_mut().unwrap().retain(|name, _| !name.starts_with('_'));
    let config: KlConfig = serde_json::from_value(fields).unwrap();
    assert_eq!(AutoencoderKl::new(&config, Components::Both, &Device::flex()).unwrap().num_params(), parameters);
    spec
}

#[test]
fn stable_diffusion_1() {
    let spec = check(&json!({"sample_size": 512}), 36, 128, 83_653_863);
    assert_eq!((spec.latent_norm.scale, spec.force_upcast), (vec![1.0 / 0.18215], true));
}

#[test]
fn sdxl() {
    let spec = check(&json!({"scaling_factor": 0.13025, "force_upcast": true, "latents_mean": null, "latents_std": null}), 9, 256, 83_653_863);
    assert_eq!(spec.latent_norm.scale, vec![(1.0 / 0.13025_f64) as f32]);
}

#[test]
fn stable_diffusion_3() {
    let fields = json!({
        "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": false, "use_post_quant_conv": false,
        "force_upcast": true, "mid_block_add_attention": true
    });
    assert_eq!(check(&fields, 9, 256, 83_819_683).latent_norm.shift, vec![0.0609]);
}

#[test]
fn flux_1() {
    let fields = json!({
        "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": false, "use_post_quant_conv": false,
        "force_upcast": true, "mid_block_add_attention": true
    });
    check(&fields, 9, 256, 83_819_683);
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let refused = |fields: Value| match ENTRY.spec(&published(&fields)) {
        Err(VaeError::ConfigValue { field, got, .. }) => format!("{field} {got}"),
        other => panic!("{other:?}"),
    };
    let types = ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "SkipDownBlock2D"];
    assert_eq!(refused(json!({"down_block_types": types})), "down_block_types `SkipDownBlock2D`");
    assert_eq!(refused(json!({"act_fn": "tanhshrink"})), "act_fn `tanhshrink`");
    assert_eq!(refused(json!({"norm_num_groups": 33})), "block_out_channels 128");
    assert_eq!(refused(json!({"scaling_factor": 0.0})), "scaling_factor 0");
    assert_eq!(refused(json!({"latents_mean": [0.0], "latents_std": [1.0]})), "latents_mean 1 values");
    assert_eq!(refused(json!({"block_out_channels": []})), "block_out_channels []");
}

#[test]
fn sample_size_may_be_a_pair() {
    let spec = ENTRY.spec(&published(&json!({"sample_size": [512, 1024]}))).unwrap();
    assert_eq!(spec.grid.tile_px, [512, 1024]);
}
