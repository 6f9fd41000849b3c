#![no_main]

tilevae_fuzz::target!("wan-config", "wan22-config", "qwen-config");
