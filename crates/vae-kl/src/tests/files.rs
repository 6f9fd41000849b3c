//! Single files as people have them: prefixes of names, dtypes, endings, and configurations in the same folder.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use burn::tensor::{DType, Device};
use serde_json::{Value, json};
use tiling::TileOp;
use vae_core::testing::{RawTensor, assert_close, read_safetensors, write_safetensors};
use vae_core::{Model, Registry, RegistryError, Vae, VaeError};

use super::{ENTRY, data, golden, open};

const PREFIXES: [&str; 11] = [
    "",
    "vae.",
    "first_stage_model.",
    "module.",
    "model.",
    "ema.",
    "module.first_stage_model.",
    "model.vae.",
    "ema.module.",
    "state_dict.model.",
    "_orig_mod.module.vae.",
];

fn diffusers() -> Vec<RawTensor> {
    read_safetensors(&data("sd/diffusion_pytorch_model.safetensors"))
}

fn ldm() -> Vec<RawTensor> {
    let whole = read_safetensors(&data("sd/whole.safetensors"));
    whole
        .into_iter()
        .filter_map(|(name, dtype, shape, bytes)| Some((name.strip_prefix("first_stage_model.")?.to_owned(), dtype, shape, bytes)))
        .collect()
}

fn below(prefix: &str, tensors: &[RawTensor]) -> Vec<RawTensor> {
    tensors.iter().map(|(name, dtype, shape, bytes)| (format!("{prefix}{name}"), dtype.clone(), shape.clone(), bytes.clone())).collect()
}

/// Other components of whole checkpoints, in dtypes that are not read.
fn others() -> Vec<RawTensor> {
    ["F8_E4M3", "F8_E8M0", "I4", "F6_E2M3", "U64", "C64", "Q3_K"]
        .map(|dtype| {
            (format!("model.diffusion_model.{dtype}.weight"), dtype.to_owned(), vec![4, 2], vec![0; 8 * if dtype.ends_with("64") { 8 } else { 1 }])
        })
        .into()
}

/// Decodes a golden case.
fn decode(vae: Arc<dyn Vae>) -> tiling::HostTensor {
    vae_core::VaeOp::decode(vae).apply(&golden("sd").tensor("1x4x4.latents")).unwrap()
}

fn load_with(path: &Path, config: &Path) -> Arc<dyn Vae> {
    let registry = Registry::from_entries([&ENTRY]).unwrap();
    Model::open(&registry, path, "auto", Some(config)).unwrap().load(&Device::flex(), DType::F32).unwrap().into()
}

#[test]
fn a_vae_is_found_under_any_prefix_next_to_anything() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all-in-one.sft");
    for prefix in PREFIXES {
        for (layout, tensors) in [("diffusers", diffusers()), ("ldm", ldm())] {
            write_safetensors(&file, &[below(prefix, &tensors), others()].concat());
            let decoded = decode(load_with(&file, &data("sd/config.json")));
            assert_close(&decoded, &golden("sd").tensor("1x4x4.untiled.decoded"), 2e-4, &format!("{layout} below `{prefix}`"));
        }
    }
}

#[test]
fn plain_tensors_win_over_their_averages() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("both.safetensors");
    let mut averages = ldm();
    for (_, _, _, bytes) in &mut averages {
        bytes.fill(0);
    }
    for (plain, average) in [("", "ema."), ("model.", "model_ema."), ("module.vae.", "ema.vae."), ("state_dict.model.", "ema.")] {
        write_safetensors(&file, &[below(plain, &ldm()), below(average, &averages)].concat());
        let decoded = decode(load_with(&file, &data("sd/config.json")));
        assert_close(&decoded, &golden("sd").tensor("1x4x4.untiled.decoded"), 2e-4, average);
    }
}

