//! The program with one more family, grid, blend policy and executor.

use std::process::{Command, Output};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny");

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_downstream-vae")).args(arguments).args(["--model", MODEL]).output().unwrap()
}

#[test]
fn it_lists_the_family_and_reads_its_model() {
    let output = run(&["models"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("AutoencoderTiny") && text.contains("family tiny"), "{text}");
}

#[test]
fn it_encodes_and_decodes_files_with_the_tiles_of_the_family() {
    let folder = tempfile::tempdir().unwrap();
    let [latents, image] = ["latents.safetensors", "image.png"].map(|name| folder.path().join(name).to_str().unwrap().to_owned());
    let photograph = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/chelsea.png");
    let tiles = ["--set", "tiling.kind=tiny", "--set", "tiling.tile_px=128", "--set", "blend.kind=tiny"];
    for (command, input, output) in [("encode", photograph, &latents), ("decode", latents.as_str(), &image)] {
        let output = run(&[&[command, input, "-o", output], &tiles[..]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(std::fs::metadata(image).unwrap().len() > 1000);
    let refused = run(&["encode", photograph, "-o", &format!("{latents}.npy"), "--set", "io.posterior=sample"]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && text.contains("io.posterior"), "{text}");
}
