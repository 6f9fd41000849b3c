use burn::module::{Param, ParamId};
use burn::tensor::{Device, Tensor};

/// A parameter that takes no memory before it is loaded, and is zero if it never is.
pub fn parameter<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::uninitialized(ParamId::new(), move |device, _| Tensor::zeros(shape, device), device.clone(), false, shape.into())
}
