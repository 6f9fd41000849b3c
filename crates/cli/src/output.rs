use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use crate::args::{Common, Format};
use crate::terminal::{Log, print_event};

/// Prints a result to standard output: as text, or as JSON. Where a file goes there, the result goes to standard error.
pub(crate) fn print(common: &Common, text: &str, json: &Value, stdout_is_taken: bool) -> anyhow::Result<()> {
    if stdout_is_taken {
        let mut result = json!({"event": "result"});
        result["result"] = json.clone();
        match common.format {
            _ if common.quiet => {}
            Format::Text => Log.write_all(format!("{}\n", text.trim_end()).as_bytes())?,
            Format::Json => print_event(&result),
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

/// Whether the reader of the output has closed it.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Bytes for people.
pub(crate) fn bytes(count: usize) -> String {
    indicatif::BinaryBytes(count as u64).to_string()
}
