use serde_json::Value;

use super::{Folder, refused, run};

const LATENTS: &str = "examples/latents/chelsea.safetensors";

fn verified(args: &[&str]) -> Value {
    serde_json::from_str(&run(&[&["verify", "--format", "json"], args].concat())).unwrap()
}

#[test]
fn seamless_tiles_are_the_whole_and_others_are_not() {
    let psnr = |args: &[&str]| verified(args)["psnr_db"].as_f64().unwrap();
    let kind = |kind: &'static str| ["--set", kind, "--set", "tiling.tile_px=128"];
    let seamless = kind("tiling.kind=seamless");
    assert!(psnr(&[&[LATENTS], &seamless[..]].concat()) > 120.0);
    assert!(psnr(&[&["examples/images/chelsea.png"], &seamless[..]].concat()) > 110.0);
    assert!(
        psnr(
            &[
                &["examples/latents/chelsea-clip.safetensors", "--model", "models/demo-wan", "--set", "tiling.kind=seamless"],
                &["--set", "tiling.tile_px=64"][..]
            ]
            .concat()
        ) > 110.0
    );
    assert!((20.0..40.0).contains(&psnr(&[&[LATENTS], &kind("tiling.kind=diffusers")[..]].concat())));
    assert!((20.0..60.0).contains(&psnr(&[&[LATENTS, "--set", "tiling={kind=\"seamless\",tile_px=128,norm=\"sampled\"}"][..]].concat())));
}

#[test]
fn a_difference_picture_is_drawn() {
    let folder = Folder::new();
    let (picture, whole) = (folder.path("difference.png"), folder.path("whole.npy"));
    let tiles = ["--set", "tiling.tile_px=128"];
    let answer = verified(&[&[LATENTS, "-o", &picture], &tiles[..]].concat());
    assert_eq!(answer["files"][0], picture.as_str());
    let difference = image::open(&picture).unwrap().to_rgb8();
    assert_eq!(difference.dimensions(), (456, 304));
    // The greatest difference is white in its channel.
    assert!(difference.pixels().any(|px| px.0.contains(&255)));
    assert!(answer["seam"].as_f64().unwrap() > 1.0 && answer["gain"].as_f64().unwrap() > 1.0);
    // A file in place of a run in one tile.
    run(&["decode", LATENTS, "-o", &whole, "--set", "tiling.kind=off"]);
    let against = verified(&[&[LATENTS, "--against", &whole], &tiles[..]].concat());
    assert_eq!([&against["max_difference"], &against["reference"]], [&answer["max_difference"], &Value::Null]);
    let same = verified(&[LATENTS, "--against", &whole, "--set", "tiling.kind=off"]);
    assert_eq!((same["max_difference"].as_f64(), &same["seam"]), (Some(0.0), &Value::Null));
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let folder = Folder::new();
    let small = folder.path("small.npy");
    run(&["decode", "examples/latents/chelsea-clip.safetensors", "--model", "models/demo-wan", "-o", &small]);
    assert!(refused(2, &["verify", LATENTS, "--against", &small]).contains("the decode gives"));
    assert!(refused(2, &["verify", "examples/images/chelsea.png", "--against", "examples/images/chelsea.png"]).contains("the input is encoded"));
    assert!(refused(2, &["verify", LATENTS, "-o", LATENTS]).contains("would"));
    // Nor is the reference replaced.
    let before = std::fs::read(&small).unwrap();
    assert!(refused(2, &["verify", LATENTS, "--against", &small, "-o", &small]).contains("would"));
    assert_eq!(std::fs::read(&small).unwrap(), before);
    assert!(refused(2, &["verify", LATENTS, "--set", "tiling={kind=\"seamless\",memory_mib=10}"]).contains("at least"));
    assert!(refused(2, &["verify", LATENTS, "--set", "tiling={kind=\"seamless\",memory_mib=\"lots\"}"]).contains("whole number of MiB"));
    assert!(refused(2, &["verify", LATENTS, "--set", "tiling={kind=\"seamless\",norm=\"local\"}"]).contains("sampled"));
}

#[test]
fn a_plan_says_what_a_budget_comes_to() {
    let plan = |set: &str| run(&["plan", "1024x1024", "--set", set]);
    let text = plan("tiling={kind=\"seamless\",memory_mib=200}");
    assert!(
        ["stages", "times untiled", "of a budget of 200.00 MiB", "in a scratch file", "more     with"].iter().all(|part| text.contains(part)),
        "{text}"
    );
    assert!(plan("tiling={kind=\"seamless\",memory_mib=4000}").contains("the whole in one tile"));
    let json: Value =
        serde_json::from_str(&run(&["plan", "1024x1024", "--format", "json", "--set", "tiling={kind=\"seamless\",memory_mib=200}"])).unwrap();
    assert!(json["peak_bytes"].as_u64().unwrap() <= 200 << 20 && json["work_ratio"].as_f64().unwrap() < 1.02);
    assert!(json["stages"].as_array().unwrap().len() > 10);
}

#[test]
#[cfg(target_os = "linux")]
fn budgets_hold_for_the_whole_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (image, latents) = (path("in.png"), path("latents.safetensors"));
    image::RgbImage::from_fn(1280, 1280, |x, y| image::Rgb([(x / 5) as u8, (y / 5) as u8, (x * y / 900) as u8])).save(&image).unwrap();
    for (command, input, output) in [("encode", &image, &latents), ("decode", &latents, &path("out.png"))] {
        for budget in [140, 240] {
            let tiling = format!("tiling={{kind=\"seamless\",memory_mib={budget}}}");
            let text = run(&[command, input, "-o", output, "--set", &tiling, "--set", "executor.kind=multi-device", "--format", "json"]);
            let json: Value = serde_json::from_str(&text).unwrap();
            let peak = json["peak_memory_bytes"].as_u64().unwrap();
            assert!(peak <= budget << 20 && json["tiles"].as_u64().unwrap() > 100, "{command} within {budget} MiB: {text}");
        }
    }
}
