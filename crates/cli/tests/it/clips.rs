use std::path::Path;

use tilevae::io::{Clip, Fps};
use tilevae::tiling::{Region, TileSource};
use tilevae::{HostTensor, metrics};

use super::{Folder, has_ffmpeg, latents, max_diff, refused, root, run, samples};

const DEMO: &str = "models/demo-wan";
const CLIP: &str = "examples/clips/chelsea.gif";
const LATENTS: &str = "examples/latents/chelsea-clip.safetensors";
const SMALL: &str = "crates/vae-wan/tests/data/wan21";

/// All frames of a clip as samples.
fn clip(path: &str) -> HostTensor {
    let clip = Clip::read(Path::new(path), 3, 1).unwrap();
    let [.., frames, height, width] = clip.shape();
    clip.read(&Region { start: [0; 3], size: [frames, height, width] }).unwrap()
}

fn fps(path: &str) -> Option<String> {
    Clip::read(Path::new(path), 3, 1).unwrap().fps().map(|fps| fps.to_string())
}

/// A folder of small frames.
fn frames(folder: &Folder, count: u32, [height, width]: [u32; 2]) -> String {
    let path = folder.path("frames");
    std::fs::create_dir(&path).unwrap();
    for t in 0..count {
        let frame = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([(5 * x + 9 * t) as u8, (6 * y) as u8, (20 * t) as u8]));
        frame.save(format!("{path}/{t}.png")).unwrap();
    }
    path
}

#[test]
fn the_example_clip_survives_the_demo_model() {
    let folder = Folder::new();
    let out = folder.path("out.gif");
    let printed = run(&["roundtrip", CLIP, "-o", &out, "--model", DEMO]);
    assert!(printed.starts_with("PSNR ") && printed.contains("17 frames"), "{printed}");
    let original = clip(root(CLIP).to_str().unwrap());
    assert_eq!((clip(&out).shape(), fps(&out)), (original.shape(), fps(root(CLIP).to_str().unwrap())));
    // Both clips are down to 256 colours a frame.
    let psnr = metrics::psnr(&clip(&out), &original);
    assert!(psnr > 25.0, "{psnr} dB");
    assert_eq!(folder.files(), ["out.gif"]);
}

#[test]
fn the_example_latents_decode_into_any_kind_of_clip() {
    let folder = Folder::new();
    let raw = folder.path("raw.npy");
    run(&["decode", LATENTS, "-o", &raw, "--model", DEMO]);
    let expected = samples(&raw).values;
    assert_eq!(expected.shape(), [1, 3, 17, 128, 192]);
    let psnr = metrics::psnr(&expected, &clip(root(CLIP).to_str().unwrap()));
    assert!(psnr > 25.0, "{psnr} dB");
    // A GIF has 256 colours a frame; 12.5 frames a second are delays of exactly 80 ms, 8 of its ticks.
    for (name, tolerance) in [("frames", 0.005), ("clip.y4m", 0.03), ("clip.gif", 0.5)] {
        let out = folder.path(name);
        let fps_of: &[&str] = if name == "frames" { &[] } else { &["--fps", "12.5"] };
        let printed = run(&[&["decode", LATENTS, "-o", &out, "--model", DEMO], fps_of].concat());
        assert!(printed.contains("1x3x17x128x192"), "{printed}");
        assert!(max_diff(&clip(&out), &expected) <= tolerance, "{name}");
        assert_eq!(fps(&out), (name != "frames").then(|| "25/2".to_owned()));
    }
    // The tiles of this clip come one after the other, each with all its frames.
    let tiled = folder.path("tiled.y4m");
    let printed = run(&["decode", LATENTS, "-o", &tiled, "--model", DEMO, "--set", "tiling={kind=\"diffusers\",tile_px=96,stride_px=64}"]);
    assert!(printed.contains("in 6 tiles"), "{printed}");
    assert!(metrics::psnr(&clip(&tiled), &expected) > 28.0);
    assert_eq!(folder.files(), ["clip.gif", "clip.y4m", "frames", "raw.npy", "tiled.y4m"]);
}

#[test]
fn a_clip_of_any_size_and_rate_comes_back_so() {
    let folder = Folder::new();
    let source = frames(&folder, 5, [19, 30]);
    let [y4m, encoded, decoded] = ["in.y4m", "l.safetensors", "d.y4m"].map(|name| folder.path(name));
    run(&["roundtrip", &source, "-o", &y4m, "--model", SMALL, "--fps", "24000/1001"]);
    assert_eq!(clip(&y4m).shape(), [1, 3, 5, 19, 30]);
    run(&["encode", &y4m, "-o", &encoded, "--model", SMALL]);
    let tensor = latents(&encoded);
    assert_eq!((tensor.values.shape(), tensor.origin.size, tensor.origin.frames), ([1, 4, 2, 3, 4], Some([19, 30]), None));
    assert_eq!(tensor.origin.fps, Fps::new(24_000, 1001));
    run(&["decode", &encoded, "-o", &decoded, "--model", SMALL]);
    assert_eq!((clip(&decoded).shape(), fps(&decoded).as_deref()), ([1, 3, 5, 19, 30], Some("24000/1001")));
}

