//! Convolutions: by tensor cores where the device has them and the math mode allows it, else by a kernel of our own.

use std::fmt;

use burn::tensor::{DType, Tensor};
use burn_cubecl::ops::permute;
use burn_cubecl::tensor::CubeTensor;
use cubecl::CubeTuneId;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::tune::{AutotuneKey, LocalTuner, Tunable, TunableSet, TuneGroup, anchor, local_tuner};
use cubek::convolution::{AcceleratedTileKind, ConvAlgorithm, ConvolutionArgs, ConvolutionInputs, Strategy, launch_ref};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::std::InputBinding;
use serde::{Deserialize, Serialize};

use super::kernels;
use super::tensor::{View, address, dense, element, elementwise, empty, primitive, reshaped, vector_size};
use crate::MathMode;
use crate::operators::{Convolution, Padding};

/// Channels that a unit computes at most, and those times the values that it reads at once: more need more registers than there are.
const OUTPUTS: usize = 8;
const OUTPUTS_TIMES_INPUTS: usize = 32;

/// A convolution of `x` with `weight`, written to `y`. All are `[n, t, h, w, c]`, the weight with its output channels in place of `n`.
#[derive(Clone)]
pub(super) struct Problem {
    pub(super) x: View,
    pub(super) weight: View,
    /// `[out]`, dense.
    pub(super) bias: Option<CubeTensor>,
    pub(super) y: View,
    /// Over frames, height and width.
    pub(super) stride: [usize; 3],
    /// Zeros before the first frame, row and column. Those behind the last follow from the size of `y`.
    pub(super) padding: [usize; 3],
}

/// Whether tensor cores compute with values of `x`. They round f32 to TF32.
pub(super) fn uses_tensor_cores(x: &CubeTensor, math_mode: MathMode) -> bool {
    let device = x.client.properties();
    let matrices = &device.features.matmul;
    let has_some = !(matrices.cmma.is_empty() && matrices.mma.is_empty());
    let is_allowed = match x.dtype {
        DType::F32 => math_mode.tf32 && device.supports_type(ElemType::Float(FloatKind::TF32)),
        _ => true,
    };
    has_some && is_allowed
}

/// Computes the parts of `y`, which is dense, and adds `residual` if there is one.
pub(super) fn run(parts: Vec<Problem>, y: &CubeTensor, residual: Option<CubeTensor>, math_mode: MathMode) {
    if !uses_tensor_cores(y, math_mode) {
        for part in parts {
            part.multiply(residual.clone());
        }
        return;
    }
    for part in parts {
        tune(part);
    }
    if let Some(residual) = residual {
        add_into(y, residual);
    }
}

impl Problem {
    /// The same for frames as images of their own, where no output depends on two of them.
    pub(super) fn with_frames_as_items(self) -> Self {
        let is_apart = self.weight.shape[1] == 1 && self.stride[0] == 1 && self.padding[0] == 0;
        match [&self.x, &self.y].map(View::with_frames_as_items) {
            [Some(x), Some(y)] if is_apart => Self { x, y, ..self },
            _ => self,
        }
    }

    /// By our own kernel.
    pub(super) fn multiply(self, residual: Option<CubeTensor>) {
        let Self { x, weight, bias, y, stride, padding } = self;
        let [n, t, h, w, c] = y.shape;
        let size_in = x.vector_size().min(weight.vector_size());
        let outputs = (1..=OUTPUTS.min(OUTPUTS_TIMES_INPUTS / size_in)).rev().find(|outputs| c % outputs == 0).unwrap_or(1);
        let size_out = y.vector_size().min(1 << outputs.trailing_zeros());
        let units = n * t * h * w.div_ceil(kernels::PX) * (c / outputs);
        let (count, dim) = elementwise(&y.tensor, units);
        let client = y.tensor.client.clone();
        let address = address([&x.tensor, &weight.tensor, &y.tensor]);
        let window = kernels::WindowLaunch::new(stride[0], stride[1], stride[2], padding[0], padding[1], padding[2]);
        let (x_offset, weight_offset, y_offset) = (x.offset, weight.offset, y.offset);
        let element = element(&y.tensor);
        let residual = residual.map(|tensor| View { tensor, ..y.clone() }.without_offset());
        #[expect(unsafe_code, reason = "every unit reads and writes inside of the views")]
        unsafe {
            kernels::direct_convolution::launch_unchecked(
                &client,
                count,
                dim,
                address,
                size_in,
                size_out,
                x.without_offset(),
                weight.without_offset(),
                bias.map(CubeTensor::into_tensor_arg).into(),
                residual.into(),
                y.without_offset(),
                window,
                x_offset,
                weight_offset,
                y_offset,
                y_offset,
                outputs,
                element,
            );
        }
    }

    /// By tensor cores.
    pub(super) fn multiply_matrices(self, strategy: &Strategy) -> Result<(), String> {
        // Without frames where it has none, which leaves fewer divisions.
        if self.x.shape[1] == 1 && self.weight.shape[1] == 1 { self.launch::<2>(strategy) } else { self.launch::<3>(strategy) }
    }

