use std::thread;

use burn::tensor::Device;
use serde::Serialize;
use vae_core::DeviceName;
use vae_core::backends::{OpenError, local_devices};

use crate::Error;
use crate::config::{DevicesConfig, OnMissing};

/// A device of this machine that this program can use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// Its name in configurations.
    pub name: DeviceName,
    /// The backend, and the name of the GPU.
    pub description: String,
    /// Its memory in bytes, if known.
    pub memory: Option<u64>,
}

/// The devices of this machine that this program can use.
pub fn list_devices() -> Vec<DeviceInfo> {
    let info = |(name, device): (DeviceName, Device)| {
        let summary = name.backend().summary;
        let (description, memory) = match vae_core::adapter(&device) {
            Some(adapter) => (format!("{summary}: {}", adapter.name), adapter.memory),
            None => (summary.to_owned(), None),
        };
        DeviceInfo { name, description, memory }
    };
    local_devices().map(info).collect()
}

/// A device that has been opened.
#[derive(Debug, Clone)]
pub struct OpenDevice {
    /// Its name.
    pub name: DeviceName,
    /// The device in Burn.
    pub device: Device,
}

/// Opens the configured devices, all at once. A missing device is an error, or skipped with a warning (`devices.on_missing`).
///
/// # Errors
/// When a device is missing, or all are.
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
/// When this program was built without its backend, the machine has no such device, or its driver does not work; of a remote device, when its server does not
/// answer or refuses.
pub fn open_device(name: &DeviceName) -> Result<Device, Error> {
    let available = || list_devices().iter().map(|device| device.name.to_string()).collect::<Vec<_>>().join(", ");
    name.open().map_err(|error| match error {
        OpenError::NotBuilt { feature } => Error::DeviceNotBuilt { device: name.clone(), feature, available: available() },
        OpenError::Absent => Error::DeviceAbsent { device: name.clone(), available: available() },
        error => Error::DeviceUnusable { device: name.clone(), message: error.to_string() },
    })
}
