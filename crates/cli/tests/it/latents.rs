//! Latents as other programs save them, and what is refused of them before weights are read.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use tilevae::HostTensor;
use tilevae::io::{Origin, write_tensors};

use super::{Folder, latents, max_diff, refused, root, run, samples, skipped};

const EXAMPLE: &str = "examples/latents/chelsea.safetensors";
const WAN: &str = "models/demo-wan";

/// A `.safetensors` file of f32 tensors.
fn safetensors(path: &str, tensors: &[(&str, &[usize], &[f32])]) {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, shape, values) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        entries.push(format!("{name:?}:{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[{begin},{}]}}", data.len()));
    }
    let header = format!("{{{}}}", entries.join(","));
    fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
}

/// The start of a `.npy` file of f32 values.
fn npy_header(shape: &str) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00".as_slice(), &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat()
}

fn noise(shape: [usize; 5]) -> HostTensor {
    HostTensor::from_fn(shape, |[b, c, t, y, x]| ((b * 61 + c * 31 + t * 11 + y * 17 + x * 7) % 23) as f32 / 11.0 - 1.0)
}

/// A model that is known but whose weights cannot be read.
fn without_weights(folder: &Folder, model: &str) -> String {
    let path = folder.path("model");
    fs::create_dir(&path).unwrap();
    fs::copy(root(model).join("config.json"), folder.path("model/config.json")).unwrap();
    fs::write(folder.path("model/diffusion_pytorch_model.safetensors"), b"not weights").unwrap();
    path
}

#[test]
fn latents_of_comfyui_are_decoded_whatever_their_name() {
    let folder = Folder::new();
    let own = latents(root(EXAMPLE).to_str().unwrap()).values;
    let [_, c, _, h, w] = own.shape();
    let [expected, out] = ["expected.npy", "out.npy"].map(|name| folder.path(name));
    let plain = folder.path("plain.npy");
    write_tensors(plain.as_ref(), &[("latents", &own)], 4, Origin::default()).unwrap();
    run(&["decode", &plain, "-o", &expected, "--set", "io.latent_space=vae"]);
    for name in ["a.latent", "b.safetensors", "c.npy"] {
        let file = folder.path(name);
        safetensors(&file, &[("latent_tensor", &[1, c, h, w], own.data()), ("latent_format_version_0", &[0], &[])]);
        run(&["decode", &file, "-o", &out]);
        let difference = max_diff(&samples(&out).values, &samples(&expected).values);
        assert!(difference < 1e-4, "{name}: {difference}");
    }
    assert!(refused(2, &["decode", &plain, "-o", &folder.path("out.latent")]).contains("formats are .safetensors, .sft, .npy"));
}

#[test]
fn clips_without_a_batch_are_clips() {
    let folder = Folder::new();
    let latents = noise([1, 16, 16, 4, 4]);
    let [whole, flat, out, expected] = ["whole.npy", "flat.npy", "out.npy", "expected.npy"].map(|name| folder.path(name));
    write_tensors(whole.as_ref(), &[("latents", &latents)], 5, Origin::default()).unwrap();
    let values: Vec<u8> = latents.data().iter().flat_map(|value| value.to_le_bytes()).collect();
    fs::write(&flat, [npy_header("(16, 16, 4, 4)"), values].concat()).unwrap();
    for command in [vec!["decode", &flat, "-o", &out, "--model", WAN], vec!["plan", &flat, "--model", WAN]] {
        let message = refused(2, &command);
        assert!(["[16, 16, 4, 4]", "io.axes = \"bchw\"", "io.axes = \"cthw\""].iter().all(|part| message.contains(part)), "{message}");
    }
    run(&["decode", &whole, "-o", &expected, "--model", WAN]);
    run(&["decode", &flat, "-o", &out, "--model", WAN, "--set", "io.axes=cthw"]);
    assert_eq!(samples(&out).values, samples(&expected).values);
    assert_eq!(samples(&out).values.shape(), [1, 3, 61, 32, 32]);
}

#[test]
fn packed_latents_need_their_size() {
    let folder = Folder::new();
    let latents = noise([1, 16, 1, 4, 6]);
    let [plain, packed, out, expected] = ["plain.npy", "packed.safetensors", "out.npy", "expected.npy"].map(|name| folder.path(name));
    write_tensors(plain.as_ref(), &[("latents", &latents)], 4, Origin::default()).unwrap();
    let tokens: Vec<f32> = (0..6 * 64)
        .map(|index| {
            let (token, feature) = (index / 64, index % 64);
            latents.row(feature / 4, token / 3 * 2 + feature / 2 % 2)[token % 3 * 2 + feature % 2]
        })
        .collect();
    safetensors(&packed, &[("latents", &[1, 6, 64], &tokens)]);
    let message = refused(2, &["decode", &packed, "-o", &out]);
    assert!(message.contains("io.packed_size_px") && message.contains("32x48, 48x32"), "{message}");
    run(&["decode", &plain, "-o", &expected]);
    run(&["decode", &packed, "-o", &out, "--set", "io.packed_size_px=[32, 48]"]);
    assert_eq!(samples(&out).values, samples(&expected).values);
}

