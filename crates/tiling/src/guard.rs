use std::any::Any;
use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::BoxError;

/// The owner of code that a run calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Party {
    /// A [`Grid`](crate::Grid).
    Grid,
    /// A [`BlendPolicy`](crate::BlendPolicy).
    Blend,
    /// A [`TileSource`](crate::TileSource).
    Source,
    /// A [`Sink`](crate::Sink).
    Sink,
    /// A [`TileOp`](crate::TileOp), outside the work on a tile.
    Operation,
    /// The listener of a run's progress.
    Listener,
    /// The executor.
    Engine,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grid => "the grid",
            Self::Blend => "the blend policy",
            Self::Source => "the source of the input",
            Self::Sink => "the sink",
            Self::Operation => "the operation",
            Self::Listener => "the progress listener",
            Self::Engine => "the engine",
        })
    }
}

/// A panic that was caught.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{who} panicked: {message}")]
pub struct Panicked {
    /// The owner of the code that panicked.
    pub who: Party,
    /// The panic's message.
    pub message: String,
}

/// Calls a party's code.
///
/// # Errors
/// When it panics.
pub fn guard<T>(who: Party, call: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch(call).map_err(|message| Panicked { who, message })
}

thread_local! {
    static GUARDS: Cell<usize> = const { Cell::new(0) };
}

/// Calls `call`; the error is a panic's message. See [`is_guarded`].
///
/// # Errors
/// When it panics.
pub fn catch<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    GUARDS.set(GUARDS.get() + 1);
    let answer = catch_unwind(AssertUnwindSafe(call));
    GUARDS.set(GUARDS.get() - 1);
    answer.map_err(message)
}

/// Whether a panic on this thread would become an error with its message, so that a panic hook need not print it.
pub fn is_guarded() -> bool {
    GUARDS.get() > 0
}

fn message(panic: Box<dyn Any + Send>) -> String {
    macro_rules! text {
        ($panic:ident: $($kind:ty),*) => {
            $(if let Some(text) = $panic.downcast_ref::<$kind>() {
                return text.to_string();
            })*
        };
    }
    text!(panic: &'static str, String, Box<str>, Cow<'static, str>, BoxError, std::io::Error);
    // A payload may panic when it is dropped.
    std::mem::forget(panic);
    "no message".to_owned()
}

#[cfg(test)]
mod tests {
    use std::panic::{panic_any, resume_unwind};

    use super::*;

    #[test]
    fn every_kind_of_payload_gives_a_message() {
        struct Bomb;

        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("the payload");
            }
        }

        let said = |call: fn()| guard(Party::Sink, call).unwrap_err().to_string();
        assert_eq!(said(|| panic!("a word")), "the sink panicked: a word");
        assert_eq!(said(|| panic!("{} words", 2)), "the sink panicked: 2 words");
        assert_eq!(said(|| panic_any(BoxError::from("an error"))), "the sink panicked: an error");
        assert_eq!(said(|| panic_any(7)), "the sink panicked: no message");
        assert_eq!(said(|| resume_unwind(Box::new(Bomb))), "the sink panicked: no message");
        assert_eq!((is_guarded(), catch(is_guarded)), (false, Ok(true)));
    }
}
