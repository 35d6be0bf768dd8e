//! What a command has a terminal show. A command that the daemon carries out runs in a process of its own, and its
//! screen is a pipe to the client, which may have gone.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// One thing to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Event {
    /// The spinner turns, behind this text.
    Spin(String),
    /// It does no more.
    Still,
    /// Goes to stdout as it is.
    Out(String),
    /// Goes to stderr as it is.
    Err(String),
    /// After so many seconds the client gives up, with this text and exit code 5.
    Deadline(u64, String),
    /// Nothing: whether somebody looks.
    Pulse,
    /// The end.
    Exit(u8),
}

/// Where a command's words go.
pub(crate) struct Screen {
    show: Box<dyn FnMut(Event) -> io::Result<()>>,
    /// Whether the client is gone.
    gone: bool,
}

impl Screen {
    /// A screen that hands everything to a function, which fails once nobody looks.
    pub(crate) fn new(show: impl FnMut(Event) -> io::Result<()> + 'static) -> Self {
        Self { show: Box::new(show), gone: false }
    }

    /// The screen of a process that works for a client behind this process's stdout.
    pub(crate) fn to_client() -> Self {
        Self::new(|event| {
            let mut line = serde_json::to_vec(&event)?;
            line.push(b'\n');
            let mut out = io::stdout().lock();
            out.write_all(&line)?;
            out.flush()
        })
    }

    /// Shows something. That nobody looks is no reason to stop.
    pub(crate) fn show(&mut self, event: Event) {
        self.gone |= (self.show)(event).is_err();
    }

    /// Has the spinner turn behind another text: every message of the daemon ends the one before.
    pub(crate) fn message(&mut self, text: &str) {
        self.show(Event::Still);
        self.spin(text);
    }

    /// Has the spinner turn.
    pub(crate) fn spin(&mut self, text: &str) {
        self.show(Event::Spin(text.to_owned()));
    }

    /// Ends the spinner, and clears its line.
    pub(crate) fn still(&mut self) {
        self.show(Event::Still);
    }

    /// Prints to stdout.
    pub(crate) fn out(&mut self, text: impl Into<String>) {
        self.show(Event::Out(text.into()));
    }

    /// Prints to stderr.
    pub(crate) fn err(&mut self, text: impl Into<String>) {
        self.show(Event::Err(text.into()));
    }

    /// Whether the client still is there.
    pub(crate) fn is_watched(&mut self) -> bool {
        self.show(Event::Pulse);
        !self.gone
    }
}
