//! Where outputs go, and what they must not destroy.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::json_events::events;
use super::{Folder, refused, root, run, skipped, tilevae};

const LATENTS: &str = "examples/latents/chelsea.safetensors";
const PHOTOGRAPH: &str = "examples/images/chelsea.png";

/// Runs the program with these bytes as its standard input.
fn piped(args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tilevae"));
    command.args(args).current_dir(root("")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may end before it has read all.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[track_caller]
fn bytes_of(output: Output) -> Vec<u8> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn standard_input_and_output_give_the_bytes_of_files() {
    let folder = Folder::new();
    let latents = fs::read(root(LATENTS)).unwrap();
    for kind in ["png", "safetensors", "npy", "webp"] {
        let out = folder.path(&format!("out.{kind}"));
        run(&["decode", LATENTS, "-o", &out]);
        let args = ["decode", "-", "-o", "-", "--output-format", kind];
        let output = piped(&args, &latents);
        let said = String::from_utf8(output.stderr.clone()).unwrap();
        assert!(said.starts_with("wrote standard output: "), "{said}");
        assert_eq!(bytes_of(output), fs::read(&out).unwrap(), "{kind}");
        // In JSON the result is an event.
        let output = piped(&[&args[..], &["--format", "json"]].concat(), &latents);
        let last = events(&output.stderr).pop().unwrap();
        assert!(last["event"] == "result" && last["result"]["files"][0] == "-", "{last}");
        let quiet = piped(&[&args[..], &["-q"]].concat(), &latents);
        assert!(quiet.stderr.is_empty() && quiet.stdout == output.stdout);
    }
    for (kind, name) in [("safetensors", "l.safetensors"), ("npy", "l.npy")] {
        let out = folder.path(name);
        run(&["encode", PHOTOGRAPH, "-o", &out]);
        let output = piped(&["encode", "-", "-o", "-", "--output-format", kind], &fs::read(root(PHOTOGRAPH)).unwrap());
        assert_eq!(bytes_of(output), fs::read(&out).unwrap(), "{kind}");
        // Every output can be read again.
        assert!(String::from_utf8(bytes_of(piped(&["plan", "-"], &fs::read(&out).unwrap()))).unwrap().starts_with("decode with kl: 1x16x1x38x57"));
    }
    assert!(String::from_utf8(bytes_of(piped(&["roundtrip", "-"], &fs::read(root(PHOTOGRAPH)).unwrap()))).unwrap().starts_with("PSNR"));
    assert!(!root("-").exists());
}

#[test]
fn pipes_that_cannot_be_read_or_written() {
    let folder = Folder::new();
    let latents = fs::read(root(LATENTS)).unwrap();
    for (code, args, input, fragments) in [
        (2, vec!["decode", "-", "-o", "-"], &latents[..], ["--output-format", ""]),
        (2, vec!["decode", LATENTS, "-o", "/dev/null"], b"", ["--output-format", "/dev/null"]),
        (2, vec!["decode", LATENTS, "-o", "out.jpg", "--output-format", "npy"], b"", ["contradicts", "out.jpg"]),
        (2, vec!["encode", PHOTOGRAPH, "-o", "-", "--output-format", "png"], b"", ["an image", ".safetensors"]),
        (2, vec!["roundtrip", PHOTOGRAPH, "--output-format", "png"], b"", ["--output", ""]),
        (2, vec!["decode", "-", "-o", "-", "--output-format", "png"], b"", ["standard input", "first bytes"]),
        (2, vec!["decode", "-", "-o", "-", "--output-format", "png"], b"hello, world", ["standard input", "first bytes"]),
        (1, vec!["decode", "-", "-o", "-", "--output-format", "png"], &latents[..5000], ["safetensors is damaged", ""]),
        (2, vec!["decode", LATENTS, "-o", "-", "--output-format", "png", "--trace", "-"], b"", ["--trace and -o would both write", ""]),
    ] {
        let output = piped(&args, input);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(output.stdout.is_empty() && fragments.iter().all(|fragment| said.contains(fragment)), "{args:?}: {said}");
    }
    assert!(folder.files().is_empty());
}

#[cfg(unix)]
#[test]
fn devices_pipes_and_links_are_written_through() {
    let folder = Folder::new();
    let plain = folder.path("plain.png");
    run(&["decode", LATENTS, "-o", &plain]);
    let expected = fs::read(&plain).unwrap();

    run(&["decode", LATENTS, "-o", "/dev/null", "--output-format", "png"]);
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    let output = tilevae(&["decode", LATENTS, "-o", "/dev/stdout", "--output-format", "png"]);
    assert_eq!(output.stdout, expected);

    let fifo = folder.path("fifo.png");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::read(fifo).unwrap()
    });
    run(&["decode", LATENTS, "-o", &fifo]);
    assert_eq!(reader.join().unwrap(), expected);

    // Appended to an open file, without losing what is there or what comes after.
    let log = folder.path("log");
    let shell =
        format!("{{ echo before; '{}' decode {LATENTS} -o /dev/stdout --output-format png; echo after; }} >> '{log}'", env!("CARGO_BIN_EXE_tilevae"));
    assert!(Command::new("sh").args(["-c", &shell]).current_dir(root("")).stderr(Stdio::null()).status().unwrap().success());
    assert_eq!(fs::read(&log).unwrap(), [b"before\n", &expected[..], b"after\n"].concat());

    let [link, target] = ["link.png", "target.png"].map(|name| folder.path(name));
    std::os::unix::fs::symlink("target.png", &link).unwrap();
    for _ in 0..2 {
        run(&["decode", LATENTS, "-o", &link]);
        assert!(Path::new(&link).is_symlink() && fs::read(&target).unwrap() == expected);
    }
}

