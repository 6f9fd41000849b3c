//! Norms and softmax on GPUs, as kernels for every runtime of CubeCL (CUDA, Vulkan, Metal, wgpu). Statistics are f32 whatever the dtype, and what is read is
//! read where it lies: a convolution leaves its channels side by side, other operators leave rows of px. Units of a cube share no memory and wait for nobody:
//! Mesa's software driver crashes on kernels that do (22.3), and sums in a fixed order are the same on every run.

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

use super::norm::GroupRule;
use crate::MathMode;

/// Whether the tensor is on a GPU.
pub(super) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    matches!(x.device().as_dispatch(), DispatchDevice::Cube(_))
}

/// See [`GroupNorm`](super::GroupNorm).
pub(super) fn group_norm(x: Tensor<5>, weight: Tensor<1>, bias: Tensor<1>, rule: GroupRule) -> Tensor<5> {
    let [x, weight, bias] = [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()];
    Tensor::from_dispatch(Dispatch::group_norm(x, weight, bias, rule.groups, rule.epsilon as f32, rule.then_silu))
}

/// See [`RmsNorm`](super::RmsNorm).
pub(super) fn rms_norm(x: Tensor<5>, gamma: Tensor<1>, then_silu: bool) -> Tensor<5> {
    Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), gamma.into_dispatch(), then_silu))
}

/// The softmax in f32 of each row of `scores`, times `scale`.
///
/// # Shapes
/// `[b, n, m]` to the same.
pub(super) fn softmax(scores: Tensor<3>, scale: f64) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::softmax_of_rows(scores.into_dispatch(), scale as f32))
}

/// Whether products are summed one by one, in f32: where TF32 is not to take its place, which Burn's fast kernels do unasked, and on Mesa's software device,
/// whose driver (22.3) crashes on most of them.
fn sums_plainly<const D: usize>(x: &Tensor<D>, math_mode: MathMode) -> bool {
    match x.device().as_dispatch() {
        DispatchDevice::Cube(cube) => {
            let client = cube.client();
            let device = client.properties();
            let would_be_tf32 = x.dtype() == DType::F32 && device.supports_type(ElemType::Float(FloatKind::TF32));
            (would_be_tf32 && !math_mode.tf32) || device.identity.name.contains("llvmpipe")
        }
        #[allow(unreachable_patterns, reason = "there may be no other backends in a build")]
        _ => false,
    }
}

/// Of Burn's convolutions the one that is the fastest when tried, where it may be.
pub(super) fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, options: ConvOptions<2>, math_mode: MathMode) -> Tensor<4> {
    if sums_plainly(&x, math_mode) {
        let dtype = x.dtype();
        let y = Dispatch::direct_conv2d(widened(x), widened(weight), widened(bias), options);
        return Tensor::<4>::from_dispatch(y).cast(dtype);
    }
    module::conv2d(x, weight, Some(bias), options)
}

/// The same in three dimensions.
pub(super) fn conv3d(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>, options: ConvOptions<3>, math_mode: MathMode) -> Tensor<5> {
    if sums_plainly(&x, math_mode) {
        let dtype = x.dtype();
        let y = Dispatch::direct_conv3d(widened(x), widened(weight), widened(bias), options);
        return Tensor::<5>::from_dispatch(y).cast(dtype);
    }
    module::conv3d(x, weight, Some(bias), options)
}

/// In f32, since Burn's direct convolutions sum in the type of their input.
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

/// The product of matrices, item by item.
///
/// # Shapes
/// `[b, n, k]` and `[b, k, m]` to `[b, n, m]`.
pub(super) fn matmul(left: Tensor<3>, right: Tensor<3>, math_mode: MathMode) -> Tensor<3> {
    if sums_plainly(&left, math_mode) {
        return Tensor::from_dispatch(Dispatch::product(left.into_dispatch(), right.into_dispatch()));
    }
    left.matmul(right)
}

#[backend_extension(Cube, Fusion)]
trait Operations: Backend {
    #[fusion(dtype = x, shape = x)]
    fn group_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        groups: usize,
        epsilon: f32,
        then_silu: bool,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = x)]
    fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, then_silu: bool) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = convolved_shape(x, weight, options))]
    fn direct_conv2d(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, options: ConvOptions<2>) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = convolved_shape(x, weight, options))]
    fn direct_conv3d(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, options: ConvOptions<3>) -> FloatTensor<Self>;

    #[fusion(dtype = left, shape = Shape::from([left[0], left[1], right[2]]))]
    fn product(left: FloatTensor<Self>, right: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(dtype = scores, shape = scores)]
    fn softmax_of_rows(scores: FloatTensor<Self>, scale: f32) -> FloatTensor<Self>;
}

