//! Decodes a file of latents to an image.
//!
//! ```sh
//! cargo run --release --example decode_file -- examples/latents/chelsea.safetensors out.png
//! ```

#![expect(clippy::print_stdout, reason = "the example shows its results")]

use std::env::args;

use tilevae::io::{DecodeJob, Output};
use tilevae::{Config, Pipeline, RunOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let latents = args().nth(1).unwrap_or("examples/latents/chelsea.safetensors".into());
    let output = args().nth(2).unwrap_or("out.png".into());

    let config = Config::from_toml(
        r#"
        model.path = "models/demo-kl"
        tiling.tile_px = 256
        "#,
    )?;
    let pipeline = Pipeline::load(&config)?;
    let job = DecodeJob::new(&pipeline, latents, &Output::samples(output, None)?)?;
    let written = job.run(&pipeline, RunOptions::default())?;
    println!("{:?} of shape {:?}, {} tiles", written.files, written.shape, written.stats.tiles);
    Ok(())
}
