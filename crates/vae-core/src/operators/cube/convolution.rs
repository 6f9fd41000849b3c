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
        // Kernels for tensor cores know no offset.
        if [&part.x, &part.weight, &part.y].into_iter().all(View::is_bindable) {
            tune(part);
        } else {
            part.multiply(None);
        }
    }
    if let Some(residual) = residual {
        add_into(y, residual);
    }
}

impl Problem {
    /// Without the last px of the input that no output depends on.
    fn without_rest(mut self) -> Self {
        for axis in [1, 2, 3] {
            let read = (self.y.shape[axis].saturating_sub(1)) * self.stride[axis - 1] + self.weight.shape[axis];
            self.x.shape[axis] = self.x.shape[axis].min(read.saturating_sub(self.padding[axis - 1]));
        }
        self
    }

    /// The same for frames as images of their own, where no output depends on two of them.
    pub(super) fn with_frames_as_items(self) -> Self {
        let is_apart = self.weight.shape[1] == 1 && self.stride[0] == 1 && self.padding[0] == 0;
        match [&self.x, &self.y].map(View::with_frames_as_items) {
            [Some(x), Some(y)] if is_apart => Self { x, y, ..self },
            _ => self,
        }
    }

    /// Whether a copy engine may load the px of the input. For that it walks through a box, from one row of outputs to the next, which CubeK (0.3.1) makes too large
    /// where more zeros precede the px than are needed behind them.
    fn fills_box(&self) -> bool {
        let outputs = [1, 2, 3].map(|axis| self.y.shape[axis]);
        let mut outer = self.y.shape[0];
        (0..3).all(|axis| {
            let box_length = (self.x.shape[axis + 1] + 2 * self.padding[axis] + 1).saturating_sub(self.weight.shape[axis + 1]);
            let is_read_right = outer == 1 || box_length.div_ceil(self.stride[axis]) <= outputs[axis];
            outer *= outputs[axis];
            is_read_right
        })
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

    /// By one of the kernels.
    ///
    /// # Errors
    /// When it does not take the problem.
    pub(super) fn run_by(self, kernel: Kernel) -> Result<(), String> {
        let Kernel::Matrices(algorithm, tile_kind) = kernel else {
            self.multiply(None);
            return Ok(());
        };
        if kernel.loads_boxes() && !self.fills_box() {
            return Err("more zeros before the px than behind them".to_owned());
        }
        let strategy = &Strategy::Inferred { algorithm, tile_kind };
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
            fills_box: self.fills_box(),
            gpu: self.y.tensor.client.properties().identity.name.clone(),
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
    fills_box: bool,
    /// What is kept is found again by other GPUs, too.
    gpu: String,
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

/// How a problem is computed where there are tensor cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// By a kernel of CubeK's for tensor cores.
    Matrices(ConvAlgorithm, AcceleratedTileKind),
    /// By our own.
    Direct,
}

/// Burn's own candidates, those that load while they compute, and ours.
pub(super) const KERNELS: [Kernel; 11] = [
    Kernel::Matrices(ConvAlgorithm::SpecializedTma, AcceleratedTileKind::Mma),
    Kernel::Matrices(ConvAlgorithm::SpecializedTma, AcceleratedTileKind::Cmma),
    Kernel::Matrices(ConvAlgorithm::SpecializedAsyncStrided, AcceleratedTileKind::Mma),
    Kernel::Matrices(ConvAlgorithm::SpecializedAsyncCyclic, AcceleratedTileKind::Cmma),
    Kernel::Matrices(ConvAlgorithm::SimpleAsyncTma, AcceleratedTileKind::Mma),
    Kernel::Matrices(ConvAlgorithm::SimpleAsyncTma, AcceleratedTileKind::Cmma),
    Kernel::Matrices(ConvAlgorithm::SimpleAsyncStrided, AcceleratedTileKind::Mma),
    Kernel::Matrices(ConvAlgorithm::SimpleAsyncCyclic, AcceleratedTileKind::Cmma),
    Kernel::Matrices(ConvAlgorithm::SimpleSyncStrided, AcceleratedTileKind::Mma),
    Kernel::Matrices(ConvAlgorithm::SimpleSyncCyclic, AcceleratedTileKind::Cmma),
    Kernel::Direct,
];

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Matrices(algorithm, tile_kind) => write!(f, "{algorithm}_{tile_kind}"),
            Self::Direct => f.write_str("direct"),
        }
    }
}

