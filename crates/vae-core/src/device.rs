use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

/// The name of a device, as configurations write it: `cpu`, `ndarray`, `cuda:0`, `vulkan:1`, `wgpu:0`, `metal:0`, `remote://host:7700/0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceName {
    /// Burn's CPU backend.
    Cpu,
    /// Burn's older CPU backend.
    Ndarray,
    /// A CUDA GPU by its number.
    Cuda(usize),
    /// A GPU through Vulkan, by its number.
    Vulkan(usize),
    /// A GPU through whatever API wgpu picks, by its number.
    Wgpu(usize),
    /// A GPU through Metal, by its number.
    Metal(usize),
    /// A device of another machine, or another process.
    Remote {
        /// Name or address, and port, of the server.
        host: String,
        /// The device's number there.
        index: usize,
    },
}

/// A name that is not a device's, without what may be a secret in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown device `{}`; names are cpu, ndarray, cuda:N, vulkan:N, wgpu:N, metal:N and remote://HOST:PORT/N{}", .0, hint(.0))]
pub struct DeviceNameError(pub String);

fn hint(name: &str) -> &'static str {
    if name.contains('@') { "; a token goes into the environment variable TILEVAE_TOKEN" } else { "" }
}

impl FromStr for DeviceName {
    type Err = DeviceNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || DeviceNameError(name.to_owned());
        let lower = name.trim().to_ascii_lowercase();
        if let Some(rest) = lower.strip_prefix("remote://") {
            if let Some((_, host)) = rest.rsplit_once('@') {
                return Err(DeviceNameError(format!("remote://...@{host}")));
            }
            let (host, index) = rest.split_once('/').unwrap_or((rest, ""));
            let index = if index.is_empty() { Some(0) } else { number(index) };
            return match index.filter(|_| is_address(host)) {
                Some(index) => Ok(Self::Remote { host: host.to_owned(), index }),
                None => Err(unknown()),
            };
        }
        let (kind, index) = match lower.split_once(':') {
            Some((kind, index)) => (kind, Some(number(index).ok_or_else(unknown)?)),
            None => (lower.as_str(), None),
        };
        match (kind, index) {
            ("cpu", None) => Ok(Self::Cpu),
            ("ndarray", None) => Ok(Self::Ndarray),
            ("cuda", index) => Ok(Self::Cuda(index.unwrap_or(0))),
            ("vulkan", index) => Ok(Self::Vulkan(index.unwrap_or(0))),
            ("wgpu", index) => Ok(Self::Wgpu(index.unwrap_or(0))),
            ("metal", index) => Ok(Self::Metal(index.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

/// Digits and nothing else.
fn number<N: FromStr>(digits: &str) -> Option<N> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// A host's name or its address (of version 6 in brackets), and a port. What else a URL may have would only be misread further on.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    };
    is_host && number::<u16>(port).is_some_and(|port| port > 0)
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Ndarray => f.write_str("ndarray"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Vulkan(index) => write!(f, "vulkan:{index}"),
            Self::Wgpu(index) => write!(f, "wgpu:{index}"),
            Self::Metal(index) => write!(f, "metal:{index}"),
            Self::Remote { host, index } => write!(f, "remote://{host}/{index}"),
        }
    }
}

impl TryFrom<String> for DeviceName {
    type Error = DeviceNameError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.to_string()
    }
}

/// What a GPU says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// As its driver names it.
    pub name: String,
    /// Bytes, where they can be known.
    pub memory: Option<u64>,
    /// Whether it has tensor cores that round f32 to TF32.
    pub has_tf32: bool,
}

/// Whether a device computes in this process's own memory, so that nothing is brought back from it.
pub fn is_in_host_memory(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "flex")]
        burn::backend::DispatchDevice::Flex(_) => true,
        #[cfg(feature = "ndarray")]
        burn::backend::DispatchDevice::NdArray(_) => true,
        #[allow(unreachable_patterns, reason = "there may be no other backends in a build")]
        _ => false,
    }
}

