//! GPUs, through Vulkan.

use super::{Addressing, Backend};

pub(super) static BACKEND: Backend = Backend {
    name: "vulkan",
    feature: "vulkan",
    summary: "GPU, Vulkan",
    addressing: Addressing::Number,
    is_cpu: false,
    #[cfg(feature = "vulkan")]
    driver: Some(&driver::DRIVER),
    #[cfg(not(feature = "vulkan"))]
    driver: None,
};

#[cfg(feature = "vulkan")]
mod driver {
    use burn::tensor::DeviceType;
    use cubecl::Device;
    use cubecl::device::WgpuBackend;

    use crate::backends::cube::Cube;

    pub(super) static DRIVER: Cube = Cube {
        kind: || DeviceType::Vulkan,
        owns: |device| matches!(device, Device::Wgpu(device) if device.backend == WgpuBackend::Vulkan),
        free: |_| None,
    };
}
