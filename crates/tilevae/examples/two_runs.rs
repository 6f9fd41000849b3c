//! Decodes on two threads at once through one pipeline. Both runs share its weights and workers.
//!
//! ```sh
//! cargo run --release --example two_runs
//! ```

#![expect(clippy::print_stdout, reason = "the example shows its results")]

use std::thread;

use tilevae::io::Tensors;
use tilevae::{Config, Direction, Pipeline, RunOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::from_toml(
        r#"
        model.path = "models/demo-kl"
        tiling.tile_px = 128
        executor.kind = "multi-device"
        "#,
    )?;
    let pipeline = Pipeline::load(&config)?;
    let latents = Tensors::read("examples/latents/chelsea.safetensors".as_ref())?;
    let latents = latents.input(Direction::Decode, pipeline.spec(), &config.io)?.read()?.values;

    let [first, second] = thread::scope(|scope| {
        let runs = [(); 2].map(|()| scope.spawn(|| pipeline.decode(&latents, RunOptions::default())));
        runs.map(|run| run.join().expect("a run returns its errors"))
    });
    let (first, second) = (first?, second?);
    println!("two images of shape {:?}; equal: {}", first.shape(), first == second);
    Ok(())
}