#[test]
fn weights_of_eight_bits_are_converted() {
    let folder = tempfile::tempdir().unwrap();
    let [narrow, wide] = ["narrow.safetensors", "wide.safetensors"].map(|name| folder.path().join(name));
    for (dtype, keep) in [("F8_E4M3", 0x7e_u8), ("F8_E5M2", 0x7b)] {
        // Any bits that are finite; their meaning in f32 is told by the float of the same layout in 16 bits, where there is one.
        let value = |byte: u8| {
            let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
            let (bits, bias) = if dtype == "F8_E4M3" { (3, 7) } else { (2, 15) };
            let (exponent, fraction) = (i32::from(byte & 0x7f) >> bits, f32::from(byte & ((1 << bits) - 1)) / f32::from(1_u8 << bits));
            sign * if exponent == 0 { fraction * 2_f32.powi(1 - bias) } else { (1.0 + fraction) * 2_f32.powi(exponent - bias) }
        };
        let mut tensors = diffusers();
        for (_, stored, _, bytes) in &mut tensors {
            assert_eq!(stored, "F16");
            // Small numbers, as weights are.
            *bytes = bytes.as_chunks::<2>().0.iter().map(|pair| (pair[0] & 0x87 | 0x20).min(0x80 | keep)).collect();
            dtype.clone_into(stored);
        }
        write_safetensors(&narrow, &tensors);
        for (_, stored, _, bytes) in &mut tensors {
            *bytes = bytes.iter().flat_map(|&byte| value(byte).to_le_bytes()).collect();
            "F32".clone_into(stored);
        }
        write_safetensors(&wide, &tensors);
        let [narrow, wide] = [&narrow, &wide].map(|file| decode(load_with(file, &data("sd/config.json"))));
        assert_eq!(narrow, wide, "{dtype}");
    }
    // `auto` computes them in a type that holds them all.
    let model = Model::open(&Registry::from_entries([&ENTRY]).unwrap(), &narrow, "auto", Some(&data("sd/config.json"))).unwrap();
    assert_eq!(model.stored_dtype().unwrap(), DType::BF16);
}

#[test]
fn the_dtype_is_that_of_the_vae_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("whole.safetensors");
    let large = ("model.diffusion_model.large".to_owned(), "F8_E5M2".to_owned(), vec![1 << 20], vec![0; 1 << 20]);
    write_safetensors(&file, &[below("vae.", &ldm()), vec![large]].concat());
    let model = Model::open(&Registry::from_entries([&ENTRY]).unwrap(), &file, "auto", Some(&data("sd/config.json"))).unwrap();
    assert_eq!(model.stored_dtype().unwrap(), DType::F16);
}

#[test]
fn a_type_that_the_vae_needs_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("odd.safetensors");
    let mut tensors = diffusers();
    let (name, dtype, ..) = tensors.iter_mut().find(|(name, ..)| name == "decoder.conv_out.bias").unwrap();
    assert_eq!(name, "decoder.conv_out.bias");
    "I4".clone_into(dtype);
    write_safetensors(&file, &tensors);
    let model = Model::open(&Registry::from_entries([&ENTRY]).unwrap(), &file, "auto", Some(&data("sd/config.json"))).unwrap();
    let error = model.load(&Device::flex(), DType::F32).unwrap_err().to_string();
    assert!(error.contains("decoder.conv_out.bias is stored as I4, which is not implemented"), "{error}");
}

#[test]
fn files_are_told_by_what_they_hold() {
    let folder = tempfile::tempdir().unwrap();
    for (source, names) in [
        ("sd/diffusion_pytorch_model.safetensors", ["a.ckpt", "a.SAFETENSORS", "a.sft", "a.bin", "a"]),
        ("sd/bare.ckpt", ["b.safetensors", "b.CKPT", "b.pth", "b.zip", "b"]),
    ] {
        for name in names {
            let file = folder.path().join(name);
            fs::copy(data(source), &file).unwrap();
            decode(load_with(&file, &data("sd/config.json")));
        }
    }
    let index = folder.path().join("index.txt");
    fs::write(&index, json!({"weight_map": {"decoder.conv_in.weight": "a.ckpt"}}).to_string()).unwrap();
    decode(load_with(&index, &data("sd/config.json")));
    let capitals = tempfile::tempdir().unwrap();
    fs::copy(data("sd/bare.ckpt"), capitals.path().join("diffusion_pytorch_model.SAFETENSORS")).unwrap();
    fs::copy(data("sd/config.json"), capitals.path().join("config.json")).unwrap();
    decode(open(capitals.path()).load(&Device::flex(), DType::F32).unwrap().into());
}

