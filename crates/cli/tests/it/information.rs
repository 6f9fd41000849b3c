use std::time::{Duration, Instant};

use super::{Folder, root, run};

#[test]
fn families_and_devices_are_listed() {
    let models = run(&["models"]);
    assert!(
        models.contains("kl") && models.contains("AutoencoderKL") && models.contains("from tilevae-kl") && models.contains("models/demo-kl"),
        "{models}"
    );
    let wan = ["AutoencoderKLWan; from tilevae-wan", "AutoencoderKLQwenImage; from tilevae-wan", "Wan 2.2"];
    assert!(wan.iter().all(|part| models.contains(part)), "{models}");
    let configured = run(&["models", "--model", "models/demo-wan"]);
    assert!(configured.contains("family wan, 16 latent channels, 8x, 4x in time"), "{configured}");
    assert!(run(&["devices"]).contains("cpu"));
    assert!(run(&["devices", "--format", "json"]).contains("\"name\": \"cpu\""));
}

#[test]
fn the_configuration_can_be_printed_and_read_again() {
    let folder = Folder::new();
    let file = folder.path("run.toml");
    for args in [&["config"] as &[&str], &["config", "--defaults"], &["config", "--set", "tiling.tile_px=128", "--device", "cpu"]] {
        let printed = run(args);
        std::fs::write(&file, &printed).unwrap();
        let again = run(&["config", "--config", &file, "--model", "models/demo-kl"]);
        assert!(args.contains(&"--defaults") || again == printed, "{again}");
    }
    assert!(run(&["completions", "bash"]).contains("tilevae"));
}

#[test]
fn example_configurations_can_be_planned() {
    let mut seen = 0;
    for entry in std::fs::read_dir(root("examples/configs")).unwrap() {
        let path = entry.unwrap().path();
        run(&["plan", "1024x768", "--config", path.to_str().unwrap()]);
        seen += 1;
    }
    assert!(seen >= 3);
}

#[test]
fn a_large_plan_answers_at_once_and_without_weights() {
    let folder = Folder::new();
    let [image, drawing] = ["large.png", "plan.svg"].map(|name| folder.path(name));
    image::GrayImage::new(4096, 4096).save(&image).unwrap();
    std::fs::copy(root("models/demo-kl/config.json"), folder.path("config.json")).unwrap();
    let model = folder.0.path().to_str().unwrap();

    let start = Instant::now();
    let printed = run(&["plan", &image, "--model", model, "--svg", &drawing, "--set", "tiling.kind=diffusers"]);
    assert!(start.elapsed() < Duration::from_secs(30));
    for part in ["encode with kl", "484 = 22 rows x 22 columns", "43 redundant", "times untiled", "MiB", "\n...+..+"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let drawn = std::fs::read_to_string(&drawing).unwrap();
    assert_eq!(drawn.matches("<text").count(), 484);

    let json = run(&["plan", "512x1024", "--model", model, "--format", "json"]);
    for part in ["\"direction\": \"decode\"", "\"work_ratio\"", "\"redundant_tiles\"", "\"tiles\"", "\"largest_tile\""] {
        assert!(json.contains(part), "{part}: {json}");
    }
}

#[test]
fn plans_know_what_a_file_holds() {
    assert!(run(&["plan", "examples/latents/chelsea.safetensors"]).starts_with("decode with kl: 1x16x1x38x57 to 1x3x1x304x456"));
    assert!(run(&["plan", "examples/images/chelsea.png"]).starts_with("encode with kl: 1x3x1x304x456"));
    assert!(run(&["plan", "examples/images/chelsea.png", "--direction", "decode"]).starts_with("decode"));
}
