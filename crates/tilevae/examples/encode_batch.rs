//! Encodes several images of one size as one batch, in memory, and draws a sample of the posterior.
//!
//! ```sh
//! cargo run --release --example encode_batch -- examples/images/chelsea.png examples/images/chelsea.png
//! ```

#![expect(clippy::print_stdout, reason = "the example shows its results")]

use std::env::args;
use std::path::PathBuf;

use tilevae::io::Samples;
use tilevae::{Config, Pipeline, RunOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut images: Vec<PathBuf> = args().skip(1).map(PathBuf::from).collect();
    if images.is_empty() {
        images = vec!["examples/images/chelsea.png".into(); 2];
    }

    let config = Config::from_toml(
        r#"
        model.path = "models/demo-kl"
        io = { posterior = "sample", seed = 7 }
        "#,
    )?;
    let pipeline = Pipeline::load(&config)?;
    let samples = Samples::read(&images, pipeline.spec(), &config.io)?;
    let encoded = pipeline.encode(samples.source(), RunOptions::default())?;

    let [batch, channels, frames, height, width] = encoded.latents.shape();
    println!("{batch} latents of {channels} channels, {frames} frame, {height}x{width}");
    for (index, latents) in encoded.latents.split_batch(batch).iter().enumerate() {
        let mean = latents.data().iter().sum::<f32>() / latents.data().len() as f32;
        println!("image {index}: mean {mean:.4}");
    }
    Ok(())
}
