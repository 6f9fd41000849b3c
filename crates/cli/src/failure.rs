//! What ends a command early: errors, signals, and the exit codes that they lead to.

use std::fmt;
use std::io::Write;

use serde_json::json;
use tilevae::io::IoError;

use crate::terminal::{Log, is_json, is_quiet, print_event};

/// The exit code of a program that a signal ended, as shells count it.
pub(crate) const INTERRUPTED: u8 = 130;

/// Arguments that cannot be, each a reason.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// A fault of the program.
#[derive(Debug)]
pub(crate) struct InternalError(pub(crate) String);

impl fmt::Display for InternalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an internal error: {}; please report it", self.0)
    }
}

impl std::error::Error for InternalError {}

/// What an error is about, and the exit code that it leads to.
fn kind(error: &anyhow::Error) -> (&'static str, u8) {
    if error.is::<UsageError>() {
        return ("arguments", 2);
    }
    if error.is::<InternalError>() {
        return ("internal", 1);
    }
    if let Some(error) = error.downcast_ref::<tilevae::Error>() {
        let code = if error.is_stop() { INTERRUPTED } else { 1 + u8::from(error.is_usage()) };
        return (error.kind(), code);
    }
    match error.downcast_ref::<IoError>() {
        Some(error) => (error.kind(), 1 + u8::from(error.is_usage())),
        None => ("file", 1),
    }
}

/// Prints an error and what caused it to standard error, and gives the exit code.
pub(crate) fn print_error(error: &anyhow::Error) -> u8 {
    let (kind, code) = kind(error);
    let mut causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    // An error that shows its source's text as its own is said once.
    causes.dedup();
    let text = format!("error: {}\n", causes.join("\n  because: "));
    print_failure(kind, code, causes.remove(0), causes, &text);
    code
}

/// Reports that a signal ended the program.
pub(crate) fn print_interrupted(stopping: bool) {
    let text = if stopping { "error: interrupted, the run was cancelled\n" } else { "error: interrupted\n" };
    print_failure("interrupted", INTERRUPTED, "a signal ended the program".to_owned(), Vec::new(), text);
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
    print_failure("arguments", 2, message, Vec::new(), "");
}

fn print_failure(kind: &str, code: u8, message: String, causes: Vec<String>, text: &str) {
    if is_json() {
        print_event(&json!({"event": "error", "kind": kind, "exit_code": code, "message": message, "causes": causes}));
    } else {
        let _ = Log.write_all(text.as_bytes());
    }
}

/// Says that a run is about to stop.
pub(crate) fn print_stopping() {
    const MESSAGE: &str = "stopping after this tile; again to stop at once";
    if is_quiet() {
        return;
    }
    if is_json() {
        print_event(&json!({"event": "stopping", "message": MESSAGE}));
    } else {
        let _ = Log.write_all(format!("{MESSAGE}\n").as_bytes());
    }
}
