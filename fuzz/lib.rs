//! The ways in of `crates/tilevae/tests/it/hostile` as targets of cargo-fuzz. Panics, caught or not, and memory beyond what the tests allow are crashes.

#[path = "../crates/tilevae/tests/it/hostile/counting.rs"]
mod counting;
#[path = "../crates/tilevae/tests/it/hostile/damage.rs"]
mod damage;
#[path = "../crates/tilevae/tests/it/hostile/measure.rs"]
#[allow(dead_code, reason = "libfuzzer watches panics itself")]
mod measure;
#[path = "../crates/tilevae/tests/it/hostile/ways.rs"]
mod ways;

use std::path::PathBuf;
use std::sync::OnceLock;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use ways::{WAYS, Way};

#[doc(hidden)]
pub use libfuzzer_sys;

/// A target that reads its input by each of some ways.
#[macro_export]
macro_rules! target {
    ($($way:literal),+) => {
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| { $crate::read(&[$($way),+], bytes) });
        $crate::libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            $crate::mutate(data, size, max_size, seed)
        });
    };
}

/// Reads `bytes` by each of the ways `names`.
///
/// # Panics
/// When one does not hold.
pub fn read(names: &[&str], bytes: &[u8]) {
    static TARGET: OnceLock<Vec<(&Way, PathBuf, usize)>> = OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("tilevae-fuzz-{}", std::process::id()));
        let ways = names.iter().map(|name| WAYS.iter().find(|way| way.name == *name).expect("the name of a way"));
        let placed = ways.map(|way| {
            let file = ways::place(way, &folder).expect("a folder for temporary files");
            // What is made once and kept is no matter of a single file.
            std::fs::write(&file, bytes).expect("a folder for temporary files");
            drop(way.read(&file));
            (way, file, way.beside.iter().map(|(_, content)| content.len()).sum())
        });
        placed.collect()
    });
    for (way, file, beside) in target {
        std::fs::write(file, bytes).expect("a folder for temporary files");
        let (_, faults) = measure::read(way, file, bytes.len() + beside);
        assert!(faults.is_empty(), "{}: {}", way.name, faults.join("\n"));
    }
}

/// Changes an input, half of the time as the tests do: with right checksums, and valid text with other values.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    if seed % 2 == 0 {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(u64::from(seed));
    let fresh = damage::damaged(&[data[..size].to_vec()], &mut rng);
    let length = fresh.len().min(max_size);
    data[..length].copy_from_slice(&fresh[..length]);
    length
}
