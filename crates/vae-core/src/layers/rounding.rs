use serde::{Deserialize, Serialize};

use super::run::Context;

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

/// How f32 is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounding {
    /// On the CPU.
    pub precision: Precision,
    /// Whether tensor cores may round what they multiply to TF32, of ten bits. Without it products go the slow way, on GPUs that have such cores.
    pub tf32: bool,
}

impl Default for Rounding {
    fn default() -> Self {
        Self { precision: Precision::default(), tf32: true }
    }
}

impl From<Precision> for Rounding {
    fn from(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }
}

impl Rounding {
    /// What the layers that run on this thread keep to.
    pub fn current() -> Self {
        Context::current().rounding
    }

    /// Has the layers that `run` calls keep to it.
    pub fn during<T>(self, run: impl FnOnce() -> T) -> T {
        Context { rounding: self, ..Context::current() }.during(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_for_as_long_as_the_call() {
        let exact = Rounding { precision: Precision::Strict, tf32: false };
        let usual = Rounding::default();
        assert_eq!(Rounding::current(), usual);
        assert_eq!(exact.during(|| (Rounding::current(), usual.during(Rounding::current))), (exact, usual));
        assert!(std::panic::catch_unwind(|| exact.during(|| panic!("a panic"))).is_err());
        assert_eq!(Rounding::current(), usual);
    }
}