#[test]
fn inputs_are_not_destroyed() {
    let folder = Folder::new();
    let at = |name: &str| folder.path(name);
    let [latents, image, config, model] = ["l.safetensors", "p.png", "run.toml", "model"].map(at);
    fs::copy(root(LATENTS), &latents).unwrap();
    fs::copy(root(PHOTOGRAPH), &image).unwrap();
    fs::write(&config, "[io]\njpeg_quality = 90\n").unwrap();
    fs::create_dir_all(at("model/vae")).unwrap();
    for name in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(root("models/demo-kl").join(name), at(&format!("model/vae/{name}"))).unwrap();
    }
    let [weights, description] = ["model/vae/diffusion_pytorch_model.safetensors", "model/vae/config.json"].map(at);
    fs::create_dir(at("frames")).unwrap();
    fs::copy(root(PHOTOGRAPH), at("frames/f1.png")).unwrap();
    fs::copy(root(PHOTOGRAPH), at("p-0.png")).unwrap();
    let [frames, frame, linked, hard, numbered, second] =
        ["frames", "frames/f1.png", "linked.safetensors", "hard.safetensors", "p.png", "p-0.png"].map(at);
    let crooked = at("frames/../l.safetensors");
    fs::create_dir(at("shards")).unwrap();
    let [index, shard, variant] = ["shards/x.json", "shards/part-1.safetensors", "model/vae/diffusion_pytorch_model-fp16.sft"].map(at);
    fs::write(&index, r#"{"weight_map": {"a": "part-1.safetensors"}}"#).unwrap();
    for path in [&shard, &variant] {
        fs::copy(&weights, path).unwrap();
    }
    fs::hard_link(&latents, &hard).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("l.safetensors", &linked).unwrap();
    #[cfg(not(unix))]
    fs::hard_link(&latents, &linked).unwrap();
    let out = at("out.png");
    let before: Vec<(String, Vec<u8>)> = [&latents, &image, &config, &weights, &description, &frame, &second, &index, &shard, &variant]
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    for (args, fragments) in [
        (vec!["decode", &latents, "-o", &latents], ["the input", "-o"]),
        (vec!["decode", &latents, "-o", &crooked], ["the input", "-o"]),
        (vec!["decode", &latents, "-o", &hard], ["the input", "hard"]),
        (vec!["decode", &latents, "-o", &linked], ["the input", "linked"]),
        (vec!["decode", &linked, "-o", &latents], ["the input", "linked"]),
        (vec!["encode", &image, "-o", &weights, "--model", &weights], ["the model", "diffusion_pytorch_model"]),
        (vec!["encode", &image, "-o", &weights, "--model", &model], ["a file of the model", "diffusion_pytorch_model"]),
        (vec!["encode", &image, "-o", &shard, "--model", &index], ["a file of the model", "part-1"]),
        (vec!["encode", &image, "-o", &variant, "--model", &model], ["a file of the model", "fp16.sft"]),
        (vec!["decode", &latents, "-o", &out, "--trace", &description, "--model", &model], ["a file of the model", "config.json"]),
        (vec!["decode", &latents, "-o", &out, "--trace", &description, "--model", &weights], ["the model's configuration", "config.json"]),
        (vec!["decode", &latents, "-o", &out, "--trace", &config, "--config", &config], ["the configuration", "run.toml"]),
        (vec!["decode", &latents, "-o", &out, "--timeline", &latents], ["--timeline", "the input"]),
        (vec!["plan", &latents, "--svg", &latents], ["--svg", "the input"]),
        (vec!["decode", &latents, "-o", &out, "--trace", &out], ["--trace and -o", "out.png"]),
        (vec!["decode", &latents, "-o", &out, "--trace", "t.json", "--timeline", "./t.json"], ["--timeline and --trace", "t.json"]),
        (vec!["roundtrip", &image, "-o", &image], ["the input", "p.png"]),
        (vec!["roundtrip", &second, &second, "-o", &numbered], ["the input", "p-0.png"]),
        (vec!["roundtrip", &frames, "-o", &frame, "--model", "models/demo-wan"], ["a frame of the input", "f1.png"]),
    ] {
        let said = refused(2, &args);
        assert!(fragments.iter().all(|fragment| said.contains(fragment)), "{args:?}: {said}");
        assert!(before.iter().all(|(path, content)| fs::read(path).unwrap() == *content), "{args:?}");
    }
    assert!(!Path::new(&out).exists());
    // Other files are replaced, those of the model's folder among them.
    let own = at("model/vae/out.png");
    for _ in 0..2 {
        run(&["decode", &latents, "-o", &own, "--model", &model]);
    }
}

