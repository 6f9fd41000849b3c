vae_core::vae_conformance!(crate::Kl, concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/flux"), burn::tensor::Device::flex());
