//! How much waits on its way into the machine, and how the client is slowed down for it.
//!
//! The SSH library renews the window of a channel as soon as data has come, whether or not anybody has taken
//! it. So what waits is counted here, over all channels, and while it is too much nothing more is read from the
//! client: except while output is held up, because the client may have renewed *our* window in what is unread.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

/// From how much waiting input on, in bytes, nothing more is read: some windows of SSH, and little memory.
const PAUSE_AT: usize = 16 * 1024 * 1024;
/// Most input that waits though output is held up. A client that sends this much and takes no output does
/// neither, however long one waits.
const WAITING_MAX: usize = 256 * 1024 * 1024;

/// What waits, over all channels.
#[derive(Default)]
pub(super) struct Backlog {
    /// Input that no process has taken yet, in bytes.
    waiting: AtomicUsize,
    /// How many writers wait for the client to take output.
    held_up: AtomicUsize,
    /// Who reads from the client.
    reader: AtomicWaker,
}

impl Backlog {
    fn is_paused(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > PAUSE_AT && self.held_up.load(Ordering::Acquire) == 0
    }
}

/// A connection that is read only while not too much waits.
pub(super) struct Paced<S> {
    inner: S,
    backlog: Arc<Backlog>,
}

impl<S> Paced<S> {
    pub(super) const fn new(inner: S, backlog: Arc<Backlog>) -> Self {
        Self { inner, backlog }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Before the look, so that no change after it is missed.
        self.backlog.reader.register(cx.waker());
        if self.backlog.is_paused() {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Data on its way in. It counts until it is dropped.
struct Piece {
    data: Bytes,
    size: usize,
    backlog: Arc<Backlog>,
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.backlog.waiting.fetch_sub(self.size, Ordering::AcqRel);
        self.backlog.reader.wake();
    }
}

/// Where a channel's input goes. Dropped, it ends it.
pub(super) struct Inlet {
    queue: mpsc::UnboundedSender<Piece>,
    backlog: Arc<Backlog>,
}

impl Inlet {
    /// Queues input; not when too much waits already.
    pub(super) fn put(&self, data: &[u8]) -> bool {
        let size = data.len();
        let waiting = self.backlog.waiting.fetch_add(size, Ordering::AcqRel) + size;
        let piece = Piece { data: Bytes::copy_from_slice(data), size, backlog: Arc::clone(&self.backlog) };
        let fits = waiting <= WAITING_MAX;
        if fits {
            // Refused only when the process has ended, and then nobody wants it.
            let _ = self.queue.send(piece);
        }
        fits
    }
}

/// Where it comes out again.
pub(super) struct Outlet {
    queue: mpsc::UnboundedReceiver<Piece>,
    current: Option<Piece>,
}

/// A way for a channel's input.
pub(super) fn input(backlog: &Arc<Backlog>) -> (Inlet, Outlet) {
    let (queue, taken) = mpsc::unbounded_channel();
    (Inlet { queue, backlog: Arc::clone(backlog) }, Outlet { queue: taken, current: None })
}

impl AsyncRead for Outlet {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some(piece) = &mut self.current {
                let count = piece.data.len().min(buffer.remaining());
                buffer.put_slice(&piece.data[..count]);
                piece.data.advance(count);
                if piece.data.is_empty() {
                    self.current = None;
                }
                return Poll::Ready(Ok(()));
            }
            match ready!(self.queue.poll_recv(cx)) {
                // Nothing would read as the end.
                Some(piece) => self.current = Some(piece).filter(|piece| !piece.data.is_empty()),
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// Output of a channel, that says when the client holds it up.
pub(super) struct Shown<W> {
    inner: W,
    backlog: Arc<Backlog>,
    is_held_up: bool,
    /// Whether its end is the end of what the channel shows.
    ends: bool,
}

impl<W> Shown<W> {
    pub(super) const fn new(inner: W, backlog: Arc<Backlog>, ends: bool) -> Self {
        Self { inner, backlog, is_held_up: false, ends }
    }

    fn hold_up(&mut self, is: bool) {
        if std::mem::replace(&mut self.is_held_up, is) != is {
            if is {
                self.backlog.held_up.fetch_add(1, Ordering::AcqRel);
                self.backlog.reader.wake();
            } else {
                self.backlog.held_up.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
}

impl<W> Drop for Shown<W> {
    fn drop(&mut self) {
        self.hold_up(false);
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Shown<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, data);
        self.hold_up(written.is_pending());
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ends { Pin::new(&mut self.inner).poll_shutdown(cx) } else { Poll::Ready(Ok(())) }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A connection with something to read, and a channel with so much more waiting than may be.
    async fn paused() -> (Arc<Backlog>, Paced<tokio::io::DuplexStream>, tokio::io::DuplexStream, Inlet, Outlet) {
        let backlog = Arc::<Backlog>::default();
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(b"x").await.unwrap();
        let (inlet, outlet) = input(&backlog);
        assert!(inlet.put(&vec![0; PAUSE_AT + 1]));
        (Arc::clone(&backlog), Paced::new(near, backlog), far, inlet, outlet)
    }

    #[tokio::test]
    async fn the_client_is_read_again_once_its_input_is_taken() {
        let (_, mut paced, _far, _inlet, mut outlet) = paused().await;
        let mut reading = std::pin::pin!(paced.read_u8());
        assert!((&mut reading).now_or_never().is_none());
        let mut taken = vec![0; PAUSE_AT + 1];
        outlet.read_exact(&mut taken).await.unwrap();
        assert_eq!(reading.await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn the_client_is_read_again_once_nobody_wants_its_input() {
        let (_, mut paced, _far, _inlet, outlet) = paused().await;
        assert!(paced.read_u8().now_or_never().is_none());
        drop(outlet);
        assert_eq!(paced.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn the_client_is_read_while_output_waits_for_it() {
        let (backlog, mut paced, _far, _inlet, _outlet) = paused().await;
        let (narrow, _unread) = tokio::io::duplex(1);
        let mut shown = Shown::new(narrow, backlog, false);
        assert!(shown.write_all(b"ab").now_or_never().is_none());
        assert_eq!(paced.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn input_beyond_all_measure_is_not_taken() {
        let backlog = Arc::<Backlog>::default();
        let (inlet, _outlet) = input(&backlog);
        backlog.waiting.store(WAITING_MAX, Ordering::Release);
        assert!(!inlet.put(b"x"));
        assert_eq!(backlog.waiting.load(Ordering::Acquire), WAITING_MAX);
    }
}
