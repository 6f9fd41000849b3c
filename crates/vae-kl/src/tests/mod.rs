//! Against golden files that `tools/make_fixtures.py` writes from diffusers.

mod conformance;
mod golden;
mod layouts;
mod plans;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device};
use safetensors::SafeTensors;
use tiling::Block;
use vae_core::{Model, Registry, Vae, VaeEntry};

static ENTRY: VaeEntry = VaeEntry::of::<crate::Kl>("vae-kl");

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn open(path: &Path) -> Model {
    Model::open(&Registry::from_entries([&ENTRY]).unwrap(), path, "auto", None).unwrap()
}

fn load(path: &Path, dtype: DType) -> Arc<dyn Vae> {
    open(path).load(&Device::flex(), dtype).unwrap().into()
}

/// The tensors of a golden file.
struct Golden(Vec<u8>);

impl Golden {
    fn read(config: &str) -> Self {
        Self(std::fs::read(data(config).join("golden.safetensors")).unwrap())
    }

    fn names(&self) -> Vec<String> {
        SafeTensors::deserialize(&self.0).unwrap().names().into_iter().map(str::to_owned).collect()
    }

    /// `[b, c, h, w]` as `[b, c, 1, h, w]`.
    fn block(&self, name: &str) -> Block {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let view = tensors.tensor(name).unwrap();
        let &[b, c, h, w] = view.shape() else { panic!("{name} is not an image") };
        let values = view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        Block::new([b, c, 1, h, w], values.collect()).unwrap()
    }
}

#[track_caller]
fn assert_close(got: &Block, expected: &Block, tolerance: f32, what: &str) {
    assert_eq!(got.shape(), expected.shape(), "{what}");
    let worst = got.data().iter().zip(expected.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: max |diff| {worst:e} > {tolerance:e}");
}
