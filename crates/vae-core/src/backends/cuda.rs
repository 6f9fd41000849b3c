//! NVIDIA GPUs, through CUDA.

use super::{Addressing, Backend};

pub(super) static BACKEND: Backend = Backend {
    name: "cuda",
    feature: "cuda",
    summary: "GPU, CUDA",
    addressing: Addressing::Number,
    is_cpu: false,
    #[cfg(feature = "cuda")]
    driver: Some(&driver::DRIVER),
    #[cfg(not(feature = "cuda"))]
    driver: None,
};

#[cfg(feature = "cuda")]
mod driver {
    use burn::tensor::DeviceType;
    use cubecl::Device;

    use crate::backends::cube::Cube;

    pub(super) static DRIVER: Cube = Cube { kind: || DeviceType::Cuda, owns: |device| matches!(device, Device::Cuda(_)) };
}
