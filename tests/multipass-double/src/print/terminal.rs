//! What the client prints: text, and a spinner that turns.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::screen::Event;

/// Clears the line that the spinner is on.
const CLEAR: &str = "\x1b[2K\x1b[0A\x1b[0E";
/// How long a frame stands.
const FRAME: Duration = Duration::from_millis(100);
/// The frames. The first one drawn is the second.
const FRAMES: [char; 4] = ['|', '/', '-', '\\'];
/// The exit code of a client that gave up waiting.
const TIMED_OUT: u8 = 5;

/// How what was shown ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With this exit code.
    Exit(u8),
    /// Nobody said how: whoever showed it is dead.
    Cut,
    /// The client was to end at what was just to be shown.
    Left,
}

/// A terminal, which need not be one: the spinner is drawn into a pipe as well.
#[derive(Default)]
pub(crate) struct Terminal {
    /// The frame that stands there, while the spinner turns.
    frame: Option<usize>,
    next: Option<Instant>,
    deadline: Option<(Instant, String)>,
    /// A part of the message at which the client is to end.
    leaves_at: Option<String>,
}

impl Terminal {
    /// The same, whose client ends at a message with this in it.
    pub(crate) fn leaving_at(self, part: String) -> Self {
        Self { leaves_at: Some(part), ..self }
    }

    /// Shows one thing at once. Gives the exit code at the end.
    pub(crate) fn show(&mut self, event: Event) -> io::Result<Option<u8>> {
        match event {
            Event::Spin(text) => {
                print(&format!("{CLEAR}{text}  "))?;
                self.frame = Some(0);
                self.draw()?;
            }
            Event::Still => {
                let back = if self.frame.take().is_some() { "\x08 " } else { "" };
                self.next = None;
                print(&format!("{back}{CLEAR}"))?;
            }
            Event::Out(text) => print(&text)?,
            Event::Err(text) => io::stderr().lock().write_all(text.as_bytes())?,
            Event::Deadline(seconds, text) => {
                self.deadline = Some((Instant::now() + Duration::from_secs(seconds), text));
            }
            Event::Pulse => {}
            Event::Exit(code) => return Ok(Some(code)),
        }
        Ok(None)
    }

    /// Shows what comes, and turns the spinner meanwhile.
    pub(crate) fn run(&mut self, events: &Receiver<Event>) -> io::Result<Ending> {
        loop {
            let deadline = self.deadline.as_ref().map(|(at, _)| *at);
            let wake = [self.next, deadline].into_iter().flatten().min();
            let pause = wake.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()));
            match events.recv_timeout(pause) {
                Ok(Event::Spin(text)) if self.leaves_at.as_ref().is_some_and(|part| text.contains(part)) => {
                    return Ok(Ending::Left);
                }
                Ok(event) => {
                    if let Some(code) = self.show(event)? {
                        return Ok(Ending::Exit(code));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(Ending::Cut),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some((_, text)) = self.deadline.take_if(|(at, _)| *at <= Instant::now()) {
                        self.show(Event::Still)?;
                        self.show(Event::Err(text))?;
                        return Ok(Ending::Exit(TIMED_OUT));
                    }
                    if self.next.is_some_and(|at| at <= Instant::now()) {
                        self.draw()?;
                    }
                }
            }
        }
    }

    fn draw(&mut self) -> io::Result<()> {
        let Some(frame) = &mut self.frame else { return Ok(()) };
        *frame = (*frame + 1) % FRAMES.len();
        self.next = Some(Instant::now() + FRAME);
        print(&format!("\x08{}", FRAMES[*frame]))
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
