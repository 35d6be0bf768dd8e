//! A way to the hub that breaks: it passes bytes on as they are, and cuts connections at any byte.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;

/// A connection lives for some power of two of bytes, and a random part of the next: within a handshake at the
/// least, and a good deal of output at the most.
const LIVES: std::ops::Range<u32> = 9..19;
/// Most bytes that are passed on at once.
const PIECE: usize = 16 * 1024;
/// How long the other side is given to be there.
const CONNECT: Duration = Duration::from_secs(5);

/// A proxy on loopback. Dropped, it cuts everything and listens no longer.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    calm: AtomicBool,
    closed: AtomicBool,
    cuts: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// A proxy to where `target` says at each connection; one that it has no answer for is dropped. The number
    /// decides where connections are cut.
    ///
    /// # Panics
    /// When loopback has no free port.
    pub fn start(target: impl Fn() -> Option<SocketAddr> + Send + Sync + 'static, seed: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("a listener knows its address");
        let shared = Arc::new(Shared::default());
        let (here, target) = (Arc::clone(&shared), Arc::new(target));
        std::thread::spawn(move || {
            let mut random = Rng::with_seed(seed);
            for client in listener.incoming().map_while(Result::ok) {
                if here.closed.load(Ordering::SeqCst) {
                    return;
                }
                let life = 1_i64 << random.u32(LIVES);
                let life = life + random.i64(0..life);
                let (shared, target) = (Arc::clone(&here), Arc::clone(&target));
                std::thread::spawn(move || {
                    let Some(address) = target() else { return };
                    let Ok(server) = TcpStream::connect_timeout(&address, CONNECT) else { return };
                    shared.carry(&client, &server, life);
                });
            }
        });
        Self { address, shared }
    }

    /// Where to connect.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts all connections that there are.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// From now on connections live.
    pub fn calm(&self) {
        self.shared.calm.store(true, Ordering::SeqCst);
    }

    /// How many connections it has cut in their midst.
    #[must_use]
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.cut();
        // Wakes the listener, which looks and ends; should it have ended, nobody needs waking.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn cut(&self) {
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It fails for one that is closed already.
            let _ = stream.shutdown(Shutdown::Both);
            self.cuts.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Passes on what comes on either side, until one ends or `life` bytes have passed.
    fn carry(&self, client: &TcpStream, server: &TcpStream, life: i64) {
        let Ok(held) = client.try_clone() else { return };
        let peer = held.peer_addr().ok();
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push(held);
        let left = AtomicI64::new(life);
        std::thread::scope(|scope| {
            scope.spawn(|| self.pass_on(client, server, &left));
            self.pass_on(server, client, &left);
        });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|stream| stream.peer_addr().ok() != peer);
    }

    fn pass_on(&self, mut from: &TcpStream, mut to: &TcpStream, left: &AtomicI64) {
        let mut piece = vec![0; PIECE];
        while let Ok(count @ 1..) = from.read(&mut piece) {
            let counted = i64::try_from(count).unwrap_or(i64::MAX);
            let before = left.fetch_sub(counted, Ordering::SeqCst);
            let cut = before <= counted && !self.calm.load(Ordering::SeqCst);
            let passes = if cut { usize::try_from(before.max(0)).unwrap_or(0).min(count) } else { count };
            if to.write_all(&piece[..passes]).is_err() {
                break;
            }
            if cut {
                self.cuts.fetch_add(1, Ordering::SeqCst);
                break;
            }
        }
        // They fail for streams that are closed already.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
