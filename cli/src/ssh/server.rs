//! The SSH server of `ssh-proxy`. Who speaks to it has started it, so it asks for no credential.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use russh::keys::PrivateKey;
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session};
use russh::{ChannelId, ChannelOpenFailure, ChannelWriteHalf, Pty, Sig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use vm_agent_schemas::wire::{Run, Signal, StreamTarget, TaskOutcome, TerminalSize};

use super::flow::{self, Backlog, Inlet, Paced, Shown};
use super::{Machine, NearEnd};
use crate::client::Control;
use crate::exit::{CommandError, Exit};

/// How often the client is asked for an answer: writing to one that was killed fails, while a connection that is
/// not read just now would say nothing.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Most resizes and signals that wait: far more than a person makes while output is held up.
const CONTROLS: usize = 1024;

/// stderr, in the words of RFC 4254.
const STDERR: u32 = 1;

/// SSH_OPEN_CONNECT_FAILED, in the words of RFC 4254.
const CONNECT_FAILED: u32 = 2;

/// A login shell, for clients that ask for a shell without a terminal and write a script into it.
const SHELL: &str = r#"exec "${SHELL:-/bin/sh}" -l"#;

/// Where distributions keep the server of SFTP, which is a program of its own.
const SFTP: &str = "for it in /usr/lib/openssh /usr/libexec/openssh /usr/lib/ssh /usr/libexec; do \
                    test -x $it/sftp-server && exec $it/sftp-server; done; \
                    echo 'there is no sftp-server in this machine: install openssh-sftp-server, or use scp -O, or \
                    vm-agent cp' >&2; \
                    exit 127";

/// Serves one client, until it leaves.
pub(crate) async fn serve(
    client: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    key: PrivateKey,
    machine: Arc<dyn Machine>,
) -> Result<(), russh::Error> {
    let config = Config {
        keys: vec![key],
        auth_rejection_time: Duration::ZERO,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        // A client that does not answer may be asleep with its whole machine.
        keepalive_max: 0,
        ..Config::default()
    };
    let backlog = Arc::<Backlog>::default();
    let client = Paced::new(client, Arc::clone(&backlog));
    let server = Server { machine, backlog, channels: HashMap::new() };
    russh::server::run_stream(Arc::new(config), client, server).await?.await
}

/// The client's end of a channel, as far as it is written to.
type Client = ChannelWriteHalf<Msg>;

struct Server {
    machine: Arc<dyn Machine>,
    backlog: Arc<Backlog>,
    channels: HashMap<ChannelId, Channel>,
}

enum Channel {
    /// The client still says what it wants to have around its process.
    Preparing(Preparation),
    /// There is something at the other end.
    Open(Open),
}

struct Preparation {
    client: Client,
    env: BTreeMap<String, String>,
    terminal: Option<TerminalSize>,
}

/// The way to the other end. With it the stream ends.
struct Open {
    /// Nothing once the input has ended.
    input: Option<Inlet>,
    controls: mpsc::Sender<Control>,
    carrying: AbortOnDropHandle<()>,
}

impl Server {
    /// Opens a stream, and lets `accompany` see to what the client learns of it.
    fn open<F>(
        &mut self,
        client: Client,
        target: StreamTarget,
        accompany: impl FnOnce(Client, Carried, oneshot::Receiver<()>) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        // Only a connection can end in one direction while the other goes on.
        let ends = matches!(target, StreamTarget::Connect { .. });
        let (inlet, stdin) = flow::input(&self.backlog);
        let (controls, wanted) = mpsc::channel(CONTROLS);
        let (opened, told) = oneshot::channel();
        let near = NearEnd {
            stdin: Box::new(stdin),
            stdout: Box::new(Shown::new(client.make_writer(), Arc::clone(&self.backlog), ends)),
            stderr: Box::new(Shown::new(client.make_writer_ext(Some(STDERR)), Arc::clone(&self.backlog), false)),
            controls: wanted,
            opened,
        };
        let id = client.id();
        let carrying = tokio::spawn(accompany(client, self.machine.carry(target, near), told));
        let open = Open { input: Some(inlet), controls, carrying: AbortOnDropHandle::new(carrying) };
        // Of a channel that this side closed first nothing more is heard.
        self.channels.retain(|_, channel| !matches!(channel, Channel::Open(open) if open.carrying.is_finished()));
        self.channels.insert(id, Channel::Open(open));
    }

    /// A process of the client's: with a terminal if it asked for one.
    fn run(&mut self, id: ChannelId, line: Option<&str>, session: &mut Session) -> Result<(), russh::Error> {
        let preparation = match self.channels.remove(&id) {
            Some(Channel::Preparing(preparation)) => preparation,
            other => {
                // Each channel has one process.
                self.channels.extend(other.map(|other| (id, other)));
                return session.channel_failure(id);
            }
        };
        let shell = |line: &str| ["/bin/sh", "-c", line].map(str::to_owned).to_vec();
        let Preparation { client, env, terminal } = preparation;
        let target = match terminal {
            Some(size) => {
                let argv = line.map(shell).unwrap_or_default();
                StreamTarget::Terminal { run: Run { argv, env, ..Run::default() }, size, keep: None }
            }
            None => StreamTarget::Run { run: Run { argv: shell(line.unwrap_or(SHELL)), env, ..Run::default() } },
        };
        self.open(client, target, |client, carried, _| process(client, carried));
        session.channel_success(id)
    }

    fn preparation(&mut self, id: ChannelId) -> Option<&mut Preparation> {
        match self.channels.get_mut(&id)? {
            Channel::Preparing(preparation) => Some(preparation),
            Channel::Open(_) => None,
        }
    }

    fn opened(&mut self, id: ChannelId) -> Option<&mut Open> {
        match self.channels.get_mut(&id)? {
            Channel::Preparing(_) => None,
            Channel::Open(open) => Some(open),
        }
    }

    fn control(&mut self, id: ChannelId, control: Control) {
        if let Some(open) = self.opened(id) {
            // Refused when it has ended, or when far more wait than anybody needs.
            let _ = open.controls.try_send(control);
        }
    }
}

/// Answers a request of a channel.
fn answer(session: &mut Session, id: ChannelId, granted: bool) -> Result<(), russh::Error> {
    if granted { session.channel_success(id) } else { session.channel_failure(id) }
}

impl Handler for Server {
    type Error = russh::Error;

    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: russh::Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        // What comes from the client is taken from the callbacks below.
        let (_, client) = channel.split();
        let preparation = Preparation { client, env: BTreeMap::new(), terminal: None };
        self.channels.insert(preparation.client.id(), Channel::Preparing(preparation));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: russh::Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        // Dropped, the reply is a refusal.
        let Ok(port) = u16::try_from(port) else { return Ok(()) };
        let (_, client) = channel.split();
        let target = StreamTarget::Connect { host: host.to_owned(), port };
        self.open(client, target, |client, carried, opened| connection(client, carried, opened, reply));
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let preparation = self.preparation(id);
        let granted = preparation.is_some();
        if let Some(preparation) = preparation {
            preparation.terminal = Some(size(cols, rows));
            preparation.env.insert("TERM".to_owned(), term.to_owned());
        }
        answer(session, id, granted)
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let is_variable = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
        let preparation = self.preparation(id).filter(|_| is_variable);
        let granted = preparation.is_some();
        if let Some(preparation) = preparation {
            preparation.env.insert(name.to_owned(), value.to_owned());
        }
        answer(session, id, granted)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _single_connection: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.run(id, None, session)
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        // Run's arguments are text, and so is every line that a person or an editor writes.
        match std::str::from_utf8(command) {
            Ok(line) => self.run(id, Some(line), session),
            Err(_) => session.channel_failure(id),
        }
    }

    async fn subsystem_request(&mut self, id: ChannelId, name: &str, session: &mut Session) -> Result<(), Self::Error> {
        if name == "sftp" { self.run(id, Some(SFTP), session) } else { session.channel_failure(id) }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        cols: u32,
        rows: u32,
        _width: u32,
        _height: u32,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.control(id, Control::Resize(size(cols, rows)));
        Ok(())
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _session: &mut Session) -> Result<(), Self::Error> {
        let signal = match signal {
            Sig::INT => Signal::Int,
            Sig::TERM => Signal::Term,
            Sig::KILL => Signal::Kill,
            Sig::HUP => Signal::Hup,
            Sig::QUIT => Signal::Quit,
            _ => return Ok(()),
        };
        self.control(id, Control::Signal(signal));
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        let inlet = self.opened(id).and_then(|open| open.input.as_ref());
        if inlet.is_some_and(|inlet| !inlet.put(data)) {
            let sentence = "vm-agent: its output is not taken, and no more input can wait meanwhile\r\n";
            session.extended_data(id, STDERR, Bytes::from_static(sentence.as_bytes()))?;
            self.channels.remove(&id);
            session.close(id)?;
        }
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        if let Some(open) = self.opened(id) {
            open.input = None;
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        self.channels.remove(&id);
        Ok(())
    }
}

/// A stream to its end.
type Carried = BoxFuture<'static, Result<TaskOutcome, CommandError>>;

/// Tells the client how its process ended. A client that is gone is told of by its channel.
async fn process(client: Client, carried: Carried) {
    let (code, sentence) = match carried.await {
        Ok(outcome) => match Exit::remote(&outcome) {
            Some(exit) if !matches!(outcome, TaskOutcome::Failed { .. }) => (exit, None),
            _ => (Exit::EXEC_FAILED, Some(format!("vm-agent: the command {outcome}\r\n"))),
        },
        Err(error) => (Exit::EXEC_FAILED, Some(format!("vm-agent: {error}\r\n"))),
    };
    if let Some(sentence) = sentence {
        let _ = client.extended_data_bytes(STDERR, sentence).await;
    }
    let _ = client.exit_status(code.code().into()).await;
    let _ = client.eof().await;
    let _ = client.close().await;
}

/// Tells the client whether there is a connection, and when it is over.
async fn connection(client: Client, mut carried: Carried, opened: oneshot::Receiver<()>, reply: ChannelOpenHandle) {
    let reason = tokio::select! {
        biased;
        Ok(()) = opened => {
            reply.accept().await;
            // What is lost of a connection shows in what does not come.
            let _ = carried.await;
            let _ = client.close().await;
            return;
        }
        ended = &mut carried => match ended {
            Ok(TaskOutcome::Failed { reason } | TaskOutcome::NotStarted { reason }) => reason,
            Ok(outcome) => format!("it {outcome}"),
            Err(error) => error.to_string(),
        },
    };
    reply.reject(ChannelOpenFailure::Other { code: CONNECT_FAILED, reason }).await;
}

fn size(cols: u32, rows: u32) -> TerminalSize {
    let small = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    TerminalSize { cols: small(cols), rows: small(rows) }
}

#[cfg(test)]
mod tests;
