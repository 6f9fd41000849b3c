//! Norms, convolutions and attention on GPUs, as kernels for every runtime of CubeCL (CUDA, Vulkan, Metal, wgpu). Statistics are f32 whatever the dtype.
//! Tensors are read in the memory layout that they have: convolutions give channels-last, other operators channels-first. Kernels use no shared memory and no
//! synchronisation, because Mesa's software driver (22.3) crashes on kernels that do; and sums have a fixed order, so every run gives the same bits.

mod kernels;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, DispatchDevice, DispatchTensor, backend_extension};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, FloatDType, Shape, Tensor, module};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::conv::{ConvStrategy, conv_forward};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::permute_nhwc_to_nchw;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::{CubeCount, CubeDim, calculate_cube_count_elemwise};

use super::activation::Activation;
use super::convolution::Convolution;
use super::group_norm::{GroupMoments, GroupNormParameters, TensorMoments};
use super::interface::Operators;
use super::plain::{self, Primitives};
use crate::{Context, MathMode};

/// Operators on tensors of Burn's CubeCL backend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cube;

impl Operators for Cube {
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
        plain::convolve(&Gpu(context.math_mode()), x, convolution, residual)
    }

    fn group_moments(&self, x: &Tensor<5>, groups: usize) -> GroupMoments {
        let [_, c, _, h, w] = x.dims();
        let values = Tensor::from_dispatch(Dispatch::group_moments(x.clone().into_dispatch(), groups));
        GroupMoments::Device(TensorMoments { count: (c / groups * h * w) as f64, values })
    }

    fn apply_group_norm(&self, x: Tensor<5>, moments: GroupMoments, norm: &GroupNormParameters, activation: Activation, _: &Context) -> Tensor<5> {
        let moments = moments.on(&x.device()).values;
        let [weight, bias] = [&norm.weight, &norm.bias].map(|parameter| parameter.clone().into_dispatch());
        let (fused, rest) = split(activation);
        let y = Dispatch::apply_group_norm(x.into_dispatch(), moments.into_dispatch(), weight, bias, norm.epsilon as f32, fused);
        plain::activate(Tensor::from_dispatch(y), rest)
    }

    fn rms_norm(&self, x: Tensor<5>, gamma: Tensor<1>, activation: Activation, _: &Context) -> Tensor<5> {
        let (fused, rest) = split(activation);
        plain::activate(Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), gamma.into_dispatch(), fused)), rest)
    }

    fn attend(&self, queries: Tensor<5>, keys: Tensor<5>, values: Tensor<5>, context: &Context) -> Tensor<5> {
        plain::attend(&Gpu(context.math_mode()), [queries, keys, values], context)
    }
}

/// Whether the kernels of norms apply SiLU, and the activation that is left.
fn split(activation: Activation) -> (bool, Activation) {
    if activation == Activation::Silu { (true, Activation::None) } else { (false, activation) }
}

/// Of Burn's convolutions and matrix products the fastest that the math mode allows.
struct Gpu(MathMode);

impl Gpu {
    /// Whether products are summed one by one, in f32: where TF32 is not allowed, which Burn's fast kernels use unasked, and on Mesa's software device, whose
    /// driver (22.3) crashes on most of them.
    fn is_direct<const D: usize>(&self, x: &Tensor<D>) -> bool {
        match x.device().as_dispatch() {
            DispatchDevice::Cube(cube) => {
                let client = cube.client();
                let device = client.properties();
                let would_be_tf32 = x.dtype() == DType::F32 && device.supports_type(ElemType::Float(FloatKind::TF32));
                (would_be_tf32 && !self.0.tf32) || device.identity.name.contains("llvmpipe")
            }
            #[allow(unreachable_patterns, reason = "there may be no other backends in a build")]
            _ => false,
        }
    }

    fn matmul(&self, left: Tensor<3>, right: Tensor<3>) -> Tensor<3> {
        if self.is_direct(&left) {
            return Tensor::from_dispatch(Dispatch::product(left.into_dispatch(), right.into_dispatch()));
        }
        left.matmul(right)
    }
}

impl Primitives for Gpu {
    fn conv2d(&self, x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, options: ConvOptions<2>) -> Tensor<4> {
        if self.is_direct(&x) {
            let (dtype, bias) = (x.dtype(), bias_or_zeros(bias, &weight));
            let y = Dispatch::direct_conv2d(widened(x), widened(weight), widened(bias), options);
            return Tensor::<4>::from_dispatch(y).cast(dtype);
        }
        module::conv2d(x, weight, bias, options)
    }

    fn conv3d(&self, x: Tensor<5>, weight: Tensor<5>, bias: Option<Tensor<1>>, options: ConvOptions<3>) -> Tensor<5> {
        if self.is_direct(&x) {
            let (dtype, bias) = (x.dtype(), bias_or_zeros(bias, &weight));
            let y = Dispatch::direct_conv3d(widened(x), widened(weight), widened(bias), options);
            return Tensor::<5>::from_dispatch(y).cast(dtype);
        }
        module::conv3d(x, weight, bias, options)
    }

