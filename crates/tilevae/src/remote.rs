//! Serves devices of this machine to others, through Burn's remote backend.

pub use vae_core::backends::TOKEN_VARIABLE;

#[cfg(feature = "remote")]
pub use server::Server;

#[cfg(feature = "remote")]
mod server {
    use std::net::{SocketAddr, TcpListener};

    use burn::server::{RemoteServer, TokenAuthorizer, WebSocketTransport};
    use burn::tensor::Device;
    use vae_core::backends::{TOKEN_VARIABLE, token};

    use crate::Error;

    /// A server of devices.
    #[derive(Clone)]
    pub struct Server(RemoteServer);

    impl Server {
        /// A server of `devices`, which must belong to one backend. Clients have to send the token that the environment variable [`TOKEN_VARIABLE`]
        /// holds; without one, only this machine is served. Neither the token nor the data is encrypted.
        ///
        /// # Errors
        /// When there is no token and `address` can be reached from other machines.
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
