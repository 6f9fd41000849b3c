//! The CPU, through Burn's older backend ndarray.

use super::{Addressing, Backend};

pub(super) static BACKEND: Backend = Backend {
    name: "ndarray",
    feature: "ndarray",
    summary: "CPU, Burn's ndarray backend (slow, deprecated upstream)",
    addressing: Addressing::Single,
    is_cpu: true,
    #[cfg(feature = "ndarray")]
    driver: Some(&driver::NdArray),
    #[cfg(not(feature = "ndarray"))]
    driver: None,
};

#[cfg(feature = "ndarray")]
mod driver {
    use burn::backend::DispatchDevice;
    use burn::tensor::Device;

    use crate::backends::backend::Driver;

    pub(super) struct NdArray;

    impl Driver for NdArray {
        #[expect(deprecated, reason = "kept selectable while Burn has it")]
        fn devices(&self) -> Vec<Device> {
            vec![Device::ndarray()]
        }

        fn owns(&self, device: &DispatchDevice) -> bool {
            matches!(device, DispatchDevice::NdArray(_))
        }
    }
}
