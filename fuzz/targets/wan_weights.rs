#![no_main]

tilevae_fuzz::target!("wan-weights", "wan22-weights", "qwen-weights");
