vae_core::vae_conformance!(crate::Kl, concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/flux"), vae_core::testing::device());
