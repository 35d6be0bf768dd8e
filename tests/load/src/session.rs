//! One runtime's session. It does at once whatever it is asked to: `write N` writes that many bytes, any
//! other task ends in the moment in which it begins, and a stream says back what it hears.
//!
//! A real runtime keeps a journal. This one has nothing to lose, since nothing that it does happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::Failure;
use crate::wire::{DATA_MAX, Frame, Heard, Identity, STDERR, STDIN, STDOUT, WINDOW, health};

/// Buffers of a session, in bytes: there are thousands in this process.
const BUFFER: usize = 4 * 1024;

/// Either kind of transport.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

type Socket = WebSocketStream<Box<dyn Wire>>;

/// A session that has been welcomed.
pub(crate) struct Session {
    identity: Arc<Identity>,
    socket: Socket,
    heartbeat: Duration,
    /// The mark of its configuration; null while it has none.
    digest: Value,
    writing: BTreeMap<u32, Writing>,
    echoing: BTreeMap<u32, Echoing>,
}

/// A task that writes.
struct Writing {
    task: Value,
    total: u64,
    sent: u64,
    taken: u64,
}

/// A stream that says back what it hears.
#[derive(Default)]
struct Echoing {
    heard: u64,
    told: u64,
}

/// Why there is no session.
pub(crate) enum Unwelcome {
    /// Trying again can help.
    ForNow(Failure),
    /// It can't.
    ForGood(Failure),
}

impl<E: Into<Failure>> From<E> for Unwelcome {
    fn from(error: E) -> Self {
        Self::ForNow(error.into())
    }
}

impl Session {
    /// Connects, says who it is, and is welcomed.
    pub(crate) async fn open(identity: Arc<Identity>, tls: Option<&TlsConnector>) -> Result<Self, Unwelcome> {
        let socket = connect(&identity.seed.hub, tls).await?;
        let mut session = Self {
            identity,
            socket,
            heartbeat: Duration::MAX,
            digest: Value::Null,
            writing: BTreeMap::new(),
            echoing: BTreeMap::new(),
        };
        session.say("hello", &session.identity.hello()).await?;
        let challenge = session.expect("challenge").await?;
        let challenge = challenge["challenge"].as_str().ok_or("a challenge without a challenge")?;
        session.say("proof", &session.identity.proof(challenge)).await?;
        let welcome = session.expect("welcome").await?;
        session.heartbeat = Duration::from_millis(welcome["heartbeatMs"].as_u64().ok_or("a welcome without pace")?);
        session.digest = welcome["configuration"]["digest"].clone();
        Ok(session)
    }

