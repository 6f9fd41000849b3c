#[cfg(feature = "flex")]
mod winograd;

#[cfg(feature = "flex")]
use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;
use burn::tensor::module::{conv2d, conv3d};
use burn::tensor::ops::ConvOptions;
#[cfg(feature = "flex")]
use {
    burn::backend::Flex,
    burn::tensor::{Bytes, DType},
    burn_flex::{FlexTensor, Layout},
};

use super::Precision;

/// A convolution with kernels of 3x3 px, a border of zeros of one px, and with taps in time: of weights that their owner keeps.
///
/// In f32 on Burn's CPU backend, where [`Precision`] allows it and it pays, it is Winograd's algorithm, whose transformed kernels are kept here from the first
/// call on. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Conv3x3 {
    #[cfg(feature = "flex")]
    kernels: Arc<OnceLock<winograd::Kernels>>,
}

impl Conv3x3 {
    /// Over height and width.
    ///
    /// # Shapes
    /// `[b, in, h, w]`, `[out, in, 3, 3]` and `[out]`, to `[b, out, h, w]`.
    pub fn forward(&self, x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>) -> Tensor<4> {
        self.forward_causal(x.unsqueeze_dim(2), weight.unsqueeze_dim(2), bias).squeeze_dim(2)
    }

    /// Over height, width, and each frame with those before it, which are given: `taps - 1` more frames than come out. A lone frame has nothing before it.
    ///
    /// # Shapes
    /// `[b, in, t, h, w]`, `[out, in, taps, 3, 3]` and `[out]`, to `[b, out, t - taps + 1, h, w]`; of one frame to `[b, out, 1, h, w]`.
    pub fn forward_causal(&self, x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>) -> Tensor<5> {
        if Precision::current() == Precision::Fast {
            #[cfg(feature = "remote")]
            if super::remote::takes(&x) {
                return super::remote::conv3x3(x, weight, bias);
            }
            #[cfg(feature = "flex")]
            if super::cpu::takes(&x) && winograd::Kernels::suit([weight.dims()[1], weight.dims()[0]], [x.dims()[3], x.dims()[4]]) {
                return self.by_winograd(x, weight, bias);
            }
        }
        direct(x, weight, bias)
    }

    #[cfg(feature = "flex")]
    fn by_winograd(&self, x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>) -> Tensor<5> {
        let ([batch, channels_in, frames, height, width], [channels_out, _, taps, ..]) = (x.dims(), weight.dims());
        let kernels = self.kernels.get_or_init(|| {
            let weight = weight.into_data();
            let weight = weight.as_slice::<f32>().expect("weights in the dtype of what they meet");
            // The tap of the earliest frame, then of the next: as if the frames were channels.
            let kernel = |out: usize, at: usize| ((out * channels_in + at % channels_in) * taps + at / channels_in) * 9;
            winograd::Kernels::new([taps * channels_in, channels_out], |out, channel| std::array::from_fn(|at| weight[kernel(out, channel) + at]))
        });
        let mut x: FlexTensor = x.try_into_primitive::<Flex>().expect("a tensor on the CPU backend");
        if !(x.is_contiguous() && x.layout().start_offset() == 0) {
            x = x.to_contiguous();
        }
        let values = x.as_slice::<f32>().expect("contiguous f32");
        let bias = bias.into_data();
        let bias = bias.as_slice::<f32>().expect("a bias in the dtype of what it meets");
        let seen = taps.min(frames);
        let frames_out = frames + 1 - seen;
        let mut output = vec![0.0; batch * channels_out * frames_out * height * width];
        let mut planes: Vec<Option<&mut [f32]>> = output.chunks_mut(height * width).map(Some).collect();
        let mut scratch = winograd::Scratch::default();
        for item in 0..batch {
            for frame in 0..frames_out {
                let of_frame = (0..channels_out).map(|out| (item * channels_out + out) * frames_out + frame);
                let mut of_frame: Vec<&mut [f32]> = of_frame.filter_map(|at| planes[at].take()).collect();
                let plane = |channel: usize| {
                    let at = (item * channels_in + channel % channels_in) * frames + frame + channel / channels_in;
                    &values[at * height * width..][..height * width]
                };
                kernels.convolve([height, width], seen * channels_in, plane, bias, &mut of_frame, &mut scratch);
            }
        }
        drop(planes);
        let shape = [batch, channels_out, frames_out, height, width];
        Tensor::from_primitive::<Flex>(FlexTensor::new(Bytes::from_elems(output), Layout::contiguous(shape.into()), DType::F32))
    }
}

/// By Burn's operators. Of a lone frame's kernel only the last tap meets something.
fn direct(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>) -> Tensor<5> {
    if x.dims()[2] > 1 {
        return conv3d(x, weight, Some(bias), ConvOptions::new([1; 3], [0, 1, 1], [1; 3], 1));
    }
    let last = weight.dims()[2] - 1;
    let kernel = if last > 0 { weight.narrow(2, last, 1) } else { weight }.squeeze_dim::<4>(2);
    conv2d(x.squeeze_dim::<4>(2), kernel, Some(bias), ConvOptions::new([1; 2], [1; 2], [1; 2], 1)).unsqueeze_dim(2)
}

/// Convolutions of clients, whose weights a server knows only from call to call: for each that is still in use, what its convolution keeps.
#[cfg(all(feature = "remote", feature = "flex"))]
#[derive(Debug, Default)]
pub(super) struct OfClients(std::sync::Mutex<Vec<(FlexTensor, Conv3x3)>>);

#[cfg(all(feature = "remote", feature = "flex"))]
impl OfClients {
    /// What was kept for these weights. Where they lie tells them apart: what is kept holds them, so nothing else comes to lie there.
    pub(super) fn of(&self, weight: &Tensor<5>) -> Conv3x3 {
        let Ok(weight) = weight.clone().try_into_primitive::<Flex>() else { return Conv3x3::default() };
        let place = |tensor: &FlexTensor| tensor.as_slice::<f32>().map(<[f32]>::as_ptr);
        // Nothing is kept for other dtypes.
        let Some(here) = place(&weight) else { return Conv3x3::default() };
        let mut kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, conv)) = kept.iter().find(|(known, _)| place(known) == Some(here)) {
            return conv.clone();
        }
        // Weights that nobody else holds are those of clients that have gone.
        kept.retain(|(known, _)| !known.is_unique());
        let conv = Conv3x3::default();
        kept.push((weight, conv.clone()));
        conv
    }
}
