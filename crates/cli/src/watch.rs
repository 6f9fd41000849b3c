//! A run as it is watched: lines on a terminal, or events for programs.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};
use tilevae::{Done, Event, Progress};

use crate::args::{Common, Format};
use crate::terminal::{BARS, tell};

/// Shows how far a run is.
pub(crate) enum Watch {
    /// Not at all.
    Nothing,
    /// A line for the run and, with many workers, one for each.
    Lines { verb: &'static str, begun: Instant, total: ProgressBar, workers: Vec<WorkerLine> },
    /// A JSON object in a line for each event, on standard error.
    Events { verb: &'static str, begun: Instant },
}

pub(crate) struct WorkerLine {
    bar: ProgressBar,
    finished: usize,
    holds: Vec<usize>,
    retired: Option<String>,
}

impl Watch {
    pub(crate) fn new(common: &Common, verb: &'static str) -> Self {
        let begun = Instant::now();
        if common.quiet {
            return Self::Nothing;
        }
        if common.format == Format::Json {
            return Self::Events { verb, begun };
        }
        if std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb") {
            return Self::Nothing;
        }
        // Without a length it is empty, not full.
        let total = BARS.add(ProgressBar::no_length());
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {msg}  {eta} left");
        total.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        total.set_prefix(verb);
        total.enable_steady_tick(Duration::from_millis(200));
        Self::Lines { verb, begun, total, workers: Vec::new() }
    }
}

impl WorkerLine {
    fn new(name: &str) -> Self {
        let bar = BARS.add(ProgressBar::new_spinner());
        bar.set_style(ProgressStyle::with_template("  {prefix:<24} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_prefix(name.to_owned());
        Self { bar, finished: 0, holds: Vec::new(), retired: None }
    }

    fn show(&self, elapsed: Duration) {
        let rate = self.finished as f64 / elapsed.as_secs_f64().max(1e-9);
        let holds = self.holds.iter().map(|tile| format!("#{tile}")).collect::<Vec<_>>().join(" ");
        let state = self.retired.as_ref().map_or(holds, |cause| format!("no more tiles: {cause}"));
        self.bar.set_message(format!("{:>4} tiles, {rate:.2}/s  {state}", self.finished));
    }
}

impl Progress for Watch {
    fn on_event(&mut self, event: &Event) {
        match self {
            Self::Nothing => {}
            Self::Events { verb, begun } => {
                let mut line = Map::from_iter([("seconds".to_owned(), begun.elapsed().as_secs_f64().into()), ("run".to_owned(), (*verb).into())]);
                if let Ok(Value::Object(event)) = serde_json::to_value(event) {
                    line.extend(event);
                }
                tell(&line.into());
            }
            Self::Lines { verb, begun, total, workers } => {
                tracing::debug!("{verb} {event:?}");
                if total.is_hidden() {
                    return;
                }
                match event {
                    Event::Started { workers: names, done } => {
                        if names.len() > 1 {
                            *workers = names.iter().map(|name| WorkerLine::new(name)).collect();
                        }
                        show_total(total, *done);
                    }
                    Event::Advanced(done) | Event::TileFinished { done, .. } => show_total(total, *done),
                    _ => {}
                }
                let (Event::TileStarted { worker, .. }
                | Event::TileFinished { worker, .. }
                | Event::TileFailed { worker, .. }
                | Event::TileUpcast { worker, .. }
                | Event::WorkerRetired { worker, .. }) = event
                else {
                    return;
                };
                let Some(line) = workers.get_mut(*worker) else { return };
                match event {
                    Event::TileStarted { tile, .. } => line.holds.push(*tile),
                    Event::TileFinished { tile, .. } => {
                        line.finished += 1;
                        line.holds.retain(|held| held != tile);
                    }
                    Event::TileFailed { tile, .. } | Event::TileUpcast { tile, .. } => line.holds.retain(|held| held != tile),
                    Event::WorkerRetired { message, .. } => line.retired = Some(message.clone()),
                    _ => {}
                }
                line.show(begun.elapsed());
            }
        }
    }
}

/// The bar counts frames, of all tiles; with one frame a tile, tiles.
fn show_total(bar: &ProgressBar, done: Done) {
    bar.set_length(done.of_tile_frames as u64);
    bar.set_position(done.tile_frames as u64);
    let tiles = format!("{}/{} tiles", done.tiles, done.of_tiles);
    let is_clip = done.of_output_frames > 1;
    bar.set_message(if is_clip { format!("{tiles}, {}/{} frames", done.output_frames, done.of_output_frames) } else { tiles });
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Self::Lines { total, workers, .. } = self {
            for line in workers {
                line.bar.finish_and_clear();
            }
            total.finish_and_clear();
        }
    }
}
