//! Errors as Python's own kinds, with the messages of the command line.

use std::error::Error as StdError;
use std::fmt::Display;
use std::io::ErrorKind;

use pyo3::PyErr;
use pyo3::exceptions::{
    PyFileExistsError, PyFileNotFoundError, PyIsADirectoryError, PyKeyboardInterrupt, PyMemoryError, PyNotADirectoryError, PyOSError,
    PyPermissionError, PyRuntimeError, PyValueError,
};
use tilevae::Error;
use tilevae::io::IoError;

/// The exception for an error.
pub(crate) fn raise(error: Error) -> PyErr {
    let message = message(&error);
    if error.is_stop() {
        return PyKeyboardInterrupt::new_err(message);
    }
    if matches!(error, Error::Budget { .. }) {
        return PyMemoryError::new_err(message);
    }
    if matches!(error, Error::Io(IoError::NoSpace { .. })) {
        return PyOSError::new_err(message);
    }
    match io_kind(&error) {
        Some(ErrorKind::NotFound) => return PyFileNotFoundError::new_err(message),
        Some(ErrorKind::AlreadyExists) => return PyFileExistsError::new_err(message),
        Some(ErrorKind::IsADirectory) => return PyIsADirectoryError::new_err(message),
        Some(ErrorKind::NotADirectory) => return PyNotADirectoryError::new_err(message),
        Some(ErrorKind::PermissionDenied) => return PyPermissionError::new_err(message),
        Some(ErrorKind::OutOfMemory) => return PyMemoryError::new_err(message),
        Some(_) => return PyOSError::new_err(message),
        None => {}
    }
    if error.is_usage() || matches!(error.kind(), "input" | "model" | "configuration" | "grid" | "file") {
        return PyValueError::new_err(message);
    }
    PyRuntimeError::new_err(message)
}

/// A `ValueError`.
pub(crate) fn value_error(error: impl Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// An error and its causes. One that has its cause's text as its own is said once.
fn message(error: &Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if texts.last() != Some(&text) {
            texts.push(text);
        }
        cause = error.source();
    }
    texts.join(": ")
}

/// The kind of the system's error that is the cause, if one is.
fn io_kind(error: &Error) -> Option<ErrorKind> {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return Some(error.kind());
        }
        cause = error.source();
    }
    None
}
