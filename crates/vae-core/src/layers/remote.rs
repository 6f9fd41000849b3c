//! Norms, convolutions and attention on devices that another process serves: each is shipped as one operation, which runs there as it would run here, so that the
//! answer has the same bits and one message takes the place of many.

use burn::backend::ir::{BackendIr, CustomOpIr, HandleContainer, ScalarIr, TensorIr};
use burn::backend::{DispatchDevice, DispatchKindConversion, DispatchTensor, Remote};
use burn::remote::CustomOpClient;
use burn::server::RemoteServer;
use burn::tensor::Tensor;
use tiling::Stop;

use super::{Features, Kind, TemporalWindow, attend as attend_here, convolve as convolve_here, norm};
use crate::{Context, MathMode, Precision};

const GROUP_NORM: &str = "tilevae.group_norm";
const RMS_NORM: &str = "tilevae.rms_norm";
const CONVOLUTION: &str = "tilevae.convolution";
const ATTENTION: &str = "tilevae.attention";

/// Whether another process has the tensor.
pub(super) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    matches!(x.device().as_dispatch(), DispatchDevice::Remote(_))
}

pub(super) fn group_norm(x: Tensor<5>, weight: Tensor<1>, bias: Tensor<1>, rule: norm::GroupRule) -> Tensor<5> {
    let norm::GroupRule { groups, epsilon, then_silu } = rule;
    let shape = x.dims();
    let scalars = vec![ScalarIr::UInt(groups as u64), ScalarIr::Float(epsilon), ScalarIr::Bool(then_silu)];
    ship(GROUP_NORM, x, [described(weight), described(bias)].into(), scalars, shape)
}

pub(super) fn rms_norm(x: Tensor<5>, gamma: Tensor<1>, then_silu: bool) -> Tensor<5> {
    let shape = x.dims();
    ship(RMS_NORM, x, vec![described(gamma)], vec![ScalarIr::Bool(then_silu)], shape)
}

/// See [`convolve`](super::convolve); it is rounded as the caller has it.
pub(super) fn convolve(
    x: Tensor<5>,
    weight: Tensor<5>,
    bias: Tensor<1>,
    kind: Kind,
    window: TemporalWindow,
    onto: Option<Tensor<5>>,
    math_mode: MathMode,
) -> Tensor<5> {
    let ([b, _, t, h, w], [out, ..]) = (x.dims(), weight.dims());
    let [h, w] = if kind == Kind::Halving { [h / 2, w / 2] } else { [h, w] };
    let numbers = [kind as usize, window.context, window.stride].map(|number| ScalarIr::UInt(number as u64));
    let scalars = numbers.into_iter().chain(described_math_mode(math_mode)).collect();
    let others = [described(weight), described(bias)].into_iter().chain(onto.map(described)).collect();
    ship(CONVOLUTION, x, others, scalars, [b, out, window.frames(t), h, w])
}

pub(super) fn attend(queries: Tensor<5>, keys: Tensor<5>, values: Tensor<5>, math_mode: MathMode) -> Tensor<5> {
    let shape = queries.dims();
    ship(ATTENTION, queries, [keys, values].map(described).into(), described_math_mode(math_mode).into(), shape)
}

fn described_math_mode(MathMode { precision, tf32 }: MathMode) -> [ScalarIr; 2] {
    [precision == Precision::Strict, tf32].map(ScalarIr::Bool)
}

fn ship<const D: usize>(id: &'static str, x: Tensor<D>, parameters: Vec<TensorIr>, scalars: Vec<ScalarIr>, shape: [usize; D]) -> Tensor<D> {
    let device = x.device();
    let DispatchDevice::Remote(remote) = device.as_dispatch() else { panic!("the tensor is not remote") };
    let client = CustomOpClient::new(remote);
    let answer = TensorIr::uninit(client.create_empty_handle(), shape.into(), x.dtype());
    let mut inputs = vec![described(x)];
    inputs.extend(parameters);
    let mut answers = client.register(CustomOpIr::with_scalars(id, &inputs, &[answer], scalars));
    Tensor::from_primitive::<Remote>(answers.remove(0))
}