#[test]
fn what_is_no_checkpoint_is_called_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::from_entries([&ENTRY]).unwrap();
    let refused = |path: &Path| Model::open(&registry, path, "auto", None).map(|_| ()).unwrap_err().to_string();
    let file = folder.path().join("diffusion_pytorch_model.safetensors");
    for (content, what) in [("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), ("<html>", "a web page")] {
        fs::write(&file, content).unwrap();
        let error = refused(&file);
        assert!(error.contains(what) && !error.contains("damaged"), "{error}");
    }
    let hub = refused(Path::new("stabilityai/sdxl-vae"));
    assert!(
        hub.contains("there is no file or folder `stabilityai/sdxl-vae`") && hub.contains("hf download stabilityai/sdxl-vae --local-dir sdxl-vae"),
        "{hub}"
    );
    assert!(refused(&folder.path().join("stabilityai/sd-vae-ft-mse")).contains("hf download stabilityai/sd-vae-ft-mse"));
    assert!(refused(Path::new("https://huggingface.co/a/b/resolve/main/c.safetensors")).contains("nothing is downloaded"));
    for missing in ["models/vae.safetensors", "nowhere", "a/b/c/d", "/nowhere"] {
        assert!(refused(Path::new(missing)).contains("cannot be read"), "{missing}");
    }
}

/// Runs `f`, and gives what was logged with it.
fn logged<T>(f: impl FnOnce() -> T) -> (T, String) {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).without_time().with_target(false).finish();
    let answer = tracing::subscriber::with_default(subscriber, f);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    (answer, text)
}

/// A folder with one file of weights, whose norms have 32 groups as in inferred configurations, and a configuration.
fn neighbours(config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_safetensors(&folder.path().join("vae-ft-mse.safetensors"), &wide());
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

/// Tensors in the layout of diffusers with 32 channels everywhere.
fn wide() -> Vec<RawTensor> {
    let widen = |side: &usize| if *side == 16 { 32 } else { *side };
    let sides = |shape: Vec<usize>| shape.iter().map(widen).collect::<Vec<_>>();
    let tensors = diffusers().into_iter().filter(|(name, ..)| !name.contains("conv_shortcut"));
    tensors
        .map(|(name, dtype, shape, _)| {
            let shape = sides(shape);
            let bytes = vec![0; 2 * shape.iter().product::<usize>()];
            (name, dtype, shape, bytes)
        })
        .collect()
}

fn config(scaling_factor: f64) -> Value {
    let mut config: Value = serde_json::from_str(&fs::read_to_string(data("sd/config.json")).unwrap()).unwrap();
    config["block_out_channels"] = json!([32, 32, 32, 32]);
    config["norm_num_groups"] = json!(32);
    config["scaling_factor"] = json!(scaling_factor);
    config
}

#[test]
fn a_configuration_in_the_folder_is_used_unless_contradicted() {
    let scaling = |folder: &tempfile::TempDir, file: &str| {
        let (model, log) = logged(|| open(&folder.path().join(file)));
        assert_eq!(log.lines().count(), 1, "{log}");
        (model.config["scaling_factor"].as_f64().unwrap(), log)
    };
    let file = "vae-ft-mse.safetensors";

    // The configuration fits the tensors and the inferred scaling.
    let (used, log) = scaling(&neighbours(&config(0.18215)), file);
    assert_eq!(used, 0.18215);
    assert!(log.contains("INFO") && log.contains("scaling_factor 0.18215 (Stable Diffusion 1.x and 2.x)") && log.contains("config.json"), "{log}");

    // The scaling cannot be verified: used with a warning.
    let (used, log) = scaling(&neighbours(&config(0.13025)), file);
    assert_eq!(used, 0.13025);
    assert!(log.contains("WARN") && log.contains("scaling_factor 0.13025 (SDXL)") && log.contains("model.config"), "{log}");

    // Another weight file of the folder may own it.
    for other in ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "sdxl_vae.ckpt"] {
        let folder = neighbours(&config(0.13025));
        fs::write(folder.path().join(other), "").unwrap();
        let (used, log) = scaling(&folder, file);
        assert_eq!(used, 0.18215);
        assert!(log.contains("WARN") && log.contains(&format!("scaling_factor 0.13025 (SDXL)) may belong to {other}")), "{log}");
        assert!(log.contains("with scaling_factor 0.18215"), "{log}");
    }
    // Other formats of the same model do not count.
    let folder = neighbours(&config(0.13025));
    for name in ["vae-ft-mse.fp16.ckpt", "vae-ft-mse-00001-of-00002.safetensors", "vae-ft-mse.sft", "README.md"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    assert_eq!(scaling(&folder, file).0, 0.13025);

    // A file named `diffusion_pytorch_model*` always owns it.
    let folder = neighbours(&config(0.13025));
    for own in ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"] {
        fs::copy(folder.path().join(file), folder.path().join(own)).unwrap();
        let (used, log) = scaling(&folder, own);
        assert_eq!(used, 0.13025);
        assert!(log.contains("INFO") && log.contains("scaling_factor 0.13025 (SDXL)"), "{log}");
    }

    // Other components in the file determine the scaling.
    let folder = neighbours(&config(0.18215));
    let other = ("conditioner.embedders.1.model.ln_final.bias".to_owned(), "F32".to_owned(), vec![1], vec![0; 4]);
    write_safetensors(&folder.path().join("xl.safetensors"), &[below("first_stage_model.", &wide()), vec![other]].concat());
    fs::remove_file(folder.path().join(file)).unwrap();
    let (used, log) = scaling(&folder, "xl.safetensors");
    assert_eq!(used, 0.13025);
    assert!(log.contains("INFO") && log.contains("scaling_factor 0.18215 (Stable Diffusion 1.x and 2.x)) contradicts the other components"), "{log}");
}