#[test]
fn an_image_is_a_clip_of_one_frame() {
    let folder = Folder::new();
    let [encoded, image, animation] = ["l.safetensors", "out.png", "out.gif"].map(|name| folder.path(name));
    run(&["encode", "examples/images/chelsea.png", "-o", &encoded, "--model", SMALL]);
    assert_eq!(latents(&encoded).values.shape(), [1, 4, 1, 38, 57]);
    run(&["decode", &encoded, "-o", &image, "--model", SMALL]);
    run(&["decode", &encoded, "-o", &animation, "--model", SMALL]);
    assert_eq!(clip(&animation).shape(), [1, 3, 1, 300, 451]);
    let printed = run(&["roundtrip", "examples/images/chelsea.png", "-o", &image, "--model", SMALL]);
    assert!(printed.starts_with("PSNR"), "{printed}");
    // And the other way: an image model takes clips of one frame only.
    let source = frames(&folder, 2, [16, 16]);
    assert!(refused(2, &["encode", &source, "-o", &encoded]).contains("2 frames, where one is expected"));
}

#[test]
fn a_remainder_of_frames_is_refused_dropped_or_filled_up() {
    let folder = Folder::new();
    let source = frames(&folder, 7, [16, 24]);
    let [encoded, decoded, raw] = ["l.safetensors", "d", "raw.safetensors"].map(|name| folder.path(name));
    let encode = |remainder: &str| {
        let setting = format!("io.frames={remainder}");
        run(&["encode", &source, "-o", &encoded, "--model", SMALL, "--set", &setting]);
        let tensor = latents(&encoded);
        (tensor.values.shape()[2], tensor.origin.frames)
    };
    let message = refused(2, &["encode", &source, "-o", &encoded, "--model", SMALL]);
    assert!(message.contains("\"drop\" for the first 5 frames") && message.contains("\"pad\" to repeat the last one up to 9"), "{message}");
    assert!(refused(2, &["roundtrip", &source, "--model", SMALL]).contains("io.frames"));
    assert!(refused(2, &["plan", "6x64x64", "--model", SMALL]).contains("io.frames"));
    assert_eq!(encode("drop"), (2, None));
    assert_eq!(encode("pad"), (3, Some(7)));
    run(&["decode", &encoded, "-o", &decoded, "--model", SMALL]);
    run(&["decode", &encoded, "-o", &raw, "--model", SMALL]);
    assert_eq!((clip(&decoded).shape()[2], samples(&raw).values.shape()[2]), (7, 7));
    for (remainder, frames) in [("drop", 5), ("pad", 7)] {
        let printed = run(&["roundtrip", &source, "--model", SMALL, "--set", &format!("io.frames={remainder}")]);
        assert!(printed.contains(&format!("{frames} frames")), "{printed}");
    }
    // Files of an older run, or of other tools, without that note are decoded whole.
    let bare = folder.path("bare.npy");
    run(&["encode", &source, "-o", &bare, "--model", SMALL, "--set", "io.frames=pad"]);
    let printed = run(&["decode", &bare, "-o", &raw, "--model", SMALL]);
    assert!(printed.contains("x9x"), "{printed}");
}

#[test]
fn chunks_change_nothing() {
    let folder = Folder::new();
    let outputs = ["1", "2", "3", "9"].map(|chunk| {
        let out = folder.path(&format!("{chunk}.npy"));
        let setting = format!("model.frames_per_chunk={chunk}");
        run(&["decode", LATENTS, "-o", &out, "--model", DEMO, "--set", &setting]);
        samples(&out).values
    });
    assert!(outputs.iter().all(|output| max_diff(output, &outputs[0]) < 1e-4));
    assert!(refused(2, &["decode", LATENTS, "-o", "x.npy", "--model", DEMO, "--set", "model.frames_per_chunk=0"]).contains("frames_per_chunk"));
}

