//! A TCP connection from inside the machine. Each direction ends by itself.

use std::io;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::timeout;
use vm_agent_schemas::wire::TaskOutcome;

use super::wire::{Outlet, Wire};
use super::{failed, unless_closed};

/// How long a connection may take to be made: what it leads to is most often in the same machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Serves a stream by a connection.
pub(super) async fn serve(host: String, port: u16, wire: Wire) -> TaskOutcome {
    let Wire { line, orders, stdin, mut stdout, stderr: _ } = wire;
    let served = async {
        let tcp = match dial(&host, port).await {
            Ok(tcp) => tcp,
            Err(error) => return failed(&format!("could not connect to {host}:{port}: {error}")),
        };
        line.opened(0);
        let (mut from, mut to) = tcp.into_split();
        let input = async {
            if let Some(mut inlet) = stdin {
                inlet.feed(&mut to).await;
            }
            // A peer that is gone needs not be told that nothing more comes.
            let _ = to.shutdown().await;
        };
        match tokio::join!(input, receive(&mut from, &mut stdout)).1 {
            Ok(()) => TaskOutcome::Exited { code: 0 },
            Err(error) => failed(&format!("the connection to {host}:{port} was lost: {error}")),
        }
    };
    unless_closed(orders, served).await
}

async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let tcp = timeout(CONNECT_LIMIT, TcpStream::connect((host, port)))
        .await
        .unwrap_or_else(|_| Err(io::Error::other("there was no answer within 10 s")))?;
    // Requests and answers are small, and must not wait for company.
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Sends what comes from the connection until that has no more. That the session is gone is no fault of the
/// connection's.
async fn receive(from: &mut OwnedReadHalf, outlet: &mut Outlet) -> io::Result<()> {
    let mut lost = None;
    while let Ok(room) = outlet.window().await {
        // Nobody keeps a buffer for a connection that says nothing.
        if let Err(error) = from.readable().await {
            lost = Some(error);
            break;
        }
        let mut buffer = BytesMut::with_capacity(room);
        let mut limited = (&mut buffer).limit(room);
        match from.read_buf(&mut limited).await {
            Ok(0) => break,
            Ok(_) => {
                if outlet.send_all(buffer.freeze()).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) => {
                lost = Some(error);
                break;
            }
        }
    }
    let _ = outlet.end().await;
    lost.map_or(Ok(()), Err)
}
