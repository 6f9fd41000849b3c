use burn::tensor::Tensor;
use burn::tensor::module::{conv2d, conv3d};
use burn::tensor::ops::ConvOptions;

/// What is convolved over height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Kernels of 3x3 px, and a border of zeros of one px.
    Same,
    /// Kernels of 1x1 px.
    Point,
    /// Kernels of 3x3 px with stride 2; one row of zeros below and one column to the right (diffusers, `Downsample2D` with `padding=0`).
    Halving,
}

/// A convolution over height, width, and each frame with those before it, which are given: `taps - 1` more frames than come out. A lone frame has nothing
/// before it.
///
/// In f32 on Burn's CPU backend it is one of [`kernels`], which does with fewer products what [`Precision`](super::Precision) allows; elsewhere Burn's.
///
/// # Shapes
/// `[b, in, t, h, w]`, `[out, in, taps, kernel, kernel]` and `[out]`, to `[b, out, t - taps + 1, h', w']`; of one frame to `[b, out, 1, h', w']`.
pub fn convolve(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>, kind: Kind) -> Tensor<5> {
    #[cfg(feature = "remote")]
    if super::remote::takes(&x) {
        return super::remote::convolve(x, weight, bias, kind);
    }
    #[cfg(feature = "flex")]
    if super::cpu::takes(&x) {
        return super::cpu::convolve(x, weight, bias, kind);
    }
    by_operators(x, weight, bias, kind)
}

/// Of a lone frame's kernel only the last tap meets something.
fn by_operators(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>, kind: Kind) -> Tensor<5> {
    let (stride, before, after) = match kind {
        Kind::Same => (1, 1, 1),
        Kind::Point => (1, 0, 0),
        Kind::Halving => (2, 0, 1),
    };
    let [batch, _, frames, ..] = x.dims();
    let taps = weight.dims()[2];
    if frames > 1 && taps > 1 {
        return conv3d(x, weight, Some(bias), ConvOptions::new([1, stride, stride], [0, before, before], [1; 3], 1));
    }
    let kernel = if taps > 1 { weight.narrow(2, taps - 1, 1) } else { weight }.squeeze_dim::<4>(2);
    let options = ConvOptions::new_with_padding([stride; 2], [(before, after); 2], [1, 1], 1);
    let [_, c, _, h, w] = x.dims();
    let pictures = if frames > 1 { x.swap_dims(1, 2).reshape([batch * frames, c, h, w]) } else { x.squeeze_dim(2) };
    let y = conv2d(pictures, kernel, Some(bias), options);
    let [_, c, h, w] = y.dims();
    if frames > 1 { y.reshape([batch, frames, c, h, w]).swap_dims(1, 2) } else { y.unsqueeze_dim(2) }
}
