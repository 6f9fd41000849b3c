#![no_main]

tilevae_fuzz::target!("device", "fps", "size");
