use std::fs;
use std::path::Path;

use burn::tensor::{DType, Device};
use serde_json::json;
use vae_core::{Checkpoint, Model, Registry};

use vae_core::testing::assert_close;

use super::{ENTRY, data, golden, load, open};

/// Decodes a golden case with the checkpoint at `path`, and compares.
fn decodes_as_golden(path: &Path) {
    use tiling::TileOp;
    let golden = golden("sd");
    let decoded = vae_core::VaeOp::decode(load(path, DType::F32)).apply(&golden.tensor("1x4x4.latents")).unwrap();
    assert_close(&decoded, &golden.tensor("1x4x4.untiled.decoded"), 2e-4, &path.display().to_string());
}

/// The original layout says nothing of the groups of its norms: 32 in every published model, 16 in these small ones.
fn with_config(file: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(data("sd").join(file), folder.path().join(file)).unwrap();
    fs::copy(data("sd/config.json"), folder.path().join("config.json")).unwrap();
    folder
}

#[test]
fn a_whole_checkpoint_of_the_original_layout() {
    decodes_as_golden(&with_config("whole.safetensors").path().join("whole.safetensors"));
}

#[test]
fn a_bare_pickle_of_the_original_layout() {
    decodes_as_golden(&with_config("bare.ckpt").path().join("bare.ckpt"));
}

#[test]
fn old_attention_names_as_linear_and_convolution() {
    decodes_as_golden(&data("sd/old-names"));
}

#[test]
fn a_folder_with_shards() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(data("sd/diffusion_pytorch_model.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut map = serde_json::Map::new();
    for (part, wanted) in ["encoder", "decoder"].iter().enumerate() {
        let file = format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", part + 1);
        let mine = all.iter().filter(|(name, _)| name.starts_with(wanted) || (part == 0 && name.contains("quant_conv")));
        let mine: Vec<_> = mine.collect();
        map.extend(mine.iter().map(|(name, _)| ((*name).to_owned(), json!(file))));
        safetensors::serialize_to_file(mine, None, &folder.path().join(file)).unwrap();
    }
    let index = folder.path().join("diffusion_pytorch_model.safetensors.index.json");
    fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    fs::copy(data("sd/config.json"), folder.path().join("config.json")).unwrap();
    decodes_as_golden(folder.path());
    decodes_as_golden(&index);

    let variant = folder.path().join("diffusion_pytorch_model.safetensors.index.fp16.json");
    fs::rename(&index, &variant).unwrap();
    decodes_as_golden(folder.path());
    fs::rename(&variant, &index).unwrap();

    fs::write(&index, json!({"weight_map": {"a": "../outside.safetensors"}}).to_string()).unwrap();
    let error = open(folder.path()).load(&Device::flex(), DType::F32).unwrap_err();
    assert!(error.to_string().contains("../outside.safetensors"), "{error}");
}

#[test]
fn a_pipeline_folder() {
    let folder = tempfile::tempdir().unwrap();
    let vae = folder.path().join("vae");
    fs::create_dir(&vae).unwrap();
    fs::copy(data("sd/config.json"), vae.join("config.json")).unwrap();
    fs::copy(data("sd/diffusion_pytorch_model.safetensors"), vae.join("diffusion_pytorch_model.fp16.safetensors")).unwrap();
    decodes_as_golden(folder.path());
}

#[test]
fn configurations_are_inferred_from_shapes() {
    for (path, beside) in [("sd/whole.safetensors", "sd"), ("sd/bare.ckpt", "sd"), ("flux/diffusion_pytorch_model.safetensors", "flux")] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(Path::new(path).file_name().unwrap());
        fs::copy(data(path), &file).unwrap();
        let weights = Checkpoint::open(&file, None).unwrap().weights().unwrap();
        let inferred = ENTRY.infer(&weights).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&fs::read_to_string(data(beside).join("config.json")).unwrap()).unwrap();
        for field in [
            "block_out_channels",
            "layers_per_block",
            "latent_channels",
            "use_quant_conv",
            "use_post_quant_conv",
            "mid_block_add_attention",
            "scaling_factor",
            "shift_factor",
            "down_block_types",
            "in_channels",
            "out_channels",
        ] {
            assert_eq!(inferred[field], expected[field], "{field} of {path}");
        }
    }
}

#[test]
fn a_given_configuration_takes_the_place_of_the_inferred_one() {
    let folder = tempfile::tempdir().unwrap();
    let (file, config) = (folder.path().join("whole.safetensors"), folder.path().join("given.json"));
    fs::copy(data("sd/whole.safetensors"), &file).unwrap();
    let mut fields: serde_json::Value = serde_json::from_str(&fs::read_to_string(data("sd/config.json")).unwrap()).unwrap();
    fields.as_object_mut().unwrap().remove("_class_name");
    fs::write(&config, fields.to_string()).unwrap();
    let registry = Registry::from_entries([&ENTRY]).unwrap();
    let model = Model::open(&registry, &file, "auto", Some(&config)).unwrap();
    assert_eq!((model.spec.grid.tile_px, model.config["norm_num_groups"].as_u64()), ([32, 32], Some(16)));
    // Inferred, it would have the 32 groups of every published model.
    assert!(Model::open(&registry, &file, "auto", None).unwrap_err().to_string().contains("norm_num_groups, 32"));
}

#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::from_entries([&ENTRY]).unwrap();
    for source in ["sd/diffusion_pytorch_model.safetensors", "sd/bare.ckpt"] {
        let bytes = fs::read(data(source)).unwrap();
        let extension = Path::new(source).extension().unwrap().to_str().unwrap();
        for (case, content) in [
            ("empty", Vec::new()),
            ("cut", bytes[..bytes.len() / 2].to_vec()),
            ("header", bytes[..40].to_vec()),
            ("huge", [u64::MAX.to_le_bytes().as_slice(), &bytes[8..200]].concat()),
            ("noise", (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()),
        ] {
            let file = folder.path().join(format!("{case}.{extension}"));
            fs::write(&file, content).unwrap();
            let error = Model::open(&registry, &file, "auto", None).map(|_| ()).expect_err(case);
            assert!(error.to_string().contains(case), "{error}");
        }
    }
}

#[test]
fn weights_of_another_size_are_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(data("sd/diffusion_pytorch_model.safetensors"), folder.path().join("diffusion_pytorch_model.safetensors")).unwrap();
    let config = fs::read_to_string(data("sd/config.json")).unwrap().replace("\"latent_channels\": 4", "\"latent_channels\": 8");
    fs::write(folder.path().join("config.json"), config).unwrap();
    let error = open(folder.path()).load(&Device::flex(), DType::F32).unwrap_err().to_string();
    assert!(error.contains("decoder.conv_in.weight has the shape [32, 4, 3, 3], expected [32, 8, 3, 3]"), "{error}");
}
