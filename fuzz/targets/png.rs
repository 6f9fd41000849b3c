#![no_main]

tilevae_fuzz::target!("png", "apng");
