//! The server's side of operations on remote devices.

use burn::backend::ir::{BackendIr, CustomOpIr, HandleContainer};
use burn::backend::{DispatchKindConversion, DispatchTensor};
use burn::server::RemoteServer;
use burn::tensor::Tensor;
use tiling::Stop;

use crate::layers::Features;
use crate::operators::remote::{
    ATTENTION, CONVOLUTION, ConvolutionScalars, GROUP_NORM, RMS_NORM, decode_activation, decode_float, decode_math_mode, decode_number,
};
use crate::operators::{Convolution, GroupNormParameters};
use crate::{Context, MathMode};

/// Lets a server run the operations of its clients on the backends of this build.
#[must_use]
pub fn host_remotely(server: RemoteServer) -> RemoteServer {
    #[cfg(feature = "flex")]
    let server = host::<burn::backend::Flex>(server);
    #[cfg(feature = "ndarray")]
    let server = host::<burn::backend::NdArray>(server);
    #[cfg(feature = "cube")]
    let server = host::<burn::backend::Cube>(server);
    server
}

fn host<B: BackendIr>(server: RemoteServer) -> RemoteServer
where
    DispatchTensor: DispatchKindConversion<B>,
{
    let server = server.with_custom_op::<B, _>(GROUP_NORM, |handles, call, _| {
        let [groups, epsilon, activation] = &call.scalars[..] else { panic!("{GROUP_NORM} has three scalars") };
        let [weight, bias] = [1, 2].map(|at| input::<B, 1>(handles, call, at));
        let norm = GroupNormParameters { groups: decode_number(groups), epsilon: decode_float(epsilon), weight, bias };
        let x = features::<B>(handles, call, 0, MathMode::default());
        answer::<B>(handles, call, x.group_norm(&norm, decode_activation(activation)));
    });
    let server = server.with_custom_op::<B, _>(RMS_NORM, |handles, call, _| {
        let [activation] = &call.scalars[..] else { panic!("{RMS_NORM} has one scalar") };
        let x = features::<B>(handles, call, 0, MathMode::default());
        let gamma = input::<B, 1>(handles, call, 1);
        answer::<B>(handles, call, x.rms_norm(gamma, decode_activation(activation)));
    });
    let server = server.with_custom_op::<B, _>(ATTENTION, |handles, call, _| {
        let math_mode = decode_math_mode(&call.scalars);
        let [queries, keys, values] = [0, 1, 2].map(|at| features::<B>(handles, call, at, math_mode));
        answer::<B>(handles, call, queries.attend(keys, values));
    });
    server.with_custom_op::<B, _>(CONVOLUTION, |handles, call, _| {
        let ConvolutionScalars { stride, padding, window, has_bias, has_residual, math_mode } = ConvolutionScalars::decode(&call.scalars);
        let bias = has_bias.then(|| input::<B, 1>(handles, call, 2));
        let residual = has_residual.then(|| features::<B>(handles, call, 2 + usize::from(has_bias), math_mode));
        let convolution = Convolution { weight: input::<B, 5>(handles, call, 1), bias, stride, padding, window };
        let x = features::<B>(handles, call, 0, math_mode);
        answer::<B>(handles, call, x.convolve(&convolution, residual));
    })
}

fn features<B: BackendIr>(handles: &mut HandleContainer<B::Handle>, call: &CustomOpIr, at: usize, math_mode: MathMode) -> Features
where
    DispatchTensor: DispatchKindConversion<B>,
{
    Features::new(input::<B, 5>(handles, call, at), &Context::new(math_mode, &Stop::default()))
}

fn input<B: BackendIr, const D: usize>(handles: &mut HandleContainer<B::Handle>, call: &CustomOpIr, at: usize) -> Tensor<D>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    Tensor::from_primitive::<B>(handles.get_float_tensor::<B>(&call.inputs[at]))
}

fn answer<B: BackendIr>(handles: &mut HandleContainer<B::Handle>, call: &CustomOpIr, answer: Features)
where
    DispatchTensor: DispatchKindConversion<B>,
{
    match Tensor::from(answer).try_into_primitive::<B>() {
        Ok(answer) => handles.register_float_tensor::<B>(&call.outputs[0].id, answer),
        Err(error) => panic!("a layer stays on its backend: {error:?}"),
    }
}
