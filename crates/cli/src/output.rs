use std::io::Write;

use serde_json::Value;

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

/// Bytes for people.
pub(crate) fn bytes(count: usize) -> String {
    indicatif::BinaryBytes(count as u64).to_string()
}