    fn launch<const N: usize>(self, strategy: &Strategy) -> Result<(), String> {
        let Self { x, weight, bias, y, stride, padding } = self;
        let client = y.tensor.client.clone();
        let element = element(&y.tensor);
        let dtypes = MatmulElems::from_globals(&MatmulGlobalElems { lhs: element, rhs: element, out: element });
        let unaligned = || "memory that the device cannot bind".to_owned();
        let inputs = ConvolutionInputs::Forward {
            input: InputBinding::new(x.binding::<N>().ok_or_else(unaligned)?, element),
            weight: InputBinding::new(weight.binding::<N>().ok_or_else(unaligned)?, element),
            bias: bias.map(|bias| InputBinding::new(bias.binding(), element)),
            out: y.binding::<N>().ok_or_else(unaligned)?,
        };
        let last = |values: [usize; 3]| std::array::from_fn(|axis| values[3 - N + axis]);
        let args = ConvolutionArgs { stride: last(stride), padding: last(padding), dilation: [1; N] };
        launch_ref::<N>(strategy, &client, inputs, args, dtypes).map_err(|error| format!("{error:?}"))
    }

    fn key(&self) -> Key {
        let [n, t, h, w, _] = self.y.shape;
        Key {
            kernel: [self.weight.shape[1], self.weight.shape[2], self.weight.shape[3]],
            stride: self.stride,
            channels: [self.x.shape[4], self.y.shape[4]],
            frames: anchor(n * t, None, None, None),
            size: [h, w].map(|side| anchor(side, None, None, None)),
            bias: self.bias.is_some(),
            dtype: self.x.tensor.dtype,
            vectors: [&self.x, &self.weight, &self.y].map(View::vector_size),
        }
    }
}

/// Adds `x` to `y`, in place. Both are dense.
pub(super) fn add_into(y: &CubeTensor, x: CubeTensor) {
    let count = y.meta.num_elements();
    let size = vector_size(y, [count]).min(vector_size(&x, [count]));
    let (cubes, dim) = elementwise(y, count / size);
    let (address, element) = (address([y]), element(y));
    #[expect(unsafe_code, reason = "both have `count` values")]
    unsafe {
        kernels::add_into::launch_unchecked(&y.client, cubes, dim, address, size, y.clone().into_tensor_arg(), x.into_tensor_arg(), element);
    }
}

/// What the fastest kernel depends on. Sizes are rounded to powers of two.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Key {
    kernel: [usize; 3],
    stride: [usize; 3],
    channels: [usize; 2],
    frames: usize,
    size: [usize; 2],
    bias: bool,
    dtype: DType,
    vectors: [usize; 3],
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl AutotuneKey for Key {}

/// Outputs of so few channels leave most of a tensor core's tile empty.
const FEW_OUTPUTS: usize = OUTPUTS;

/// The kernels for tensor cores: Burn's own candidates, and one that loads while it computes.
pub(super) const CANDIDATES: [(ConvAlgorithm, AcceleratedTileKind); 8] = [
    (ConvAlgorithm::SpecializedTma, AcceleratedTileKind::Mma),
    (ConvAlgorithm::SpecializedTma, AcceleratedTileKind::Cmma),
    (ConvAlgorithm::SimpleAsyncTma, AcceleratedTileKind::Mma),
    (ConvAlgorithm::SimpleAsyncTma, AcceleratedTileKind::Cmma),
    (ConvAlgorithm::SimpleAsyncStrided, AcceleratedTileKind::Mma),
    (ConvAlgorithm::SimpleAsyncCyclic, AcceleratedTileKind::Cmma),
    (ConvAlgorithm::SimpleSyncStrided, AcceleratedTileKind::Mma),
    (ConvAlgorithm::SimpleSyncCyclic, AcceleratedTileKind::Cmma),
];

/// Runs the fastest kernel, which is measured once for each key and kept with the compiled kernels. All sum in f32.
fn tune(problem: Problem) {
    static TUNER: LocalTuner<Key, CubeTuneId> = local_tuner!("convolution");
    let (client, device) = (problem.x.tensor.client.clone(), problem.x.tensor.device.clone());
    let id = CubeTuneId::new(&client, &device);
    let tunables = TUNER.init(&id, || {
        let key = Problem::key as fn(&Problem) -> Key;
        let matrices = TuneGroup::<Key>::new("tensor cores", |_| 1);
        let rest = TuneGroup::<Key>::new("without", |_| 0);
        let multiply = |problem: Problem| -> Result<(), String> {
            problem.multiply(None);
            Ok(())
        };
        let mut set = TunableSet::new(key, |_: &Key, problem: &Problem| problem.clone());
        for (algorithm, tile_kind) in CANDIDATES {
            let strategy = Strategy::Inferred { algorithm, tile_kind };
            let tunable = Tunable::new(&strategy.to_string(), move |problem: Problem| problem.multiply_matrices(&strategy));
            set = set.with(tunable.group(&matrices, |_| 1));
        }
        let few = |key: &Key| if key.channels[1] <= FEW_OUTPUTS { 1 } else { -1 };
        set.with(Tunable::new("multiply", multiply).group(&rest, |_| 1).group(&matrices, few))
    });
    TUNER.execute(&id, &client, tunables, problem);
}

