//! Serving a router on a unix socket or a TCP port, until told to stop.

use std::fs::Permissions;
use std::future::IntoFuture;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use axum::serve::Listener;
use axum::{Extension, Router};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::stream::Shutdown;

/// How long requests under way may go on after the word to stop. None takes that long unless its
/// client is stuck.
const GRACE: Duration = Duration::from_secs(5);

/// Serves the router on a unix socket that only this user may use, until `shutdown`.
///
/// # Errors
/// When the socket can't be made.
pub async fn serve_unix(path: &Path, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    let listener = bind(path)?;
    let served = serve(listener, router, shutdown).await;
    // A later start removes what is left here; nothing else looks at it.
    let _ = std::fs::remove_file(path);
    served
}

/// Serves the router on a TCP port until `shutdown`.
///
/// # Errors
/// When the listener fails.
pub async fn serve_tcp(listener: TcpListener, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    serve(listener, router, shutdown).await
}

/// A socket of mode 0600 in place of whatever stood there.
///
/// What stands there is of a controller that is gone: the lock of the state folder guarantees that
/// there is no other. Between `bind` and the change of its mode the socket has the mode that the umask
/// left, and can still not be reached by others: the state folder around it has mode 0700.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn serve<L>(listener: L, router: Router, shutdown: CancellationToken) -> io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let router = router.layer(Extension(Shutdown(shutdown.clone())));
    let server = axum::serve(listener, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    let mut server = std::pin::pin!(server.into_future());
    tokio::select! {
        ended = &mut server => return ended,
        () = shutdown.cancelled() => {}
    }
    timeout(GRACE, server).await.unwrap_or(Ok(()))
}
