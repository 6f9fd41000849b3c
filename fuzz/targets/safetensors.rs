#![no_main]

tilevae_fuzz::target!("safetensors", "latent");
