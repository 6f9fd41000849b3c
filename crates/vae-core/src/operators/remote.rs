//! Norms, convolutions and attention on devices that another process serves. Each is sent as one operation, which runs there as it would run here: the result
//! has the same bits, and one message takes the place of many.

use burn::backend::ir::{CustomOpIr, ScalarIr, TensorIr};
use burn::backend::{DispatchDevice, Remote as RemoteBackend};
use burn::remote::CustomOpClient;
use burn::tensor::Tensor;

use super::activation::Activation;
use super::convolution::{Convolution, Padding, TemporalWindow};
use super::group_norm::GroupNormParameters;
use super::interface::Operators;
use crate::{Context, MathMode, Precision};

pub(crate) const GROUP_NORM: &str = "tilevae.group_norm.2";
pub(crate) const RMS_NORM: &str = "tilevae.rms_norm.2";
pub(crate) const CONVOLUTION: &str = "tilevae.convolution.3";
pub(crate) const ATTENTION: &str = "tilevae.attention.2";

/// Operators on tensors of Burn's remote backend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Remote;

impl Operators for Remote {
    type Data = Tensor<5>;

    fn import_tensor(&self, x: Tensor<5>, _: &Context) -> Tensor<5> {
        x
    }

    fn export_tensor(&self, x: Tensor<5>) -> Tensor<5> {
        x
    }

    fn dims(&self, x: &Tensor<5>) -> [usize; 5] {
        x.dims()
    }

    fn convolve(&self, x: Tensor<5>, convolution: &Convolution, residual: Option<Tensor<5>>, context: &Context) -> Tensor<5> {
        let dims = convolution.output_dims(x.dims());
        let scalars = ConvolutionScalars::of(convolution, residual.is_some(), context.math_mode()).encode();
        let weight = described(convolution.weight.clone());
        let operands = [weight].into_iter().chain(convolution.bias.clone().map(described)).chain(residual.map(described)).collect();
        send(CONVOLUTION, x, operands, scalars, dims)
    }

    fn group_norm(&self, x: Tensor<5>, norm: &GroupNormParameters, activation: Activation, _: &Context) -> Tensor<5> {
        let dims = x.dims();
        let scalars = vec![ScalarIr::UInt(norm.groups as u64), ScalarIr::Float(norm.epsilon), encode_activation(activation)];
        send(GROUP_NORM, x, [&norm.weight, &norm.bias].map(|parameter| described(parameter.clone())).into(), scalars, dims)
    }

    fn rms_norm(&self, x: Tensor<5>, gamma: Tensor<1>, activation: Activation, _: &Context) -> Tensor<5> {
        let dims = x.dims();
        send(RMS_NORM, x, vec![described(gamma)], vec![encode_activation(activation)], dims)
    }

    fn attend(&self, queries: Tensor<5>, keys: Tensor<5>, values: Tensor<5>, context: &Context) -> Tensor<5> {
        let ([b, _, t, h, w], [_, c, ..]) = (queries.dims(), values.dims());
        send(ATTENTION, queries, [keys, values].map(described).into(), encode_math_mode(context.math_mode()).into(), [b, c, t, h, w])
    }
}

fn send<const D: usize>(id: &'static str, x: Tensor<D>, operands: Vec<TensorIr>, scalars: Vec<ScalarIr>, shape: [usize; D]) -> Tensor<D> {
    let device = x.device();
    let DispatchDevice::Remote(remote) = device.as_dispatch() else { panic!("the tensor is not remote") };
    let client = CustomOpClient::new(remote);
    let output = TensorIr::uninit(client.create_empty_handle(), shape.into(), x.dtype());
    let mut inputs = vec![described(x)];
    inputs.extend(operands);
    let mut outputs = client.register(CustomOpIr::with_scalars(id, &inputs, &[output], scalars));
    Tensor::from_primitive::<RemoteBackend>(outputs.remove(0))
}

fn described<const D: usize>(tensor: Tensor<D>) -> TensorIr {
    match tensor.try_into_primitive::<RemoteBackend>() {
        Ok(primitive) => primitive.into_ir(),
        Err(error) => panic!("weights and input of a layer are on one device: {error:?}"),
    }
}

