use std::fmt;

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device};

use crate::operators::Plain;
use crate::operators::erased::AnyOperators;

/// A backend of Burn, as configurations, messages and lists of devices know it.
pub struct Backend {
    /// The name of its devices, before the address: `cuda`.
    pub name: &'static str,
    /// The Cargo feature that compiles it in.
    pub feature: &'static str,
    /// A few words for lists of devices.
    pub summary: &'static str,
    /// How one of its devices is addressed.
    pub addressing: Addressing,
    /// Whether it computes on the CPU of this machine: in host memory, and fastest in f32.
    pub is_cpu: bool,
    /// What opens its devices. `None` in a build without the Cargo feature.
    pub(crate) driver: Option<&'static dyn Driver>,
}

/// How names distinguish the devices of one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// There is one device: `cpu`.
    Single,
    /// By number, 0 by default: `cuda:1`.
    Number,
    /// By server and number there, 0 by default: `remote://host:7700/1`.
    Server,
}

/// Which device of its backend a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// The only one.
    Single,
    /// The one of that number.
    Number(usize),
    /// A device of a server.
    Server {
        /// Name or address of the server, and its port: `host:7700`.
        host: String,
        /// The device's number there.
        number: usize,
    },
}

/// What a GPU reports about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// As its driver names it.
    pub name: String,
    /// Bytes, where they can be known.
    pub memory: Option<u64>,
    /// Whether it has tensor cores that round f32 to TF32.
    pub has_tf32: bool,
}

/// Why a device cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// This build lacks the backend.
    #[error("this program was built without the Cargo feature `{feature}`")]
    NotBuilt {
        /// The feature.
        feature: &'static str,
    },
    /// The backend has no such device.
    #[error("there is no such device")]
    Absent,
    /// The device is there, but does not work; or a server does not answer, or refuses.
    #[error("{message}")]
    Unusable {
        /// What the driver or the server said.
        message: String,
    },
}

/// What a backend does with its devices. Compiled with its Cargo feature.
pub(crate) trait Driver: Sync {
    /// The devices of this machine, in the order of their numbers.
    fn devices(&self) -> Vec<Device>;

    /// Whether a device of Burn belongs to this backend. No device belongs to two.
    fn owns(&self, device: &DispatchDevice) -> bool;

    /// The device at `address`. May panic where a vendor's driver does.
    fn open(&self, address: &Address) -> Result<Device, OpenError> {
        let number = match address {
            Address::Single => 0,
            Address::Number(number) => *number,
            Address::Server { .. } => return Err(OpenError::Absent),
        };
        let device = self.devices().into_iter().nth(number).ok_or(OpenError::Absent)?;
        self.adapter(&device);
        Ok(device)
    }

    /// The GPU behind a device. Opens it, and may panic where a vendor's driver does.
    fn adapter(&self, _device: &Device) -> Option<Adapter> {
        None
    }

    /// Whether a device computes in `dtype`.
    fn computes_in(&self, device: &Device, dtype: DType) -> bool {
        device.supports_dtype(dtype)
    }

    /// What computes on its devices in `dtype`: Burn's own operators, unless a backend has others.
    fn operators(&self, _dtype: DType) -> &'static dyn AnyOperators {
        &Plain
    }

    /// Bytes of the device's own memory that this process holds. May panic where the device is lost.
    fn held_memory(&self, _device: &Device) -> Option<u64> {
        None
    }

    /// Bytes of the device's own memory that this process can take or has for reuse. May panic where the device is lost.
    fn free_memory(&self, _device: &Device) -> Option<u64> {
        None
    }

    /// Whether compiled kernels are kept from run to run. Backends that share a cache may all be set.
    fn keep_kernels(&self, _keep: bool) {}
}

impl Backend {
    /// The backend of a device; `None` if the table lacks it.
    pub fn of(device: &Device) -> Option<&'static Self> {
        let device = device.as_dispatch();
        super::BACKENDS.iter().copied().find(|backend| backend.driver.is_some_and(|driver| driver.owns(device)))
    }

    /// Whether this build has the backend.
    pub fn is_built(&self) -> bool {
        self.driver.is_some()
    }

    /// Its devices on this machine, in the order of their numbers. None are opened.
    pub fn devices(&self) -> Vec<Device> {
        self.driver.map_or_else(Vec::new, Driver::devices)
    }

    /// Opens a device.
    ///
    /// # Errors
    /// When this build lacks the backend, there is no such device, or it does not work.
    pub fn open(&self, address: &Address) -> Result<Device, OpenError> {
        let driver = self.driver.ok_or(OpenError::NotBuilt { feature: self.feature })?;
        tiling::catch(|| driver.open(address)).unwrap_or_else(|message| Err(OpenError::Unusable { message }))
    }

    /// How names of its devices are written: `cpu`, `cuda:N`, `remote://HOST:PORT/N`.
    pub fn name_pattern(&self) -> String {
        let name = self.name;
        match self.addressing {
            Addressing::Single => name.to_owned(),
            Addressing::Number => format!("{name}:N"),
            Addressing::Server => format!("{name}://HOST:PORT/N"),
        }
    }
}

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Backend {}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
