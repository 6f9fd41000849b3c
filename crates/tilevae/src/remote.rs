//! Devices of other machines, through Burn's remote backend.

use burn::tensor::Device;
use vae_core::DeviceName;

use crate::Error;

/// The environment variable that holds the token which servers ask for and clients give.
pub const TOKEN_VARIABLE: &str = "TILEVAE_TOKEN";

#[cfg(feature = "remote")]
mod enabled {
    use std::net::TcpListener;

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
        let unreachable = |message| Error::DeviceUnreachable { device: name.clone(), message };
        Device::remote_options(&server).device_index(index).init().map_err(|error| unreachable(error.to_string()))
    }

    /// Serves devices to other machines until the process is interrupted. They must belong to one backend. Clients have to give the token that the
    /// environment variable [`TOKEN_VARIABLE`] holds; without one, only this machine is served.
    ///
    /// The connection is not encrypted.
    ///
    /// # Errors
    /// When there is no token and `listener` can be reached from elsewhere, or the server cannot be started.
    pub fn serve(devices: Vec<Device>, listener: TcpListener) -> Result<(), Error> {
        let error = |message: String| Error::Server { message };
        let address = listener.local_addr().map_err(|problem| error(problem.to_string()))?;
        let mut server = vae_core::layers::host_remotely(RemoteServer::new(devices));
        match token() {
            Some(token) => {
                let authorizer = TokenAuthorizer::new(token).map_err(|problem| error(problem.to_string()))?;
                server = server.with_authorizer(authorizer);
            }
            None if address.ip().is_loopback() => {}
            None => {
                let message = format!("{address} can be reached from other machines: set {TOKEN_VARIABLE} to a secret, here and there");
                return Err(error(message));
            }
        }
        server.serve(WebSocketTransport::from_listener(listener)).map_err(|problem| error(problem.to_string()))
    }
}

#[cfg(feature = "remote")]
pub(crate) use enabled::connect;
#[cfg(feature = "remote")]
pub use enabled::serve;

#[cfg(not(feature = "remote"))]
pub(crate) fn connect(name: &DeviceName, _: &str, _: usize) -> Result<Device, Error> {
    let available = crate::list_devices().iter().map(|device| device.name.to_string()).collect::<Vec<_>>().join(", ");
    Err(Error::DeviceNotBuilt { device: name.clone(), feature: "remote", available })
}