#[test]
fn plans_know_frames() {
    let printed = run(&["plan", "81x480x832", "--model", DEMO, "--set", "tiling.kind=diffusers"]);
    for part in ["1x16x21x60x104 to 1x3x81x480x832", "15 = 3 rows x 5 columns", "21 to 81 in 21 chunks of 1 latent frames", "scratch file"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let printed = run(&["plan", CLIP, "--model", DEMO, "--set", "model.frames_per_chunk=3", "--set", "tiling.kind=diffusers"]);
    assert!(printed.starts_with("encode with wan: 1x3x17x128x192 to 1x32x5x16x24") && printed.contains("in 3 chunks of 3"), "{printed}");
    let json = run(&["plan", "5x64x64", "--model", DEMO, "--format", "json"]);
    assert!(json.contains("\"cache\"") && json.contains("\"chunks\": 2") && json.contains("\"strips\""), "{json}");
    assert!(run(&["plan", "examples/images/chelsea.png", "--model", DEMO]).starts_with("encode with wan: 1x3x1x304x456"));
}

#[test]
fn outputs_that_cannot_be() {
    let folder = Folder::new();
    let source = frames(&folder, 5, [16, 16]);
    for (args, fragment) in [
        (vec!["decode", LATENTS, "-o", &source], "is a folder that is not empty"),
        (vec!["decode", LATENTS, "-o", "out.png"], "a folder (a name without ending), a .y4m, .gif or .mp4"),
        (vec!["encode", &source, "-o", "out.gif"], "is a clip; latents are written as"),
        (vec!["encode", &source, CLIP, "-o", "never.npy"], "must be images of one batch"),
        (vec!["decode", LATENTS, "-o", "out.gif", "--fps", "fast"], "frames a second"),
    ] {
        let message = refused(2, &[&args[..], &["--model", DEMO]].concat());
        assert!(message.contains(fragment), "{args:?}: {message}");
    }
    let message = refused(1, &["encode", "no-such-folder", "-o", "never.npy", "--model", DEMO]);
    assert!(message.contains("no-such-folder cannot be read"), "{message}");
}

/// Runs with another PATH.
pub(super) fn with_path(path: &std::ffi::OsStr, args: &[&str]) -> (Option<i32>, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tilevae")).args(args).current_dir(root("")).env("PATH", path).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap())
}

#[test]
fn other_video_goes_through_ffmpeg() {
    let folder = Folder::new();
    let out = folder.path("out.mp4");
    let (code, message) = with_path("".as_ref(), &["decode", LATENTS, "-o", &out, "--model", DEMO]);
    assert!(code == Some(2) && message.contains("written through ffmpeg, which is not installed") && message.contains(".y4m"), "{message}");
    std::fs::write(folder.path("in.mp4"), "no video").unwrap();
    let (code, message) = with_path("".as_ref(), &["encode", &folder.path("in.mp4"), "-o", &folder.path("l.npy"), "--model", DEMO]);
    assert!(code == Some(2) && message.contains("read through ffmpeg"), "{message}");
    assert_eq!(folder.files(), ["in.mp4"]);
    if !has_ffmpeg() {
        return;
    }
    for (name, least) in [("out.mkv", 25.0), ("out.mp4", 25.0), ("out.webm", 20.0)] {
        let out = folder.path(name);
        run(&["decode", LATENTS, "-o", &out, "--model", DEMO, "--fps", "10"]);
        let read = clip(&out);
        assert_eq!((read.shape(), fps(&out).as_deref()), ([1, 3, 17, 128, 192], Some("10")), "{name}");
        let [lossless] = ["lossless.y4m"].map(|name| folder.path(name));
        run(&["decode", LATENTS, "-o", &lossless, "--model", DEMO]);
        let psnr = metrics::psnr(&read, &clip(&lossless));
        assert!(psnr > least, "{name}: {psnr} dB");
        run(&["encode", &out, "-o", &folder.path("l.npy"), "--model", SMALL]);
    }
    let message = refused(1, &["encode", &folder.path("in.mp4"), "-o", &folder.path("l.npy"), "--model", DEMO]);
    assert!(message.contains("ffmpeg failed on") && message.contains("in.mp4"), "{message}");
}

/// Whoever takes the frames goes away in the middle.
#[cfg(unix)]
#[test]
fn a_closed_output_ends_the_run_and_leaves_nothing() {
    use std::os::unix::fs::PermissionsExt;

    let folder = Folder::new();
    let [bin, out] = ["bin", "out.mp4"].map(|name| folder.path(name));
    std::fs::create_dir(&bin).unwrap();
    let fake = folder.path("bin/ffmpeg");
    std::fs::write(&fake, "#!/bin/sh\ncase \"$*\" in *version*|*-frames:v*) /bin/cat >/dev/null; exit 0;; esac\nread -r line\nexit 3\n").unwrap();
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    for executor in ["sequential", "multi-device", "pipelined"] {
        let begun = std::time::Instant::now();
        let executor = format!("executor.kind={executor}");
        let args =
            ["decode", LATENTS, "-o", &out, "--model", DEMO, "--set", &executor, "--set", "tiling={kind=\"diffusers\",tile_px=96,stride_px=64}"];
        let (code, message) = with_path(bin.as_ref(), &args);
        assert!(code == Some(1) && message.contains("ffmpeg"), "{executor}: {code:?} {message}");
        assert!(folder.files() == ["bin"] && begun.elapsed() < std::time::Duration::from_mins(1), "{:?}", folder.files());
    }
}
