#![no_main]

tilevae_fuzz::target!("override");
