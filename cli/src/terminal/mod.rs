//! The terminal that this program runs in, handed over to one in an agent.

mod escape;

pub(crate) use escape::KEYS;

use std::io::{self, IsTerminal as _, Write as _};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use vm_agent_schemas::wire::TerminalSize;

use crate::client::Control;
use crate::exit::{CommandError, Exit};
use escape::Escape;

/// Variables that tell programs what the terminal can do; they are handed on.
const VARIABLES: [&str; 2] = ["TERM", "COLORTERM"];
/// What puts a terminal right that a full-screen program was left in: no alternate screen, a cursor, no
/// bracketed paste, no reports of the mouse, no colour.
const PUT_RIGHT: &str = "\x1b[?1049l\x1b[?25h\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[0m";
/// How much may be typed ahead while nothing is taken, in bytes.
const TYPED_AHEAD: usize = 64 * 1024;

/// The terminal in raw mode: each key goes where it is read, none is acted upon here. Dropping this, also in
/// a panic, puts the terminal back as it was.
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    pub(crate) fn enter() -> Result<Self, CommandError> {
        let failed = |error| CommandError::io("the terminal can't be taken over", &io::Error::from(error));
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // When this fails the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Fails where nobody types: a terminal in an agent would wait for keys that never come.
pub(crate) fn require(instead: &str) -> Result<(), CommandError> {
    if io::stdin().is_terminal() {
        return Ok(());
    }
    Err(CommandError::new(Exit::USAGE, "stdin is no terminal, so there is nobody to type").hint(instead))
}

/// The size of the terminal; the usual one where there is none.
pub(crate) fn size() -> TerminalSize {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok();
    let size = size.filter(|size| size.ws_col > 0 && size.ws_row > 0);
    size.map_or_else(TerminalSize::default, |size| TerminalSize { cols: size.ws_col, rows: size.ws_row })
}

/// What programs have to know of the terminal.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    VARIABLES.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
}

/// Tells something between the lines of a terminal in raw mode.
pub(crate) fn notice(text: &str) {
    // When stderr is gone there is nobody to tell.
    let _ = write!(io::stderr(), "\r\n[{text}]\r\n");
}

/// Puts the terminal right after programs that go on without it.
pub(crate) fn put_right() {
    if io::stdout().is_terminal() {
        let _ = io::stdout().write_all(PUT_RIGHT.as_bytes()).and_then(|()| io::stdout().flush());
    }
}

/// What is typed, without the escape, and what else a person does: leaves, or resizes the window.
pub(crate) fn hand_over(
    keys: impl AsyncRead + Unpin + Send + 'static,
) -> Result<(DuplexStream, mpsc::Receiver<Control>), CommandError> {
    let (ours, theirs) = tokio::io::duplex(TYPED_AHEAD);
    let (sender, controls) = mpsc::channel(8);
    watch_signals(&sender)?;
    tokio::spawn(read_keys(keys, theirs, sender));
    Ok((ours, controls))
}

/// Passes keys on until the person leaves.
async fn read_keys(mut keys: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, controls: mpsc::Sender<Control>) {
    let mut escape = Escape::default();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = keys.read(&mut buffer).await {
        let (passed, left) = escape.pass(&buffer[..count]);
        if left {
            // The end of the keys must not be taken for the end of the input before this has been heard.
            let _ = controls.send(Control::LetGo).await;
            controls.closed().await;
            return;
        }
        if to.write_all(&passed).await.is_err() {
            return;
        }
    }
}

/// Tells of a window of another size, and of somebody who wants this program gone: the terminal has to be put
/// back first.
fn watch_signals(controls: &mpsc::Sender<Control>) -> Result<(), CommandError> {
    let failed = |error: io::Error| CommandError::io("signals can't be listened for", &error);
    let mut resized = signal(SignalKind::window_change()).map_err(failed)?;
    let mut ended = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hung_up = signal(SignalKind::hangup()).map_err(failed)?;
    let controls = controls.clone();
    tokio::spawn(async move {
        loop {
            let control = tokio::select! {
                _ = resized.recv() => Control::Resize(size()),
                _ = ended.recv() => Control::LetGo,
                _ = hung_up.recv() => Control::LetGo,
            };
            if controls.send(control).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_are_passed_on_until_the_escape() {
        let (mut keys, ours) = tokio::io::duplex(64);
        let (to, mut passed) = tokio::io::duplex(64);
        let (sender, mut controls) = mpsc::channel(1);
        let reading = tokio::spawn(read_keys(ours, to, sender));
        keys.write_all(b"ls\r").await.unwrap();
        let mut line = [0; 3];
        passed.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"ls\r");
        keys.write_all(b"~.").await.unwrap();
        assert_eq!(controls.recv().await, Some(Control::LetGo));
        drop(controls);
        reading.await.unwrap();
        assert_eq!(passed.read(&mut line).await.unwrap(), 0);
    }
}
