use burn::tensor::ops::ConvOptions;
use burn::tensor::{Tensor, module};

use super::Features;
use super::features::Layout;
use crate::MathMode;

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

/// Which frames a kernel of several frames sees: for the first frame that comes out up to the one with the index `context`, for each further one `stride` more.
/// What would lie before the first frame is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemporalWindow {
    /// Frames that are only there to be seen.
    pub context: usize,
    /// Frames that go in for each that comes out.
    pub stride: usize,
}

impl TemporalWindow {
    /// A frame comes out for each.
    pub const EACH: Self = Self { context: 0, stride: 1 };

    /// Frames that come out.
    pub(super) fn frames(self, given: usize) -> usize {
        given.saturating_sub(self.context).div_ceil(self.stride)
    }
}

/// A convolution over height, width, and each frame with those before it; with `onto`, added to that.
///
/// In f32 on Burn's CPU backend it is one of [`kernels`], which does with fewer products what [`Precision`](crate::Precision) allows; elsewhere Burn's.
///
/// # Shapes
/// `[b, in, t, h, w]`, `[out, in, kernel_frames, kernel, kernel]` and `[out]`, to `[b, out, t', h', w']`.
pub fn convolve(x: Features, weight: Tensor<5>, bias: Tensor<1>, kind: Kind, window: TemporalWindow, onto: Option<Features>) -> Features {
    let context = x.context;
    context.check_stop();
    let math_mode = context.math_mode();
    let layout = match (x.layout, onto.map(|onto| onto.layout)) {
        #[cfg(feature = "flex")]
        (Layout::Images(x), None) => Layout::Images(x.convolved(weight, bias, kind, window, None, math_mode.precision)),
        #[cfg(feature = "flex")]
        (Layout::Images(x), Some(Layout::Images(onto))) => Layout::Images(x.convolved(weight, bias, kind, window, Some(onto), math_mode.precision)),
        (x, onto) => {
            let x = x.into_tensor();
            #[cfg(feature = "remote")]
            if super::remote::takes(&x) {
                let y = super::remote::convolve(x, weight, bias, kind, window, onto.map(Layout::into_tensor), math_mode);
                return Features { layout: Layout::Tensor(y), context };
            }
            let y = by_operators(x, weight, bias, kind, window, math_mode);
            Layout::Tensor(match onto {
                Some(onto) => y + onto.into_tensor(),
                None => y,
            })
        }
    };
    Features { layout, context }
}

fn by_operators(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>, kind: Kind, window: TemporalWindow, math_mode: MathMode) -> Tensor<5> {
    let (stride, before, after) = match kind {
        Kind::Same => (1, 1, 1),
        Kind::Point => (1, 0, 0),
        Kind::Halving => (2, 0, 1),
    };
    let [b, c, frames, h, w] = x.dims();
    let [out, _, kernel_frames, ..] = weight.dims();
    let missing = (kernel_frames - 1).saturating_sub(window.context);
    // Of a lone frame's kernel only the last tap meets something.
    let (weight, kernel_frames, missing) =
        if frames == 1 { (weight.narrow(2, kernel_frames - 1, 1), 1, 0) } else { (weight, kernel_frames, missing) };
    if kernel_frames == 1 {
        assert!(window == TemporalWindow::EACH || frames == 1, "a kernel of one frame sees each frame");
        let t = frames;
        let options = ConvOptions::new_with_padding([stride; 2], [(before, after); 2], [1, 1], 1);
        let pictures = if t > 1 { x.swap_dims(1, 2).reshape([b * t, c, h, w]) } else { x.reshape([b * t, c, h, w]) };
        let y = conv2d(pictures, weight.squeeze_dim(2), bias, options, math_mode);
        let [_, c, h, w] = y.dims();
        return if t > 1 { y.reshape([b, t, c, h, w]).swap_dims(1, 2) } else { y.unsqueeze_dim(2) };
    }
    let x = x.narrow(2, window.context.saturating_sub(kernel_frames - 1), frames - window.context.saturating_sub(kernel_frames - 1));
    let x = if missing == 0 { x } else { Tensor::cat(vec![Tensor::zeros([b, c, missing, h, w], (&x.device(), x.dtype())), x], 2) };
    if kind == Kind::Point {
        let [.., t, _, _] = x.dims();
        let kernel = weight.squeeze_dim::<4>(4);
        let y = conv2d(x.reshape([b, c, t, h * w]), kernel, bias, ConvOptions::new([window.stride, 1], [0, 0], [1, 1], 1), math_mode);
        let t = y.dims()[2];
        return y.reshape([b, out, t, h, w]);
    }
    assert!(kind == Kind::Same, "kernels of several frames keep the size or have one px");
    conv3d(x, weight, bias, ConvOptions::new([window.stride, 1, 1], [0, 1, 1], [1; 3], 1), math_mode)
}

#[cfg_attr(not(feature = "cube"), expect(unused_variables, reason = "a setting of GPUs"))]
fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, options: ConvOptions<2>, math_mode: MathMode) -> Tensor<4> {
    #[cfg(feature = "cube")]
    if super::gpu::takes(&x) {
        return super::gpu::conv2d(x, weight, bias, options, math_mode);
    }
    module::conv2d(x, weight, Some(bias), options)
}

#[cfg_attr(not(feature = "cube"), expect(unused_variables, reason = "a setting of GPUs"))]
fn conv3d(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>, options: ConvOptions<3>, math_mode: MathMode) -> Tensor<5> {
    #[cfg(feature = "cube")]
    if super::gpu::takes(&x) {
        return super::gpu::conv3d(x, weight, bias, options, math_mode);
    }
    module::conv3d(x, weight, Some(bias), options)
}