impl Kernel {
    /// Whether it has a copy engine load boxes of px.
    fn loads_boxes(self) -> bool {
        matches!(self, Self::Matrices(ConvAlgorithm::SpecializedTma | ConvAlgorithm::SimpleAsyncTma, _))
    }
}

/// Runs the fastest kernel, which is measured once for each key and kept with the compiled kernels. All sum in f32.
fn tune(problem: Problem) {
    static TUNER: LocalTuner<Key, CubeTuneId> = local_tuner!("convolution");
    let (client, device) = (problem.x.tensor.client.clone(), problem.x.tensor.device.clone());
    let id = CubeTuneId::new(&client, &device);
    let tunables = TUNER.init(&id, || {
        let key = Problem::key as fn(&Problem) -> Key;
        let matrices = TuneGroup::<Key>::new("tensor cores", |_| 1);
        let rest = TuneGroup::<Key>::new("without", |_| 0);
        let set = TunableSet::new(key, |_: &Key, problem: &Problem| problem.clone());
        KERNELS.into_iter().fold(set, |set, kernel| {
            let tunable = Tunable::identified(kernel, move |problem: Problem| problem.run_by(kernel));
            // A negative priority leaves a kernel out.
            let is_worth_it = move |key: &Key| match kernel {
                Kernel::Direct => key.channels[1] <= FEW_OUTPUTS,
                Kernel::Matrices(..) => key.fills_box || !kernel.loads_boxes(),
            };
            let tunable = tunable.group(&matrices, move |key| if is_worth_it(key) { 1 } else { -1 });
            set.with(if kernel == Kernel::Direct { tunable.group(&rest, |_| 1) } else { tunable })
        })
    });
    match TUNER.fastest_identity(&id, &tunables, &problem.key()) {
        // A key stands for many sizes.
        Some(kernel) => problem.clone().run_by(kernel).unwrap_or_else(|error| {
            tracing::warn!("the kernel {kernel} does not take a convolution that is like those that it is the fastest for: {error}");
            problem.multiply(None);
        }),
        None => TUNER.execute(&id, &client, tunables, problem),
    }
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
    // So are px that a negative padding leaves out.
    let mut padding = [missing, 0, 0];
    for (axis, before) in [(2, top), (3, left)] {
        padding[axis - 1] = x.begin_at(axis, -before);
    }
    let stride = [window.stride, stride[0], stride[1]];
    let y = View::new(y.clone());
    Problem { x, weight, bias: bias_of(convolution), y, stride, padding }.without_rest().with_frames_as_items()
}

/// The four convolutions of `x` that a convolution 3x3 over its doubled px amounts to. Each writes every other px of every other row of `y`.
pub(super) fn folded_parts(x: &CubeTensor, convolution: &Convolution, y: &CubeTensor) -> Vec<Problem> {
    let Padding { top, left, .. } = convolution.padding;
    let weight = weight_view(convolution.weight.clone());
    let [out, _, _, _, channels] = weight.shape;
    let (folded, bias) = (fold(weight), bias_of(convolution));
    let part = |[down, across]: [usize; 2]| {
        let (mut x, mut to) = (View::new(x.clone()), View::new(y.clone()));
        let (mut padding, mut phase) = ([0; 3], 0);
        for (axis, at, before) in [(2, down, top), (3, across, left)] {
            to.offset += at * to.strides[axis];
            to.shape[axis] = (to.shape[axis] + 1 - at) / 2;
            to.strides[axis] *= 2;
            // The doubled px that the kernel's first row or column lies on: where it is the first that a px became, the second lies on that px, too.
            let first = at.cast_signed() - before;
            padding[axis - 1] = x.begin_at(axis, first.div_euclid(2));
            phase = 2 * phase + usize::from(first.rem_euclid(2) == 0);
        }
        let mut weight = View::new(reshaped(folded.clone(), [4 * out, 1, 2, 2, channels]));
        weight.shape[0] = out;
        weight.offset = phase * out * weight.strides[0];
        Problem { x, weight, bias: bias.clone(), y: to, stride: [1; 3], padding }.without_rest().with_frames_as_items()
    };
    [[0, 0], [0, 1], [1, 0], [1, 1]].map(part).into_iter().filter(|part| !part.y.shape.contains(&0)).collect()
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
