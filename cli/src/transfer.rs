//! Files and folders on their way into an agent and out of it: archives on a stream.
//!
//! Archives are written and read by code that blocks, in a thread of its own; a socket pair joins it to the
//! stream.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream as BlockingPipe;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream as Pipe;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, interval};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{StreamTarget, TaskOutcome};

use crate::archive;
use crate::client::{Client, Console, Control};
use crate::exit::{CommandError, Exit};
use crate::select::about;
use crate::ui::Ui;

/// How often the progress is drawn anew.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// Copies a file or a folder of this machine into an agent, under this name.
pub(crate) async fn upload(
    ui: &mut Ui,
    client: &Client,
    agent: &AgentName,
    (from, name): (&Path, &str),
    to: String,
) -> Result<(), CommandError> {
    let progress = Progress::new(ui.is_live().then(|| archive::size_of(from)));
    let (ours, theirs) = pipe()?;
    let (source, name, counted) = (from.to_owned(), name.to_owned(), progress.counting(theirs));
    let worker = spawn_blocking(move || archive::pack(&source, &name, counted));
    let packed = Packed { pipe: ours, worker: Some(worker) };
    let console = Console::new(Some(packed), tokio::io::sink(), tokio::io::sink(), interrupts()?);
    carry(ui, client, agent, StreamTarget::Upload { path: to }, console, &progress).await
}

/// Copies a file or a folder of an agent into an empty folder of this machine, and says where in it that is.
pub(crate) async fn download(
    ui: &mut Ui,
    client: &Client,
    agent: &AgentName,
    path: String,
    folder: &Path,
) -> Result<PathBuf, CommandError> {
    let progress = Progress::new(None);
    let (ours, theirs) = pipe()?;
    let (folder, counted) = (folder.to_owned(), progress.counting(theirs));
    let worker = spawn_blocking(move || archive::unpack(counted, &folder));
    let console = Console::new(None::<tokio::io::Empty>, ours, tokio::io::sink(), interrupts()?);
    // With the console the archive ends, and with it the worker.
    let carried = carry(ui, client, agent, StreamTarget::Download { path }, console, &progress).await;
    let unpacked = worker.await.map_err(|error| CommandError::new(Exit::FAILURE, error.to_string()))?;
    match (carried, unpacked) {
        (Ok(()), Ok(entry)) => Ok(entry),
        // Why nobody takes the archive any more is said by who took it.
        (Err(error), Err(cause)) if error.is_silent() => Err(unpack_failed(&cause)),
        (Err(error), _) => Err(error),
        (Ok(()), Err(cause)) => Err(unpack_failed(&cause)),
    }
}

fn unpack_failed(cause: &io::Error) -> CommandError {
    CommandError::io("what came can't be written here", cause)
}

/// Carries an archive to its end.
async fn carry<I, O>(
    ui: &mut Ui,
    client: &Client,
    agent: &AgentName,
    target: StreamTarget,
    mut console: Console<I, O, tokio::io::Sink>,
    progress: &Progress,
) -> Result<(), CommandError>
where
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
{
    let session = about(client, agent, client.exec(agent.as_str()).await).await?;
    let outcome = {
        let mut running = std::pin::pin!(session.run(target, &mut console, |_| {}));
        let mut draw = interval(DRAW_EVERY);
        loop {
            tokio::select! {
                outcome = &mut running => break outcome,
                _ = draw.tick(), if ui.is_live() => ui.draw(&[progress.line()])?,
            }
        }
    };
    match outcome? {
        None => Err(CommandError::new(Exit::INTERRUPTED, "let go; nothing was put in place")),
        Some(outcome) if outcome.is_success() => Ok(()),
        Some(TaskOutcome::Failed { reason } | TaskOutcome::NotStarted { reason }) => {
            Err(CommandError::new(Exit::FAILURE, format!("{agent}: {reason}")))
        }
        Some(outcome) => Err(CommandError::new(Exit::FAILURE, format!("{agent}: the copy {outcome}"))),
    }
}

fn pipe() -> Result<(Pipe, BlockingPipe), CommandError> {
    let make = || {
        let (ours, theirs) = BlockingPipe::pair()?;
        ours.set_nonblocking(true)?;
        Ok((Pipe::from_std(ours)?, theirs))
    };
    make().map_err(|error| CommandError::io("a pipe can't be made", &error))
}

/// Ctrl-C lets go: half of a copy is of no use to anybody.
fn interrupts() -> Result<tokio::sync::mpsc::Receiver<Control>, CommandError> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            let _ = sender.send(Control::LetGo).await;
        }
    });
    Ok(receiver)
}

/// An archive while it is written. Where writing fails, reading does too: an archive that just ends would be
/// taken for a whole one.
struct Packed {
    pipe: Pipe,
    worker: Option<JoinHandle<io::Result<()>>>,
}

impl AsyncRead for Packed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        let Some(worker) = &mut self.worker else { return Poll::Ready(Ok(())) };
        let packed = ready!(Pin::new(worker).poll(cx));
        self.worker = None;
        Poll::Ready(packed.map_err(io::Error::other).flatten())
    }
}

/// How far a copy is.
struct Progress {
    moved: Arc<AtomicU64>,
    total: Option<u64>,
    began: Instant,
}

impl Progress {
    fn new(total: Option<u64>) -> Self {
        Self { moved: Arc::default(), total, began: Instant::now() }
    }

    fn counting<T>(&self, inner: T) -> Counting<T> {
        Counting { inner, moved: Arc::clone(&self.moved) }
    }

    fn line(&self) -> String {
        let moved = self.moved.load(Ordering::Relaxed);
        let seconds = self.began.elapsed().as_secs();
        let so_far = ByteSize::from_bytes(moved).rounded();
        match self.total {
            // Names and padding are moved as well, so it may come to a little more.
            Some(total @ 1..) => {
                let percent = (moved * 100 / total).min(100);
                format!("{so_far} of {} ({percent} %), {seconds} s", ByteSize::from_bytes(total).rounded())
            }
            _ => format!("{so_far}, {seconds} s"),
        }
    }
}

/// Counts what goes through.
struct Counting<T> {
    inner: T,
    moved: Arc<AtomicU64>,
}

impl<T> Counting<T> {
    fn count(&self, bytes: usize) -> usize {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        bytes
    }
}

impl<T: Read> Read for Counting<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        Ok(self.count(bytes))
    }
}

impl<T: Write> Write for Counting<T> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let bytes = self.inner.write(buffer)?;
        Ok(self.count(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
