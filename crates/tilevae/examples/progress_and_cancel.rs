//! Shows the progress of a run, and cancels it after a time.
//!
//! ```sh
//! cargo run --release --example progress_and_cancel -- 0.5
//! ```
//!
//! The argument is the time limit in seconds; without one the run completes.

#![expect(clippy::print_stdout, reason = "the example shows its results")]

use std::env::args;
use std::thread;
use std::time::Duration;

use tilevae::io::{DecodeJob, Output};
use tilevae::{Config, Event, Pipeline, Progress, RunOptions, Stop};

struct Percent;

impl Progress for Percent {
    fn on_event(&mut self, event: &Event) {
        if let Event::TileFinished { done, .. } = event {
            println!("tile {} of {}: {} %", done.tiles, done.of_tiles, 100 * done.tile_frames / done.of_tile_frames);
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let limit = args().nth(1).map(|seconds| seconds.parse()).transpose()?.map(Duration::from_secs_f64);

    let config = Config::from_toml(
        r#"
        model.path = "models/demo-kl"
        tiling.tile_px = 128
        "#,
    )?;
    let pipeline = Pipeline::load(&config)?;
    let job = DecodeJob::new(&pipeline, "examples/latents/chelsea.safetensors", &Output::samples("out.png", None)?)?;

    let stop = Stop::default();
    if let Some(limit) = limit {
        let stop = stop.clone();
        thread::spawn(move || {
            thread::sleep(limit);
            stop.stop();
        });
    }
    match job.run(&pipeline, RunOptions::default().with_progress(&mut Percent).with_stop(stop)) {
        Ok(written) => println!("wrote {:?}", written.files),
        Err(error) if error.is_stop() => println!("cancelled; no file was written"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