#[test]
fn what_is_not_finite_is_refused_before_weights_are_read() {
    let folder = Folder::new();
    let model = without_weights(&folder, "models/demo-kl");
    let mut wrong = noise([1, 16, 1, 4, 6]);
    wrong.row_mut(3, 2)[5] = f32::NAN;
    wrong.row_mut(9, 0)[0] = f32::INFINITY;
    let [npy, out] = ["nan.npy", "out.png"].map(|name| folder.path(name));
    write_tensors(npy.as_ref(), &[("latents", &wrong)], 4, Origin::default()).unwrap();
    let message = refused(1, &["decode", &npy, "-o", &out, "--model", &model]);
    assert!(message.contains("2 of 384 values") && message.contains("[0, 3, 0, 2, 5]") && message.contains("io.on_non_finite"), "{message}");
    let allowed = ["--set", "io.on_non_finite=allow"];
    assert!(refused(1, &[&["decode", &npy, "-o", &out, "--model", &model], &allowed[..]].concat()).contains("model.safetensors"));
    run(&[&["decode", &npy, "-o", &out], &allowed[..]].concat());

    let mut samples = HostTensor::zeros([1, 3, 1, 16, 16]);
    samples.row_mut(1, 0)[15] = f32::NEG_INFINITY;
    let npy = folder.path("samples.npy");
    write_tensors(npy.as_ref(), &[("samples", &samples)], 4, Origin::default()).unwrap();
    for command in [vec!["encode", &npy, "-o", "/tmp/never.safetensors"], vec!["roundtrip", &npy]] {
        let message = refused(1, &[&command[..], &["--model", &model]].concat());
        assert!(message.contains("1 of 768 values is") && message.contains("[0, 1, 0, 0, 15]"), "{message}");
    }
}

/// A file of f32 values of which only the header is there; `None` where the file system has no room for such holes.
fn hole(path: &str, shape: &str, values: u64) -> Option<()> {
    let header = npy_header(shape);
    let mut file = File::create(path).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(header.len() as u64 + 4 * values).ok()
}

#[test]
fn planning_reads_headers_alone() {
    let folder = Folder::new();
    let npy = folder.path("large.npy");
    if hole(&npy, "(67108864, 16, 8, 8)", 1 << 36).is_none() {
        skipped("no file of 256 GiB can be made here");
        return;
    }
    let begun = Instant::now();
    assert!(run(&["plan", &npy]).contains("67108864x3x1x64x64"));
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
#[cfg(target_os = "linux")]
fn a_disk_without_room_is_found_before_weights_are_read() {
    let folder = Folder::new();
    let model = without_weights(&folder, "models/demo-kl");
    let [npy, out] = ["large.npy", "out.safetensors"].map(|name| folder.path(name));
    // 8 TiB of latents, 96 TiB of samples.
    if hole(&npy, "(2147483648, 16, 8, 8)", 1 << 41).is_none() {
        skipped("no file of 8 TiB can be made here");
        return;
    }
    let begun = Instant::now();
    let message = refused(1, &["decode", &npy, "-o", &out, "--model", &model]);
    assert!(message.contains(" free, ") && message.contains("98304.0 GiB are needed"), "{message}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(folder.files(), ["large.npy", "model"]);
}

#[test]
fn a_tensor_without_values_is_refused() {
    let folder = Folder::new();
    let [npy, out] = ["empty.npy", "out.safetensors"].map(|name| folder.path(name));
    for shape in ["(1, 3, 0, 16, 16)", "(0, 3, 1, 16, 16)", "(1, 3, 1, 0, 16)", "(1, 0, 1, 16, 16)", "(0,)"] {
        fs::write(&npy, npy_header(shape)).unwrap();
        for frames in ["refuse", "drop", "pad"] {
            let message = refused(1, &["encode", &npy, "-o", &out, "--model", WAN, "--set", &format!("io.frames={frames}")]);
            assert!(message.contains("no values"), "{shape} {frames}: {message}");
        }
        assert!(refused(1, &["decode", &npy, "-o", &out, "--model", WAN]).contains("no values"));
    }
}