    fn attend(&self, queries: Tensor<3>, keys: Tensor<3>, values: Tensor<3>, scale: f64) -> Tensor<3> {
        let scores = self.matmul(queries, keys);
        let weights = Tensor::from_dispatch(Dispatch::softmax_of_rows(scores.into_dispatch(), scale as f32));
        self.matmul(weights, values)
    }
}

fn bias_or_zeros<const D: usize>(bias: Option<Tensor<1>>, weight: &Tensor<D>) -> Tensor<1> {
    bias.unwrap_or_else(|| Tensor::zeros([weight.dims()[0]], (&weight.device(), weight.dtype())))
}

/// In f32, since Burn's direct convolutions sum in the dtype of their input.
fn widened<const D: usize>(x: Tensor<D>) -> DispatchTensor {
    x.cast(FloatDType::F32).into_dispatch()
}

fn convolved_shape<const N: usize>(x: &Shape, weight: &Shape, options: &ConvOptions<N>) -> Shape {
    let side = |at: usize| {
        let (before, after) = options.padding[at];
        (x[2 + at] + before + after - weight[2 + at]) / options.stride[at] + 1
    };
    [x[0], weight[0]].into_iter().chain((0..N).map(side)).collect::<Vec<_>>().into()
}

fn direct<const N: usize>(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, options: ConvOptions<N>) -> CubeTensor {
    match conv_forward(x, weight, Some(bias), options, ConvStrategy::Direct) {
        Ok(y) => y,
        Err(error) => panic!("a convolution cannot be set up: {error:?}"),
    }
}

#[backend_extension(Cube, Fusion)]
trait Operations: Backend {
    /// `[2, frames, groups]`: means, then variances.
    #[fusion(dtype = DType::F32, shape = Shape::from([2, x[0] * x[2], *groups]))]
    fn group_moments(x: FloatTensor<Self>, groups: usize) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = x)]
    fn apply_group_norm(
        x: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f32,
        silu: bool,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = x)]
    fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, silu: bool) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = convolved_shape(x, weight, options))]
    fn direct_conv2d(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, options: ConvOptions<2>) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = convolved_shape(x, weight, options))]
    fn direct_conv3d(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, options: ConvOptions<3>) -> FloatTensor<Self>;

    #[fusion(dtype = left, shape = Shape::from([left[0], left[1], right[2]]))]
    fn product(left: FloatTensor<Self>, right: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(dtype = scores, shape = scores)]
    fn softmax_of_rows(scores: FloatTensor<Self>, scale: f32) -> FloatTensor<Self>;
}

/// Units of a cube (threads of a workgroup).
const UNITS: u32 = 256;
/// Values that a unit adds up.
const VALUES: usize = 128;
/// Partial sums of a row of scores.
const PARTS: usize = 64;

/// Whether the channels of a px are next to one another.
fn is_channels_last(x: &CubeTensor) -> bool {
    let (shape, strides) = (x.meta.shape(), x.meta.strides());
    shape[1] > 1 && (strides[1] < strides[4] || shape[3] * shape[4] == 1)
}

/// Memory for an output of the shape of `x`, without gaps and in the same layout: whether that is channels-last, and a tensor of `[b, t, h, w, c]` then, else of
/// `[b, c, t, h, w]`.
fn like(x: &CubeTensor) -> (bool, CubeTensor) {
    let [b, c, t, h, w] = [0, 1, 2, 3, 4].map(|axis| x.meta.shape()[axis]);
    let channels_last = is_channels_last(x);
    let order = if channels_last { [b, t, h, w, c] } else { [b, c, t, h, w] };
    (channels_last, empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), order.into(), x.dtype))
}

fn element(x: &CubeTensor) -> ElemType {
    burn::backend::cubecl::dtype_to_storage_type(x.dtype)
}

/// The cubes for `count` units.
fn cubes(client: &Client, count: usize) -> CubeCount {
    calculate_cube_count_elemwise(client, count, CubeDim::new_1d(UNITS))
}

/// Uninitialised memory for `count` values of f32.
fn floats(like: &CubeTensor, count: usize) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), [count].into(), DType::F32)
}

