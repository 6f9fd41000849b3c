//! Single files as they lie about, and configurations past all bounds.

use std::path::Path;

use burn::tensor::{DType, Device};
use serde_json::{Value, json};
use vae_core::testing::{RawTensor, read_safetensors, write_safetensors};
use vae_core::{Checkpoint, Model, Registry, VaeError};

use super::{ENTRIES, data};

const PREFIXES: [&str; 9] = ["", "vae.", "first_stage_model.", "module.", "model.", "ema.", "module.first_stage_model.", "model.vae.", "ema.module."];

fn below(prefix: &str, tensors: &[RawTensor]) -> Vec<RawTensor> {
    tensors.iter().map(|(name, dtype, shape, bytes)| (format!("{prefix}{name}"), dtype.clone(), shape.clone(), bytes.clone())).collect()
}

fn model(path: &Path, config: Option<&Path>) -> Model {
    Model::open(&Registry::from_entries(&ENTRIES).unwrap(), path, "auto", config).unwrap()
}

fn fields(config: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(data(config).join("config.json")).unwrap()).unwrap()
}

#[test]
fn a_vae_is_found_under_any_prefix_next_to_anything() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all-in-one.safetensors");
    let beside = ("model.diffusion_model.blocks.0.weight".to_owned(), "F8_E4M3".to_owned(), vec![2], vec![0; 2]);
    for (config, weights, is_inferred) in [
        ("wan21", "diffusion_pytorch_model.safetensors", true),
        ("wan22", "diffusion_pytorch_model.safetensors", true),
        ("wan22", "original.safetensors", true),
        ("qwen", "diffusion_pytorch_model.safetensors", false),
    ] {
        let tensors = read_safetensors(&data(config).join(weights));
        for prefix in PREFIXES {
            write_safetensors(&file, &[below(prefix, &tensors), vec![beside.clone()]].concat());
            let given = data(config).join("config.json");
            model(&file, Some(&given)).load(&Device::flex(), DType::F32).unwrap_or_else(|error| panic!("{config} below `{prefix}`: {error}"));
            if is_inferred {
                model(&file, None).load(&Device::flex(), DType::F32).unwrap_or_else(|error| panic!("{config} below `{prefix}`: {error}"));
            }
        }
    }
}

#[test]
fn a_stray_layer_is_left_over_and_no_division_by_zero() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stray.safetensors");
    let mut tensors = read_safetensors(&data("wan22").join("original.safetensors"));
    tensors.push(("decoder.upsamples.3.x".to_owned(), "F32".to_owned(), vec![1], vec![0; 4]));
    write_safetensors(&file, &tensors);
    for config in [None, Some(data("wan22").join("config.json"))] {
        let error = model(&file, config.as_deref()).load(&Device::flex(), DType::F32).unwrap_err().to_string();
        assert!(error.contains("unexpected (1): decoder.upsamples.3.x"), "{error}");
    }
}

#[test]
fn tensors_of_impossible_shapes_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("odd.safetensors");
    let registry = Registry::from_entries(&ENTRIES).unwrap();
    for tensors in
        [read_safetensors(&data("wan21").join("diffusion_pytorch_model.safetensors")), read_safetensors(&data("wan22").join("original.safetensors"))]
    {
        for at in 0..tensors.len() {
            for shape in [vec![], vec![0], vec![0, 0, 0, 0, 0], vec![0, usize::MAX, 1, 1, 1]] {
                let mut tensors = tensors.clone();
                tensors[at].3 = vec![0; 2 * shape.iter().product::<usize>()];
                tensors[at].2 = shape;
                write_safetensors(&file, &tensors);
                // A family is found or not; nothing divides by a width of 0.
                let loaded = Model::open(&registry, &file, "auto", None).map(|model| model.load(&Device::flex(), DType::F32).map(|_| ()));
                assert!(!matches!(loaded, Ok(Ok(()))), "{} {:?}", tensors[at].0, tensors[at].2);
            }
        }
    }
}

#[test]
fn numbers_past_all_bounds_are_refused_by_name() {
    const HUGE: u64 = u64::MAX;
    for (field, value) in [
        ("base_dim", json!(0)),
        ("base_dim", json!(HUGE)),
        ("decoder_base_dim", json!(0)),
        ("decoder_base_dim", json!(HUGE)),
        ("z_dim", json!(0)),
        ("z_dim", json!(HUGE)),
        ("dim_mult", json!([])),
        ("dim_mult", json!([1, 0, 4, 4])),
        ("dim_mult", json!([HUGE, HUGE, HUGE, HUGE])),
        ("dim_mult", json!(vec![1; 17])),
        ("num_res_blocks", json!(0)),
        ("num_res_blocks", json!(HUGE)),
        ("temperal_downsample", json!(vec![true; 100])),
        ("in_channels", json!(0)),
        ("out_channels", json!(HUGE)),
        ("patch_size", json!(0)),
        ("patch_size", json!(HUGE)),
        ("latents_mean", json!([])),
        ("latents_std", json!(vec![0.0; 16])),
        ("latents_std", json!(vec![1e-300; 16])),
        ("latents_std", json!(vec![1e300; 16])),
        ("latents_mean", json!(vec![1e300; 16])),
        ("scale_factor_spatial", json!(HUGE)),
        ("scale_factor_temporal", json!(0)),
    ] {
        let mut given = fields("wan21");
        if field.starts_with("latents_") {
            given["z_dim"] = json!(16);
        }
        given["latents_mean"] = json!(vec![0.0; 16]);
        given["latents_std"] = json!(vec![1.0; 16]);
        given["z_dim"] = json!(16);
        given[field] = value.clone();
        let error = ENTRIES[0].spec(&given).unwrap_err();
        assert!(matches!(&error, VaeError::ConfigValue { field: named, .. } if *named == field), "{field} = {value}: {error}");
    }
}

#[test]
fn scalings_are_told_in_words() {
    let scaling = |entry: usize, given: &Value| ENTRIES[entry].scaling(given);
    assert_eq!(scaling(0, &json!({})), "Wan 2.1's latents_mean and latents_std");
    assert_eq!(scaling(1, &json!({})), "Wan 2.1's latents_mean and latents_std");
    let [mean, std] = crate::WanConfig::published_latents(48);
    assert_eq!(scaling(0, &json!({"z_dim": 48, "latents_mean": mean, "latents_std": std})), "Wan 2.2's latents_mean and latents_std");
    assert_eq!(
        scaling(0, &json!({"z_dim": 2, "latents_mean": [0, 1], "latents_std": [1, 1]})),
        "latents_mean and latents_std of its own for 2 channels"
    );
}

#[test]
fn a_configuration_fits_its_own_tensors_only() {
    for own in ["wan21", "wan22", "odd", "qwen"] {
        let weights = Checkpoint::open(&data(own), None).unwrap().weights().unwrap();
        for other in ["wan21", "wan22", "odd"] {
            let given: crate::WanConfig = serde_json::from_value({
                let mut given = fields(other);
                given.as_object_mut().unwrap().retain(|name, _| !name.starts_with('_'));
                given
            })
            .unwrap();
            assert_eq!(crate::layouts::fits(&given, &weights), own == other, "{other} for the tensors of {own}");
        }
    }
}
