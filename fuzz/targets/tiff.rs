#![no_main]

tilevae_fuzz::target!("tiff", "tiff-pages");