/// Units of a cube.
const UNITS: u32 = 256;
/// Values that a unit sums.
const VALUES: usize = 128;
/// Parts of a row of scores whose sums are taken apart from one another.
const PARTS: usize = 64;

/// Where the answer for `x` goes, as dense as it can be and in the same order: whether channels lie side by side, and a tensor of
/// `[b, t, h, w, c]` then, else of `[b, c, t, h, w]`.
fn like(x: &CubeTensor) -> (bool, CubeTensor) {
    let (shape, strides) = (x.meta.shape(), x.meta.strides());
    let [b, c, t, h, w] = [0, 1, 2, 3, 4].map(|axis| shape[axis]);
    let side_by_side = c > 1 && (strides[1] < strides[4] || h * w == 1);
    let order = if side_by_side { [b, t, h, w, c] } else { [b, c, t, h, w] };
    (side_by_side, empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), order.into(), x.dtype))
}

fn element(x: &CubeTensor) -> ElemType {
    burn::backend::cubecl::dtype_to_storage_type(x.dtype)
}

/// How many cubes it takes for a unit to each of so many.
fn cubes(client: &Client, count: usize) -> CubeCount {
    calculate_cube_count_elemwise(client, count, CubeDim::new_1d(UNITS))
}

/// Room for so many f32.
fn floats(like: &CubeTensor, count: usize) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), [count].into(), DType::F32)
}

impl Operations for CubeBackend {
    fn group_norm(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, groups: usize, epsilon: f32, then_silu: bool) -> CubeTensor {
        let (side_by_side, y) = like(&x);
        let (client, dim) = (x.client.clone(), CubeDim::new_1d(UNITS));
        let shape = x.meta.shape().clone();
        let [b, c, t, h, w] = [0, 1, 2, 3, 4].map(|axis| shape[axis]);
        let (lists, of_a_list) = (b * t * groups, c / groups * h * w);
        if lists * of_a_list > 0 {
            let mut parts = of_a_list.div_ceil(VALUES);
            let mut sums = floats(&x, 2 * lists * parts);
            let (x_arg, sums_arg) = (x.clone().into_tensor_arg(), sums.clone().into_tensor_arg());
            kernels::group_sums::launch(&client, cubes(&client, lists * parts), dim, x_arg, sums_arg, groups, parts, side_by_side, element(&x));
            while parts > VALUES {
                let fewer = parts.div_ceil(VALUES);
                let sums_of_sums = floats(&x, 2 * lists * fewer);
                let (from, to) = (sums.into_tensor_arg(), sums_of_sums.clone().into_tensor_arg());
                kernels::sums_of_sums::launch(&client, cubes(&client, lists * fewer), dim, from, to, parts, fewer);
                (sums, parts) = (sums_of_sums, fewer);
            }
            let moments = floats(&x, 2 * lists);
            let (x_arg, sums_arg, moments_arg) = (x.clone().into_tensor_arg(), sums.into_tensor_arg(), moments.clone().into_tensor_arg());
            kernels::group_moments::launch(&client, cubes(&client, lists), dim, x_arg, sums_arg, moments_arg, parts, epsilon, groups, element(&x));
            let [weight_arg, bias_arg] = [weight.clone(), bias].map(|parameter| into_contiguous(parameter).into_tensor_arg());
            let (moments_arg, y_arg) = (moments.into_tensor_arg(), y.clone().into_tensor_arg());
            let (count, elements, x_arg) = (cubes(&client, lists * of_a_list), [element(&x), element(&weight)], x.into_tensor_arg());
            kernels::group_apply::launch(
                &client,
                count,
                dim,
                x_arg,
                weight_arg,
                bias_arg,
                moments_arg,
                y_arg,
                groups,
                side_by_side,
                then_silu,
                elements,
            );
        }
        if side_by_side { permute_nhwc_to_nchw(y) } else { y }
    }

