//! Names of every kind, and what the environment says.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{Folder, refused, root, run, skipped};

const LATENTS: &str = "examples/latents/chelsea.safetensors";

fn tilevae_in(folder: &Path, args: &[&OsStr]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tilevae")).args(args).current_dir(folder).output().unwrap()
}

#[cfg(unix)]
#[test]
fn names_need_not_be_unicode() {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let folder = Folder::new();
    let own = folder.0.path().join(OsStr::from_bytes(b"caf\xe9"));
    if fs::create_dir(&own).is_err() {
        skipped("the file system takes Unicode names alone");
        return;
    }
    let name = |bytes: &[u8]| own.join(OsString::from_vec(bytes.to_vec()));
    let latents = name(b"l\xff.safetensors");
    fs::copy(root(LATENTS), &latents).unwrap();
    let model = own.join("model");
    fs::create_dir(&model).unwrap();
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(root("models/demo-kl").join(file), model.join(file)).unwrap();
    }
    fs::write(own.join("run.toml"), "[model]\npath = \"model\"\n").unwrap();
    let argument = |path: &Path| path.as_os_str().to_owned();
    let plain = |text: &str| OsString::from(text);
    for json in [false, true] {
        for out in [&b"o\xfe.png"[..], b"o\xfe.safetensors", b"o\xfe.gif", b"frames\xfe", b"o\xfe.y4m"] {
            let out = name(out);
            let mut args = vec![plain("decode"), argument(&latents), plain("-o"), argument(&out), plain("--config"), argument(&own.join("run.toml"))];
            args.extend(json.then_some([plain("--format"), plain("json")]).into_iter().flatten());
            let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
            let output = tilevae_in(&root(""), &args);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && out.exists(), "{}: {said}", out.display());
            if out.is_dir() {
                fs::remove_dir_all(&out).unwrap();
            }
        }
    }
    // From within the folder, whose name is in no argument.
    let output = tilevae_in(&own, &["plan", "64x64", "--config", "run.toml"].map(OsStr::new));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for args in [vec!["models", "--format", "json"], vec!["models"]] {
        let mut args: Vec<&OsStr> = args.into_iter().map(OsStr::new).collect();
        args.extend([OsStr::new("--model"), model.as_os_str()]);
        let output = tilevae_in(&own, &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    // TOML is Unicode.
    for format in ["text", "json"] {
        let args = [OsStr::new("config"), OsStr::new("--model"), model.as_os_str(), OsStr::new("--format"), OsStr::new(format)];
        let output = tilevae_in(&own, &args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains("model.path") && said.contains("not Unicode"), "{said}");
    }
    // A batch is numbered.
    let images: Vec<PathBuf> = [&b"a\xfe.png"[..], b"b\xfe.png"].map(name).to_vec();
    for image in &images {
        image::RgbImage::new(16, 16).save(image).unwrap();
    }
    let mut args = vec![OsStr::new("roundtrip")];
    args.extend(images.iter().map(|image| image.as_os_str()));
    let out = name(b"r\xfe.png");
    args.extend([OsStr::new("-o"), out.as_os_str(), OsStr::new("--model"), model.as_os_str()]);
    let output = tilevae_in(&own, &args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(name(b"r\xfe-0.png").exists() && name(b"r\xfe-1.png").exists());
}

#[test]
fn names_may_be_long_spaced_and_begin_with_a_dash() {
    let folder = Folder::new();
    fs::copy(root(LATENTS), folder.path("-l.safetensors")).unwrap();
    let model = root("models/demo-kl");
    for out in ["--output=-o.png", "--output=snow \u{2603}, man.png", "-o./--o.png", &format!("--output={}.png", "n".repeat(251))] {
        let args = ["decode", out, "--model", model.to_str().unwrap(), "--", "-l.safetensors"].map(OsStr::new);
        let output = tilevae_in(folder.0.path(), &args);
        assert!(output.status.success(), "{out}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(folder.files().len(), 5);
}

#[test]
fn a_printed_configuration_means_the_same_elsewhere() {
    let folder = Folder::new();
    let model = folder.path("model");
    fs::create_dir(&model).unwrap();
    fs::copy(root("models/demo-kl/config.json"), folder.path("model/config.json")).unwrap();
    fs::copy(root("models/demo-kl/config.json"), folder.path("other.json")).unwrap();
    let config = |args: &[&str]| {
        let args: Vec<&OsStr> = std::iter::once("config").chain(args.iter().copied()).map(OsStr::new).collect();
        let output = tilevae_in(folder.0.path(), &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let printed = config(&["--model", "model", "--set", "model.config=other.json"]);
    fs::create_dir_all(folder.path("a/b")).unwrap();
    fs::write(folder.path("a/b/run.toml"), &printed).unwrap();
    assert_eq!(config(&["--config", "a/b/run.toml"]), printed);
    run(&["plan", "64x64", "--config", &folder.path("a/b/run.toml")]);
    assert!(config(&["--model", "model", "--format", "json"]).contains(&format!("{model:?}")));
}

#[test]
fn a_number_of_threads_that_is_none_is_refused() {
    for name in ["RAYON_NUM_THREADS", "RAYON_RS_NUM_CPUS"] {
        let plan = |threads: &str| {
            Command::new(env!("CARGO_BIN_EXE_tilevae")).args(["plan", "64x64"]).current_dir(root("")).env(name, threads).output().unwrap()
        };
        for wrong in ["abc", "-1", "1.5", "2 ", "100000000000"] {
            let output = plan(wrong);
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() == Some(2) && said.contains(name) && said.contains(wrong), "{wrong}: {said}");
        }
        for right in ["", "0", "1", "8"] {
            assert!(plan(right).status.success(), "{right}");
        }
    }
}

#[test]
fn more_threads_than_machines_have_are_refused() {
    let most = tilevae::MOST_THREADS;
    let more = (most + 1).to_string();
    for given in [
        &["--set", &format!("devices.cpu.threads_per_worker={more}")][..],
        &["--set", "executor.kind=pipelined", "--set", &format!("devices.cpu.workers={more}")],
        &["--set", "executor.kind=multi-device", "--set", "devices.cpu.workers=2", "--set", &format!("devices.cpu.threads_per_worker={most}")],
        &["--set", "executor.kind=multi-device", "--set", &format!("devices.cpu.workers={}", i64::MAX)],
    ] {
        let folder = Folder::new();
        let message = refused(2, &[&["decode", LATENTS, "-o", &folder.path("o.png")][..], given].concat());
        assert!(message.contains("devices.cpu") && message.contains(&most.to_string()), "{message}");
        refused(2, &[&["plan", "64x64"][..], given].concat());
    }
    assert!(refused(2, &["bench", "64x64", "--workers", &more]).contains("devices.cpu"));
}

#[test]
fn standard_input_is_named_once() {
    let message = refused(2, &["encode", "-", "/dev/stdin", "-o", "never.npy"]);
    assert!(message.contains("only one input can be standard input"), "{message}");
}

#[test]
#[cfg(unix)]
fn a_link_to_a_folder_that_is_not_there_names_it() {
    let folder = Folder::new();
    std::os::unix::fs::symlink("missing/o.png", folder.path("o.png")).unwrap();
    let message = refused(1, &["decode", LATENTS, "-o", &folder.path("o.png")]);
    assert!(message.contains(&format!("there is no folder {}", folder.path("missing"))), "{message}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_standard_output_is_named() {
    for args in [&["plan", "64x64"][..], &["config"], &["completions", "bash"]] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_tilevae")).args(args).current_dir(root("")).stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains("standard output cannot be written"), "{args:?}: {said}");
    }
}

#[test]
fn options_say_what_they_take() {
    for (args, said) in [
        (["bench", "64x64", "--executor", "fast"], "--executor fast is not one of sequential, multi-device and pipelined"),
        (["bench", "64x64", "--workers", "0"], "a whole number of at least 1"),
        (["bench", "64x64", "--runs", "none"], "a whole number of at least 1"),
        (["plan", "64x64", "--direction", "back"], "decode and encode"),
    ] {
        let message = refused(2, &args);
        assert!(message.contains(said) && message.contains(args[2]), "{message}");
    }
}

#[test]
fn endings_are_listed_as_they_can_be_used() {
    let folder = Folder::new();
    let kinds = |args: &[&str]| refused(2, args);
    let written = kinds(&["decode", LATENTS, "-o", &folder.path("o.bmp")]);
    assert!([".png", ".safetensors", ".npy", ".mp4", "folder"].iter().all(|kind| written.contains(kind)) && !written.contains(".npz"), "{written}");
    let latents = kinds(&["encode", "examples/images/chelsea.png", "-o", &folder.path("l.bmp")]);
    assert!(latents.contains(".safetensors, .sft, .npy") && ![".png", ".mp4", ".npz"].iter().any(|kind| latents.contains(kind)), "{latents}");
    fs::write(folder.path("l.bmp"), "no tensors at all, but a line of text").unwrap();
    let read = kinds(&["decode", &folder.path("l.bmp"), "-o", &folder.path("o.png")]);
    assert!(read.contains(".safetensors") && ![".png", ".mp4"].iter().any(|kind| read.contains(kind)), "{read}");
    let read = kinds(&["encode", &folder.path("l.bmp"), "-o", &folder.path("o.npy")]);
    assert!([".png", ".safetensors", ".mp4"].iter().all(|kind| read.contains(kind)), "{read}");
    assert_eq!(folder.files(), ["l.bmp"]);
}
