//! `vm-agent exec` against a stand-in for the controller: bytes and exit codes, as a script meets them.

#![expect(clippy::unwrap_used, reason = "in a test it is the message that something is wrong")]

use std::process::Stdio;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use rustix::process::{Pid, kill_process};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use vm_agent_schemas::api::{ExecEvent, ExecRequest};
use vm_agent_schemas::wire::{Channel, Frame, Run, Signal, StreamTarget, TaskOutcome};

/// A state folder with somebody on its socket.
struct Controller {
    dir: TempDir,
    listener: UnixListener,
}

impl Controller {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let file = serde_json::json!({
            "pid": std::process::id(), "version": "0.1.0", "fleet": "lab", "life": 1,
            "addresses": {"socket": socket, "hub": "127.0.0.1:1", "api": "127.0.0.1:2", "dashboard": "127.0.0.1:3"},
        });
        std::fs::write(dir.path().join("controller.json"), file.to_string()).unwrap();
        Self { dir, listener }
    }

    fn exec(&self, arguments: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_vm-agent"))
            .args(["exec", "web"])
            .args(arguments)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("VM_AGENT_STATE_DIR", self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// The session, and what it is to run. Connections that only see whether somebody is there are
    /// passed over.
    async fn session(&self) -> (Session, Run) {
        let mut socket = loop {
            let (stream, _) = self.listener.accept().await.unwrap();
            if let Ok(socket) = tokio_tungstenite::accept_async(stream).await {
                break socket;
            }
        };
        let Message::Text(text) = socket.next().await.unwrap().unwrap() else { panic!("expected `open`") };
        let ExecRequest::Open { target: StreamTarget::Run { run }, .. } = serde_json::from_str(&text).unwrap() else {
            panic!("expected `open`")
        };
        let mut session = Session { socket };
        session.say(&ExecEvent::Opened { offset: 0 }).await;
        (session, run)
    }
}

struct Session {
    socket: WebSocketStream<UnixStream>,
}

impl Session {
    async fn say(&mut self, event: &ExecEvent) {
        self.socket.send(Message::text(serde_json::to_string(event).unwrap())).await.unwrap();
    }

    async fn put(&mut self, channel: Channel, data: &'static [u8]) {
        let frame = Frame { stream: 0, channel, offset: 0, end: false, data: Bytes::from_static(data) };
        self.socket.send(Message::Binary(frame.encode())).await.unwrap();
    }

    async fn hear(&mut self) -> Message {
        self.socket.next().await.unwrap().unwrap()
    }

    async fn end(mut self, outcome: TaskOutcome) {
        self.say(&ExecEvent::Ended { outcome }).await;
    }
}

#[tokio::test]
async fn bytes_come_through_unchanged_and_the_exit_code_is_the_commands_own() {
    let controller = Controller::new();
    let child = controller.exec(&["-e", "A=b", "-w", "src", "--", "make", "all"]);
    let (mut session, run) = controller.session().await;
    assert_eq!((run.argv, run.cwd.as_deref()), (vec!["make".to_owned(), "all".to_owned()], Some("src")));
    assert_eq!(run.env["A"], "b");
    session.put(Channel::Stdout, b"\x00\xff\r\n\x1b[31m").await;
    session.put(Channel::Stderr, b"no newline").await;
    session.end(TaskOutcome::Exited { code: 42 }).await;
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(42));
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"\x00\xff\r\n\x1b[31m"[..], &b"no newline"[..]));
}

#[tokio::test]
async fn input_is_handed_on_and_the_program_ends_though_its_own_input_goes_on() {
    let controller = Controller::new();
    let mut child = controller.exec(&["-i", "--", "head -c 5"]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hello").await.unwrap();
    let (mut session, run) = controller.session().await;
    assert_eq!(run.argv, ["/bin/sh", "-c", "head -c 5"]);
    let Message::Binary(bytes) = session.hear().await else { panic!("expected input") };
    assert_eq!(Frame::decode(&bytes).unwrap().data, "hello");
    session.end(TaskOutcome::Exited { code: 0 }).await;
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    drop(stdin);
}

#[tokio::test]
async fn ctrl_c_interrupts_the_command_and_its_end_by_a_signal_is_told() {
    let controller = Controller::new();
    let child = controller.exec(&["--", "sleep", "60"]);
    let (mut session, _) = controller.session().await;
    session.put(Channel::Stdout, b"begun").await;
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, rustix::process::Signal::INT).unwrap();
    let Message::Text(text) = session.hear().await else { panic!("expected a signal") };
    assert_eq!(serde_json::from_str::<ExecRequest>(&text).unwrap(), ExecRequest::Signal { signal: Signal::Int });
    session.end(TaskOutcome::Signaled { signal: 2 }).await;
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(130));
}

#[tokio::test]
async fn a_lost_connection_is_255_and_says_that_the_end_is_not_known() {
    let controller = Controller::new();
    let child = controller.exec(&["--", "true"]);
    drop(controller.session().await);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(255));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("error: the connection broke off"), "{told}");
}
