use std::io::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tilevae::{Done, Progress};

use crate::args::{Common, Format};

/// Prints a result to standard output: as text, or as JSON.
pub(crate) fn print(common: &Common, text: &str, json: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match common.format {
        Format::Text => writeln!(out, "{}", text.trim_end())?,
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(json)?)?,
    }
    Ok(())
}

/// Prints an error and what caused it to standard error.
#[expect(clippy::print_stderr, reason = "this is where errors are printed")]
pub(crate) fn print_error(error: &anyhow::Error) {
    let mut causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    // An error that shows its source's text as its own is said once.
    causes.dedup();
    eprintln!("error: {}", causes.join("\n  because: "));
}

/// Whether whoever read the output has gone away.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// A progress bar on standard error, when that is a terminal. It counts frames, of all tiles; with one frame a tile, tiles.
pub(crate) struct Bar {
    bar: ProgressBar,
    verb: &'static str,
}

impl Bar {
    pub(crate) fn new(common: &Common, verb: &'static str) -> Self {
        let bar = if common.quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {msg}  {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(verb);
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, verb }
    }
}

impl Progress for Bar {
    fn advanced(&mut self, done: Done) {
        self.bar.set_length(done.of_frames as u64);
        self.bar.set_position(done.frames as u64);
        let tiles = format!("{}/{} tiles", done.tiles, done.of_tiles);
        let clip = done.of_frames > done.of_tiles;
        self.bar.set_message(if clip { format!("{tiles}, {}/{} frames", done.frames, done.of_frames) } else { tiles });
        tracing::debug!("{} {done:?}", self.verb);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Bytes for people.
pub(crate) fn bytes(count: usize) -> String {
    indicatif::BinaryBytes(count as u64).to_string()
}
