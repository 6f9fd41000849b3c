//! Arrays of numpy as inputs and outputs of runs, without a copy of the whole.

use numpy::{IntoPyArray, PyArray1, PyArray5, PyArrayMethods, PyReadonlyArray5, PyReadwriteArray5, PyUntypedArrayMethods};
use pyo3::prelude::*;
use tilevae::TileSource;
use tilevae::tiling::{BoxError, HostTensor, Region, Sink};

use crate::error::value_error;

/// An input `[b, c, t, h, w]` in memory that Python owns.
pub(crate) struct ArraySource<'a> {
    values: &'a [f32],
    shape: [usize; 5],
}

impl<'a> ArraySource<'a> {
    /// # Errors
    /// When the array is not contiguous.
    pub(crate) fn new(array: &'a PyReadonlyArray5<'_, f32>) -> PyResult<Self> {
        let shape = array.shape().try_into().map_err(value_error)?;
        Ok(Self { values: array.as_slice().map_err(value_error)?, shape })
    }
}

impl ArraySource<'_> {
    /// A copy of the whole.
    pub(crate) fn to_tensor(&self) -> PyResult<HostTensor> {
        HostTensor::new(self.shape, self.values.to_vec()).ok_or_else(|| value_error("the array has not as many values as its shape says"))
    }
}

/// An array that takes over the values of a tensor.
pub(crate) fn into_array(py: Python<'_>, tensor: HostTensor) -> PyResult<Bound<'_, PyArray5<f32>>> {
    let shape = tensor.shape();
    tensor.into_data().into_pyarray(py).reshape(shape)
}

impl TileSource for ArraySource<'_> {
    fn shape(&self) -> [usize; 5] {
        self.shape
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        let [b, c, t, h, w] = self.shape;
        let ([first, top, left], [frames, height, width]) = (region.start, region.size);
        let mut values = Vec::with_capacity(b * c * frames * height * width);
        for plane in 0..b * c {
            for frame in first..first + frames {
                for row in top..top + height {
                    let start = ((plane * t + frame) * h + row) * w + left;
                    values.extend_from_slice(&self.values[start..start + width]);
                }
            }
        }
        HostTensor::new([b, c, frames, height, width], values).ok_or_else(|| "a region beyond the array".into())
    }

    fn is_in_memory(&self) -> bool {
        true
    }
}

/// An output `[b, c, t, h, w]` in memory that Python owns.
pub(crate) struct ArraySink<'a> {
    values: &'a mut [f32],
    shape: [usize; 5],
}

impl<'a> ArraySink<'a> {
    /// # Errors
    /// When the array is not contiguous.
    pub(crate) fn new(array: &'a mut PyReadwriteArray5<'_, f32>) -> PyResult<Self> {
        let shape = array.shape().try_into().map_err(value_error)?;
        Ok(Self { values: array.as_slice_mut().map_err(value_error)?, shape })
    }
}

impl Sink for ArraySink<'_> {
    fn take(&mut self, [first, top, left]: [usize; 3], extent: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        let [b, c, t, h, w] = self.shape;
        let [items, channels, frames, height, width] = piece.shape();
        if [items, channels] != [b, c] || extent != [t, h, w] {
            let [t, h, w] = extent;
            return Err(format!("the output has the shape {:?}, the array {:?}", [items, channels, t, h, w], self.shape).into());
        }
        let rows = piece.data().chunks_exact(width.max(1));
        for (at, row) in rows.enumerate() {
            let (plane, frame, line) = (at / (frames * height), at / height % frames, at % height);
            let start = ((plane * t + first + frame) * h + top + line) * w + left;
            self.values[start..start + width].copy_from_slice(row);
        }
        Ok(())
    }
}

/// The bytes of an array, which stays alive and must not change while a model is loaded from it.
pub(crate) struct HeldBytes {
    _array: Py<PyArray1<u8>>,
    start: *const u8,
    length: usize,
}

// SAFETY: the bytes are only read, and the array that owns them is held.
unsafe impl Send for HeldBytes {}
// SAFETY: as above.
unsafe impl Sync for HeldBytes {}

impl HeldBytes {
    /// # Errors
    /// When the array is not contiguous.
    pub(crate) fn new(array: &Bound<'_, PyArray1<u8>>) -> PyResult<Self> {
        let bytes = array.try_readonly().map_err(value_error)?;
        let bytes = bytes.as_slice().map_err(value_error)?;
        let (start, length) = (bytes.as_ptr(), bytes.len());
        Ok(Self { _array: array.clone().unbind(), start, length })
    }
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: the array is alive, has this length, and nobody writes to it (see the type).
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}
