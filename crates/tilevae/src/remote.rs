//! Devices of other machines, through Burn's remote backend.

use burn::tensor::Device;
use vae_core::DeviceName;

use crate::Error;

/// The environment variable that holds the token which servers ask for and clients give.
pub const TOKEN_VARIABLE: &str = "TILEVAE_TOKEN";

#[cfg(feature = "remote")]
mod enabled {
    use std::net::{SocketAddr, TcpListener};

    use burn::remote::RemoteHost;
    use burn::server::{RemoteServer, TokenAuthorizer, WebSocketTransport};

    use super::{Device, DeviceName, Error, TOKEN_VARIABLE};

    fn token() -> Option<String> {
        std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty())
    }

    pub(crate) fn connect(name: &DeviceName, host: &str, index: usize) -> Result<Device, Error> {
        let mut server = RemoteHost::websocket(&format!("ws://{host}"));
        if let Some(token) = token() {
            server = server.with_credential(token);
        }
        let unreachable = |message| Error::DeviceUnusable { device: name.clone(), message };
        Device::remote_options(&server).device_index(index).init().map_err(|error| unreachable(error.to_string()))
    }

    /// Devices for other machines.
    #[derive(Clone)]
    pub struct Server(RemoteServer);

    impl Server {
        /// A server of `devices`, which must belong to one backend. Clients have to give the token that the environment variable [`TOKEN_VARIABLE`]
        /// holds; without one, only this machine is served. Neither the token nor anything else is encrypted on its way.
        ///
        /// # Errors
        /// When there is no token and `address` can be reached from elsewhere.
        pub fn new(devices: Vec<Device>, address: SocketAddr) -> Result<Self, Error> {
            let server = vae_core::layers::host_remotely(RemoteServer::new(devices));
            match token() {
                Some(token) => {
                    let authorizer = TokenAuthorizer::new(token).map_err(|error| Error::Server { message: error.to_string() })?;
                    Ok(Self(server.with_authorizer(authorizer)))
                }
                None if address.ip().is_loopback() => Ok(Self(server)),
                None => {
                    let message = format!("{address} can be reached from other machines: set {TOKEN_VARIABLE} to a secret, here and there");
                    Err(Error::Server { message })
                }
            }
        }

        /// Serves until the process is interrupted.
        ///
        /// # Errors
        /// When the devices belong to several backends, or the listener cannot be used.
        pub fn serve(&self, listener: TcpListener) -> Result<(), Error> {
            self.0.serve(WebSocketTransport::from_listener(listener)).map_err(|error| Error::Server { message: error.to_string() })
        }
    }
}

#[cfg(feature = "remote")]
pub use enabled::Server;
#[cfg(feature = "remote")]
pub(crate) use enabled::connect;

#[cfg(not(feature = "remote"))]
pub(crate) fn connect(name: &DeviceName, _: &str, _: usize) -> Result<Device, Error> {
    let available = crate::list_devices().iter().map(|device| device.name.to_string()).collect::<Vec<_>>().join(", ");
    Err(Error::DeviceNotBuilt { device: name.clone(), feature: "remote", available })
}