fn described<const D: usize>(tensor: Tensor<D>) -> TensorIr {
    match tensor.try_into_primitive::<Remote>() {
        Ok(primitive) => primitive.into_ir(),
        Err(error) => panic!("weights and input of a layer are on one device: {error:?}"),
    }
}

/// A server that runs the layers of clients on the backends of this build.
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
        let [groups, epsilon, then_silu] = &call.scalars[..] else { panic!("{GROUP_NORM} has three numbers") };
        let rule = norm::GroupRule { groups: whole(groups), epsilon: real(epsilon), then_silu: flag(then_silu) };
        let answer = norm::group_norm(
            features::<B>(handles, call, 0, &Context::default()),
            input::<B, 1>(handles, call, 1),
            input::<B, 1>(handles, call, 2),
            rule,
        );
        answered::<B>(handles, call, answer);
    });
    let server = server.with_custom_op::<B, _>(RMS_NORM, |handles, call, _| {
        let answer = norm::rms_norm(features::<B>(handles, call, 0, &Context::default()), input::<B, 1>(handles, call, 1), flag(&call.scalars[0]));
        answered::<B>(handles, call, answer);
    });
    let server = server.with_custom_op::<B, _>(ATTENTION, |handles, call, _| {
        let context = Context::new(math_mode(&call.scalars), &Stop::default());
        let [queries, keys, values] = [0, 1, 2].map(|at| features::<B>(handles, call, at, &context));
        answered::<B>(handles, call, attend_here(queries, keys, values));
    });
    server.with_custom_op::<B, _>(CONVOLUTION, |handles, call, _| {
        let [kind, context, stride, rounded @ ..] = &call.scalars[..] else { panic!("{CONVOLUTION} has three numbers") };
        let kind = [Kind::Same, Kind::Point, Kind::Halving][whole(kind)];
        let window = TemporalWindow { context: whole(context), stride: whole(stride) };
        let context = Context::new(math_mode(rounded), &Stop::default());
        let (x, weight, bias) = (features::<B>(handles, call, 0, &context), input::<B, 5>(handles, call, 1), input::<B, 1>(handles, call, 2));
        let onto = (call.inputs.len() > 3).then(|| features::<B>(handles, call, 3, &context));
        answered::<B>(handles, call, convolve_here(x, weight, bias, kind, window, onto));
    })
}

fn features<B: BackendIr>(handles: &mut HandleContainer<B::Handle>, call: &CustomOpIr, at: usize, context: &Context) -> Features
where
    DispatchTensor: DispatchKindConversion<B>,
{
    Features::new(input::<B, 5>(handles, call, at), context)
}

fn input<B: BackendIr, const D: usize>(handles: &mut HandleContainer<B::Handle>, call: &CustomOpIr, at: usize) -> Tensor<D>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    Tensor::from_primitive::<B>(handles.get_float_tensor::<B>(&call.inputs[at]))
}

fn answered<B: BackendIr>(handles: &mut HandleContainer<B::Handle>, call: &CustomOpIr, answer: Features)
where
    DispatchTensor: DispatchKindConversion<B>,
{
    match Tensor::from(answer).try_into_primitive::<B>() {
        Ok(answer) => handles.register_float_tensor::<B>(&call.outputs[0].id, answer),
        Err(error) => panic!("a layer stays on its backend: {error:?}"),
    }
}

fn math_mode(scalars: &[ScalarIr]) -> MathMode {
    let [strict, tf32] = scalars else { panic!("roundings have two flags") };
    MathMode { precision: if flag(strict) { Precision::Strict } else { Precision::Fast }, tf32: flag(tf32) }
}

fn whole(scalar: &ScalarIr) -> usize {
    match *scalar {
        ScalarIr::UInt(value) => usize::try_from(value).unwrap_or(usize::MAX),
        ScalarIr::Int(value) => usize::try_from(value).unwrap_or(0),
        ref other => panic!("{other:?} is no number of groups"),
    }
}

fn real(scalar: &ScalarIr) -> f64 {
    match *scalar {
        ScalarIr::Float(value) => value,
        ref other => panic!("{other:?} is no real number"),
    }
}

fn flag(scalar: &ScalarIr) -> bool {
    matches!(scalar, ScalarIr::Bool(true))
}