#[test]
fn a_configuration_of_another_model_is_ignored_with_a_warning() {
    let mut wider = config(0.13025);
    wider["block_out_channels"] = json!([64, 64, 64, 64]);
    let mut wrong = config(0.13025);
    wrong["norm_num_groups"] = json!(0);
    for (given, word) in [
        (json!({"_class_name": "UNet2DConditionModel", "sample_size": 64}).to_string(), "UNet2DConditionModel, which is not a VAE"),
        (json!({"_class_name": "AutoencoderKLFlux2"}).to_string(), "AutoencoderKLFlux2, which is not implemented"),
        (json!({"architectures": ["CLIPTextModel"]}).to_string(), "does not name its class"),
        (wider.to_string(), "does not fit the tensors"),
        (wrong.to_string(), "norm_num_groups"),
        ("{".to_owned(), "not valid JSON"),
    ] {
        let folder = neighbours(&Value::Null);
        fs::write(folder.path().join("config.json"), given).unwrap();
        let (model, log) = logged(|| open(&folder.path().join("vae-ft-mse.safetensors")));
        assert_eq!(model.config["scaling_factor"], json!(0.18215));
        assert!(log.lines().count() == 1 && log.contains("WARN") && log.contains(word) && log.contains("so it is not used"), "{log}");
    }
    // A VAE named as by diffusers in the folder of a UNet's configuration.
    let folder = neighbours(&json!({"_class_name": "UNet2DConditionModel"}));
    let own = folder.path().join("diffusion_pytorch_model.safetensors");
    fs::rename(folder.path().join("vae-ft-mse.safetensors"), &own).unwrap();
    let (_, log) = logged(|| open(&own));
    assert!(log.contains("UNet2DConditionModel, which is not a VAE"), "{log}");
    // A UNet is refused, and so is a VAE that is not implemented.
    let registry = Registry::from_entries([&ENTRY]).unwrap();
    write_safetensors(&own, &others());
    let refused = |path: &Path| Model::open(&registry, path, "auto", None).map(|_| ()).unwrap_err();
    assert!(matches!(refused(&own), RegistryError::Unknown { name, .. } if name == "UNet2DConditionModel"));
    write_safetensors(&own, &wide());
    fs::write(folder.path().join("config.json"), json!({"_class_name": "AutoencoderKLFlux2"}).to_string()).unwrap();
    assert!(matches!(refused(&own), RegistryError::Unknown { name, .. } if name == "AutoencoderKLFlux2"));
}

