//! GPUs, through the API that wgpu picks.

use super::{Addressing, Backend};

pub(super) static BACKEND: Backend = Backend {
    name: "wgpu",
    feature: "wgpu",
    summary: "GPU, wgpu",
    addressing: Addressing::Number,
    is_cpu: false,
    #[cfg(feature = "wgpu")]
    driver: Some(&driver::DRIVER),
    #[cfg(not(feature = "wgpu"))]
    driver: None,
};

#[cfg(feature = "wgpu")]
mod driver {
    use burn::tensor::DeviceType;
    use cubecl::Device;
    use cubecl::device::WgpuBackend;

    use crate::backends::cube::Cube;

    pub(super) static DRIVER: Cube = Cube {
        kind: || DeviceType::Wgpu,
        owns: |device| matches!(device, Device::Wgpu(device) if !matches!(device.backend, WgpuBackend::Vulkan | WgpuBackend::Metal)),
        free: |_| None,
    };
}
