use cubecl::prelude::*;

/// Samples from -1 to 1 as the nearest of 256 codes, three channels to an f32; NaN where one of them is not finite. Each unit writes one px of
/// `[b, ceil(c / 3), t, h, w]`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn pack<F: Float>(x: &Tensor<F>, y: &mut Tensor<f32>, #[define(F)] _dtype: cubecl::ir::ElemType) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let (channels, groups) = (x.shape(1), y.shape(1));
    let (w, h, t) = (y.shape(4), y.shape(3), y.shape(2));
    let (across, rest) = (ABSOLUTE_POS % w, ABSOLUTE_POS / w);
    let (down, rest) = (rest % h, rest / h);
    let (frame, rest) = (rest % t, rest / t);
    let (group, item) = (rest % groups, rest / groups);
    let px = item * x.stride(0) + frame * x.stride(2) + down * x.stride(3) + across * x.stride(4);
    let mut packed = 0.0f32;
    let mut is_fault = false;
    let mut factor = 1.0f32;
    #[unroll]
    for at in 0..3usize {
        let channel = 3 * group + at;
        if channel < channels {
            let value = f32::cast_from(x[px + channel * x.stride(1)]);
            // False for NaN, too.
            is_fault = is_fault || !(f32::abs(value) <= f32::MAX);
            let level = f32::clamp(value * 0.5f32 + 0.5f32, 0.0f32, 1.0f32);
            packed += f32::floor(level * 255.0f32 + 0.5f32) * factor;
        }
        factor *= 256.0f32;
    }
    if is_fault {
        packed = f32::NAN;
    }
    y[ABSOLUTE_POS] = packed;
}
