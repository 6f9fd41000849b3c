use std::fs;

use burn::tensor::{DType, Device};
use tiling::TileOp;
use vae_core::VaeOp;

use super::{data, golden, load, open};

/// Copies a checkpoint of the original layout to a new folder, with a configuration if asked.
fn original(config: &str, file: &str, with_config: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(data(config).join(file), folder.path().join(file)).unwrap();
    if with_config {
        fs::copy(data(config).join("config.json"), folder.path().join("config.json")).unwrap();
    }
    folder
}

const ORIGINALS: [(&str, &str, &str); 2] = [("wan21", "original.pth", "2x2x7x4"), ("wan22", "original.safetensors", "1x2x5x2")];

#[test]
fn the_original_layouts_give_the_same_answer() {
    for (config, file, case) in ORIGINALS {
        let golden = golden(config);
        let (latents, samples) = (golden.tensor(&format!("{case}.latents")), golden.tensor(&format!("{case}.samples")));
        let answers = |vae: &std::sync::Arc<dyn vae_core::Vae>| {
            let decode = VaeOp::decode(vae.clone());
            let encode = VaeOp::encode(vae.clone());
            (decode.apply(&latents).unwrap(), encode.apply(&samples).unwrap())
        };
        let folder = original(config, file, true);
        let [diffusers, original] = [data(config), folder.path().join(file)].map(|path| answers(&load(&path, DType::F32)));
        assert_eq!(diffusers, original, "{config}");
    }
}

#[test]
fn configurations_are_inferred_from_shapes() {
    for (config, file) in ORIGINALS.map(|(config, file, _)| (config, file)).into_iter().chain([
        ("wan21", "diffusion_pytorch_model.safetensors"),
        ("wan22", "diffusion_pytorch_model.safetensors"),
        ("odd", "diffusion_pytorch_model.safetensors"),
    ]) {
        let folder = original(config, file, false);
        let inferred = open(&folder.path().join(file));
        let expected = open(&data(config)).config;
        for field in [
            "base_dim",
            "z_dim",
            "dim_mult",
            "num_res_blocks",
            "attn_scales",
            "temperal_downsample",
            "is_residual",
            "in_channels",
            "out_channels",
            "patch_size",
            "scale_factor_temporal",
            "scale_factor_spatial",
            "decoder_base_dim",
        ] {
            assert_eq!(inferred.config[field], expected[field], "{field} of {config}/{file}");
        }
        inferred.load(&Device::flex(), DType::F32).unwrap();
    }
}

#[test]
fn left_over_and_missing_tensors_of_the_original_layout_are_named() {
    let folder = original("wan22", "original.safetensors", true);
    let config = folder.path().join("config.json");
    fs::write(&config, fs::read_to_string(&config).unwrap().replace("\"num_res_blocks\": 1", "\"num_res_blocks\": 2")).unwrap();
    let model =
        vae_core::Model::open(&vae_core::Registry::linked().unwrap(), &folder.path().join("original.safetensors"), "auto", Some(&config)).unwrap();
    let error = model.load(&Device::flex(), DType::F32).unwrap_err().to_string();
    assert!(error.contains("missing") && error.contains("decoder.up_blocks.0.resnets.2.conv1.bias"), "{error}");
}