#[test]
fn places_that_take_no_output_are_told_before_the_work() {
    let folder = Folder::new();
    let at = |name: &str| folder.path(name);
    fs::create_dir_all(at("folder.png")).unwrap();
    fs::create_dir_all(at("full")).unwrap();
    fs::write(at("full/x"), "x").unwrap();
    fs::write(at("file"), "x").unwrap();
    let long = at(&format!("{}.png", "n".repeat(300)));
    // The model does not exist: the error comes before it is opened.
    let decode = |out: &str| refused_any(&["decode", LATENTS, "-o", out, "--model", "nowhere"]);
    for (out, said) in [
        (at("folder.png"), "is a folder that is not empty"),
        (at("full"), "is a folder that is not empty"),
        (at("file"), "frames are written to a folder"),
        (at("new.png/"), "it is a folder"),
        (at("no/out.png"), "there is no folder"),
        (at("file/out.png"), "cannot be written"),
        (long, "too long"),
    ] {
        let message = decode(&out);
        assert!(message.contains(said) || (out.ends_with("folder.png") && message.contains("nowhere")), "{out}: {message}");
    }
    for option in ["--trace", "--timeline"] {
        let message = refused_any(&["decode", LATENTS, "-o", &at("o.png"), option, &at("full"), "--model", "nowhere"]);
        assert!(message.contains("it is a folder"), "{message}");
    }
    assert_eq!(folder.files(), ["file", "folder.png", "full"]);
}

