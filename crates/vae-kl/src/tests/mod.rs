//! Against golden files that `tools/make_fixtures.py` writes from diffusers.

mod conformance;
mod files;
mod golden;
mod layouts;
mod plans;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::DType;
use vae_core::testing::{Golden, device};
use vae_core::{Model, Registry, Vae, VaeEntry};

static ENTRY: VaeEntry = VaeEntry::of::<crate::Kl>("vae-kl");

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn open(path: &Path) -> Model {
    Model::open(&Registry::from_entries([&ENTRY]).unwrap(), path, "auto", None).unwrap()
}

fn load(path: &Path, dtype: DType) -> Arc<dyn Vae> {
    open(path).load(&device(), dtype).unwrap().into()
}

fn golden(config: &str) -> Golden {
    Golden::read(&data(config).join("golden.safetensors"))
}
