//! Against golden files that `tools/make_fixtures.py` writes from diffusers.

mod conformance;
mod files;
mod golden;
mod layouts;
mod plans;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};
use tiling::HostTensor;
use vae_core::testing::{Golden, device};
use vae_core::{Model, Registry, Vae, VaeEntry};

static ENTRIES: [VaeEntry; 2] = [VaeEntry::of::<crate::Wan>("vae-wan"), VaeEntry::of::<crate::QwenImage>("vae-wan")];

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn open(path: &Path) -> Model {
    Model::open(&Registry::from_entries(&ENTRIES).unwrap(), path, "auto", None).unwrap()
}

fn load(path: &Path, dtype: DType) -> Arc<dyn Vae> {
    open(path).load(&device(), dtype).unwrap().into()
}

fn golden(config: &str) -> Golden {
    Golden::read(&data(config).join("golden.safetensors"))
}

fn to_tensor(block: HostTensor) -> Tensor<5> {
    let shape = block.shape();
    Tensor::from_data(TensorData::new(block.into_data(), shape), &device())
}

fn to_host(tensor: Tensor<5>) -> HostTensor {
    HostTensor::new(tensor.dims(), tensor.into_data().try_into_vec().unwrap()).unwrap()
}
