//! Which vectors the processor has.

use pulp::{Arch, Simd, WithSimd};

use crate::{LANES, Lanes};

/// Runs a task as vector code for the processor at hand.
pub(crate) fn dispatch<T: WithSimd>(task: T) -> T::Output {
    #[cfg(test)]
    match tests::FORCED.get() {
        1 => return Simd::vectorize(pulp::Scalar::new(), task),
        #[cfg(target_arch = "x86_64")]
        2 => return Simd::vectorize(pulp::x86::V3::try_new().expect("AVX2"), task),
        _ => {}
    }
    Arch::new().dispatch(task)
}

/// Vectors that make up a px.
pub(crate) const fn per_px<S: Simd>() -> usize {
    LANES / S::F32_LANES
}

#[inline(always)]
pub(crate) fn load<S: Simd>(px: &Lanes, vector: usize) -> S::f32s {
    S::as_simd_f32s(&px.0).0[vector]
}

#[inline(always)]
pub(crate) fn store<S: Simd>(px: &mut Lanes, vector: usize, value: S::f32s) {
    S::as_mut_simd_f32s(&mut px.0).0[vector] = value;
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    thread_local! {
        pub(crate) static FORCED: Cell<u8> = const { Cell::new(0) };
    }

    /// Runs `f` on one thread with plain code, with AVX2 where the processor has it, and as it would run anyway.
    pub(crate) fn with_each_kind_of_vectors<T: Send>(f: impl Fn() -> T + Sync) -> Vec<T> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        #[cfg(target_arch = "x86_64")]
        let narrower = pulp::x86::V3::try_new().map(|_| 2);
        #[cfg(not(target_arch = "x86_64"))]
        let narrower = None;
        let run = |kind| {
            pool.install(|| {
                FORCED.set(kind);
                f()
            })
        };
        [0, 1].into_iter().chain(narrower).map(run).collect()
    }
}