/// `[out, in, t, h, w]` as kernels read it: `[out, t, h, w, in]`, in the memory that it has if its channels lie next to one another.
pub(super) fn weight_view(weight: Tensor<5>) -> View {
    let weight = permute(primitive(weight), &[0, 2, 3, 4, 1]);
    let is_channels_last = weight.meta.strides()[4] == 1 || weight.meta.shape()[4] == 1;
    let weight = if is_channels_last { weight } else { dense(weight) };
    let strides = std::array::from_fn(|axis| weight.meta.strides()[axis]);
    let shape = std::array::from_fn(|axis| weight.meta.shape()[axis]);
    View { tensor: weight, offset: 0, shape, strides }
}

/// A convolution of all of `x`, written to all of `y`. Both are `[b, t, h, w, c]`, dense.
pub(super) fn whole(x: CubeTensor, convolution: &Convolution, y: &CubeTensor) -> Problem {
    let Convolution { stride, padding: Padding { top, left, .. }, window, .. } = *convolution;
    let (mut x, mut weight) = (View::new(x), weight_view(convolution.weight.clone()));
    // Of a single frame's kernel only the last frame meets something.
    let kernel_frames = if x.shape[1] == 1 { 1 } else { weight.shape[1] };
    weight.offset += (weight.shape[1] - kernel_frames) * weight.strides[1];
    weight.shape[1] = kernel_frames;
    // Frames that no output depends on are cut off, and those before the first are zeros.
    let first = (window.context + 1).saturating_sub(kernel_frames);
    let missing = (kernel_frames - 1).saturating_sub(window.context);
    x.offset += first * x.strides[1];
    x.shape[1] -= first;
    // So are px that a negative padding leaves out. Those behind the last follow from the size of `y`.
    let mut padding = [missing, 0, 0];
    for (axis, before) in [(2, top), (3, left)] {
        let left_out = before.min(0).unsigned_abs().min(x.shape[axis]);
        x.offset += left_out * x.strides[axis];
        x.shape[axis] -= left_out;
        padding[axis - 1] = before.max(0).unsigned_abs();
    }
    let stride = [window.stride, stride[0], stride[1]];
    Problem { x, weight, bias: bias_of(convolution), y: View::new(y.clone()), stride, padding }.with_frames_as_items()
}

/// The four convolutions of `x` that a convolution 3x3 with a padding of 1 over its doubled px amounts to. Each writes one of the four px of `y` that a px becomes.
pub(super) fn folded_parts(x: &CubeTensor, convolution: &Convolution, y: &CubeTensor) -> Vec<Problem> {
    let weight = weight_view(convolution.weight.clone());
    let [out, _, _, _, channels] = weight.shape;
    let (folded, bias) = (fold(weight), bias_of(convolution));
    let part = |phase: usize| {
        let [down, across] = [phase / 2, phase % 2];
        let mut weight = View::new(reshaped(folded.clone(), [4 * out, 1, 2, 2, channels]));
        weight.shape[0] = out;
        weight.offset = phase * out * weight.strides[0];
        let mut to = View::new(y.clone());
        to.offset = down * to.strides[2] + across * to.strides[3];
        for axis in [2, 3] {
            to.shape[axis] /= 2;
            to.strides[axis] *= 2;
        }
        let padding = [0, 1 - down, 1 - across];
        Problem { x: View::new(x.clone()), weight, bias: bias.clone(), y: to, stride: [1; 3], padding }.with_frames_as_items()
    };
    (0..4).map(part).collect()
}

fn bias_of(convolution: &Convolution) -> Option<CubeTensor> {
    convolution.bias.clone().map(|bias| dense(primitive(bias)))
}

/// The weight of the four convolutions over px that `weight`, a convolution 3x3 over doubled px, amounts to: `[4, out, 1, 2, 2, in]`.
fn fold(weight: View) -> CubeTensor {
    let [out, _, _, _, channels] = weight.shape;
    let y = empty(&weight.tensor, [4, out, 1, 2, 2, channels]);
    let size = weight.vector_size();
    let (count, dim) = elementwise(&y, 16 * out * channels / size);
    let (client, address, element) = (y.client.clone(), address([&weight.tensor, &y]), element(&y));
    #[expect(unsafe_code, reason = "every unit reads and writes inside of the tensors")]
    unsafe {
        kernels::fold_weight::launch_unchecked(&client, count, dim, address, size, weight.without_offset(), y.clone().into_tensor_arg(), element);
    }
    y
}
