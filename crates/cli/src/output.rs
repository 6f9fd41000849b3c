use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::Context;
use serde_json::{Value, json};
use tilevae::io::IoError;

use crate::args::{Common, Format};
use crate::commands::UsageError;
use crate::interrupt;
use crate::watch::Log;

/// In what format this process talks to standard error, and whether only of errors.
static FORMAT: OnceLock<(Format, bool)> = OnceLock::new();

/// Sets what is heard of errors, log lines and signals.
pub(crate) fn set_format(format: Format, quiet: bool) {
    let _ = FORMAT.set((format, quiet));
}

/// Whether standard error takes JSON objects only.
pub(crate) fn is_json() -> bool {
    matches!(FORMAT.get(), Some((Format::Json, _)))
}

/// Whether only errors are told.
pub(crate) fn is_quiet() -> bool {
    matches!(FORMAT.get(), Some((_, true)))
}

/// Writes an event as a line to standard error. Nobody who reads no more has to be told more.
pub(crate) fn tell(event: &Value) {
    let _ = Log.write_all(format!("{event}\n").as_bytes());
}

/// Prints a result to standard output: as text, or as JSON. Where a file goes there, the result goes to standard error.
pub(crate) fn print(common: &Common, text: &str, json: &Value, stdout_is_taken: bool) -> anyhow::Result<()> {
    if stdout_is_taken {
        let mut result = json!({"event": "result"});
        result["result"] = json.clone();
        match common.format {
            _ if common.quiet => {}
            Format::Text => Log.write_all(format!("{}\n", text.trim_end()).as_bytes())?,
            Format::Json => tell(&result),
        }
        return Ok(());
    }
    print_text(&match common.format {
        Format::Text => format!("{}\n", text.trim_end()),
        Format::Json => format!("{}\n", serde_json::to_string_pretty(json)?),
    })
}

/// Writes text to standard output.
pub(crate) fn print_text(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output cannot be written")
}

/// A path as JSON holds it: what is not Unicode is replaced.
pub(crate) fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// What an error is about, and the exit code that it leads to.
fn kind(error: &anyhow::Error) -> (&'static str, u8) {
    if error.is::<UsageError>() {
        return ("arguments", 2);
    }
    if error.is::<InternalError>() {
        return ("internal", 1);
    }
    if let Some(error) = error.downcast_ref::<tilevae::Error>() {
        let code = if error.is_stop() { interrupt::INTERRUPTED } else { 1 + u8::from(error.is_usage()) };
        return (error.kind(), code);
    }
    ("file", 1 + u8::from(error.downcast_ref().is_some_and(IoError::is_usage)))
}

/// Prints an error and what caused it to standard error, and gives the exit code.
pub(crate) fn print_error(error: &anyhow::Error) -> u8 {
    let (kind, code) = kind(error);
    let mut causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    // An error that shows its source's text as its own is said once.
    causes.dedup();
    let text = format!("error: {}\n", causes.join("\n  because: "));
    tell_error(kind, code, causes.remove(0), causes, &text);
    code
}

/// Says that a signal ended the program; in text, only to whoever waits for a run to stop.
pub(crate) fn print_interrupted(stopping: bool) {
    let text = if stopping { "error: interrupted, the run was given up\n" } else { "error: interrupted\n" };
    tell_error("interrupted", interrupt::INTERRUPTED, "a signal ended the program".to_owned(), Vec::new(), text);
}

/// Prints what the arguments are refused for.
pub(crate) fn print_argument_error(error: &clap::Error) {
    if !is_json() {
        let _ = error.print();
        return;
    }
    let text = error.render().to_string();
    let message = text.trim().strip_prefix("error: ").unwrap_or(text.trim()).split("\n\n").next().unwrap_or_default();
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    tell_error("arguments", 2, message, Vec::new(), "");
}

fn tell_error(kind: &str, code: u8, message: String, causes: Vec<String>, text: &str) {
    if is_json() {
        tell(&json!({"event": "error", "kind": kind, "exit_code": code, "message": message, "causes": causes}));
    } else {
        let _ = Log.write_all(text.as_bytes());
    }
}

/// A fault of the program.
#[derive(Debug)]
pub(crate) struct InternalError(pub(crate) String);

impl std::fmt::Display for InternalError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an internal error: {}; please report it", self.0)
    }
}

impl std::error::Error for InternalError {}

/// Whether whoever read the output has gone away.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Bytes for people.
pub(crate) fn bytes(count: usize) -> String {
    indicatif::BinaryBytes(count as u64).to_string()
}
