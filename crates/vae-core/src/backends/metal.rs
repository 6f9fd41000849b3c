//! GPUs, through Metal.

use super::{Addressing, Backend};

pub(super) static BACKEND: Backend = Backend {
    name: "metal",
    feature: "metal",
    summary: "GPU, Metal",
    addressing: Addressing::Number,
    is_cpu: false,
    #[cfg(feature = "metal")]
    driver: Some(&driver::DRIVER),
    #[cfg(not(feature = "metal"))]
    driver: None,
};

#[cfg(feature = "metal")]
mod driver {
    use burn::tensor::DeviceType;
    use cubecl::Device;
    use cubecl::device::WgpuBackend;

    use crate::backends::cube::Cube;

    pub(super) static DRIVER: Cube = Cube {
        kind: || DeviceType::Metal,
        owns: |device| matches!(device, Device::Wgpu(device) if device.backend == WgpuBackend::Metal),
        free: |_| None,
    };
}
