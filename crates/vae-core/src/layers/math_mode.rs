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
pub struct MathMode {
    /// On the CPU.
    pub precision: Precision,
    /// Whether tensor cores may round what they multiply to TF32, of ten bits. Without it products go the slow way, on GPUs that have such cores.
    pub tf32: bool,
}

impl Default for MathMode {
    fn default() -> Self {
        Self { precision: Precision::default(), tf32: true }
    }
}

impl From<Precision> for MathMode {
    fn from(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }
}

impl MathMode {
    /// What the layers that run on this thread keep to.
    pub fn current() -> Self {
        Context::current().math_mode
    }

    /// Has the layers that `run` calls keep to it.
    pub fn during<T>(self, run: impl FnOnce() -> T) -> T {
        Context { math_mode: self, ..Context::current() }.during(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_for_as_long_as_the_call() {
        let exact = MathMode { precision: Precision::Strict, tf32: false };
        let usual = MathMode::default();
        assert_eq!(MathMode::current(), usual);
        assert_eq!(exact.during(|| (MathMode::current(), usual.during(MathMode::current))), (exact, usual));
        assert!(std::panic::catch_unwind(|| exact.during(|| panic!("a panic"))).is_err());
        assert_eq!(MathMode::current(), usual);
    }

    #[cfg(feature = "flex")]
    #[test]
    fn it_does_not_hold_for_what_a_waiting_thread_takes_on() {
        use std::sync::Mutex;
        use std::sync::atomic::{AtomicUsize, Ordering};
        use std::time::{Duration, Instant};

        use burn::tensor::{Device, Tensor};

        use super::super::{Conv2d, GroupNorm};
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let device = Device::flex();
        let (conv, norm) = (Conv2d::same([32, 32], &device), GroupNorm::new(4, 32, 1e-6, &device));
        let x = Tensor::<5>::ones([1, 32, 1, 160, 160], &device);
        let exact = MathMode { precision: Precision::Strict, tf32: false };
        // Who runs the layers, and how much else that thread takes on meanwhile.
        let (within, taken_on) = (&Mutex::new(None), &AtomicUsize::new(0));
        let begin = Instant::now();
        let is_over = || taken_on.load(Ordering::Relaxed) >= 10 || begin.elapsed() > Duration::from_mins(1);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !is_over() {
                        pool.install(|| {
                            assert_eq!(MathMode::current(), MathMode::default());
                            if *within.lock().unwrap() == Some(std::thread::current().id()) {
                                taken_on.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                    }
                });
            }
            while !is_over() {
                pool.install(|| {
                    exact.during(|| {
                        *within.lock().unwrap() = Some(std::thread::current().id());
                        let y = norm.forward_silu(conv.forward(x.clone().into()));
                        *within.lock().unwrap() = None;
                        assert_eq!(MathMode::current(), exact);
                        drop(y);
                    });
                });
            }
        });
        assert!(taken_on.load(Ordering::Relaxed) >= 10, "no thread has taken anything on");
    }
}
