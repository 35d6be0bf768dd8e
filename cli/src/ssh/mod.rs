//! SSH for editors: they know no `vm-agent`, but all of them know SSH.
//!
//! `vm-agent ssh-config` writes what an SSH client has to know. Its `ProxyCommand` is `vm-agent ssh-proxy
//! NAME`, which is an SSH server that speaks over its own stdin and stdout, to the one client that started
//! it: nothing listens anywhere, and the machine needs no `sshd`. What the client asks for (a shell, a
//! command, a connection to a port) becomes a stream to the agent, through the hub as any other.

pub(crate) mod config;
mod flow;
pub(crate) mod identity;
pub(crate) mod server;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use vm_agent_schemas::wire::{StreamTarget, TaskOutcome};

use crate::client::Control;
use crate::exit::CommandError;

/// Opens streams to one agent.
pub(crate) trait Machine: Send + Sync + 'static {
    /// Opens a stream, and carries everything both ways until it ends. Dropped before, it ends what is at the
    /// other end.
    fn carry(&self, target: StreamTarget, near: NearEnd) -> BoxFuture<'static, Result<TaskOutcome, CommandError>>;
}

/// The client's end of a stream.
pub(crate) struct NearEnd {
    /// What the other end reads.
    pub(crate) stdin: Box<dyn AsyncRead + Send + Unpin>,
    /// Where its output goes. Shut down when it ends.
    pub(crate) stdout: Box<dyn AsyncWrite + Send + Unpin>,
    /// Where its other output goes.
    pub(crate) stderr: Box<dyn AsyncWrite + Send + Unpin>,
    /// What else the client wants.
    pub(crate) controls: mpsc::Receiver<Control>,
    /// Told once there is something at the other end.
    pub(crate) opened: oneshot::Sender<()>,
}
