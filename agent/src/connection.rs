//! From the hub's address to an open WebSocket.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::wire::TEXT_MAX;

use crate::tls;

/// A byte stream to the hub, plain or encrypted.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// An open WebSocket to the hub.
pub(crate) type Socket = WebSocketStream<Box<dyn Transport>>;

/// Size of the WebSocket's buffers: room for one frame of data. The library's own default is four
/// times that, and counts for a program that should be small.
const BUFFER: usize = 32 * 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("`{0}` is no address of a hub: the seed must say ws://host:port/path or wss://host:port/path")]
    Address(String),
    #[error("the hub at {0} would be reached without encryption: plain ws:// is for this machine's loopback only")]
    PlainOffLoopback(String),
    #[error("the seed names a wss:// hub and no certificate to trust (hubPin); have the instance seeded again")]
    NoPin,
    #[error("could not reach the hub at {address}")]
    Tcp { address: String, source: io::Error },
    #[error("TLS could not be set up")]
    TlsSetup(#[source] rustls::Error),
    #[error("could not agree on TLS with the hub")]
    Tls(#[source] io::Error),
    #[error("could not open a WebSocket on the hub")]
    WebSocket(#[source] Box<tokio_tungstenite::tungstenite::Error>),
}

/// Opens a WebSocket to the hub that the seed names.
pub(crate) async fn connect(hub: &str, pin: Option<&Digest>) -> Result<Socket, ConnectError> {
    let target = Target::parse(hub)?;
    let tcp = target.dial().await?;
    let transport: Box<dyn Transport> =
        if target.encrypted { Box::new(target.encrypt(tcp, pin).await?) } else { Box::new(tcp) };
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_message_size(Some(TEXT_MAX))
        .max_frame_size(Some(TEXT_MAX));
    let (socket, _) = client_async_with_config(hub, transport, Some(config))
        .await
        .map_err(|error| ConnectError::WebSocket(Box::new(error)))?;
    Ok(socket)
}

/// A hub's address, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    encrypted: bool,
    /// A name or an IP address, without the brackets of IPv6.
    host: String,
    port: u16,
}

impl Target {
    fn parse(hub: &str) -> Result<Self, ConnectError> {
        let wrong = || ConnectError::Address(hub.to_owned());
        let uri: Uri = hub.parse().map_err(|_| wrong())?;
        let encrypted = match uri.scheme_str() {
            Some("ws") => false,
            Some("wss") => true,
            _ => return Err(wrong()),
        };
        let host = uri.host().ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        Ok(Self { encrypted, host, port })
    }

    /// Connects to the first address that answers. What a name stands for is looked at before: a name
    /// such as `localhost` is trusted to be loopback only if it is.
    async fn dial(&self) -> Result<TcpStream, ConnectError> {
        let failed = |source| ConnectError::Tcp { address: format!("{}:{}", self.host, self.port), source };
        let addresses: Vec<SocketAddr> = lookup_host((self.host.as_str(), self.port)).await.map_err(failed)?.collect();
        if !self.encrypted && !addresses.iter().all(|address| address.ip().is_loopback()) {
            return Err(ConnectError::PlainOffLoopback(self.host.clone()));
        }
        let tcp = TcpStream::connect(addresses.as_slice()).await.map_err(failed)?;
        // Keystrokes of a session are small and must not wait for company.
        tcp.set_nodelay(true).map_err(failed)?;
        Ok(tcp)
    }

    async fn encrypt(&self, tcp: TcpStream, pin: Option<&Digest>) -> Result<impl Transport + use<>, ConnectError> {
        let config = tls::pinned(pin.ok_or(ConnectError::NoPin)?.clone()).map_err(ConnectError::TlsSetup)?;
        let name = ServerName::try_from(self.host.clone()).map_err(|_| ConnectError::Address(self.host.clone()))?;
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(ConnectError::Tls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let target = |encrypted, host: &str, port| Target { encrypted, host: host.to_owned(), port };
        let cases = [
            ("ws://127.0.0.1:9090/v1/runtime", target(false, "127.0.0.1", 9090)),
            ("wss://10.0.2.2:9090/v1/runtime", target(true, "10.0.2.2", 9090)),
            ("wss://[fd00::1]:9090/v1/runtime", target(true, "fd00::1", 9090)),
            ("wss://hub.internal/v1/runtime", target(true, "hub.internal", 443)),
        ];
        for (text, expected) in cases {
            assert_eq!(Target::parse(text).unwrap(), expected, "{text}");
        }
        for bad in ["", "127.0.0.1:9090", "http://127.0.0.1:9090/", "ws:///v1"] {
            assert!(matches!(Target::parse(bad), Err(ConnectError::Address(_))), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_hub_off_this_machine_is_never_called_without_encryption() {
        let error = connect("ws://192.0.2.1:9090/v1/runtime", None).await.err().unwrap();
        assert!(matches!(error, ConnectError::PlainOffLoopback(_)), "{error}");
    }
}
