//! Standard error, as all parts of the program write to it: text around the bars, or a JSON object a line.

use std::io::{self, Write};
use std::sync::{LazyLock, OnceLock};

use indicatif::MultiProgress;
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event as LogEvent, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::args::Format;

/// All bars of the program; hidden where standard error is no terminal.
pub(crate) static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Standard error, around the bars.
pub(crate) struct Log;

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write_all(text).map(|()| text.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// In what format this process talks to standard error, and whether only of errors.
static FORMAT: OnceLock<(Format, bool)> = OnceLock::new();

/// Sets how errors, log lines and signals are printed.
pub(crate) fn set_format(format: Format, quiet: bool) {
    let _ = FORMAT.set((format, quiet));
}

/// Whether standard error takes JSON objects only.
pub(crate) fn is_json() -> bool {
    matches!(FORMAT.get(), Some((Format::Json, _)))
}

/// Whether only errors are printed.
pub(crate) fn is_quiet() -> bool {
    matches!(FORMAT.get(), Some((_, true)))
}

/// Writes an event as a line to standard error. A closed pipe is ignored.
pub(crate) fn print_event(event: &Value) {
    let _ = Log.write_all(format!("{event}\n").as_bytes());
}

/// Log lines as events.
pub(crate) struct LogEvents;

impl<S: Subscriber> Layer<S> for LogEvents {
    fn on_event(&self, event: &LogEvent<'_>, _: Context<'_, S>) {
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let message = fields.0.remove("message").unwrap_or_else(|| "".into());
        print_event(&json!({"event": "log", "level": level, "message": message, "fields": fields.0}));
    }
}

struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").into());
    }
}
