//! Vector instructions, chosen at run time.

use pulp::{Arch, Simd, WithSimd};

use crate::lanes::{LANES, Lanes};

/// Runs a task with the widest vector instructions of the processor.
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

/// Vectors in one [`Lanes`].
pub(crate) const fn per_lanes<S: Simd>() -> usize {
    LANES / S::F32_LANES
}

#[inline(always)]
pub(crate) fn load<S: Simd>(lanes: &Lanes, vector: usize) -> S::f32s {
    S::as_simd_f32s(&lanes.0).0[vector]
}

#[inline(always)]
pub(crate) fn store<S: Simd>(lanes: &mut Lanes, vector: usize, value: S::f32s) {
    S::as_mut_simd_f32s(&mut lanes.0).0[vector] = value;
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    thread_local! {
        pub(crate) static FORCED: Cell<u8> = const { Cell::new(0) };
    }

    /// Runs `f` on one thread: with the widest vectors of the processor, with scalar code, and with AVX2 where the processor has it.
    pub(crate) fn with_each_instruction_set<T: Send>(f: impl Fn() -> T + Sync) -> Vec<T> {
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