#[test]
fn flux_2_is_not_recognised_as_flux_1() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ae.safetensors");
    write_safetensors(&file, &[wide(), vec![("bn.running_mean".to_owned(), "F32".to_owned(), vec![1], vec![0; 4])]].concat());
    let registry = Registry::from_entries([&ENTRY]).unwrap();
    assert!(matches!(Model::open(&registry, &file, "auto", None), Err(RegistryError::Unrecognised { .. })));
}

#[test]
fn unknown_fields_are_a_warning() {
    let mut fields = config(0.18215);
    fields["brand_new"] = json!([1]);
    fields["_diffusers_version"] = json!("9");
    let folder = neighbours(&fields);
    let (_, log) = logged(|| open(&folder.path().join("vae-ft-mse.safetensors")));
    let warning = log.lines().find(|line| line.contains("WARN")).unwrap();
    assert!(warning.contains("config.json has fields that the family kl does not have; they are ignored: brand_new"), "{log}");
    fields["latent_channels"] = json!("four");
    let error = ENTRY.spec(&fields).unwrap_err();
    assert!(matches!(&error, VaeError::Config(source) if source.to_string().contains("`latent_channels`")), "{error:?}");
}

#[test]
fn numbers_past_all_bounds_are_refused_by_name() {
    const HUGE: u64 = u64::MAX;
    for (field, value) in [
        ("block_out_channels", json!([])),
        ("block_out_channels", json!([0, 32, 32, 32])),
        ("block_out_channels", json!([HUGE, HUGE, HUGE, HUGE])),
        ("block_out_channels", json!(vec![32; 17])),
        ("block_out_channels", json!([33, 32, 32, 32])),
        ("down_block_types", json!([])),
        ("norm_num_groups", json!(0)),
        ("norm_num_groups", json!(HUGE)),
        ("layers_per_block", json!(0)),
        ("layers_per_block", json!(HUGE)),
        ("latent_channels", json!(HUGE)),
        ("in_channels", json!(HUGE)),
        ("out_channels", json!(0)),
        ("sample_size", json!(0)),
        ("sample_size", json!([HUGE, 8])),
        ("scaling_factor", json!(0.0)),
        ("scaling_factor", json!(1e-300)),
        ("scaling_factor", json!(1e300)),
        ("shift_factor", json!(1e300)),
    ] {
        let mut fields = config(0.18215);
        fields[field] = value.clone();
        let error = ENTRY.spec(&fields).unwrap_err();
        assert!(matches!(&error, VaeError::ConfigValue { field: named, .. } if *named == field), "{field} = {value}: {error}");
    }
    for (mean, std, named) in
        [(json!([1e300, 0, 0, 0]), json!([1, 1, 1, 1]), "latents_mean"), (json!([0, 0, 0, 0]), json!([1, 1, 0, 1]), "latents_std")]
    {
        let mut fields = config(0.18215);
        (fields["latents_mean"], fields["latents_std"]) = (mean, std);
        let error = ENTRY.spec(&fields).unwrap_err();
        assert!(matches!(&error, VaeError::ConfigValue { field, .. } if *field == named), "{error}");
    }
    for value in [json!(-1), json!(1e30), json!("x"), json!(null), json!({})] {
        let mut fields = config(0.18215);
        fields["latent_channels"] = value;
        assert!(matches!(ENTRY.spec(&fields), Err(VaeError::Config(_))));
    }
}

#[test]
fn tensors_of_impossible_shapes_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("odd.safetensors");
    let registry = Registry::from_entries([&ENTRY]).unwrap();
    for tensors in [diffusers(), ldm()] {
        for at in 0..tensors.len() {
            for shape in [vec![], vec![0], vec![0, 0, 0, 0], vec![1; 64], vec![0, usize::MAX, 1, 1]] {
                let mut tensors = tensors.clone();
                tensors[at].3 = vec![0; 2 * shape.iter().product::<usize>()];
                tensors[at].2 = shape;
                write_safetensors(&file, &tensors);
                for config in [None, Some(data("sd/config.json"))] {
                    let loaded =
                        Model::open(&registry, &file, "auto", config.as_deref()).map(|model| model.load(&Device::flex(), DType::F32).map(|_| ()));
                    assert!(!matches!(loaded, Ok(Ok(()))), "{} {:?}", tensors[at].0, tensors[at].2);
                }
            }
        }
    }
}
