use std::fs;

use super::{Folder, refused, root};

const EXAMPLE: &str = "examples/latents/chelsea.safetensors";

/// Refuses a decode of the example with one setting; nothing is left behind.
#[track_caller]
fn setting(code: i32, setting: &str) -> String {
    let folder = Folder::new();
    let message = refused(code, &["decode", EXAMPLE, "-o", &folder.path("out.png"), "--set", setting]);
    assert!(folder.files().is_empty());
    message
}

#[test]
fn settings_that_cannot_be() {
    for (given, fragments) in [
        ("tiling.tilepx=64", ["`tiling.tilepx`", "did you mean `tile_px`?"]),
        ("tilin.kind=off", ["tilin", "tiling"]),
        ("model.family=klw", ["klw", "did you mean `kl`"]),
        ("tiling.tile_px=100", ["not a multiple of 8", "nearest legal value is 104"]),
        ("tiling.tile_px=4", ["at least 8", "nearest legal value is 8"]),
        ("tiling={kind=\"diffusers\",stride_px=512}", ["256", "nearest legal value is 256"]),
        ("tiling.stride_px=512", ["unknown key `stride_px`", "seamless has no such key, but diffusers, family has"]),
        ("tiling={kind=\"diffusers\",overlap=0.27}", ["overlap is 0.27", "nearest legal value is 0.28125"]),
        ("executor.kind=fast", ["`executor.kind`", "sequential"]),
        ("devices.use=[\"cuda:0\"]", ["`cuda`", "cpu"]),
        ("devices.use=[\"cpu\", \"cpu\"]", ["executor.kind = \"sequential\"", "one device"]),
        ("devices.use=[]", ["no device", ""]),
        ("devices.cpu.workers=2", ["executor.kind = \"sequential\"", "devices.cpu.workers"]),
        ("devices.cpu.workers=0", ["`devices.cpu.workers`", "at least 1"]),
        ("devices.cpu.threads_per_worker=many", ["`devices.cpu.threads_per_worker`", "auto"]),
        ("executor={ kind = \"multi-device\", retries = -1 }", ["`executor.retries`", "-1"]),
        ("nothing", ["section.key=value", ""]),
    ] {
        let message = setting(2, given);
        assert!(fragments.iter().all(|fragment| message.contains(fragment)), "{given}: {message}");
    }
}

#[test]
fn an_impossible_tile_is_refused_before_weights_are_read() {
    let folder = Folder::new();
    fs::copy(root("models/demo-kl/config.json"), folder.path("config.json")).unwrap();
    fs::write(folder.path("diffusion_pytorch_model.safetensors"), b"not weights").unwrap();
    let model = folder.0.path().to_str().unwrap().to_owned();
    let out = folder.path("out.png");
    let message = refused(2, &["decode", EXAMPLE, "-o", &out, "--model", &model, "--set", "tiling.tile_px=12"]);
    assert!(message.contains("tile_px is 12"), "{message}");
    let message = refused(1, &["decode", EXAMPLE, "-o", &out, "--model", &model]);
    assert!(message.contains("a text (`not weights`), not a checkpoint"), "{message}");
}

#[test]
fn a_roundtrip_is_planned_both_ways_before_it_runs() {
    // A quarter of 280 px is no whole number of latent px.
    let message = refused(2, &["roundtrip", "examples/images/chelsea.png", "--set", "tiling={kind=\"diffusers\",tile_px=280}"]);
    assert!(message.contains("overlap is 0.25") && message.contains("stride_px = 208"), "{message}");
}

#[test]
fn a_missing_default_model_says_what_to_do() {
    let folder = Folder::new();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tilevae")).args(["plan", "64x64"]).current_dir(folder.0.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("use --model"));
}

