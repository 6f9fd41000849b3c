#![no_main]

tilevae_fuzz::target!("pickle", "wan-pickle");
