use std::thread;

use burn::tensor::{Device, DeviceType};
use serde::Serialize;
use vae_core::DeviceName;

use crate::config::{DevicesConfig, OnMissing};
use crate::{Error, remote};

/// A device that this program can use on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// Its name in configurations.
    pub name: DeviceName,
    /// What it is.
    pub description: String,
    /// Its memory in bytes, where that can be known.
    pub memory: Option<u64>,
}

/// A backend: its Cargo feature, whether it was built in, and its devices. Devices are looked for, never assumed.
struct Backend {
    feature: &'static str,
    name: fn(usize) -> DeviceName,
    devices: Option<fn() -> Vec<Device>>,
    description: &'static str,
}

fn backends() -> [Backend; 6] {
    [
        Backend {
            feature: "flex",
            name: |_| DeviceName::Cpu,
            #[cfg(feature = "flex")]
            devices: Some(|| vec![Device::flex()]),
            #[cfg(not(feature = "flex"))]
            devices: None,
            description: "CPU, Burn's flex backend",
        },
        Backend {
            feature: "ndarray",
            name: |_| DeviceName::Ndarray,
            #[cfg(feature = "ndarray")]
            #[expect(deprecated, reason = "kept selectable while Burn has it")]
            devices: Some(|| vec![Device::ndarray()]),
            #[cfg(not(feature = "ndarray"))]
            devices: None,
            description: "CPU, Burn's ndarray backend (slow, deprecated upstream)",
        },
        Backend {
            feature: "cuda",
            name: DeviceName::Cuda,
            #[cfg(feature = "cuda")]
            devices: Some(|| enumerate(DeviceType::Cuda)),
            #[cfg(not(feature = "cuda"))]
            devices: None,
            description: "GPU, CUDA",
        },
        Backend {
            feature: "vulkan",
            name: DeviceName::Vulkan,
            #[cfg(feature = "vulkan")]
            devices: Some(|| enumerate(DeviceType::Vulkan)),
            #[cfg(not(feature = "vulkan"))]
            devices: None,
            description: "GPU, Vulkan",
        },
        Backend {
            feature: "metal",
            name: DeviceName::Metal,
            #[cfg(feature = "metal")]
            devices: Some(|| enumerate(DeviceType::Metal)),
            #[cfg(not(feature = "metal"))]
            devices: None,
            description: "GPU, Metal",
        },
        Backend {
            feature: "wgpu",
            name: DeviceName::Wgpu,
            #[cfg(feature = "wgpu")]
            devices: Some(|| enumerate(DeviceType::Wgpu)),
            #[cfg(not(feature = "wgpu"))]
            devices: None,
            description: "GPU, wgpu",
        },
    ]
}

#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), expect(dead_code, reason = "only GPU backends are enumerated"))]
fn enumerate(kind: DeviceType) -> Vec<Device> {
    Device::enumerate(kind).iter().cloned().collect()
}

/// The devices that are there.
pub fn list_devices() -> Vec<DeviceInfo> {
    let info = |backend: Backend| {
        let devices = backend.devices.map_or_else(Vec::new, |devices| devices());
        devices.into_iter().enumerate().map(move |(index, device)| {
            let (description, memory) = match vae_core::adapter(&device) {
                Some(adapter) => (format!("{}: {}", backend.description, adapter.name), adapter.memory),
                None => (backend.description.to_owned(), None),
            };
            DeviceInfo { name: (backend.name)(index), description, memory }
        })
    };
    backends().into_iter().flat_map(info).collect()
}

/// A device that is there.
#[derive(Debug, Clone)]
pub struct OpenDevice {
    /// Its name.
    pub name: DeviceName,
    /// Burn's handle.
    pub device: Device,
}

/// Opens the configured devices, all at once. Those that are not there are an error, or left out with a warning, as the configuration says.
///
/// # Errors
/// When a device is not there, or none is.
pub fn open_devices(config: &DevicesConfig) -> Result<Vec<OpenDevice>, Error> {
    let opened: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = config.names.iter().map(|name| scope.spawn(|| open_device(name))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut devices = Vec::new();
    let mut missing = None;
    for (name, opened) in config.names.iter().zip(opened) {
        match opened {
            Ok(device) => devices.push(OpenDevice { name: name.clone(), device }),
            Err(error) if config.on_missing == OnMissing::Skip => {
                tracing::warn!("{error}; the others do the work");
                missing = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if devices.is_empty() => Err(error),
        _ => Ok(devices),
    }
}

/// Opens a device.
///
/// # Errors
/// When the program was built without its backend, or the machine has no such device, or its driver does not work.
pub fn open_device(name: &DeviceName) -> Result<Device, Error> {
    let index = match *name {
        DeviceName::Cpu | DeviceName::Ndarray => 0,
        DeviceName::Cuda(index) | DeviceName::Vulkan(index) | DeviceName::Wgpu(index) | DeviceName::Metal(index) => index,
        DeviceName::Remote { ref host, index } => return remote::connect(name, host, index),
    };
    let available = || list_devices().iter().map(|device| device.name.to_string()).collect::<Vec<_>>().join(", ");
    let backend = backends().into_iter().find(|backend| (backend.name)(index) == *name);
    let Some(Backend { feature, devices, .. }) = backend else {
        return Err(Error::DeviceAbsent { device: name.clone(), available: available() });
    };
    let Some(devices) = devices else {
        return Err(Error::DeviceNotBuilt { device: name.clone(), feature, available: available() });
    };
    let device = devices().into_iter().nth(index).ok_or_else(|| Error::DeviceAbsent { device: name.clone(), available: available() })?;
    match vae_core::open_adapter(&device) {
        Ok(_) => Ok(device),
        Err(message) => Err(Error::DeviceUnusable { device: name.clone(), message }),
    }
}
