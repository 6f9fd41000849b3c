#![no_main]

tilevae_fuzz::target!("webp", "webp-clip");
