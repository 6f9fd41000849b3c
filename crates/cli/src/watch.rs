//! The progress of a run: lines on a terminal, or events as JSON.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};
use tilevae::{Done, Event, Progress};

use crate::args::{Common, Format};
use crate::terminal::{BARS, print_event};

/// Shows the progress of a run.
pub(crate) enum Watch {
    /// Shows nothing.
    Nothing,
    /// A line for the run and, with several workers, one for each.
    Lines { verb: &'static str, begun: Instant, total: ProgressBar, workers: Vec<WorkerLine> },
    /// A line of JSON for each event, on standard error.
    Events { verb: &'static str, begun: Instant },
}

/// The line of a worker.
pub(crate) struct WorkerLine {
    bar: ProgressBar,
    state: WorkerState,
}

/// What a worker does.
#[derive(Debug, Default)]
struct WorkerState {
    finished: usize,
    /// The tiles that it has.
    tiles: Vec<usize>,
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
        Self { bar, state: WorkerState::default() }
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
                print_event(&line.into());
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
                for (worker, line) in workers.iter_mut().enumerate() {
                    if line.state.update(worker, event) {
                        line.bar.set_message(line.state.message(begun.elapsed()));
                    }
                }
            }
        }
    }
}

impl WorkerState {
    /// Follows an event; whether it changes the line of this worker.
    fn update(&mut self, worker: usize, event: &Event) -> bool {
        match event {
            Event::TileStarted { worker: by, tile } if *by == worker => self.tiles.push(*tile),
            Event::TileFinished { worker: by, tile, .. } => {
                let is_own = *by == worker;
                self.finished += usize::from(is_own);
                // Another worker may have run it, too: it has given it up.
                return self.close(*tile) || is_own;
            }
            Event::TileFailed { worker: by, tile, .. } | Event::TileUpcast { worker: by, tile } if *by == worker => return self.close(*tile),
            Event::WorkerRetired { worker: by, message } if *by == worker => self.retired = Some(message.clone()),
            _ => return false,
        }
        true
    }

    /// Forgets a tile; whether the worker had it.
    fn close(&mut self, tile: usize) -> bool {
        let before = self.tiles.len();
        self.tiles.retain(|other| *other != tile);
        self.tiles.len() < before
    }

    fn message(&self, elapsed: Duration) -> String {
        let rate = self.finished as f64 / elapsed.as_secs_f64().max(1e-9);
        let tiles = || self.tiles.iter().map(|tile| format!("#{tile}")).collect::<Vec<_>>().join(" ");
        let state = self.retired.as_ref().map_or_else(tiles, |cause| format!("no more tiles: {cause}"));
        format!("{:>4} tiles, {rate:.2}/s  {state}", self.finished)
    }
}

/// The bar counts the frames of all tiles; of images these are the tiles.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_tile_is_closed_on_every_worker_that_ran_it() {
        let mut lines = [WorkerState::default(), WorkerState::default()];
        let mut send = |event: Event| lines.iter_mut().enumerate().map(|(worker, line)| line.update(worker, &event)).collect::<Vec<_>>();
        assert_eq!(send(Event::TileStarted { worker: 0, tile: 3 }), [true, false]);
        assert_eq!(send(Event::TileStarted { worker: 1, tile: 3 }), [false, true]);
        assert_eq!(send(Event::TileStarted { worker: 1, tile: 4 }), [false, true]);
        assert_eq!(send(Event::TileFinished { worker: 1, tile: 3, done: Done::default() }), [true, true]);
        assert_eq!(send(Event::TileFailed { worker: 1, tile: 4, message: "a failure".to_owned() }), [false, true]);
        assert!(lines.iter().all(|line| line.tiles.is_empty()));
        assert_eq!(lines.map(|line| line.finished), [0, 1]);
    }
}
