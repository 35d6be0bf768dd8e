//! A client's end of a stream.

use bytes::Bytes;
use tokio::sync::mpsc;
use vm_agent_schemas::wire::{Channel, Signal, TaskOutcome, TerminalSize};

use crate::adapter::Command;
use crate::state::{Event, StreamKey};

/// What comes from the process of a [`Stream`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// The agent's end has begun.
    Opened {
        /// Where its output begins, in bytes: 0 but for a terminal that is attached to again.
        offset: u64,
    },
    /// Output, in order within its channel.
    Data {
        /// stdout or stderr.
        channel: Channel,
        /// Bytes of the channel before these.
        offset: u64,
        /// Whether the channel ends here.
        end: bool,
        /// The bytes.
        data: Bytes,
    },
    /// How much input the process has been given, in bytes since the start.
    Taken {
        /// How much.
        offset: u64,
    },
    /// The process has ended and all output has come. The last event.
    Ended(TaskOutcome),
    /// The session is gone: the fate of the process is unknown. The last event.
    Lost(String),
}

impl StreamEvent {
    /// Whether nothing comes after this.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::Ended(_) | Self::Lost(_))
    }
}

/// A process in an agent, its input and output bound to this value. Dropping it ends the process.
///
/// Output that was not yet [taken](Stream::taken) is held here, at most a window of it for each
/// channel: the producer stops there.
#[derive(Debug)]
pub struct Stream {
    key: StreamKey,
    events: mpsc::UnboundedReceiver<StreamEvent>,
    hub: mpsc::UnboundedSender<Command>,
    over: bool,
}

impl Stream {
    pub(crate) const fn new(
        key: StreamKey,
        events: mpsc::UnboundedReceiver<StreamEvent>,
        hub: mpsc::UnboundedSender<Command>,
    ) -> Self {
        Self { key, events, hub, over: false }
    }

    /// The next event; nothing after the last.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        if self.over {
            return None;
        }
        let event = self.events.recv().await;
        let event = event.unwrap_or_else(|| StreamEvent::Lost("the controller is going down".to_owned()));
        self.over = event.is_last();
        Some(event)
    }

    /// Hands input to the process. `offset` must follow on the input so far, and the input must stay
    /// within the window ([`WINDOW`](vm_agent_schemas::wire::WINDOW) beyond the last
    /// [`Taken`](StreamEvent::Taken)), else the stream is lost.
    pub fn send(&self, offset: u64, end: bool, data: Bytes) {
        self.tell(Event::Input { key: self.key, offset, end, data });
    }

    /// Tells the producer how much of a channel has been consumed.
    pub fn taken(&self, channel: Channel, offset: u64) {
        self.tell(Event::Taken { key: self.key, channel, offset });
    }

    /// Gives the terminal another size.
    pub fn resize(&self, size: TerminalSize) {
        self.tell(Event::Resize { key: self.key, size });
    }

    /// Sends a signal to the process group.
    pub fn signal(&self, signal: Signal) {
        self.tell(Event::Signal { key: self.key, signal });
    }

    /// A hub that is gone has no process to tell: [`next`](Stream::next) says so.
    fn tell(&self, event: Event) {
        let _ = self.hub.send(Command::Event(Box::new(event)));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.over {
            self.tell(Event::CloseStream { key: self.key });
        }
    }
}
