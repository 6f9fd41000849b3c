use std::fs::File;
use std::io::BufReader;

use image::codecs::gif::{GifDecoder, GifEncoder};
use image::{AnimationDecoder, Delay, Frame, RgbaImage};
use tilevae::io::Fps;

use super::{Folder, latents, refused, run, tilevae};

const SMALL: &str = "crates/vae-wan/tests/data/wan21";

/// An animation whose frames are shown for `delay` ms.
fn gif(folder: &Folder, delays: &[u32]) -> String {
    let path = folder.path("in.gif");
    let mut encoder = GifEncoder::new(File::create(&path).unwrap());
    for (index, &delay) in delays.iter().enumerate() {
        let image = RgbaImage::from_fn(24, 16, |x, y| image::Rgba([(9 * x) as u8, (11 * y) as u8, (40 * index) as u8, 255]));
        encoder.encode_frame(Frame::from_parts(image, 0, 0, Delay::from_numer_denom_ms(delay, 1))).unwrap();
    }
    path
}

fn delays(path: &str) -> Vec<u32> {
    let frames = GifDecoder::new(BufReader::new(File::open(path).unwrap())).unwrap().into_frames();
    frames.map(|frame| frame.unwrap().delay().numer_denom_ms().0).collect()
}

#[test]
fn an_animation_lasts_as_long_as_it_did() {
    let folder = Folder::new();
    let source = gif(&folder, &[2000, 40, 40, 40, 40]);
    let [out, encoded, decoded] = ["out.gif", "l.safetensors", "d.gif"].map(|name| folder.path(name));
    run(&["roundtrip", &source, "-o", &out, "--model", SMALL]);
    run(&["encode", &source, "-o", &encoded, "--model", SMALL]);
    assert_eq!(latents(&encoded).origin.fps, Fps::new(125, 54));
    run(&["decode", &encoded, "-o", &decoded, "--model", SMALL]);
    for path in [&out, &decoded] {
        assert_eq!((delays(path).len(), delays(path).iter().sum::<u32>()), (5, 2160), "{:?}", delays(path));
    }
    run(&["decode", &encoded, "-o", &decoded, "--model", SMALL, "--fps", "30"]);
    assert_eq!(delays(&decoded), [30, 40, 30, 30, 40]);
}

#[test]
fn delays_of_whole_ticks_stay() {
    let folder = Folder::new();
    let source = gif(&folder, &[80; 5]);
    let [out, encoded, decoded] = ["out.gif", "l.safetensors", "d.gif"].map(|name| folder.path(name));
    run(&["roundtrip", &source, "-o", &out, "--model", SMALL]);
    run(&["encode", &source, "-o", &encoded, "--model", SMALL]);
    assert_eq!(latents(&encoded).origin.fps, Fps::new(25, 2));
    run(&["decode", &encoded, "-o", &decoded, "--model", SMALL]);
    assert_eq!([delays(&out), delays(&decoded)], [[80; 5]; 2]);
}

#[test]
fn rates_that_an_output_cannot_have_are_refused_or_told_before_the_work() {
    let folder = Folder::new();
    let source = gif(&folder, &[100; 5]);
    let out = folder.path("out.gif");
    let args = |fps| ["roundtrip", source.as_str(), "-o", out.as_str(), "--model", SMALL, "--fps", fps];
    let message = refused(2, &args("0.001"));
    assert!(message.contains("--fps") && message.contains("out.gif"), "{message}");
    assert_eq!(folder.files(), ["in.gif"]);
    // A rate that is too fast becomes the fastest one, with a warning.
    let output = tilevae(&args("120"));
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("at most 100 frames a second"));
}

#[test]
fn plans_count_frames_without_decoding_them() {
    let folder = Folder::new();
    let source = gif(&folder, &[100; 5]);
    let mut bytes = std::fs::read(&source).unwrap();
    let end = bytes.len() - 2;
    bytes[end - 12..end].fill(0xff);
    std::fs::write(&source, &bytes).unwrap();
    let printed = run(&["plan", &source, "--model", SMALL]);
    assert!(printed.starts_with("encode with wan: 1x3x5x16x24 "), "{printed}");
    let message = refused(1, &["encode", &source, "-o", &folder.path("l.npy"), "--model", SMALL]);
    assert!(message.contains("4 of 5 frames can be read"), "{message}");
    // What is cut off is found by either.
    std::fs::write(&source, &bytes[..bytes.len() / 2]).unwrap();
    for args in [vec!["plan", &source], vec!["encode", &source, "-o", "never.npy"]] {
        assert!(refused(1, &[&args[..], &["--model", SMALL]].concat()).contains("is cut off"), "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn plans_of_video_count_packets() {
    use std::os::unix::fs::PermissionsExt;

    let folder = Folder::new();
    let [bin, fake, source] = ["bin", "bin/ffmpeg", "in.mp4"].map(|name| folder.path(name));
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(&source, "what the fake does not look at").unwrap();
    let script = r#"#!/bin/sh
case "$*" in
*"-c copy"*) printf '#tb 0: 1/10\n'; for i in 0 1 2 3 4; do echo "0, $i, $i, 1, 100, 0x0"; done;;
*"-frames:v 1"*) printf 'YUV4MPEG2 W24 H16 F10:1 Ip\nFRAME\n';;
*) echo "[fatal] it was to be decoded" >&2; exit 1;;
esac
"#;
    std::fs::write(&fake, script).unwrap();
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (code, printed) = super::clips::with_path(bin.as_ref(), &["plan", &source, "--model", SMALL]);
    assert!(code == Some(0) && printed.contains("encode with wan: 1x3x5x16x24 "), "{code:?} {printed}");
}
