//! Tensors of Burn's CubeCL backend, and views of them, as kernels see them.

use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{AddressType, ElemType};
use cubecl::prelude::{TensorArg, TensorBinding};
use cubecl::zspace::Tiling;
use cubecl::zspace::metadata::Metadata;
use cubecl::{CubeCount, CubeDim, calculate_cube_count_elemwise};

use super::kernels::UNITS;

/// A part of a tensor with axes and strides of its own.
#[derive(Clone)]
pub(super) struct View {
    pub(super) tensor: CubeTensor,
    /// Values before its first, from the start of the tensor.
    pub(super) offset: usize,
    /// `[n, t, h, w, c]`.
    pub(super) shape: [usize; 5],
    /// In values.
    pub(super) strides: [usize; 5],
}

/// A tensor of the backend as Burn's generic one holds it.
pub(super) fn primitive<const D: usize>(x: Tensor<D>) -> CubeTensor {
    x.try_into_primitive::<CubeBackend>().expect("a tensor on a backend of CubeCL")
}

/// The inverse of [`primitive`].
pub(super) fn generic<const D: usize>(x: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<CubeBackend>(x)
}

/// A tensor without gaps, in the order of its axes.
pub(super) fn is_dense(x: &CubeTensor) -> bool {
    let mut expected = 1;
    x.meta.shape().iter().zip(x.meta.strides().iter()).rev().all(|(&side, &stride)| {
        let fits = side == 1 || stride == expected;
        expected *= side;
        fits
    })
}

/// The same values in dense memory, which begins where kernels can read whole vectors: `x` itself where it is so.
pub(super) fn dense(x: CubeTensor) -> CubeTensor {
    let is_aligned = x.handle.offset_start.unwrap_or(0).is_multiple_of(16);
    let shape = x.meta.shape().clone();
    if is_dense(&x) && is_aligned {
        return reshaped(x, shape);
    }
    if is_aligned {
        return into_contiguous(x);
    }
    let y = empty(&x, shape);
    let element = element(&x);
    cubecl::std::tensor::copy_into(&y.client, x.binding(), y.clone().binding(), element);
    y
}

/// A dense tensor with other axes.
pub(super) fn reshaped(mut x: CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    let shape: Shape = shape.into();
    let mut strides = vec![1; shape.num_dims()];
    for axis in (1..strides.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    *x.meta = Metadata::new(shape, strides);
    x
}

/// Dense, uninitialised memory on the device and with the dtype of `like`.
pub(super) fn empty(like: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), like.dtype)
}

/// The same for values of f32.
pub(super) fn empty_f32(like: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), DType::F32)
}

pub(super) fn element(x: &CubeTensor) -> ElemType {
    burn::backend::cubecl::dtype_to_storage_type(x.dtype)
}

/// The cubes and units of a kernel with a unit for each of `count` values.
pub(super) fn elementwise(like: &CubeTensor, count: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(UNITS);
    (calculate_cube_count_elemwise(&like.client, count, dim), dim)
}

/// The type of index that reaches all values of all tensors.
pub(super) fn address<'a>(tensors: impl IntoIterator<Item = &'a CubeTensor>) -> AddressType {
    tensors.into_iter().map(CubeTensor::required_address_type).max().unwrap_or_default()
}

/// The most values that a unit reads at once from memory of which all distances are multiples of that.
pub(super) fn vector_size(x: &CubeTensor, distances: impl IntoIterator<Item = usize>) -> usize {
    let size = x.dtype.size();
    let offset = x.handle.offset_start.unwrap_or(0) as usize / size;
    let distances: Vec<usize> = distances.into_iter().chain([offset]).collect();
    let fits = |&vector: &usize| distances.iter().all(|distance| distance % vector == 0);
    x.client.io_optimized_vector_sizes(size).find(fits).unwrap_or(1)
}

impl View {
    /// All of a dense `[n, t, h, w, c]`.
    pub(super) fn new(tensor: CubeTensor) -> Self {
        let at = |axis: usize| tensor.meta.shape()[axis];
        let shape = [at(0), at(1), at(2), at(3), at(4)];
        let [_, t, h, w, c] = shape;
        Self { tensor, offset: 0, shape, strides: [t * h * w * c, h * w * c, w * c, c, 1] }
    }

    /// Lets an axis begin at another of its px. Where that lies before the first, the result says how many px before.
    pub(super) fn begin_at(&mut self, axis: usize, px: isize) -> usize {
        let left_out = px.max(0).unsigned_abs().min(self.shape[axis]);
        self.offset += left_out * self.strides[axis];
        self.shape[axis] -= left_out;
        px.min(0).unsigned_abs()
    }

    /// Frames of all items as items; `None` where they do not lie one after the other.
    pub(super) fn with_frames_as_items(&self) -> Option<Self> {
        let [n, t, h, w, c] = self.shape;
        let is_even = n == 1 || t == 1 || self.strides[0] == t * self.strides[1];
        let each = if t == 1 { self.strides[0] } else { self.strides[1] };
        let [_, _, rest @ ..] = self.strides;
        let strides = [each, each, rest[0], rest[1], rest[2]];
        is_even.then(|| Self { tensor: self.tensor.clone(), offset: self.offset, shape: [n * t, 1, h, w, c], strides })
    }

    /// What divides the lengths and distances of its vectors.
    pub(super) fn vector_size(&self) -> usize {
        let strides = self.shape.iter().zip(&self.strides).take(4).filter(|(side, _)| **side > 1).map(|(_, &stride)| stride);
        vector_size(&self.tensor, strides.chain([self.shape[4], self.offset]))
    }

    /// For kernels that are given the offset.
    pub(super) fn without_offset(self) -> TensorArg {
        let Self { tensor, shape, strides, .. } = self;
        binding(tensor, shape.into(), strides.into(), 0).into_tensor_arg()
    }

    fn offset_bytes(&self) -> usize {
        self.offset * self.tensor.dtype.size()
    }

    /// Whether the device can bind memory that begins there.
    pub(super) fn is_bindable(&self) -> bool {
        let unit = if matches!(self.tensor.device, cubecl::Device::Cuda(_)) { 16 } else { self.tensor.client.properties().memory.alignment as usize };
        (self.tensor.handle.offset_start.unwrap_or(0) as usize + self.offset_bytes()).is_multiple_of(unit)
    }

    /// For kernels that know no offset; `None` where the device cannot [bind](Self::is_bindable) it. Axes `[n, t, h, w, c]`, without frames where `N` is 2.
    pub(super) fn binding<const N: usize>(self) -> Option<TensorBinding> {
        let (is_bindable, bytes) = (self.is_bindable(), self.offset_bytes());
        let Self { tensor, shape, strides, .. } = self;
        let axes: &[usize] = if N == 2 { &[0, 2, 3, 4] } else { &[0, 1, 2, 3, 4] };
        let of = |values: [usize; 5]| axes.iter().map(|&axis| values[axis]).collect::<Vec<_>>();
        is_bindable.then(|| binding(tensor, of(shape), of(strides), bytes))
    }
}

fn binding(tensor: CubeTensor, shape: Vec<usize>, strides: Vec<usize>, offset: usize) -> TensorBinding {
    let handle = if offset == 0 { tensor.handle } else { tensor.handle.offset_start(offset as u64) };
    TensorBinding { handle: handle.binding(), shape: shape.into(), strides: strides.into(), tiling: Tiling::UNTILED }
}
