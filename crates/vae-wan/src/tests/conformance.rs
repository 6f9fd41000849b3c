macro_rules! conformance {
    ($($name:ident, $family:ty, $folder:literal;)*) => {
        $(
            mod $name {
                vae_core::vae_conformance!($family, concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/", $folder), vae_core::testing::device());
            }
        )*
    };
}

conformance! {
    wan21, crate::Wan, "wan21";
    wan22, crate::Wan, "wan22";
    odd, crate::Wan, "odd";
    qwen, crate::QwenImage, "qwen";
}
