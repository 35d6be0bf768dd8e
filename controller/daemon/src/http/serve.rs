//! Serving a router on a unix socket or a TCP port, until told to stop.

use std::collections::VecDeque;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::serve::Listener;
use axum::{Extension, Router};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::stream::Server;

/// How long requests under way may go on after the word to stop. None takes that long unless its
/// client is stuck.
const GRACE: Duration = Duration::from_secs(5);

/// What a door bears.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// How long a client may take to send the head of a request, counted from the connection's beginning or from
    /// the answer before it.
    pub(super) head: Duration,
    /// Most connections at a time, streams included.
    pub(super) seats: usize,
}

impl Limits {
    /// Far slower than any client on purpose is, and more connections than a fleet's people have.
    const USUAL: Self = Self { head: Duration::from_secs(15), seats: 512 };
}

/// A connection's place at a door. It is free when the connection is gone, and the stream that came of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Seat(Arc<Taken>);

#[derive(Debug, Default)]
struct Taken {
    kept: AtomicBool,
    vacated: CancellationToken,
}

impl Seat {
    /// Somebody who may has asked for something: the connection has not to make room for others any more.
    pub(super) fn keep(&self) {
        self.0.kept.store(true, Ordering::Relaxed);
    }

    /// Closes the connection.
    pub(super) fn vacate(&self) {
        self.0.vacated.cancel();
    }
}

/// All seats at a door. Whoever has shown no token makes room for others, the oldest first: so those without one
/// never keep out those who have one.
struct Seats {
    most: usize,
    taken: VecDeque<Weak<Taken>>,
}

impl Seats {
    /// A seat for a new connection; none when all are kept.
    fn take(&mut self) -> Option<Seat> {
        if self.taken.len() >= self.most {
            self.taken.retain(|seat| seat.strong_count() > 0);
        }
        if self.taken.len() >= self.most {
            let is_free = |seat: &Weak<Taken>| seat.upgrade().is_none_or(|seat| !seat.kept.load(Ordering::Relaxed));
            let oldest = self.taken.iter().position(is_free)?;
            if let Some(seat) = self.taken.remove(oldest).and_then(|seat| seat.upgrade()) {
                seat.vacated.cancel();
            }
        }
        let seat = Seat::default();
        self.taken.push_back(Arc::downgrade(&seat.0));
        Some(seat)
    }
}

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

async fn serve<L: Listener>(listener: L, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    serve_within(Limits::USUAL, listener, router, shutdown).await
}

/// Serves each connection on a task of its own.
///
/// # Errors
/// None: a listener that fails is asked again.
pub(super) async fn serve_within<L: Listener>(
    limits: Limits,
    mut listener: L,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let router = router.layer(Extension(Server(shutdown.clone())));
    let mut seats = Seats { most: limits.seats, taken: VecDeque::new() };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (io, _) = listener.accept() => match seats.take() {
                Some(seat) => {
                    connections.spawn(converse(io, seat, limits, router.clone(), shutdown.clone()));
                }
                None => tracing::warn!("A connection to the API was closed: there are too many"),
            },
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    // What is still there then is aborted.
    let _ = timeout(GRACE, all).await;
    Ok(())
}

/// Answers the requests of one connection.
async fn converse<T>(io: T, seat: Seat, limits: Limits, router: Router, shutdown: CancellationToken)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let vacated = seat.0.vacated.clone();
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(seat.clone());
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.head);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service).with_upgrades());
    let to_the_end = async {
        tokio::select! {
            served = &mut connection => return served,
            () = shutdown.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    tokio::select! {
        served = to_the_end => if let Err(error) = served {
            tracing::debug!(%error, "A connection to the API ended before its time");
        },
        () = vacated.cancelled() => tracing::debug!("A connection to the API made room, or was not read from"),
    }
}
