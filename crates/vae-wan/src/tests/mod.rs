//! Against golden files that `tools/make_fixtures.py` writes from diffusers.

mod conformance;
mod golden;
mod layouts;
mod plans;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use tiling::Block;
use vae_core::{Model, Registry, Vae, VaeEntry};

static ENTRIES: [VaeEntry; 2] = [VaeEntry::of::<crate::Wan>("vae-wan"), VaeEntry::of::<crate::QwenImage>("vae-wan")];

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn open(path: &Path) -> Model {
    Model::open(&Registry::from_entries(&ENTRIES).unwrap(), path, "auto", None).unwrap()
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

    /// `[b, c, t, h, w]`, from f32 or f16.
    fn block(&self, name: &str) -> Block {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let view = tensors.tensor(name).unwrap();
        let &[b, c, t, h, w] = view.shape() else { panic!("{name} is not a clip") };
        let values = match view.dtype() {
            Dtype::F32 => view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            _ => view.data().as_chunks().0.iter().map(|&bytes| burn::tensor::f16::from_le_bytes(bytes).to_f32()).collect(),
        };
        Block::new([b, c, t, h, w], values).unwrap()
    }

    fn tensor(&self, name: &str) -> Tensor<5> {
        let block = self.block(name);
        let shape = block.shape();
        Tensor::from_data(TensorData::new(block.into_data(), shape), &Device::flex())
    }
}

fn to_block(tensor: Tensor<5>) -> Block {
    Block::new(tensor.dims(), tensor.into_data().try_into_vec().unwrap()).unwrap()
}

fn worst_difference(got: &Block, expected: &Block) -> f32 {
    got.data().iter().zip(expected.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[track_caller]
fn assert_close(got: &Block, expected: &Block, tolerance: f32, what: &str) {
    assert_eq!(got.shape(), expected.shape(), "{what}");
    let worst = worst_difference(got, expected);
    assert!(worst <= tolerance, "{what}: max |diff| {worst:e} > {tolerance:e}");
}
