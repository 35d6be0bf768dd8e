//! Copies in and out of the machine. The archive is made and read in a thread of its own, which waits; a
//! short channel between keeps it no further ahead than its other side.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use vm_agent_schemas::wire::{DATA_MAX, TaskOutcome};

use super::wire::{Inlet, Wire};
use super::{failed, unless_closed};
use crate::archive;

/// How many pieces wait between the thread and the stream.
const PIECES: usize = 4;

/// Serves a stream that brings an archive.
pub(super) async fn upload(path: PathBuf, wire: Wire) -> TaskOutcome {
    let Wire { line, orders, stdin, .. } = wire;
    let Some(inlet) = stdin else { return failed("an upload needs an input: it is the archive") };
    line.opened(0);
    let unpacked = take(inlet, move |archive| archive::unpack(archive, &path));
    unless_closed(orders, async { outcome(unpacked.await) }).await
}

/// Serves a stream that fetches an archive.
pub(super) async fn download(path: PathBuf, wire: Wire) -> TaskOutcome {
    let Wire { line, orders, mut stdout, .. } = wire;
    line.opened(0);
    let (pieces, mut made) = mpsc::channel(PIECES);
    let packing = spawn_blocking(move || archive::pack(&path, Outbound::new(pieces)));
    let sent = async {
        while let Some(piece) = made.recv().await {
            if stdout.send_all(piece).await.is_err() {
                return TaskOutcome::Canceled;
            }
        }
        let _ = stdout.end().await;
        outcome(packing.await.unwrap_or_else(|error| Err(io::Error::other(error).into())))
    };
    unless_closed(orders, sent).await
}

fn outcome(result: Result<(), archive::ArchiveError>) -> TaskOutcome {
    match result {
        Ok(()) => TaskOutcome::Exited { code: 0 },
        Err(error) => failed(&crate::chain(&error)),
    }
}

/// Has a thread of its own read a stream's input. When this is dropped, reading fails there.
pub(crate) async fn take<T, E>(
    mut inlet: Inlet,
    work: impl FnOnce(Incoming) -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    let (pieces, waiting) = mpsc::channel(PIECES);
    let reading = spawn_blocking(move || work(Incoming { pieces: waiting, piece: Bytes::new(), whole: false }));
    let feeding = async {
        while let Ok(piece) = inlet.next().await {
            let len = piece.as_ref().map_or(0, Bytes::len);
            let end = piece.is_none();
            // Nobody reads any more when the work has failed already; then its outcome says so.
            if pieces.send(piece).await.is_err() || inlet.took(len).await.is_err() || end {
                break;
            }
        }
        drop(pieces);
        std::future::pending().await
    };
    let result = tokio::select! {
        result = reading => result,
        never = feeding => never,
    };
    result.unwrap_or_else(|error| Err(io::Error::other(error).into()))
}

/// The input of a stream, for a thread that waits for it.
#[derive(Debug)]
pub(crate) struct Incoming {
    pieces: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    /// Whether the end has come. Without it, what there is is not all.
    whole: bool,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.whole {
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.whole = true,
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "it was broken off")),
            }
        }
        let len = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}

/// The output of a stream, for a thread that waits until it is taken.
#[derive(Debug)]
pub(crate) struct Outbound {
    pieces: mpsc::Sender<Bytes>,
    piece: BytesMut,
}

impl Outbound {
    fn new(pieces: mpsc::Sender<Bytes>) -> Self {
        Self { pieces, piece: BytesMut::new() }
    }
}

impl Write for Outbound {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let len = data.len().min(DATA_MAX - self.piece.len());
        self.piece.extend_from_slice(&data[..len]);
        if self.piece.len() == DATA_MAX {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody takes it any more");
        self.pieces.blocking_send(self.piece.split().freeze()).map_err(gone)
    }
}
