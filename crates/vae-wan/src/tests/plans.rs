use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde_json::{Value, json};
use tiling::{DiffusersKind, GridContext, GridKind, TilePlan};
use vae_core::coder::FrameCache;
use vae_core::layers::Features;
use vae_core::{Components, Context, FrameRule, VaeError, VaeModules, VaeSpec};

use super::{ENTRIES, data, open};
use crate::{AutoencoderKlWan, WanConfig};

fn wan_2_1() -> Value {
    json!({
        "_class_name": "AutoencoderKLWan", "_diffusers_version": "0.33.0.dev0", "attn_scales": [], "base_dim": 96, "dim_mult": [1, 2, 4, 4], "dropout": 0.0,
        "latents_mean": WanConfig::default().latents_mean, "latents_std": WanConfig::default().latents_std, "num_res_blocks": 2,
        "temperal_downsample": [false, true, true], "z_dim": 16
    })
}

fn wan_2_2() -> Value {
    let [mean, std] = WanConfig::published_latents(48);
    json!({
        "_class_name": "AutoencoderKLWan", "_diffusers_version": "0.35.0.dev0", "attn_scales": [], "base_dim": 160, "clip_output": false,
        "decoder_base_dim": 256, "dim_mult": [1, 2, 4, 4], "dropout": 0.0, "in_channels": 12, "is_residual": true, "latents_mean": mean,
        "latents_std": std, "num_res_blocks": 2, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, "scale_factor_temporal": 4,
        "temperal_downsample": [false, true, true], "z_dim": 48
    })
}

fn parameters(config: &Value) -> usize {
    let fields = config.as_object().unwrap().iter().filter(|(name, _)| !name.starts_with('_'));
    let config: WanConfig = serde_json::from_value(fields.map(|(k, v)| (k.clone(), v.clone())).collect()).unwrap();
    AutoencoderKlWan::new(&config, Components::Both, &Device::flex()).unwrap().num_params()
}

fn plan(spec: &VaeSpec, encode: bool, input: [usize; 3]) -> TilePlan {
    let (geometry, unit_px) = if encode { (spec.encode_geometry(), spec.patch) } else { (spec.decode_geometry(), 1) };
    let context = GridContext { unit_px, ..GridContext::new(geometry.scale, &spec.grid) };
    TilePlan::new(DiffusersKind::default().build(&context).unwrap().as_ref(), geometry, input).unwrap()
}

#[test]
fn the_published_wan_2_1() {
    let spec = ENTRIES[0].spec(&wan_2_1()).unwrap();
    assert_eq!((spec.latent_channels, spec.spatial_ratio, spec.frames), (16, 8, FrameRule::Causal { ratio: 4 }));
    // 480x832 px, 81 frames.
    let decode = plan(&spec, false, [21, 60, 104]);
    assert_eq!((decode.output, decode.rows.len(), decode.columns.len(), decode.redundant_tiles()), ([81, 480, 832], 3, 5, 3));
    let encode = plan(&spec, true, [81, 480, 832]);
    assert_eq!((encode.output, encode.tiles.len()), ([21, 60, 104], 15));
    assert_eq!(parameters(&wan_2_1()), 126_892_531);
}

#[test]
fn the_published_wan_2_2() {
    let spec = ENTRIES[0].spec(&wan_2_2()).unwrap();
    assert_eq!((spec.latent_channels, spec.spatial_ratio, spec.patch, spec.input_channels, spec.output_channels), (48, 16, 2, 3, 3));
    // 704x1280 px, 121 frames. Decode tiles are 256 px with a stride of 192, encode tiles twice that.
    let decode = plan(&spec, false, [31, 44, 80]);
    assert_eq!((decode.output, decode.rows.len(), decode.columns.len()), ([121, 704, 1280], 4, 7));
    assert_eq!((decode.tiles[0].input.size, decode.tiles[8].overlap), ([31, 16, 16], [64, 64]));
    let encode = plan(&spec, true, [121, 704, 1280]);
    assert_eq!((encode.output, encode.rows.len(), encode.columns.len()), ([31, 44, 80], 2, 4));
    assert_eq!((encode.tiles[0].input.size, encode.tiles[5].overlap), ([121, 512, 512], [8, 8]));
    assert_eq!(parameters(&wan_2_2()), 704_688_668);
}

#[test]
fn the_spec_knows_what_the_cache_holds() {
    for config in ["wan21", "wan22", "odd"] {
        let model = open(&data(config));
        let fields = model.config.as_object().unwrap().iter().filter(|(name, _)| !name.starts_with('_'));
        let parsed: WanConfig = serde_json::from_value(fields.map(|(k, v)| (k.clone(), v.clone())).collect()).unwrap();
        let modules = AutoencoderKlWan::new(&parsed, Components::Both, &Device::flex()).unwrap();
        let features = |shape: [usize; 5]| Features::new(Tensor::zeros(shape, &Device::flex()), &Context::default());
        let [mut decode, mut encode] = [FrameCache::default(), FrameCache::default()];
        let [h, w] = [2, 3];
        let ratio = parsed.spatial_ratio();
        for frames in [1, 2] {
            modules.decoder().unwrap().forward(features([1, parsed.z_dim, frames, h, w]), &mut decode).unwrap();
            let frames = if frames == 1 { 1 } else { frames * parsed.temporal_ratio() };
            let samples = [1, model.spec.input_channels, frames, h * ratio, w * ratio];
            modules.encoder().unwrap().forward(features(samples), &mut encode).unwrap();
        }
        assert_eq!([decode.values(), encode.values()].map(|values| values / (h * w)), model.spec.cache_values_per_latent_px, "{config}");
    }
}

#[test]
fn what_contradicts_itself_is_refused_by_name() {
    let refused = |base: Value, changes: Value| {
        let mut config = base;
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        match ENTRIES[0].spec(&config) {
            Err(VaeError::ConfigValue { field, got, .. }) => format!("{field} {got}"),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(wan_2_1(), json!({"scale_factor_spatial": 16})), "scale_factor_spatial 16");
    assert_eq!(refused(wan_2_1(), json!({"temperal_downsample": [true]})), "temperal_downsample [true]");
    assert_eq!(refused(wan_2_1(), json!({"scale_factor_temporal": 2})), "scale_factor_temporal 2");
    assert_eq!(refused(wan_2_1(), json!({"z_dim": 8})), "latents_mean 16 values");
    assert_eq!(refused(wan_2_1(), json!({"base_dim": 0})), "base_dim 0");
    assert_eq!(refused(wan_2_1(), json!({"dim_mult": []})), "dim_mult []");
    assert_eq!(refused(wan_2_2(), json!({"in_channels": 3})), "in_channels 3");
    assert_eq!(refused(wan_2_2(), json!({"dim_mult": [1, 2, 3, 4]})), "dim_mult [1, 2, 3, 4]");
    assert_eq!(
        refused(wan_2_1(), json!({"base_dim": 3, "scale_factor_spatial": 8, "decoder_base_dim": 1, "dim_mult": [1, 1, 1, 1]})),
        "dim_mult [1, 1, 1, 1]"
    );
}
