//! Devices that another process serves, on this machine or another, through Burn's remote backend.

use super::{Addressing, Backend};

/// The environment variable that holds the token which servers demand and clients send.
pub const TOKEN_VARIABLE: &str = "TILEVAE_TOKEN";

pub(super) static BACKEND: Backend = Backend {
    name: "remote",
    feature: "remote",
    summary: "device of another machine",
    addressing: Addressing::Server,
    is_cpu: false,
    #[cfg(feature = "remote")]
    driver: Some(&driver::Remote),
    #[cfg(not(feature = "remote"))]
    driver: None,
};

/// The token of [`TOKEN_VARIABLE`], if it is set and not empty.
#[cfg(feature = "remote")]
pub fn token() -> Option<String> {
    std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty())
}

#[cfg(feature = "remote")]
mod driver {
    use burn::backend::DispatchDevice;
    use burn::remote::RemoteHost;
    use burn::tensor::{DType, Device};

    use crate::backends::backend::{Address, Driver, OpenError};

    pub(super) struct Remote;

    impl Driver for Remote {
        /// None: servers are not searched for.
        fn devices(&self) -> Vec<Device> {
            Vec::new()
        }

        fn owns(&self, device: &DispatchDevice) -> bool {
            matches!(device, DispatchDevice::Remote(_))
        }

        fn open(&self, address: &Address) -> Result<Device, OpenError> {
            let Address::Server { host, number } = address else { return Err(OpenError::Absent) };
            let mut server = RemoteHost::websocket(&format!("ws://{host}"));
            if let Some(token) = super::token() {
                server = server.with_credential(token);
            }
            let connected = Device::remote_options(&server).device_index(*number).init();
            connected.map_err(|error| OpenError::Unusable { message: error.to_string() })
        }

        /// The protocol has no such question; the server refuses what it cannot do.
        fn computes_in(&self, _device: &Device, _dtype: DType) -> bool {
            true
        }
    }
}
