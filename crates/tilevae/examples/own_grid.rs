//! Decodes with a grid of its own: full-width strips, written to the sink as they are finished.
//!
//! ```sh
//! cargo run --release --example own_grid
//! ```
//!
//! `register_grid!` makes a grid available to configurations by name; `examples/downstream-vae` shows it.

#![expect(clippy::print_stdout, reason = "the example shows its results")]

use std::sync::Arc;

use tilevae::io::Tensors;
use tilevae::tiling::{BoxError, Grid, GridError, HostTensor, Scale, Sink, Span};
use tilevae::{Config, Direction, Pipeline, RunOptions};

/// Strips of `height` input px of which neighbours share `overlap`.
#[derive(Debug)]
struct Strips {
    height: usize,
    overlap: usize,
}

impl Grid for Strips {
    fn spans(&self, _: Scale, [height, width]: [usize; 2]) -> Result<[Vec<Span>; 2], GridError> {
        let starts = (0..height.saturating_sub(self.overlap).max(1)).step_by(self.height - self.overlap);
        let rows = starts.map(|start| Span { start, length: self.height.min(height - start) }).collect();
        Ok([rows, vec![Span { start: 0, length: width }]])
    }
}

/// Prints the place of each part; an application would write or display it.
struct Parts;

impl Sink for Parts {
    fn take(&mut self, [_, y, _]: [usize; 3], [_, height, _]: [usize; 3], part: HostTensor) -> Result<(), BoxError> {
        println!("rows {y} to {} of {height}", y + part.shape()[3]);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::from_toml(r#"model.path = "models/demo-kl""#)?;
    let pipeline = Pipeline::load(&config)?.with_grid(Direction::Decode, Arc::new(Strips { height: 16, overlap: 4 }));
    let latents = Tensors::read("examples/latents/chelsea.safetensors".as_ref())?;
    let latents = latents.input(Direction::Decode, pipeline.spec(), &config.io)?.read()?.values;

    let plan = pipeline.plan(Direction::Decode, latents.shape())?;
    let stats = pipeline.run(&plan, &latents, &mut Parts, RunOptions::default())?;
    println!("{} tiles, {:.2} s", stats.tiles, stats.elapsed.as_secs_f64());
    Ok(())
}
