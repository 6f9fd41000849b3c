#![no_main]

tilevae_fuzz::target!("y4m");
