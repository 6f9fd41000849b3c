//! Whether a way in holds: no panic, bounded memory.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::counting::peak_of;
use super::ways::Way;

/// Bytes that reading a file of `length` bytes may take.
pub(crate) const fn allowed(length: usize) -> usize {
    4 * length + (64 << 20)
}

/// Bytes that can be allocated, so that a fault is reported; beyond them allocations fail.
const CEILING: usize = 1 << 30;

/// Panics since the last look, caught or not.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Takes note of every panic, of any thread.
pub(crate) fn watch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let text = format!("{panic} (thread {})", thread.name().unwrap_or("(unnamed)"));
        PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }));
}

/// What came of reading `path`, and what was wrong in doing so. `length` counts the bytes of the file and of what lies beside it.
pub(crate) fn read(way: &Way, path: &Path, length: usize) -> (Result<(), String>, Vec<String>) {
    let (outcome, peak) = peak_of(CEILING, || catch_unwind(AssertUnwindSafe(|| way.read(path).map_err(|error| message(error.as_ref())))));
    let mut faults = std::mem::take(&mut *PANICS.lock().unwrap_or_else(PoisonError::into_inner));
    if peak > allowed(length) {
        faults.push(format!("{peak} bytes of memory for {length} bytes of files, {} allowed", allowed(length)));
    }
    (outcome.unwrap_or_else(|_| Err("a panic".to_owned())), faults)
}

/// An error and its causes, as users see them.
fn message(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
