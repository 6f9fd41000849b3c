use burn::tensor::{DType, Tensor, bf16, f16};
use half::slice::HalfFloatSliceExt;
use tiling::{BoxError, HostTensor};

use crate::eight_bits::unpack;
use crate::{backends, is_in_host_memory};

/// The output of a piece of a tile.
pub(crate) enum Answer {
    /// On the device, as it was computed.
    Values(Tensor<5>),
    /// On the device, in eight bits, with the number of channels that were packed.
    Packed(Tensor<5>, usize),
    /// In host memory.
    Host(HostTensor),
    /// Few values that still have to be read from the device, for which the thread that computes does not wait.
    Later(Box<dyn FnOnce() -> Result<HostTensor, BoxError> + Send>),
}

impl Answer {
    /// The output `values`, packed in eight bits where that is allowed and the device has a memory of its own.
    pub(crate) fn new(values: Tensor<5>, eight_bits: bool) -> Self {
        if !eight_bits || is_in_host_memory(&values.device()) {
            return Self::Values(values);
        }
        let channels = values.dims()[1];
        let operators = backends::operators(&values.device(), values.dtype());
        Self::Packed(operators.pack(values), channels)
    }

    /// Bytes that are copied back.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Values(values) | Self::Packed(values, _) => values.shape().num_elements() * values.dtype().size(),
            Self::Host(values) => size_of_val(values.data()),
            Self::Later(_) => 0,
        }
    }

    /// The values in host memory.
    ///
    /// # Errors
    /// When the device does not give them.
    pub(crate) fn download(self) -> Result<HostTensor, BoxError> {
        let (values, packed) = match self {
            Self::Host(values) => return Ok(values),
            Self::Later(read) => return read(),
            Self::Values(values) => (values, None),
            Self::Packed(values, channels) => (values, Some(channels)),
        };
        let shape = values.dims();
        let data = values.try_into_data()?;
        let values = match data.dtype() {
            DType::F16 => data.as_slice::<f16>()?.to_f32_vec(),
            DType::BF16 => data.as_slice::<bf16>()?.to_f32_vec(),
            _ => data.try_cast_as::<f32>()?.try_into_vec::<f32>()?,
        };
        let tensor = HostTensor::new(shape, values).expect("a tensor has as many values as its shape says");
        Ok(match packed {
            Some(channels) => unpack(&tensor, channels),
            None => tensor,
        })
    }
}
