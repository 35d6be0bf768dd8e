//! `vm-agent shell` and `exec -it` in a terminal of their own, against a stand-in for the controller.

#![expect(clippy::unwrap_used, reason = "in a test it is the message that something is wrong")]

use futures::{SinkExt as _, StreamExt as _};
use pty_process::{Command, OwnedReadPty, OwnedWritePty, Size};
use rustix::termios::{LocalModes, tcgetattr};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use vm_agent_schemas::api::{ExecEvent, ExecRequest};
use vm_agent_schemas::wire::{Channel, Frame, StreamTarget, TaskOutcome, TerminalSize};

/// The program in a terminal, and somebody on the socket that it takes for its controller's.
struct Stage {
    listener: UnixListener,
    child: Child,
    screen: OwnedReadPty,
    keys: OwnedWritePty,
    seen: String,
    /// Keeps the terminal there when the program has ended, so that it can be looked at.
    terminal: std::os::fd::OwnedFd,
    _dir: TempDir,
}

impl Stage {
    fn new(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let file = serde_json::json!({
            "pid": std::process::id(), "version": "0.1.0", "fleet": "lab", "life": 1,
            "addresses": {"socket": socket, "hub": "127.0.0.1:1", "api": "127.0.0.1:2", "dashboard": "127.0.0.1:3"},
        });
        std::fs::write(dir.path().join("controller.json"), file.to_string()).unwrap();
        let (pty, pts) = pty_process::open().unwrap();
        pty.resize(Size::new(40, 100)).unwrap();
        let terminal = rustix::io::dup(&pts).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_vm-agent"))
            .args(arguments)
            .env_clear()
            .env("HOME", dir.path())
            .env("TERM", "xterm-256color")
            .env("VM_AGENT_STATE_DIR", dir.path())
            .kill_on_drop(true)
            .spawn(pts)
            .unwrap();
        let (screen, keys) = pty.into_split();
        Self { listener, child, screen, keys, seen: String::new(), terminal, _dir: dir }
    }

    /// The stream that the program opens, and to what.
    async fn session(&self) -> (Session, StreamTarget) {
        let mut socket = loop {
            let (stream, _) = self.listener.accept().await.unwrap();
            if let Ok(socket) = tokio_tungstenite::accept_async(stream).await {
                break socket;
            }
        };
        let Message::Text(text) = socket.next().await.unwrap().unwrap() else { panic!("expected `open`") };
        let ExecRequest::Open { target, stdin: true } = serde_json::from_str(&text).unwrap() else {
            panic!("expected `open` with input")
        };
        (Session { socket }, target)
    }

    async fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).await.unwrap();
    }

    /// Waits until that is on the screen.
    async fn shows(&mut self, text: &str) {
        let mut buffer = [0; 1024];
        while !self.seen.contains(text) {
            let count = self.screen.read(&mut buffer).await.unwrap_or(0);
            assert!(count > 0, "`{text}` never came: {}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }

    /// Whether keys are shown and lines edited by the terminal itself, as they are before and after.
    fn is_cooked(&self) -> bool {
        tcgetattr(&self.terminal).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// How the program ends, with the terminal as it was.
    async fn end(mut self) -> i32 {
        let status = self.child.wait().await.unwrap();
        assert!(self.is_cooked(), "the terminal is left raw");
        status.code().unwrap()
    }
}

struct Session {
    socket: WebSocketStream<UnixStream>,
}

impl Session {
    async fn say(&mut self, event: &ExecEvent) {
        self.socket.send(Message::text(serde_json::to_string(event).unwrap())).await.unwrap();
    }

    async fn put(&mut self, offset: u64, data: &'static str) {
        let frame = Frame { stream: 0, channel: Channel::Stdout, offset, end: false, data: data.into() };
        self.socket.send(Message::Binary(frame.encode())).await.unwrap();
    }

    /// The next keys that come.
    async fn keys(&mut self) -> String {
        match self.socket.next().await.unwrap().unwrap() {
            Message::Binary(bytes) => String::from_utf8(Frame::decode(&bytes).unwrap().data.to_vec()).unwrap(),
            other => panic!("expected keys, got {other:?}"),
        }
    }

    async fn request(&mut self) -> ExecRequest {
        match self.socket.next().await.unwrap().unwrap() {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("expected a request, got {other:?}"),
        }
    }
}

const SIZE: TerminalSize = TerminalSize { cols: 100, rows: 40 };

#[tokio::test]
async fn every_key_goes_to_the_shell_and_its_exit_code_comes_back() {
    let mut stage = Stage::new(&["shell", "web"]);
    let (mut session, target) = stage.session().await;
    let StreamTarget::Terminal { run, size: SIZE, keep: Some(_) } = target else { panic!("{target:?}") };
    assert!(run.argv.is_empty(), "the user's own shell");
    assert_eq!(run.env["TERM"], "xterm-256color");
    session.say(&ExecEvent::Opened { offset: 0 }).await;
    session.put(0, "web$ ").await;
    stage.shows("web$ ").await;
    assert!(!stage.is_cooked());
    stage.types("\x03").await;
    assert_eq!(session.keys().await, "\x03", "Ctrl-C is a key like others");
    stage.keys.resize(Size::new(50, 132)).unwrap();
    assert_eq!(session.request().await, ExecRequest::Resize { size: TerminalSize { cols: 132, rows: 50 } });
    session.say(&ExecEvent::Ended { outcome: TaskOutcome::Exited { code: 7 } }).await;
    assert_eq!(stage.end().await, 7);
}

#[tokio::test]
async fn a_lost_shell_comes_back_by_itself_and_can_be_left() {
    let mut stage = Stage::new(&["shell", "web", "--", "top"]);
    let (mut session, target) = stage.session().await;
    let StreamTarget::Terminal { keep: Some(id), .. } = target else { panic!("{target:?}") };
    session.say(&ExecEvent::Opened { offset: 0 }).await;
    session.put(0, "before").await;
    stage.shows("before").await;
    drop(session);
    let (mut session, target) = stage.session().await;
    assert_eq!(target, StreamTarget::Attach { terminal: id, offset: 6, size: SIZE });
    session.say(&ExecEvent::Opened { offset: 10 }).await;
    session.put(10, "after").await;
    stage.shows("connected again; 4 bytes of output are left out").await;
    stage.shows("after").await;
    stage.types("\r~.").await;
    stage.shows(&format!("vm-agent shell web --attach {id}")).await;
    assert_eq!(stage.end().await, 0);
}

#[tokio::test]
async fn exec_with_a_terminal_keeps_nothing_and_a_lost_one_is_255() {
    let mut stage = Stage::new(&["exec", "-it", "web", "--", "vi"]);
    let (mut session, target) = stage.session().await;
    assert!(matches!(&target, StreamTarget::Terminal { keep: None, size: SIZE, .. }), "{target:?}");
    session.say(&ExecEvent::Opened { offset: 0 }).await;
    session.put(0, "~").await;
    stage.shows("~").await;
    drop(session);
    stage.shows("the connection broke off").await;
    assert_eq!(stage.end().await, 255);
}

#[tokio::test]
async fn somebody_who_ends_the_program_gets_the_terminal_back_as_it_was() {
    let mut stage = Stage::new(&["shell", "web"]);
    let (mut session, _) = stage.session().await;
    session.say(&ExecEvent::Opened { offset: 0 }).await;
    session.put(0, "$ ").await;
    stage.shows("$ ").await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(stage.child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(stage.end().await, 0);
}