/// What of a convolution is not a tensor.
pub(crate) struct ConvolutionScalars {
    pub(crate) stride: [usize; 2],
    pub(crate) padding: Padding,
    pub(crate) window: TemporalWindow,
    pub(crate) has_bias: bool,
    pub(crate) has_residual: bool,
    pub(crate) math_mode: MathMode,
}

impl ConvolutionScalars {
    fn of(convolution: &Convolution, has_residual: bool, math_mode: MathMode) -> Self {
        let Convolution { bias, stride, padding, window, .. } = convolution;
        Self { stride: *stride, padding: *padding, window: *window, has_bias: bias.is_some(), has_residual, math_mode }
    }

    fn encode(&self) -> Vec<ScalarIr> {
        let Self { stride, padding: Padding { top, bottom, left, right }, window: TemporalWindow { context, stride: frames }, .. } = *self;
        let numbers = [stride[0], stride[1], context, frames].map(|number| ScalarIr::UInt(number as u64));
        let numbers = numbers.into_iter().chain([top, bottom, left, right].map(|number| ScalarIr::Int(number as i64)));
        let flags = [self.has_bias, self.has_residual].map(ScalarIr::Bool);
        numbers.chain(flags).chain(encode_math_mode(self.math_mode)).collect()
    }

    pub(crate) fn decode(scalars: &[ScalarIr]) -> Self {
        let [numbers @ .., has_bias, has_residual, _, _] = scalars else { panic!("a convolution has twelve scalars") };
        let [height, width, context, frames, sides @ ..] = numbers else { panic!("a convolution has eight numbers") };
        let [height, width, context, frames] = [height, width, context, frames].map(decode_number);
        let sides: Vec<isize> = sides.iter().map(decode_side).collect();
        let [top, bottom, left, right] = sides[..] else { panic!("a convolution has eight numbers") };
        Self {
            stride: [height, width],
            padding: Padding { top, bottom, left, right },
            window: TemporalWindow { context, stride: frames },
            has_bias: decode_flag(has_bias),
            has_residual: decode_flag(has_residual),
            math_mode: decode_math_mode(&scalars[scalars.len() - 2..]),
        }
    }
}

fn encode_math_mode(MathMode { precision, tf32 }: MathMode) -> [ScalarIr; 2] {
    [precision == Precision::Strict, tf32].map(ScalarIr::Bool)
}

pub(crate) fn decode_math_mode(scalars: &[ScalarIr]) -> MathMode {
    let [strict, tf32] = scalars else { panic!("a math mode has two flags") };
    MathMode { precision: if decode_flag(strict) { Precision::Strict } else { Precision::Fast }, tf32: decode_flag(tf32) }
}

const ACTIVATIONS: [Activation; 5] = [Activation::None, Activation::Silu, Activation::Relu, Activation::Mish, Activation::Gelu];

fn encode_activation(activation: Activation) -> ScalarIr {
    let at = ACTIVATIONS.iter().position(|&known| known == activation);
    ScalarIr::UInt(at.expect("the list has all of them") as u64)
}

pub(crate) fn decode_activation(scalar: &ScalarIr) -> Activation {
    ACTIVATIONS[decode_number(scalar)]
}

pub(crate) fn decode_number(scalar: &ScalarIr) -> usize {
    match *scalar {
        ScalarIr::UInt(value) => usize::try_from(value).unwrap_or(usize::MAX),
        ScalarIr::Int(value) => usize::try_from(value).unwrap_or(0),
        ref other => panic!("{other:?} is not a whole number"),
    }
}

fn decode_side(scalar: &ScalarIr) -> isize {
    match *scalar {
        ScalarIr::Int(value) => isize::try_from(value).unwrap_or(0),
        ref other => panic!("{other:?} is not a whole number"),
    }
}

pub(crate) fn decode_float(scalar: &ScalarIr) -> f64 {
    match *scalar {
        ScalarIr::Float(value) => value,
        ref other => panic!("{other:?} is not a float"),
    }
}

fn decode_flag(scalar: &ScalarIr) -> bool {
    matches!(scalar, ScalarIr::Bool(true))
}
