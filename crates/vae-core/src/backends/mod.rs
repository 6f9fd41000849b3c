//! The backends of Burn that tilevae can compute on, in one table.
//!
//! Add a backend:
//!
//! 1. Cargo features: `NAME = ["burn/NAME"]` in `vae-core`, and in `tilevae` and `tilevae-cli` one that forwards to it.
//! 2. A file `backends/NAME.rs` with a static `BACKEND`: a [`Backend`], and a `Driver` that is compiled with the feature.
//! 3. Here, `mod NAME;` and its line in [`BACKENDS`].
//! 4. If it has [operators](crate::operators) of its own, a file `operators/NAME.rs`, which its driver names.
//! 5. [`DeviceName`], messages, `tilevae devices`, the choice of dtypes and `TILEVAE_TEST_DEVICE` follow from the table.

mod backend;
mod cuda;
mod flex;
mod metal;
mod name;
mod ndarray;
mod remote;
mod vulkan;
mod wgpu;

#[cfg(feature = "cube")]
mod cube;

use burn::tensor::{DType, Device};

use crate::operators::Plain;
use crate::operators::erased::AnyOperators;

pub use backend::{Adapter, Address, Addressing, Backend, OpenError};
pub use name::{DeviceName, DeviceNameError};
pub use remote::TOKEN_VARIABLE;
#[cfg(feature = "remote")]
pub use remote::token;

/// Every backend that tilevae knows, whether this build has it or not. Lists of devices are in this order.
pub static BACKENDS: &[&Backend] =
    &[&flex::BACKEND, &ndarray::BACKEND, &cuda::BACKEND, &vulkan::BACKEND, &wgpu::BACKEND, &metal::BACKEND, &remote::BACKEND];

/// The devices of this machine that this build can use, with their names. Opens none of them.
pub fn local_devices() -> impl Iterator<Item = (DeviceName, Device)> {
    BACKENDS.iter().flat_map(|&backend| {
        let devices = backend.devices().into_iter().enumerate();
        devices.map(|(number, device)| (DeviceName::local(backend, number), device))
    })
}

/// A device to build modules for that are only looked at: nothing is computed on it.
pub(crate) fn planning_device() -> Option<Device> {
    local_devices().next().map(|(_, device)| device).or_else(|| tiling::catch(Device::default).ok())
}

/// The GPU behind a device. `None` for other devices, and for a GPU that cannot be opened.
pub fn adapter(device: &Device) -> Option<Adapter> {
    let driver = Backend::of(device)?.driver?;
    tiling::catch(|| driver.adapter(device)).ok().flatten()
}

/// Bytes of a GPU's memory that this process holds, including what it keeps for reuse. `None` for other devices, and for a GPU that is lost.
pub fn held_memory(device: &Device) -> Option<u64> {
    let driver = Backend::of(device)?.driver?;
    tiling::catch(|| driver.held_memory(device)).ok().flatten()
}

/// Bytes that a GPU has free for this process, of which some may be kept for reuse. `None` for other devices, where it is not known, and for a GPU that is lost.
pub fn free_memory(device: &Device) -> Option<u64> {
    let driver = Backend::of(device)?.driver?;
    tiling::catch(|| driver.free_memory(device)).ok().flatten()
}

/// Whether a device computes in this process's own memory, so that its results need no download.
pub fn is_in_host_memory(device: &Device) -> bool {
    Backend::of(device).is_some_and(|backend| backend.is_cpu)
}

/// Whether a device computes in `dtype`. Remote devices are assumed to.
pub fn computes_in(device: &Device, dtype: DType) -> bool {
    match Backend::of(device).and_then(|backend| backend.driver) {
        Some(driver) => driver.computes_in(device, dtype),
        None => device.supports_dtype(dtype),
    }
}

/// What computes on a device in `dtype`.
pub(crate) fn operators(device: &Device, dtype: DType) -> &'static dyn AnyOperators {
    Backend::of(device).and_then(|backend| backend.driver).map_or(&Plain, |driver| driver.operators(dtype))
}

/// Whether backends that compile kernels keep them, and their tuning, from run to run, in the system's folder for caches. Call it before the first use of a GPU.
pub fn keep_kernels(keep: bool) {
    for driver in BACKENDS.iter().filter_map(|backend| backend.driver) {
        driver.keep_kernels(keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_devices_belong_to_one_backend() {
        for (at, backend) in BACKENDS.iter().enumerate() {
            assert!(BACKENDS[..at].iter().all(|other| other.name != backend.name), "{} is registered twice", backend.name);
        }
        for (name, device) in local_devices() {
            let owners: Vec<_> = BACKENDS.iter().filter(|backend| backend.driver.is_some_and(|driver| driver.owns(device.as_dispatch()))).collect();
            assert_eq!(owners, [&name.backend()], "{name}");
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }

    #[test]
    fn a_backend_that_is_not_compiled_in_names_its_feature() {
        for backend in BACKENDS.iter().filter(|backend| !backend.is_built()) {
            assert!(backend.devices().is_empty());
            assert_eq!(backend.open(&Address::Number(0)), Err(OpenError::NotBuilt { feature: backend.feature }));
        }
    }

    #[test]
    #[cfg(feature = "flex")]
    fn the_cpu_opens_and_has_no_adapter() {
        let device = DeviceName::CPU.open().unwrap();
        assert!(is_in_host_memory(&device) && computes_in(&device, DType::F32));
        assert_eq!((adapter(&device), held_memory(&device)), (None, None));
    }
}
