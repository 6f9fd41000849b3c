//! What the GPU backends share: Burn runs all of them through CubeCL.

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, DeviceType};
use cubecl::ir::{ElemType, FloatKind};

use super::backend::{Adapter, Driver};
use crate::operators::cube as kernels;
use crate::operators::erased::AnyOperators;

/// The driver of one runtime of CubeCL.
pub(super) struct Cube {
    /// How Burn's list of devices calls the runtime.
    pub(super) kind: fn() -> DeviceType,
    /// Whether a device belongs to the runtime.
    pub(super) owns: fn(&cubecl::Device) -> bool,
    /// Bytes that a device has free for any process, where its driver tells.
    pub(super) free: fn(&cubecl::Device) -> Option<u64>,
}

impl Driver for Cube {
    fn devices(&self) -> Vec<Device> {
        Device::enumerate((self.kind)()).into_vec()
    }

    fn owns(&self, device: &DispatchDevice) -> bool {
        matches!(device, DispatchDevice::Cube(device) if (self.owns)(device))
    }

    fn adapter(&self, device: &Device) -> Option<Adapter> {
        #[allow(irrefutable_let_patterns, reason = "there may be no other backends in a build")]
        let DispatchDevice::Cube(device) = device.as_dispatch() else { return None };
        let client = device.client();
        let properties = client.properties();
        Some(Adapter {
            name: properties.identity.name.clone(),
            memory: properties.memory.max_memory(),
            has_tf32: properties.supports_type(ElemType::Float(FloatKind::TF32)),
        })
    }

    fn operators(&self, _: DType) -> &'static dyn AnyOperators {
        &kernels::Cube
    }

    fn held_memory(&self, device: &Device) -> Option<u64> {
        device.memory_pool_usage().map(|pools| pools.bytes_reserved)
    }

    fn free_memory(&self, device: &Device) -> Option<u64> {
        #[allow(irrefutable_let_patterns, reason = "there may be no other backends in a build")]
        let DispatchDevice::Cube(of_runtime) = device.as_dispatch() else { return None };
        let for_reuse = device.memory_pool_usage().map_or(0, |pools| pools.bytes_reserved.saturating_sub(pools.bytes_in_use));
        Some((self.free)(of_runtime)? + for_reuse)
    }

    fn keep_kernels(&self, keep: bool) {
        use cubecl::config::cache::CacheConfig;
        use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        config.compilation.cache = keep;
        config.autotune.disable_cache = !keep;
        if matches!(config.environment.path, CacheConfig::Target) {
            config.environment.path = CacheConfig::Global;
        }
        CubeClRuntimeConfig::try_set(config);
    }
}