    /// Serves until the connection is gone.
    pub(crate) async fn serve(mut self) -> Result<(), Failure> {
        self.say("configured", &json!({"digest": self.digest})).await?;
        let mut heartbeats = tokio::time::interval(self.heartbeat);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = heartbeats.tick() => self.say("health", &health()).await?,
                message = self.socket.next() => match message.ok_or("the hub closed the connection")?? {
                    Message::Text(text) => self.answer(serde_json::from_str(&text)?).await?,
                    Message::Binary(bytes) => self.echo(Frame::decode(&bytes).ok_or("no frame")?).await?,
                    _ => {}
                },
            }
        }
    }

    async fn answer(&mut self, heard: Heard) -> Result<(), Failure> {
        let Heard { kind, payload } = heard;
        let stream = payload["stream"].as_u64().and_then(|stream| u32::try_from(stream).ok());
        match (kind.as_str(), stream) {
            ("configure", _) => {
                self.digest = payload["digest"].clone();
                self.say("configured", &json!({"digest": self.digest})).await
            }
            ("task", Some(stream)) => self.begin(stream, &payload).await,
            ("stream.open", Some(stream)) => {
                self.echoing.insert(stream, Echoing::default());
                self.say("stream.opened", &json!({"stream": stream})).await
            }
            ("stream.close", Some(stream)) => {
                self.echoing.remove(&stream);
                Ok(())
            }
            ("stream.taken", Some(stream)) => {
                if let (Some(writing), "stdout") =
                    (self.writing.get_mut(&stream), payload["channel"].as_str().unwrap_or_default())
                {
                    writing.taken = payload["offset"].as_u64().unwrap_or(writing.taken);
                    self.write(stream).await?;
                }
                Ok(())
            }
            ("message", _) => Err("nobody writes to a runtime of the load generator".into()),
            ("refused", _) => Err(format!("refused: {payload}").into()),
            _ => Ok(()),
        }
    }

    async fn begin(&mut self, stream: u32, order: &Value) -> Result<(), Failure> {
        let task = json!({"task": order["task"], "attempt": order["attempt"]});
        let argv = &order["job"]["work"]["argv"];
        let total = match (argv[0].as_str(), argv[1].as_str()) {
            (Some("write"), Some(bytes)) => bytes.parse()?,
            _ => 0,
        };
        self.say("task.started", &task).await?;
        self.writing.insert(stream, Writing { task, total, sent: 0, taken: 0 });
        self.write(stream).await
    }

    /// Writes as much of a task's output as the window allows, and then its end.
    async fn write(&mut self, stream: u32) -> Result<(), Failure> {
        static ZEROS: [u8; DATA_MAX as usize] = [b'x'; DATA_MAX as usize];
        let Some(writing) = self.writing.get_mut(&stream) else { return Ok(()) };
        while writing.sent < writing.total {
            let room = WINDOW - (writing.sent - writing.taken);
            let length = DATA_MAX.min(writing.total - writing.sent);
            if room < length {
                return Ok(self.socket.flush().await?);
            }
            let data = Bytes::from_static(&ZEROS[..usize::try_from(length)?]);
            let frame = Frame { stream, channel: STDOUT, offset: writing.sent, end: false, data };
            self.socket.feed(Message::Binary(frame.encode())).await?;
            writing.sent += length;
        }
        let Some(Writing { task, total, .. }) = self.writing.remove(&stream) else { return Ok(()) };
        for (channel, offset) in [(STDOUT, total), (STDERR, 0)] {
            let frame = Frame { stream, channel, offset, end: true, data: Bytes::new() };
            self.socket.feed(Message::Binary(frame.encode())).await?;
        }
        let ended = json!({
            "task": task["task"], "attempt": task["attempt"],
            "outcome": {"end": "exited", "code": 0},
            "report": {"stdout": total, "stderr": 0},
        });
        self.say("task.ended", &ended).await
    }

    async fn echo(&mut self, input: Frame) -> Result<(), Failure> {
        let Frame { stream, channel: STDIN, offset, end, data } = input else { return Ok(()) };
        let Some(echoing) = self.echoing.get_mut(&stream) else { return Ok(()) };
        echoing.heard = offset + data.len() as u64;
        let taken = (echoing.heard - echoing.told >= WINDOW / 4).then_some(echoing.heard);
        echoing.told = taken.unwrap_or(echoing.told);
        let output = Frame { stream, channel: STDOUT, offset, end, data };
        self.socket.send(Message::Binary(output.encode())).await?;
        if let Some(offset) = taken {
            self.say("stream.taken", &json!({"stream": stream, "channel": "stdin", "offset": offset})).await?;
        }
        if end {
            self.echoing.remove(&stream);
            let last = Frame { stream, channel: STDERR, offset: 0, end: true, data: Bytes::new() };
            self.socket.send(Message::Binary(last.encode())).await?;
            self.say("stream.ended", &json!({"stream": stream, "outcome": {"end": "exited", "code": 0}})).await?;
        }
        Ok(())
    }

    async fn say(&mut self, kind: &str, payload: &Value) -> Result<(), Failure> {
        Ok(self.socket.send(Message::text(self.identity.message(kind, payload))).await?)
    }

    /// The next message, which is to be of this kind.
    async fn expect(&mut self, kind: &str) -> Result<Value, Unwelcome> {
        loop {
            let Message::Text(text) = self.socket.next().await.ok_or("the hub closed the connection")?? else {
                continue;
            };
            let heard: Heard = serde_json::from_str(&text)?;
            return match heard.kind.as_str() {
                it if it == kind => Ok(heard.payload),
                "refused" if heard.payload["retry"] == false => {
                    Err(Unwelcome::ForGood(format!("refused: {}", heard.payload).into()))
                }
                other => Err(format!("`{other}` in place of `{kind}`: {}", heard.payload).into()),
            };
        }
    }
}

async fn connect(hub: &str, tls: Option<&TlsConnector>) -> Result<Socket, Failure> {
    let (_, rest) = hub.split_once("://").ok_or("the seed has no address")?;
    let (host, _) = rest.split_once('/').ok_or("the seed has no path")?;
    let tcp = TcpStream::connect(host).await?;
    let address = tcp.peer_addr()?;
    tcp.set_nodelay(true)?;
    let (scheme, wire): (_, Box<dyn Wire>) = match tls {
        Some(tls) => ("wss", Box::new(tls.connect(ServerName::from(address.ip()), tcp).await?)),
        None => ("ws", Box::new(tcp)),
    };
    let config = WebSocketConfig::default().read_buffer_size(BUFFER).write_buffer_size(BUFFER);
    let (socket, _) = client_async_with_config(format!("{scheme}://{rest}"), wire, Some(config)).await?;
    Ok(socket)
}
