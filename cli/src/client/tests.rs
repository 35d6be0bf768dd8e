//! The client against a small server on a unix socket.

use futures::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use vm_agent_schemas::api::{ExecEvent, ExecRequest, Version};
use vm_agent_schemas::wire::{Channel, DATA_MAX, Frame, Run, Signal, StreamTarget, TaskOutcome, TerminalSize, WINDOW};

use super::*;

/// A socket to answer on, and a client of it.
pub(crate) struct Peer {
    listener: UnixListener,
    pub(crate) client: Client,
    _dir: TempDir,
}

impl Peer {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let client = Client::new(Address::Unix(path), Some(Secret::from_text("t0ken")));
        Self { listener, client, _dir: dir }
    }

    /// Takes one request and answers it with these bytes. Gives back what was asked.
    pub(crate) async fn answer(&self, answer: &str) -> String {
        self.begin_answer(answer).await.0
    }

    /// The same, but the answer goes on as long as the connection is held.
    pub(crate) async fn begin_answer(&self, answer: &str) -> (String, UnixStream) {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        let mut asked = String::new();
        while !asked.contains("\r\n\r\n") {
            let mut piece = [0; 1024];
            let count = stream.read(&mut piece).await.unwrap();
            assert!(count > 0, "the request broke off: {asked}");
            asked.push_str(std::str::from_utf8(&piece[..count]).unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        (asked, stream)
    }

    pub(crate) async fn answer_exec(&self) -> WebSocketStream<UnixStream> {
        let (stream, _) = self.listener.accept().await.unwrap();
        tokio_tungstenite::accept_async(stream).await.unwrap()
    }
}

pub(crate) fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_document_is_given_as_it_came_and_as_it_is_understood() {
    let peer = Peer::new();
    let body = r#"{"apiVersion":"vm-agent/v1","kind":"Version","version":"9.9.9","protocol":1,"new":true}"#;
    let (answer, asked) =
        tokio::join!(peer.client.get::<Version>("/version"), async { peer.answer(&http("200 OK", body)).await });
    let Fetched { raw, content } = answer.unwrap();
    assert_eq!(raw.to_string(), body);
    assert_eq!(content.version, "9.9.9");
    assert!(asked.starts_with("GET /version HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("authorization: Bearer t0ken"), "{asked}");
}

#[tokio::test]
async fn a_problem_becomes_an_error_with_its_exit_code() {
    let cases = [
        (ProblemCode::Invalid, Exit::USAGE),
        (ProblemCode::Unauthorized, Exit::DENIED),
        (ProblemCode::NotFound, Exit::NOT_FOUND),
        (ProblemCode::Conflict, Exit::CONFLICT),
        (ProblemCode::Blocked, Exit::BLOCKED),
        (ProblemCode::Offline, Exit::UNREACHABLE),
        (ProblemCode::Internal, Exit::FAILURE),
    ];
    let peer = Peer::new();
    for (code, exit) in cases {
        let problem = Problem::new(code, "no").remedy("try else");
        let text = http(&format!("{} No", problem.status), &serde_json::to_string(&problem).unwrap());
        let (answer, _) = tokio::join!(peer.client.get::<Value>("/agents"), peer.answer(&text));
        let error = answer.unwrap_err();
        assert_eq!(
            (error.exit, error.to_string(), error.hints()),
            (exit, "no".to_owned(), &["try else".to_owned()][..])
        );
    }
}

#[tokio::test]
async fn an_error_without_a_reason_is_still_an_error() {
    let peer = Peer::new();
    let text = http("502 Bad Gateway", "<html>");
    let (answer, _) = tokio::join!(peer.client.get::<Value>("/agents"), peer.answer(&text));
    assert_eq!(answer.unwrap_err().to_string(), "the controller answered with status 502 and no reason");
}

#[tokio::test]
async fn a_server_that_hangs_up_is_unreachable() {
    let peer = Peer::new();
    let (answer, _) = tokio::join!(peer.client.get::<Value>("/agents"), peer.answer(""));
    assert_eq!(answer.unwrap_err().exit, Exit::UNREACHABLE);
}

#[tokio::test]
async fn a_stream_gives_its_events_and_then_its_end() {
    let peer = Peer::new();
    let text =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: hi\n\ndata: 1\n\nevent: dropped\ndata: 2\n\n";
    let (stream, _) = tokio::join!(peer.client.stream("/events?follow=true"), peer.answer(text));
    let mut stream = stream.unwrap();
    let mut seen = Vec::new();
    while let Some(event) = stream.next().await.unwrap() {
        seen.push(format!("{} {}", event.kind, event.data));
    }
    assert_eq!(seen, ["message 1", "dropped 2"]);
}

#[test]
fn only_plain_http_addresses_are_taken() {
    assert_eq!(Address::parse("http://127.0.0.1:9091/").unwrap(), Address::Tcp("127.0.0.1:9091".to_owned()));
    for bad in ["https://host:1", "host:1", "http://host", "http://user:pass@host:1", "http://host:1/path"] {
        assert_eq!(Address::parse(bad).unwrap_err().exit, Exit::USAGE, "{bad}");
    }
}

fn run(line: &str) -> StreamTarget {
    StreamTarget::Run { run: Run { argv: vec![line.to_owned()], ..Run::default() } }
}

/// The far ends of a console.
pub(crate) struct Far {
    pub(crate) stdin: DuplexStream,
    pub(crate) stdout: DuplexStream,
    pub(crate) stderr: DuplexStream,
    pub(crate) controls: mpsc::Sender<Control>,
}

pub(crate) fn console() -> (Console<DuplexStream, DuplexStream, DuplexStream>, Far) {
    let ((stdin, far_in), (stdout, far_out), (stderr, far_err)) = (duplex(1 << 20), duplex(1 << 20), duplex(1 << 20));
    let (sender, controls) = mpsc::channel(2);
    let console = Console::new(Some(stdin), stdout, stderr, controls);
    (console, Far { stdin: far_in, stdout: far_out, stderr: far_err, controls: sender })
}

pub(crate) async fn say(socket: &mut WebSocketStream<UnixStream>, event: &ExecEvent) {
    socket.send(Message::text(serde_json::to_string(event).unwrap())).await.unwrap();
}

async fn put(socket: &mut WebSocketStream<UnixStream>, channel: Channel, offset: u64, data: &[u8]) {
    let frame = Frame { stream: 0, channel, offset, end: false, data: Bytes::copy_from_slice(data) };
    socket.send(Message::Binary(frame.encode())).await.unwrap();
}

async fn hear(socket: &mut WebSocketStream<UnixStream>) -> ExecRequest {
    match socket.next().await.unwrap().unwrap() {
        Message::Text(text) => serde_json::from_str(&text).unwrap(),
        other => panic!("expected a request, got {other:?}"),
    }
}

async fn take(socket: &mut WebSocketStream<UnixStream>) -> Frame {
    match socket.next().await.unwrap().unwrap() {
        Message::Binary(bytes) => Frame::decode(&bytes).unwrap(),
        other => panic!("expected input, got {other:?}"),
    }
}

/// A console without input.
fn silent_console() -> (Console<DuplexStream, DuplexStream, DuplexStream>, Far) {
    let (stdout, far_out) = duplex(1 << 20);
    let (stderr, far_err) = duplex(1 << 20);
    let (_, far_in) = duplex(1);
    let (sender, controls) = mpsc::channel(2);
    (
        Console::new(None, stdout, stderr, controls),
        Far { stdin: far_in, stdout: far_out, stderr: far_err, controls: sender },
    )
}

async fn text(mut stream: DuplexStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn exec_carries_output_bytes_apart_and_gives_the_outcome() {
    let peer = Peer::new();
    let (mut console, far) = silent_console();
    let client = async { peer.client.exec("web").await.unwrap().run(run("ls"), &mut console, |_| {}).await };
    let server = async {
        let mut socket = peer.answer_exec().await;
        assert_eq!(hear(&mut socket).await, ExecRequest::Open { target: run("ls"), stdin: false });
        say(&mut socket, &ExecEvent::Opened { offset: 0 }).await;
        put(&mut socket, Channel::Stdout, 0, b"a\n").await;
        put(&mut socket, Channel::Stderr, 0, b"oops\n").await;
        put(&mut socket, Channel::Stdout, 2, b"b\n").await;
        say(&mut socket, &ExecEvent::Ended { outcome: TaskOutcome::Exited { code: 7 } }).await;
    };
    let (outcome, ()) = tokio::join!(client, server);
    assert_eq!(outcome.unwrap(), Some(TaskOutcome::Exited { code: 7 }));
    drop(console);
    assert_eq!((text(far.stdout).await, text(far.stderr).await), ("a\nb\n".to_owned(), "oops\n".to_owned()));
}

#[tokio::test]
async fn exec_sends_input_only_as_far_as_it_is_taken_and_then_its_end() {
    let peer = Peer::new();
    let (mut console, mut far) = console();
    let input = vec![b'x'; usize::try_from(WINDOW).unwrap() + DATA_MAX];
    far.stdin.write_all(&input).await.unwrap();
    drop(far.stdin);
    let client = async { peer.client.exec("web").await.unwrap().run(run("cat"), &mut console, |_| {}).await };
    let server = async {
        let mut socket = peer.answer_exec().await;
        hear(&mut socket).await;
        let mut received = 0;
        while received < WINDOW {
            let frame = take(&mut socket).await;
            assert_eq!((frame.offset, frame.end), (received, false));
            received += frame.data.len() as u64;
        }
        assert_eq!(received, WINDOW, "nothing is sent beyond the window");
        say(&mut socket, &ExecEvent::Taken { offset: received }).await;
        loop {
            let frame = take(&mut socket).await;
            assert_eq!(frame.offset, received);
            received += frame.data.len() as u64;
            if frame.end {
                break;
            }
        }
        assert_eq!(received, input.len() as u64);
        say(&mut socket, &ExecEvent::Ended { outcome: TaskOutcome::Exited { code: 0 } }).await;
    };
    let (outcome, ()) = tokio::join!(client, server);
    assert_eq!(outcome.unwrap(), Some(TaskOutcome::Exited { code: 0 }));
}

#[tokio::test]
async fn exec_acknowledges_output_before_the_window_is_used_up() {
    let peer = Peer::new();
    let (mut console, far) = silent_console();
    let client = async { peer.client.exec("web").await.unwrap().run(run("yes"), &mut console, |_| {}).await };
    let server = async {
        let mut socket = peer.answer_exec().await;
        hear(&mut socket).await;
        let pieces = WINDOW / DATA_MAX as u64;
        for piece in 0..pieces {
            put(&mut socket, Channel::Stdout, piece * DATA_MAX as u64, &[b'y'; DATA_MAX]).await;
        }
        let ExecRequest::Taken { channel, offset } = hear(&mut socket).await else { panic!("expected a receipt") };
        assert_eq!(channel, Channel::Stdout);
        assert!(offset > 0 && offset < WINDOW, "{offset}");
        say(&mut socket, &ExecEvent::Ended { outcome: TaskOutcome::Signaled { signal: 15 } }).await;
    };
    let (outcome, ()) = tokio::join!(client, server);
    assert_eq!(Exit::remote(&outcome.unwrap().unwrap()).unwrap().code(), 143);
    drop(console);
    assert_eq!(text(far.stdout).await.len() as u64, WINDOW);
}

#[tokio::test]
async fn signals_and_sizes_are_sent_on_and_letting_go_ends_it() {
    let peer = Peer::new();
    let (mut console, far) = console();
    let client = async { peer.client.exec("web").await.unwrap().run(run("sleep"), &mut console, |_| {}).await };
    let server = async {
        let mut socket = peer.answer_exec().await;
        hear(&mut socket).await;
        far.controls.send(Control::Signal(Signal::Int)).await.unwrap();
        assert_eq!(hear(&mut socket).await, ExecRequest::Signal { signal: Signal::Int });
        let size = TerminalSize { cols: 132, rows: 50 };
        far.controls.send(Control::Resize(size)).await.unwrap();
        assert_eq!(hear(&mut socket).await, ExecRequest::Resize { size });
        far.controls.send(Control::LetGo).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
    };
    let (outcome, ()) = tokio::join!(client, server);
    assert_eq!(outcome.unwrap(), None);
}

#[tokio::test]
async fn exec_fails_when_the_connection_output_or_process_is_lost() {
    let peer = Peer::new();
    let cases = [
        ("closed", "it was closed before the end"),
        ("gap", "output from 0 to 5 is missing"),
        ("failed", "the runtime is gone"),
    ];
    for (how, expected) in cases {
        let (mut console, _far) = console();
        let client = async { peer.client.exec("web").await.unwrap().run(run("ls"), &mut console, |_| {}).await };
        let server = async {
            let mut socket = peer.answer_exec().await;
            hear(&mut socket).await;
            match how {
                "closed" => socket.close(None).await.unwrap(),
                "gap" => put(&mut socket, Channel::Stdout, 5, b"late").await,
                _ => {
                    let problem = Problem::new(ProblemCode::Offline, "the runtime is gone");
                    say(&mut socket, &ExecEvent::Failed { problem }).await;
                }
            }
        };
        let (outcome, ()) = tokio::join!(client, server);
        let error = outcome.expect_err(how).of_exec();
        assert_eq!(error.exit, Exit::EXEC_FAILED);
        assert!(error.to_string().contains(expected), "{how}: {error}");
    }
}

#[tokio::test]
async fn a_refused_exec_tells_the_reason() {
    let peer = Peer::new();
    let problem = json!({"status": 404, "code": "not-found", "reason": "there is no agent `web`", "retryable": false});
    let text = http("404 Not Found", &problem.to_string());
    let (answer, _) = tokio::join!(peer.client.exec("web"), peer.answer(&text));
    let error = answer.err().unwrap();
    assert_eq!((error.exit, error.to_string()), (Exit::NOT_FOUND, "there is no agent `web`".to_owned()));
}
