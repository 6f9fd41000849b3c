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
    use cudarc::driver::CudaContext;

    use crate::backends::cube::Cube;

    pub(super) static DRIVER: Cube = Cube { kind: || DeviceType::Cuda, owns: |device| matches!(device, Device::Cuda(_)), free: free_memory };

    fn free_memory(device: &Device) -> Option<u64> {
        #[allow(irrefutable_let_patterns, reason = "there may be no other runtimes in a build")]
        let Device::Cuda(device) = device else { return None };
        let (free, _) = CudaContext::new(device.index).ok()?.mem_get_info().ok()?;
        Some(free as u64)
    }
}
