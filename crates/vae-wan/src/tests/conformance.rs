use burn::tensor::DType;
use tiling::HostTensor;
use vae_core::{Context, VaeError};

use super::{data, load, to_host, to_tensor};

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

#[test]
fn a_single_frame_is_computed_alike_without_a_frame_cache() {
    for config in ["wan21", "wan22", "qwen"] {
        let vae = load(&data(config), DType::F32);
        let spec = vae.spec();
        let shape = |channels, side| [1, channels, 1, 4 * side, 6 * side];
        let noise = |shape| HostTensor::from_fn(shape, |[_, c, _, y, x]| ((c * 31 + y * 17 + x * 3) % 23) as f32 / 11.0 - 1.0);
        let latents = || to_tensor(noise(shape(spec.latent_channels, 1)));
        let samples = || to_tensor(noise(shape(spec.input_channels, spec.spatial_ratio)));
        let context = Context::default();
        let single = context.clone().with_single_chunk(true);
        let streams = |context: &Context| [(vae.decode_stream(context), latents()), (vae.encode_stream(context), samples())];
        for ((mut alone, input), (mut first, same)) in streams(&single).into_iter().zip(streams(&context)) {
            let output = alone(input.clone()).unwrap();
            assert_eq!(to_host(output), to_host(first(same).unwrap()), "{config}");
            assert!(matches!(alone(input), Err(VaeError::SecondChunk)), "{config}");
        }
    }
}