#[test]
fn checkpoints_that_cannot_be() {
    let folder = Folder::new();
    let out = folder.path("out.png");
    let decode = |model: &str| refused(1, &["decode", EXAMPLE, "-o", &out, "--model", model]);
    assert!(decode(&folder.path("nowhere")).contains("cannot be read"));
    assert!(decode("README.md").contains("README.md is a text"));
    assert!(decode("stabilityai/sdxl-vae").contains("hf download stabilityai/sdxl-vae"));
    assert!(decode(EXAMPLE).contains("not those of a known VAE family"));

    let cut = folder.path("cut.safetensors");
    let whole = fs::read(root("models/demo-kl/diffusion_pytorch_model.safetensors")).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    assert!(decode(&cut).contains("cut.safetensors is damaged"));

    let model = folder.path("config-only");
    fs::create_dir(&model).unwrap();
    fs::write(folder.path("config-only/config.json"), "{").unwrap();
    assert!(decode(&model).contains("not valid JSON"));
    fs::write(folder.path("config-only/config.json"), r#"{"_class_name": "AutoencoderKLWam"}"#).unwrap();
    assert!(refused(2, &["decode", EXAMPLE, "-o", &out, "--model", &model]).contains("unknown VAE family `AutoencoderKLWam`"));
    fs::copy(root("models/demo-kl/config.json"), folder.path("config-only/config.json")).unwrap();
    assert!(decode(&model).contains("holds no weights"));
}

#[test]
fn inputs_and_outputs_that_cannot_be() {
    let folder = Folder::new();
    let out = folder.path("out.png");
    for (code, args, fragment) in [
        (1, vec!["decode", "nowhere.safetensors", "-o", &out], "cannot be read"),
        (2, vec!["decode", "README.md", "-o", &out], "formats are"),
        (2, vec!["decode", "examples/images/chelsea.png", "-o", &out], "formats are .safetensors, .sft, .npy"),
        (2, vec!["decode", EXAMPLE, "-o", "out.bmp"], "formats are"),
        (1, vec!["decode", EXAMPLE, "-o", "no/such/folder/out.png"], "no folder no/such/folder"),
        (2, vec!["encode", "examples/images/chelsea.png", "-o", &out], "is an image; latents are written as"),
        (1, vec!["encode", EXAMPLE, "-o", "/tmp/never.safetensors"], "the samples have 16 channels, this model expects 3"),
        (2, vec!["encode", EXAMPLE, EXAMPLE, "-o", "/tmp/never.safetensors"], "must be images of one batch"),
        (2, vec!["plan", "4096"], "nor a size in px"),
        (1, vec!["decode", EXAMPLE, "-o", &out, "--config", "nowhere.toml"], "nowhere.toml cannot be read"),
        (2, vec!["decode", EXAMPLE, "-o", &out, "--device", "tpu"], "unknown device `tpu`"),
    ] {
        let message = refused(code, &args);
        assert!(message.contains(fragment), "{args:?}: {message}");
    }
    assert!(folder.files().is_empty());
}

#[test]
fn damaged_tensors_are_errors() {
    let folder = Folder::new();
    let out = folder.path("out.png");
    let whole = fs::read(root(EXAMPLE)).unwrap();
    let input = folder.path("l.safetensors");
    for content in [&whole[..whole.len() / 2], b"", &u64::MAX.to_le_bytes()[..]] {
        fs::write(&input, content).unwrap();
        assert!(refused(1, &["decode", &input, "-o", &out]).contains("l.safetensors is damaged"));
    }
    let npy = folder.path("l.npy");
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 16, 999999999, 999999999), }";
    let content = [b"\x93NUMPY\x01\x00".as_slice(), &(header.len() as u16).to_le_bytes(), header.as_bytes(), &[0; 64]].concat();
    fs::write(&npy, content).unwrap();
    assert!(refused(1, &["decode", &npy, "-o", &out]).contains("l.npy is damaged"));
    let png = folder.path("p.png");
    fs::write(&png, &fs::read(root("examples/images/chelsea.png")).unwrap()[..5000]).unwrap();
    assert!(refused(1, &["encode", &png, "-o", &folder.path("e.safetensors")]).contains("p.png is incomplete"));
}

/// Interrupts a decode that would take long.
#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    for executor in ["sequential", "multi-device", "pipelined"] {
        let folder = Folder::new();
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_tilevae"))
            .args(["bench", "1025x256x256", "--model", "models/demo-wan", "--executor", executor, "--workers", "2"])
            .current_dir(root(""))
            .env("TMPDIR", folder.0.path())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_secs(3));
        let begun = std::time::Instant::now();
        // Not Ctrl-C's, which shells have background jobs ignore, and with them these tests.
        assert!(std::process::Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status().unwrap().success());
        let status = child.wait().unwrap();
        let mut message = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut message).unwrap();
        assert!(status.code() == Some(130) && message.contains("stopped"), "{executor}: {status} {message}");
        assert!(begun.elapsed() < std::time::Duration::from_mins(1) && folder.files().is_empty());
    }
}

#[test]
fn what_was_there_stays_when_a_run_fails() {
    let folder = Folder::new();
    let out = folder.path("out.png");
    fs::write(&out, "precious").unwrap();
    refused(1, &["decode", EXAMPLE, "-o", &out, "--model", "crates/vae-kl/tests/data/sd"]);
    assert_eq!((fs::read_to_string(&out).unwrap(), folder.files()), ("precious".to_owned(), vec!["out.png".to_owned()]));
}
