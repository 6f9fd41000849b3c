#![no_main]

tilevae_fuzz::target!("kl-config");