#[cfg(unix)]
#[test]
fn what_is_read_only_stays() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let [file, closed] = ["file.png", "closed"].map(|name| folder.path(name));
    fs::write(&file, "precious").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::File::options().write(true).open(&file).is_ok() {
        skipped("this user may write read-only files");
        return;
    }
    for out in [file.clone(), folder.path("closed/out.png"), folder.path("closed/frames")] {
        assert!(refused_any(&["decode", LATENTS, "-o", &out, "--model", "nowhere"]).contains("denied"), "{out}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

/// The message of a command that must fail.
#[track_caller]
fn refused_any(args: &[&str]) -> String {
    let output = tilevae(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && message.contains("error: "), "{args:?}: {message}");
    message
}

#[test]
fn a_rate_is_for_clips() {
    let folder = Folder::new();
    for (name, said) in [("out.png", "an image"), ("out.npy", "raw samples"), ("out.safetensors", "raw samples"), ("out", "frames")] {
        let out = folder.path(name);
        assert!(refused(2, &["decode", LATENTS, "-o", &out, "--fps", "16"]).contains(said));
        assert!(refused(2, &["roundtrip", PHOTOGRAPH, "-o", &out, "--fps", "16"]).contains(said));
    }
    assert!(refused(2, &["roundtrip", PHOTOGRAPH, "--fps", "16"]).contains("-o"));
    assert!(refused(2, &["encode", PHOTOGRAPH, "-o", &folder.path("l.npy"), "--fps", "16"]).contains("cannot store it"));
    assert!(refused(2, &["encode", PHOTOGRAPH, "-o", &folder.path("l.safetensors"), "--fps", "16"]).contains("images"));
    run(&["decode", LATENTS, "-o", &folder.path("out.gif"), "--fps", "16"]);
    assert_eq!(folder.files(), ["out.gif"]);
}

#[test]
fn what_cannot_be_planned_is_refused_at_once() {
    let begun = std::time::Instant::now();
    for (args, said) in [
        (vec!["9999999999999x9999999999999"], "no size that can be planned"),
        (vec!["99999999999999999999999999x64"], "no size that can be planned"),
        (vec!["0x64"], "no size that can be planned"),
        (vec!["100000000x100000000"], "too many values"),
        (vec!["1000000x1000000"], "larger tiles"),
        (vec!["100000000x100000000", "--set", "tiling.kind=off"], "too many values for one run"),
        (vec!["1000000x1000000", "--direction", "encode"], "larger tiles"),
        (vec!["1099511627776x1099511627776", "--set", "tiling.kind=off"], "can be planned"),
        (vec!["99999997x64x64", "--model", "models/demo-wan"], "frames"),
        (vec!["64x64", "--set", "devices.use=[]"], "no device is configured"),
        (vec!["64x64", "--set", "devices.cpu.workers=2"], "executor.kind = \"sequential\""),
        (vec!["6400x6400", "--set", "tiling={kind=\"diffusers\",overlap=0.999999}"], "nearest legal value"),
        (vec!["64000x64000", "--set", "tiling.kind=uniform", "--set", "tiling.tile_px=256", "--set", "tiling.overlap=0.999999"], "overlap"),
        (vec!["640000x640000", "--set", "tiling.kind=uniform", "--set", "tiling.splits=[80000, 80000]"], "larger tiles"),
        (vec!["6400x6400", "--set", "tiling={kind=\"diffusers\",tile_px=9223372036854775800}"], "nearest legal value"),
    ] {
        for command in ["plan", "bench"] {
            let message = refused(2, &[&[command], &args[..]].concat());
            assert!(message.contains(said), "{command} {args:?}: {message}");
        }
    }
    assert!(refused(2, &["bench", "4000000x4000000", "--set", "tiling.kind=off"]).contains("does not fit in memory"));
    // What can be planned is planned, however large.
    for args in [
        &["plan", "90000x90000"] as &[&str],
        &["plan", "2000000000x1000", "--set", "tiling.kind=off"],
        &["plan", "1000000000x1000000", "--set", "tiling.kind=uniform", "--set", "tiling.splits=[2, 3]"],
        &["plan", "2097149x64x64", "--model", "models/demo-wan"],
        &["plan", "64x64", "--set", "executor={kind=\"pipelined\",in_flight=9000000000000000000,batch_tiles=9000000000000000000}"],
        &["plan", "64x64", "--set", "tiling={kind=\"diffusers\",tile_px=4503599627370496,overlap=0}"],
    ] {
        run(args);
    }
    let folder = Folder::new();
    assert!(refused(2, &["plan", "60000x60000", "--svg", &folder.path("p.svg")]).contains("at most"));
    assert!(folder.files().is_empty() && begun.elapsed() < std::time::Duration::from_mins(2));
}

#[test]
fn a_reader_that_goes_away_is_an_error() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tilevae"));
    command
        .args(["decode", LATENTS, "-o", "-", "--output-format", "safetensors"])
        .current_dir(root(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().code() == Some(1) && said.contains("standard output cannot be written"), "{said}");
}