impl Operations for CubeBackend {
    fn group_moments(x: CubeTensor, groups: usize) -> CubeTensor {
        let channels_last = is_channels_last(&x);
        let (client, dim) = (x.client.clone(), CubeDim::new_1d(UNITS));
        let shape = x.meta.shape().clone();
        let [b, c, t, h, w] = [0, 1, 2, 3, 4].map(|axis| shape[axis]);
        let (lists, per_list) = (b * t * groups, c / groups * h * w);
        let moments = empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), [2, b * t, groups].into(), DType::F32);
        if lists * per_list > 0 {
            let mut parts = per_list.div_ceil(VALUES);
            let mut sums = floats(&x, 2 * lists * parts);
            let (x_arg, sums_arg) = (x.clone().into_tensor_arg(), sums.clone().into_tensor_arg());
            kernels::group_sums::launch(&client, cubes(&client, lists * parts), dim, x_arg, sums_arg, groups, parts, channels_last, element(&x));
            while parts > VALUES {
                let fewer = parts.div_ceil(VALUES);
                let sums_of_sums = floats(&x, 2 * lists * fewer);
                let (from, to) = (sums.into_tensor_arg(), sums_of_sums.clone().into_tensor_arg());
                kernels::sums_of_sums::launch(&client, cubes(&client, lists * fewer), dim, from, to, parts, fewer);
                (sums, parts) = (sums_of_sums, fewer);
            }
            let (x_arg, sums_arg, moments_arg) = (x.clone().into_tensor_arg(), sums.into_tensor_arg(), moments.clone().into_tensor_arg());
            kernels::group_moments::launch(&client, cubes(&client, lists), dim, x_arg, sums_arg, moments_arg, parts, groups, element(&x));
        }
        moments
    }

    fn apply_group_norm(x: CubeTensor, moments: CubeTensor, weight: CubeTensor, bias: CubeTensor, epsilon: f32, silu: bool) -> CubeTensor {
        let (channels_last, y) = like(&x);
        let client = x.client.clone();
        let groups = moments.meta.shape()[2];
        let count = x.meta.shape().num_elements();
        if count > 0 {
            let elements = [element(&x), element(&weight)];
            let [weight_arg, bias_arg, moments_arg] = [weight, bias, moments].map(|tensor| into_contiguous(tensor).into_tensor_arg());
            kernels::group_apply::launch(
                &client,
                cubes(&client, count),
                CubeDim::new_1d(UNITS),
                x.into_tensor_arg(),
                weight_arg,
                bias_arg,
                moments_arg,
                y.clone().into_tensor_arg(),
                epsilon,
                groups,
                channels_last,
                silu,
                elements,
            );
        }
        if channels_last { permute_nhwc_to_nchw(y) } else { y }
    }

    fn rms_norm(x: CubeTensor, gamma: CubeTensor, silu: bool) -> CubeTensor {
        let (channels_last, y) = like(&x);
        let client = x.client.clone();
        let shape = x.meta.shape().clone();
        let px = shape[0] * shape[2] * shape[3] * shape[4];
        if px * shape[1] > 0 {
            let (gamma_arg, y_arg, element) = (into_contiguous(gamma).into_tensor_arg(), y.clone().into_tensor_arg(), element(&x));
            let (count, dim) = (cubes(&client, px), CubeDim::new_1d(UNITS));
            kernels::px_apply::launch(&client, count, dim, x.into_tensor_arg(), gamma_arg, y_arg, channels_last, silu, element);
        }
        if channels_last { permute_nhwc_to_nchw(y) } else { y }
    }

    fn direct_conv2d(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, options: ConvOptions<2>) -> CubeTensor {
        direct(x, weight, bias, options)
    }

    fn direct_conv3d(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, options: ConvOptions<3>) -> CubeTensor {
        direct(x, weight, bias, options)
    }

    fn product(left: CubeTensor, right: CubeTensor) -> CubeTensor {
        let (client, dim, element) = (left.client.clone(), CubeDim::new_1d(UNITS), element(&left));
        let shape = [left.meta.shape()[0], left.meta.shape()[1], right.meta.shape()[2]];
        let y = empty_device_contiguous_dtype(client.clone(), left.device.clone(), shape.into(), left.dtype);
        let count = shape.iter().product();
        if count > 0 {
            let (left, right, y) = (left.into_tensor_arg(), right.into_tensor_arg(), y.clone().into_tensor_arg());
            kernels::products::launch(&client, cubes(&client, count), dim, left, right, y, element);
        }
        y
    }

    fn softmax_of_rows(scores: CubeTensor, scale: f32) -> CubeTensor {
        let scores = into_contiguous(scores);
        let (client, dim) = (scores.client.clone(), CubeDim::new_1d(UNITS));
        let shape = scores.meta.shape().clone();
        let y = empty_device_contiguous_dtype(client.clone(), scores.device.clone(), shape.clone(), scores.dtype);
        let (rows, columns) = (shape[0] * shape[1], shape[2]);
        if rows * columns > 0 {
            let parts = PARTS.min(columns);
            let (partial, whole) = (floats(&scores, 2 * rows * parts), floats(&scores, 2 * rows));
            let (scores_arg, partial_arg) = (scores.clone().into_tensor_arg(), partial.clone().into_tensor_arg());
            kernels::row_parts::launch(&client, cubes(&client, rows * parts), dim, scores_arg, partial_arg, scale, parts, element(&scores));
            let (partial_arg, whole_arg) = (partial.into_tensor_arg(), whole.clone().into_tensor_arg());
            kernels::row_sums::launch(&client, cubes(&client, rows), dim, partial_arg, whole_arg, parts);
            let (count, element, y_arg) = (cubes(&client, rows * columns), element(&scores), y.clone().into_tensor_arg());
            kernels::row_apply::launch(&client, count, dim, scores.into_tensor_arg(), whole.into_tensor_arg(), y_arg, scale, element);
        }
        y
    }
}