/// The GPU behind a device; nothing of other devices.
///
/// # Errors
/// What its driver said, when the GPU cannot be opened.
pub fn open_adapter(device: &Device) -> Result<Option<Adapter>, String> {
    match device.as_dispatch() {
        #[cfg(feature = "cube")]
        burn::backend::DispatchDevice::Cube(cube) => {
            use cubecl::ir::{ElemType, FloatKind};
            // A driver that is there but does not work panics.
            let opened = std::panic::catch_unwind(|| {
                let client = cube.client();
                let properties = client.properties();
                Adapter {
                    name: properties.identity.name.clone(),
                    memory: properties.memory.max_memory(),
                    has_tf32: properties.supports_type(ElemType::Float(FloatKind::TF32)),
                }
            });
            let said = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
                Ok(text) => *text,
                Err(panic) => panic.downcast_ref::<&str>().map_or_else(|| "its driver panicked".to_owned(), |&text| text.to_owned()),
            };
            opened.map(Some).map_err(said)
        }
        _ => Ok(None),
    }
}

/// The same, and nothing of a GPU that cannot be opened.
pub fn adapter(device: &Device) -> Option<Adapter> {
    open_adapter(device).ok().flatten()
}

/// Bytes of a GPU's memory that this process holds, what it keeps for reuse included; nothing of other devices, and of one that is lost.
#[cfg_attr(not(feature = "cube"), expect(unused_variables, reason = "there are no GPUs in this build"))]
pub fn held_memory(device: &Device) -> Option<u64> {
    #[cfg(feature = "cube")]
    if matches!(device.as_dispatch(), burn::backend::DispatchDevice::Cube(_)) {
        let device = std::panic::AssertUnwindSafe(device);
        return std::panic::catch_unwind(|| device.memory_pool_usage()).ok().flatten().map(|pools| pools.bytes_reserved);
    }
    None
}

/// Whether GPUs keep what they compile and tune from run to run, in the folder that the system has for such things. To be said before the first use of a GPU.
#[cfg_attr(not(feature = "cube"), expect(unused_variables, reason = "there are no GPUs in this build"))]
pub fn keep_kernels(keep: bool) {
    #[cfg(feature = "cube")]
    {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in ["cpu", "ndarray", "cuda:0", "vulkan:3", "wgpu:1", "metal:0", "remote://10.0.0.2:7700/1", "remote://[::1]:7700/0"] {
            assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
        }
        assert_eq!("CUDA".parse(), Ok(DeviceName::Cuda(0)));
        assert_eq!("remote://gpu:7700".parse(), Ok(DeviceName::Remote { host: "gpu:7700".to_owned(), index: 0 }));
        for name in
            ["", "cuda:", "cuda:x", "cpu:0", "tpu", "remote://", "remote://gpu", "remote://:7700", "remote://gpu:7700/x", "remote://gpu:port/0"]
        {
            assert_eq!(name.parse::<DeviceName>(), Err(DeviceNameError(name.to_owned())));
        }
    }

    #[test]
    fn addresses_have_nothing_that_could_be_misread() {
        for name in [
            "cuda:+1",
            "cuda:99999999999999999999",
            "remote://gpu:0",
            "remote://gpu:+7700",
            "remote://gpu:70000",
            "remote://gpu:7700/+1",
            "remote://gpu:7700?x:80",
            "remote://gpu:7700#x:80",
            "remote://gpu 1:7700",
            "remote://gpu\r\nx:7700",
            "remote://::1:7700",
            "remote://[::1:7700",
            "remote://[x]:7700",
            "remote://gp\u{fc}:7700",
        ] {
            assert_eq!(name.parse::<DeviceName>(), Err(DeviceNameError(name.to_owned())));
        }
    }

    #[test]
    fn a_token_in_a_name_is_not_repeated() {
        for name in ["remote://me:secret@gpu:7700/0", "remote://secret@gpu:7700"] {
            let error = name.parse::<DeviceName>().unwrap_err().to_string();
            assert!(!error.contains("secret") && error.contains("@gpu:7700") && error.contains("TILEVAE_TOKEN"), "{error}");
        }
    }
}
