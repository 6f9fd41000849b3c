use std::cell::Cell;

use serde::{Deserialize, Serialize};

/// How much rounding an answer in f32 may take for speed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Convolutions do with a quarter of the products, and with about twice the rounding of sums of all of them.
    #[default]
    Fast,
    /// Convolutions do with four ninths of the products, and with less rounding than sums of all of them.
    Strict,
}

thread_local! {
    static CURRENT: Cell<Precision> = const { Cell::new(Precision::Fast) };
}

impl Precision {
    /// What the layers that run on this thread keep to.
    pub fn current() -> Self {
        CURRENT.get()
    }

    /// Has the layers that `run` calls keep to it.
    pub fn during<T>(self, run: impl FnOnce() -> T) -> T {
        /// Also when `run` panics.
        struct Before(Precision);

        impl Drop for Before {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }

        let _before = Before(CURRENT.replace(self));
        run()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_for_as_long_as_the_call() {
        assert_eq!(Precision::current(), Precision::Fast);
        assert_eq!(
            Precision::Strict.during(|| (Precision::current(), Precision::Fast.during(Precision::current))),
            (Precision::Strict, Precision::Fast)
        );
        assert!(std::panic::catch_unwind(|| Precision::Strict.during(|| panic!("a panic"))).is_err());
        assert_eq!(Precision::current(), Precision::Fast);
    }
}
