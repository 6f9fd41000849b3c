#![no_main]

tilevae_fuzz::target!("legacy-pickle");
