//! Who gets in at all: TCP, TLS and the upgrade to a WebSocket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config, tungstenite};
use tokio_util::task::TaskTracker;
use vm_agent_schemas::wire::{HANDSHAKE_LIMIT, HUB_PATH, TEXT_MAX};

use super::closings::{Tally, TurnedAway};
use super::connection::{self, Inputs};
use super::crowd::{Crowd, Place};
use crate::state::ConnId;

/// The first byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a connection reads at once, in bytes, and has reserved for that all the time: small, since a fleet
/// has many connections and most are quiet. For a larger message room is made when it comes.
const READ_BUFFER: usize = 1024;

/// How much is written at once, in bytes, where there is so much.
const WRITE_BUFFER: usize = 16 * 1024;

/// Either kind of transport.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// What a connection may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Tls,
    Plain,
    Refused,
}

/// How to go on with a peer whose first byte is this. Off this machine only TLS is spoken: anyone on
/// the way could read a join token.
fn way(first: u8, peer: IpAddr) -> Way {
    match first {
        TLS_HANDSHAKE => Way::Tls,
        _ if peer.to_canonical().is_loopback() => Way::Plain,
        _ => Way::Refused,
    }
}

/// Why a peer did not get in.
#[derive(Debug, thiserror::Error)]
enum Turned {
    #[error("the connection was lost")]
    Lost(#[source] io::Error),
    #[error("a connection from another machine must speak TLS")]
    Plain,
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error("the upgrade to a WebSocket failed")]
    Upgrade(#[source] Box<tungstenite::Error>),
    #[error("its handshake took too long")]
    Slow,
    #[error("others came while its handshake took its time, and there was no more room")]
    Crowded,
    #[error("the hub goes down")]
    Shutdown,
}

impl Turned {
    const fn kind(&self) -> TurnedAway {
        match self {
            Self::Lost(_) => TurnedAway::Lost,
            Self::Plain => TurnedAway::Plain,
            Self::Tls(_) => TurnedAway::Tls,
            Self::Upgrade(_) => TurnedAway::Upgrade,
            Self::Slow => TurnedAway::Slow,
            Self::Crowded => TurnedAway::Crowded,
            Self::Shutdown => TurnedAway::Shutdown,
        }
    }
}

pub(super) struct Door {
    tls: TlsAcceptor,
    inputs: Inputs,
    tasks: TaskTracker,
    crowd: Arc<Crowd>,
    tally: Tally,
    counter: AtomicU64,
}

impl Door {
    pub(super) fn new(tls: TlsAcceptor, inputs: Inputs, tasks: TaskTracker, crowd: Arc<Crowd>, tally: Tally) -> Self {
        Self { tls, inputs, tasks, crowd, tally, counter: AtomicU64::new(1) }
    }

    /// Accepts connections, for ever.
    pub(super) async fn listen(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((tcp, peer)) => {
                    let place = self.crowd.enter(peer.ip());
                    self.tasks.spawn(self.clone().admit(tcp, peer, place));
                }
                Err(error) => {
                    // Most often there are no file descriptors left; connections that end give some back.
                    tracing::warn!(%error, "Could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn admit(self: Arc<Self>, tcp: TcpStream, peer: SocketAddr, place: Place) {
        let since = Timestamp::now();
        // In a box of its own, which is gone before the long life of the connection begins.
        let upgraded = Box::pin(async {
            let upgraded = tokio::select! {
                upgraded = tokio::time::timeout(HANDSHAKE_LIMIT.get(), self.upgrade(tcp, peer)) => upgraded,
                () = place.taken() => Ok(Err(Turned::Crowded)),
                () = self.inputs.closed() => Ok(Err(Turned::Shutdown)),
            };
            let socket = upgraded.unwrap_or(Err(Turned::Slow))?;
            let conn = ConnId(self.counter.fetch_add(1, Ordering::Relaxed));
            if place.inside(conn) { Ok((socket, conn)) } else { Err(Turned::Crowded) }
        });
        match upgraded.await {
            Ok((socket, conn)) => {
                // On its own: what it took to get here is gone then.
                self.tasks.spawn(connection::run(socket, conn, peer, since, place, self.inputs.clone()));
            }
            Err(turned) => {
                self.tally.turned_away(turned.kind());
                let error: &(dyn std::error::Error + 'static) = &turned;
                tracing::debug!(%peer, error, "Turned a connection away");
            }
        }
    }

    async fn upgrade(&self, tcp: TcpStream, peer: SocketAddr) -> Result<WebSocketStream<Box<dyn Transport>>, Turned> {
        tcp.set_nodelay(true).map_err(Turned::Lost)?;
        let mut first = [0];
        if tcp.peek(&mut first).await.map_err(Turned::Lost)? == 0 {
            return Err(Turned::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        let transport: Box<dyn Transport> = match way(first[0], peer.ip()) {
            Way::Refused => return Err(Turned::Plain),
            Way::Plain => Box::new(tcp),
            Way::Tls => Box::new(self.tls.accept(tcp).await.map_err(Turned::Tls)?),
        };
        let limits = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(WRITE_BUFFER)
            .max_frame_size(Some(TEXT_MAX))
            .max_message_size(Some(TEXT_MAX));
        let upgraded = accept_hdr_async_with_config(transport, check_request, Some(limits)).await;
        upgraded.map_err(|error| Turned::Upgrade(Box::new(error)))
    }
}

/// Only runtimes come here, and only to one path. A browser says where its page is from (`Origin`),
/// and no page has any business with the hub.
#[expect(clippy::result_large_err, reason = "the WebSocket library wants it so")]
fn check_request(request: &Request, response: Response) -> Result<Response, ErrorResponse> {
    let refuse = |status, why: &str| {
        let mut response = ErrorResponse::new(Some(why.to_owned()));
        *response.status_mut() = status;
        Err(response)
    };
    if request.uri().path() != HUB_PATH {
        return refuse(StatusCode::NOT_FOUND, "There is nothing here.\n");
    }
    if request.headers().contains_key(header::ORIGIN) {
        return refuse(StatusCode::FORBIDDEN, "Browsers are not served here.\n");
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_is_spoken_on_loopback_only() {
        let cases = [
            (0x16, "127.0.0.1", Way::Tls),
            (0x16, "192.168.64.7", Way::Tls),
            (b'G', "127.0.0.1", Way::Plain),
            (b'G', "127.9.9.9", Way::Plain),
            (b'G', "::1", Way::Plain),
            (b'G', "::ffff:127.0.0.1", Way::Plain),
            (b'G', "192.168.64.7", Way::Refused),
            (b'G', "10.0.2.15", Way::Refused),
            (b'G', "::ffff:10.0.2.15", Way::Refused),
            (0x00, "fe80::1", Way::Refused),
        ];
        for (first, peer, expected) in cases {
            assert_eq!(way(first, peer.parse().unwrap()), expected, "{first:#x} from {peer}");
        }
    }
}
