//! The CPU, through Burn's backend flex and the workspace's own kernels.

use super::{Addressing, Backend};

pub(super) static BACKEND: Backend = Backend {
    name: "cpu",
    feature: "flex",
    summary: "CPU, Burn's flex backend",
    addressing: Addressing::Single,
    is_cpu: true,
    #[cfg(feature = "flex")]
    driver: Some(&driver::Flex),
    #[cfg(not(feature = "flex"))]
    driver: None,
};

#[cfg(feature = "flex")]
mod driver {
    use burn::backend::DispatchDevice;
    use burn::tensor::Device;

    use crate::backends::backend::Driver;

    pub(super) struct Flex;

    impl Driver for Flex {
        fn devices(&self) -> Vec<Device> {
            vec![Device::flex()]
        }

        fn owns(&self, device: &DispatchDevice) -> bool {
            matches!(device, DispatchDevice::Flex(_))
        }
    }
}
