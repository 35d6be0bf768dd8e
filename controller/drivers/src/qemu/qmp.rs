//! QMP: how a running QEMU is spoken to. JSON, one object a line, over a unix socket in the machine's
//! folder. QEMU serves one client at a time, so conversations are short.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;

use crate::socket;

/// How long QEMU may take to answer. It takes milliseconds; the rest is for a host under load.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// When a monitor is tried again before which too many wait. A conversation takes milliseconds.
const TURN_PAUSE: Duration = Duration::from_millis(10);

/// Longest line that is read, in bytes. Answers of the commands used here are far shorter.
const LINE_MAX: u64 = 1024 * 1024;

/// Why QEMU could not be spoken to.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    #[error("QEMU's monitor can't be reached")]
    Io(#[from] io::Error),
    #[error("QEMU's monitor does not answer")]
    Silent,
    #[error("QEMU's monitor says something else than QMP")]
    Strange(#[from] serde_json::Error),
    #[error("QEMU refused `{command}`: {reason}")]
    Refused { command: String, reason: String },
}

/// What a machine is doing, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunState {
    /// Its processors run, or are about to.
    Runs,
    /// It has powered itself off, and QEMU waits for the word to end.
    PoweredOff,
    /// It stands still because the host's disk took no more.
    DiskError,
    /// It stands still because it was told to, or because its memory has been saved.
    Halted,
}

/// How far it has come that a memory is saved or loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Migration {
    /// It is under way, or nothing has begun.
    UnderWay,
    /// The machine stands still, and what is left is written when that is wanted.
    Pausing,
    /// It is over. The machine stands still.
    Completed,
    /// It did not work, for this reason.
    Failed(String),
}

/// A conversation.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

/// Everything that QEMU says.
#[derive(Debug, Deserialize)]
struct Said {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Begins a conversation over this socket of a folder.
    pub(super) async fn connect(folder: &Path, name: &str) -> Result<Self, QmpError> {
        let begin = async {
            let stream = loop {
                match socket::connect(folder, name).await {
                    // As many wait for their turn as QEMU lets wait.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(TURN_PAUSE).await,
                    stream => break stream?,
                }
            };
            let mut qmp = Self { stream: BufReader::new(stream) };
            while qmp.hear().await?.greeting.is_none() {}
            Ok::<_, QmpError>(qmp)
        };
        let mut qmp = tokio::time::timeout(ANSWER_LIMIT, begin).await.map_err(|_| QmpError::Silent)??;
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// Has QEMU do something, and gives its answer.
    pub(super) async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.say(command, arguments, None).await
    }

    /// Gives QEMU a file under a name, for the command after this.
    pub(super) async fn hand_over(&mut self, name: &str, file: &File) -> Result<(), QmpError> {
        self.say("getfd", json!({"fdname": name}), Some(file)).await.map(drop)
    }

    async fn say(&mut self, command: &str, arguments: Value, file: Option<&File>) -> Result<Value, QmpError> {
        let mut request = json!({"execute": command});
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let request = format!("{request}\n");
        let ask = async {
            // A file goes along with the first byte.
            let along =
                if let Some(file) = file { send(self.stream.get_ref(), request.as_bytes(), file).await? } else { 0 };
            self.stream.write_all(&request.as_bytes()[along..]).await?;
            loop {
                match self.hear().await? {
                    Said { error: Some(Refusal { desc }), .. } => {
                        return Err(QmpError::Refused { command: command.to_owned(), reason: desc });
                    }
                    Said { answer: Some(answer), .. } => return Ok(answer),
                    Said { event, .. } => tracing::trace!(?event, "QEMU tells"),
                }
            }
        };
        tokio::time::timeout(ANSWER_LIMIT, ask).await.map_err(|_| QmpError::Silent)?
    }

    async fn hear(&mut self) -> Result<Said, QmpError> {
        let mut line = Vec::new();
        (&mut self.stream).take(LINE_MAX).read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(serde_json::from_slice(&line)?)
    }

    /// What the machine is doing.
    pub(super) async fn run_state(&mut self) -> Result<RunState, QmpError> {
        let answer = self.execute("query-status", Value::Null).await?;
        Ok(match answer["status"].as_str() {
            Some("shutdown") => RunState::PoweredOff,
            Some("io-error") => RunState::DiskError,
            Some("paused" | "finish-migrate" | "postmigrate" | "save-vm") => RunState::Halted,
            _ => RunState::Runs,
        })
    }

    /// Presses the power button.
    pub(super) async fn power_down(&mut self) -> Result<(), QmpError> {
        self.execute("system_powerdown", Value::Null).await.map(drop)
    }

    /// Whether a memory has been saved or loaded.
    pub(super) async fn migration(&mut self) -> Result<Migration, QmpError> {
        let answer = self.execute("query-migrate", Value::Null).await?;
        Ok(match answer["status"].as_str() {
            Some("pre-switchover") => Migration::Pausing,
            Some("completed") => Migration::Completed,
            Some("failed" | "cancelled") => {
                Migration::Failed(answer["error-desc"].as_str().unwrap_or("QEMU does not say why").to_owned())
            }
            _ => Migration::UnderWay,
        })
    }

    /// The layer that the machine writes to, as QEMU names it: the file, and the node that has it open.
    pub(super) async fn disk(&mut self, device: &str) -> Result<Option<(String, String)>, QmpError> {
        let answer = self.execute("query-block", Value::Null).await?;
        let of_device =
            |block: &&Value| block["qdev"].as_str().is_some_and(|path| path.split('/').any(|it| it == device));
        let block = answer.as_array().into_iter().flatten().find(of_device);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(block.map(|block| &block["inserted"]).and_then(|it| Some((text(&it["file"])?, text(&it["node-name"])?))))
    }

    /// Connects the machine's network card, or pulls its cable.
    pub(super) async fn set_link(&mut self, name: &str, up: bool) -> Result<(), QmpError> {
        self.execute("set_link", json!({"name": name, "up": up})).await.map(drop)
    }

    /// Lets a machine that stands still go on.
    pub(super) async fn go_on(&mut self) -> Result<(), QmpError> {
        self.execute("cont", Value::Null).await.map(drop)
    }

    /// Ends QEMU.
    pub(super) async fn quit(&mut self) -> Result<(), QmpError> {
        self.execute("quit", Value::Null).await.map(drop)
    }

    /// The last that a ring buffer took, at most so many bytes. It is empty after that.
    pub(super) async fn ring(&mut self, device: &str, size: u32) -> Result<String, QmpError> {
        let answer = self.execute("ringbuf-read", json!({"device": device, "size": size})).await?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }
}

/// Sends a file with the beginning of some bytes, and says how many of those went.
async fn send(stream: &UnixStream, bytes: &[u8], file: &File) -> io::Result<usize> {
    let send = || {
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut along = SendAncillaryBuffer::new(&mut space);
        along.push(SendAncillaryMessage::ScmRights(&files));
        Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut along, SendFlags::empty())?)
    };
    stream.async_io(Interest::WRITABLE, send).await
}