    fn rms_norm(x: CubeTensor, gamma: CubeTensor, then_silu: bool) -> CubeTensor {
        let (side_by_side, y) = like(&x);
        let client = x.client.clone();
        let shape = x.meta.shape().clone();
        let px = shape[0] * shape[2] * shape[3] * shape[4];
        if px * shape[1] > 0 {
            let (gamma_arg, y_arg, element) = (into_contiguous(gamma).into_tensor_arg(), y.clone().into_tensor_arg(), element(&x));
            let (count, dim) = (cubes(&client, px), CubeDim::new_1d(UNITS));
            kernels::px_apply::launch(&client, count, dim, x.into_tensor_arg(), gamma_arg, y_arg, side_by_side, then_silu, element);
        }
        if side_by_side { permute_nhwc_to_nchw(y) } else { y }
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

#[cfg(all(test, feature = "flex", feature = "testing"))]
mod tests {
    use burn::module::Param;
    use burn::tensor::{Device, TensorData};

    use super::super::{Features, GroupNorm, RmsNorm, attend};
    use super::*;
    use crate::{Context, testing};

    fn ramp<const D: usize>(shape: [usize; D], step: f32, device: &Device) -> Tensor<D> {
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|at| 3.0 + (at as f32 * step).sin()).collect();
        Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
    }

    /// The same values in different places: rows of px, channels side by side, and a part of something larger.
    fn layouts(x: &Tensor<5>) -> [Tensor<5>; 3] {
        let [b, c, t, h, w] = x.dims();
        let side_by_side = x.clone().permute([0, 2, 3, 4, 1]).reshape([b, t * h * w * c]).reshape([b, t, h, w, c]).permute([0, 4, 1, 2, 3]);
        let larger = Tensor::cat(vec![x.clone(); 2], 4).narrow(4, w, w);
        assert_eq!(larger.dims(), [b, c, t, h, w]);
        [x.clone(), side_by_side, larger]
    }

    /// Runs a layer on the GPU in every layout, and on the CPU.
    fn agree(shape: [usize; 5], tolerance: f32, dtype: FloatDType, what: &str, layer: impl Fn(Features, &Device) -> Features) {
        let (gpu, cpu) = (testing::device(), Device::flex());
        if !takes(&Tensor::<1>::zeros([1], &gpu)) {
            return;
        }
        // What the type can hold, on both sides.
        let x = ramp(shape, 0.7, &cpu).cast(dtype).cast(FloatDType::F32);
        let values = |y: Features| Tensor::from(y).cast(FloatDType::F32).into_data().try_into_vec::<f32>().unwrap();
        let expected = values(layer(Features::new(x.clone(), &Context::default()), &cpu));
        for (at, x) in layouts(&x.to_device(&gpu)).into_iter().enumerate() {
            let got = values(layer(Features::new(x.cast(dtype), &Context::default()), &gpu));
            let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(got.len() == expected.len() && worst <= tolerance, "{what} of {shape:?} in layout {at}: {worst}");
            assert!(expected.iter().any(|value| value.abs() > 0.1));
        }
    }

    const SHAPES: [[usize; 5]; 4] = [[1, 20, 1, 9, 22], [2, 12, 3, 8, 5], [1, 512, 1, 3, 3], [1, 8, 1, 150, 130]];

    #[test]
    fn norms_equal_those_of_the_cpu() {
        for (dtype, tolerance) in [(FloatDType::F32, 2e-5), (FloatDType::F16, 4e-3)] {
            for shape in SHAPES {
                for then_silu in [false, true] {
                    agree(shape, tolerance, dtype, "group norm", |x, device| {
                        let mut norm = GroupNorm::new(4, shape[1], 1e-6, device);
                        let parameter = |step| ramp([shape[1]], step, device) - 2.0;
                        (norm.weight, norm.bias) = (Param::from_tensor(parameter(0.3)), Param::from_tensor(parameter(0.7)));
                        if then_silu { norm.forward_silu(x) } else { norm.forward(x) }
                    });
                    agree(shape, tolerance, dtype, "norm of px", |x, device| {
                        let gamma = ramp([shape[1]], 0.3, device) - 2.0;
                        let gamma = if Tensor::from(x.clone()).dtype() == DType::F16 { gamma.cast(FloatDType::F16) } else { gamma };
                        let norm = RmsNorm { gamma: Param::from_tensor(gamma) };
                        if then_silu { norm.forward_silu(x) } else { norm.forward(x) }
                    });
                }
            }
        }
    }

    #[test]
    fn attention_equals_that_of_the_cpu() {
        for shape in [[1, 16, 1, 5, 7], [2, 8, 2, 20, 30], [1, 4, 1, 40, 40]] {
            agree(shape, 2e-5, FloatDType::F32, "attention", |x, _| attend(x.clone().map(|x| x * 0.3), x.clone(), x.map(|x| x - 3.0)));
        }
    }
}
