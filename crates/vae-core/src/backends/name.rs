use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::{Address, Addressing, BACKENDS, Backend, OpenError, TOKEN_VARIABLE, flex};

/// The name of a device, as configurations write it: `cpu`, `cuda:0`, `remote://host:7700/0`. Any [`Backend`] of the table can be named, whether this
/// build has it or not.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName {
    backend: &'static Backend,
    address: Address,
}

/// A text that is not the name of a device. It is quoted without its part before an `@`, which may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown device `{}`; names are {}{}", .0, name_patterns(), hint(.0))]
pub struct DeviceNameError(pub String);

/// `a, b and c`: how the devices of every backend are named.
fn name_patterns() -> String {
    let patterns: Vec<String> = BACKENDS.iter().map(|backend| backend.name_pattern()).collect();
    let (last, others) = patterns.split_last().expect("there are backends");
    format!("{} and {last}", others.join(", "))
}

fn hint(name: &str) -> String {
    if name.contains('@') { format!("; a token goes into the environment variable {TOKEN_VARIABLE}") } else { String::new() }
}

impl DeviceName {
    /// The CPU of this machine, through Burn's backend flex.
    pub const CPU: Self = Self { backend: &flex::BACKEND, address: Address::Single };

    /// The device of a backend that has the given number on this machine.
    pub(super) fn local(backend: &'static Backend, number: usize) -> Self {
        let address = if backend.addressing == Addressing::Single { Address::Single } else { Address::Number(number) };
        Self { backend, address }
    }

    /// Its backend.
    pub fn backend(&self) -> &'static Backend {
        self.backend
    }

    /// Which of the backend's devices it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Opens the device.
    ///
    /// # Errors
    /// When this build lacks the backend, there is no such device, or it does not work.
    pub fn open(&self) -> Result<Device, OpenError> {
        self.backend.open(&self.address)
    }

    /// What names are compared and sorted by: the backend's place in the table, then the address.
    fn key(&self) -> (Option<usize>, &Address) {
        (BACKENDS.iter().position(|&backend| backend == self.backend), &self.address)
    }
}

impl FromStr for DeviceName {
    type Err = DeviceNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || DeviceNameError(name.to_owned());
        let lower = name.trim().to_ascii_lowercase();
        let find = |name: &str, addressing: &[Addressing]| {
            BACKENDS.iter().copied().find(|backend| backend.name == name && addressing.contains(&backend.addressing)).ok_or_else(unknown)
        };
        if let Some((scheme, rest)) = lower.split_once("://") {
            let backend = find(scheme, &[Addressing::Server])?;
            if let Some((_, host)) = rest.rsplit_once('@') {
                return Err(DeviceNameError(format!("{scheme}://...@{host}")));
            }
            let (host, number) = rest.split_once('/').unwrap_or((rest, ""));
            let number = if number.is_empty() { 0 } else { parse_digits(number).ok_or_else(unknown)? };
            return if is_address(host) { Ok(Self { backend, address: Address::Server { host: host.to_owned(), number } }) } else { Err(unknown()) };
        }
        if let Some((backend, number)) = lower.split_once(':') {
            let backend = find(backend, &[Addressing::Number])?;
            return Ok(Self { backend, address: Address::Number(parse_digits(number).ok_or_else(unknown)?) });
        }
        Ok(Self::local(find(&lower, &[Addressing::Single, Addressing::Number])?, 0))
    }
}

/// Digits and nothing else: no sign.
fn parse_digits<N: FromStr>(digits: &str) -> Option<N> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// Whether the text is a host's name or address (IPv6 in brackets) and a port, and nothing else that a URL may have.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    };
    is_host && parse_digits::<u16>(port).is_some_and(|port| port > 0)
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backend = self.backend.name;
        match &self.address {
            Address::Single => f.write_str(backend),
            Address::Number(number) => write!(f, "{backend}:{number}"),
            Address::Server { host, number } => write!(f, "{backend}://{host}/{number}"),
        }
    }
}

impl fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for DeviceName {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for DeviceName {}

impl PartialOrd for DeviceName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for DeviceName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl Hash for DeviceName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in ["cpu", "ndarray", "cuda:0", "vulkan:3", "wgpu:1", "metal:0", "remote://10.0.0.2:7700/1", "remote://[::1]:7700/0"] {
            assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
        }
        let address = |name: &str| name.parse::<DeviceName>().unwrap().address().clone();
        assert_eq!(address("CUDA"), Address::Number(0));
        assert_eq!(address("remote://gpu:7700"), Address::Server { host: "gpu:7700".to_owned(), number: 0 });
        assert_eq!("cpu".parse(), Ok(DeviceName::CPU));
        for name in [
            "",
            "cuda:",
            "cuda:x",
            "cpu:0",
            "tpu",
            "remote",
            "remote:7700",
            "cuda://gpu:7700",
            "remote://",
            "remote://gpu",
            "remote://:7700",
            "remote://gpu:7700/x",
            "remote://gpu:port/0",
        ] {
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

    #[test]
    fn messages_and_order_follow_the_table() {
        let error = "tpu".parse::<DeviceName>().unwrap_err().to_string();
        assert_eq!(error, "unknown device `tpu`; names are cpu, ndarray, cuda:N, vulkan:N, wgpu:N, metal:N and remote://HOST:PORT/N");
        let mut names = ["remote://a:1/0", "metal:0", "cuda:10", "cuda:2", "cpu"].map(|name| name.parse::<DeviceName>().unwrap());
        names.sort();
        assert_eq!(names.map(|name| name.to_string()), ["cpu", "cuda:2", "cuda:10", "metal:0", "remote://a:1/0"]);
    }
}
