//! Sends an attempt's output and its end to the hub, in one session.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use vm_agent_schemas::wire::{Channel, DATA_MAX, Frame, FromRuntime};

use super::output::{Next, Output};
use crate::outgoing::{Gone, Outgoing};
use crate::window::room;

/// What the hub listens to of an attempt. Dropping it ends the sending.
#[derive(Debug)]
pub(super) struct Feed {
    stream: Option<u32>,
    stdout_taken: watch::Sender<u64>,
    stderr_taken: watch::Sender<u64>,
    _sending: AbortOnDropHandle<()>,
}

/// What the hub wants of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// On which stream it wants the output; nothing when it wants only the end.
    pub(super) stream: Option<u32>,
    /// How much of stdout it has.
    pub(super) stdout: u64,
    /// How much of stderr it has.
    pub(super) stderr: u64,
}

impl Wish {
    /// All of it.
    pub(super) const fn all(stream: u32) -> Self {
        Self { stream: Some(stream), stdout: 0, stderr: 0 }
    }
}

impl Feed {
    /// Begins to send.
    pub(super) fn begin(wish: Wish, output: Arc<Output>, outgoing: Outgoing) -> Self {
        let (stdout_taken, stdout) = watch::channel(wish.stdout);
        let (stderr_taken, stderr) = watch::channel(wish.stderr);
        let pump = |channel, from, taken| {
            let (output, outgoing) = (Arc::clone(&output), outgoing.clone());
            wish.stream.map(|stream| Pump { stream, channel, sent: from, taken, output, outgoing })
        };
        let stdout = pump(Channel::Stdout, wish.stdout, stdout);
        let stderr = pump(Channel::Stderr, wish.stderr, stderr);
        let sending = async move {
            output.known(wish.stdout, wish.stderr).await;
            if let (Some(stdout), Some(stderr)) = (stdout, stderr) {
                tokio::try_join!(stdout.run(), stderr.run())?;
            }
            outgoing.tell(FromRuntime::TaskEnded(output.ended().await)).await
        };
        let sending = tokio::spawn(async move {
            // Without a session there is nobody to send to; the next one asks again.
            let _: Result<(), Gone> = sending.await;
        });
        Self { stream: wish.stream, stdout_taken, stderr_taken, _sending: AbortOnDropHandle::new(sending) }
    }

    /// The stream that it sends on.
    pub(super) const fn stream(&self) -> Option<u32> {
        self.stream
    }

    /// The hub has taken this much of a channel.
    pub(super) fn taken(&self, channel: Channel, offset: u64) {
        match channel {
            Channel::Stdout => drop(self.stdout_taken.send_replace(offset)),
            Channel::Stderr => drop(self.stderr_taken.send_replace(offset)),
            Channel::Stdin => {}
        }
    }
}

/// Sends one channel, never further ahead than the window. Where something was left out the offset jumps, and
/// what was jumped over counts as taken: nobody was sent it.
struct Pump {
    stream: u32,
    channel: Channel,
    sent: u64,
    taken: watch::Receiver<u64>,
    output: Arc<Output>,
    outgoing: Outgoing,
}

impl Pump {
    async fn run(mut self) -> Result<(), Gone> {
        // What is taken counts from here: nothing before was sent.
        let mut base = self.sent;
        loop {
            let sent = self.sent;
            let taken = *self.taken.wait_for(|taken| room(sent, base.max(*taken)) > 0).await.map_err(|_| Gone)?;
            let max = usize::try_from(room(sent, base.max(taken))).unwrap_or(DATA_MAX).min(DATA_MAX);
            let Next { offset, data, end } = self.output.next(self.channel, sent, max).await;
            if offset > sent {
                let under_way = sent.saturating_sub(base.max(*self.taken.borrow()));
                base = offset - under_way;
            }
            self.sent = offset + data.len() as u64;
            self.send(offset, data, end).await?;
            if end {
                return Ok(());
            }
        }
    }

    async fn send(&self, offset: u64, data: Bytes, end: bool) -> Result<(), Gone> {
        let Self { stream, channel, .. } = *self;
        self.outgoing.send(&Frame { stream, channel, offset, end, data }).await
    }
}
