//! `exec`: a process in an agent on a WebSocket.
//!
//! The client's first frame is `open`. From then on text frames carry [`ExecRequest`]s and
//! [`ExecEvent`]s, and binary frames of stream 0 carry input and output. Flow control is between client
//! and process: nobody sends more than a window beyond what the other end has taken, so what waits here
//! is bounded without this code counting it. When either end goes, the process is ended.

use std::time::Duration;

use aide::OperationInput;
use aide::generate::GenContext;
use aide::openapi::{Operation, ReferenceOr, Response as Answered, StatusCode};
use axum::Extension;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::response::Response;
use bytes::Bytes;
use futures::stream::SplitStream;
use futures::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep, timeout};
use vm_agent_hub::{Stream, StreamEvent};
use vm_agent_schemas::api::{ExecEvent, ExecRequest, Problem, ProblemCode};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::{Channel, DATA_MAX, Frame, HANDSHAKE_LIMIT, HEADER_LEN, StreamTarget, TEXT_MAX};

use super::answer::Refusal;
use super::extract::Segment;
use super::openapi::schema_of;
use super::stream::{Ended, FAREWELL, Shutdown};
use crate::controller::{Actor, Controller};

/// The one stream of this WebSocket.
const STREAM: u32 = 0;
/// Frames that wait for the client. Beyond these the process's output waits at the hub.
const OUTBOX: usize = 32;
/// How often a client is asked whether it is still there, so that one that vanished is noticed.
const PING: Duration = Duration::from_secs(30);

/// The pause between two sizes or signals of a client, in the long run: each is a message to the runtime, and too
/// many would fill its queue and cost it its session.
const PACE: Duration = Duration::from_millis(10);
/// How much of those pauses may be owed.
const PACE_OWED: Duration = Duration::from_secs(1);

/// Answers with a WebSocket on which a process of the agent speaks.
pub(super) async fn exec(
    State(controller): State<Controller>,
    Extension(actor): Extension<Actor>,
    Segment(name): Segment<AgentName>,
    shutdown: Shutdown,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    // Asked before the upgrade, so that an unknown agent is a plain 404.
    controller.agent(&name).await?;
    let upgrade = upgrade.0.max_message_size(TEXT_MAX).max_frame_size(TEXT_MAX.max(HEADER_LEN + DATA_MAX));
    Ok(upgrade.on_upgrade(async move |socket| serve(socket, controller, actor, name, shutdown).await))
}

/// [`WebSocketUpgrade`] that refuses with a problem.
pub(super) struct Upgrade(WebSocketUpgrade);

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let upgrade = WebSocketUpgrade::from_request_parts(parts, state).await;
        upgrade.map(Self).map_err(|rejection| {
            let problem = Problem::new(ProblemCode::Invalid, rejection.body_text());
            Refusal::with_status(
                rejection.status(),
                problem.remedy("`exec` is a WebSocket; `vm-agent exec` speaks it."),
            )
        })
    }
}

impl OperationInput for Upgrade {
    fn operation_input(_: &mut GenContext, operation: &mut Operation) {
        let switched = Answered { description: "The connection is a WebSocket.".to_owned(), ..Answered::default() };
        let responses = operation.responses.get_or_insert_default();
        responses.responses.insert(StatusCode::Code(101), ReferenceOr::Item(switched));
        // Nothing refers to what is said on the WebSocket; it stands among the document's schemas.
        schema_of::<ExecRequest>();
        schema_of::<ExecEvent>();
    }
}

async fn serve(socket: WebSocket, controller: Controller, actor: Actor, name: AgentName, shutdown: Shutdown) {
    let (mut sink, mut source) = socket.split();
    let (outbox, mut waiting) = mpsc::channel::<Message>(OUTBOX);
    // Writing is a task of its own: while a client does not read, its signals still come through.
    let writer = tokio::spawn(async move {
        while let Some(message) = waiting.recv().await {
            sink.send(message).await?;
        }
        sink.close().await
    });
    let talk = async {
        match opened(&mut source).await {
            Ok(Some((target, stdin))) => match controller.exec(&name, target, stdin, &actor).await {
                Ok(stream) => bridge(&mut source, &outbox, stream).await,
                Err(problem) => Some(ExecEvent::Failed { problem }),
            },
            Ok(None) => None,
            Err(problem) => Some(ExecEvent::Failed { problem }),
        }
    };
    // With the talk its stream is dropped, and that ends the process.
    let end = tokio::select! {
        end = talk => end,
        why = shutdown.ended() => Some(ExecEvent::Failed { problem: ended(why) }),
    };
    let abort = writer.abort_handle();
    let said = async {
        if let Some(event) = end {
            // It fails only when the writer is gone, and with it the client.
            let _ = outbox.send(text(&event)).await;
        }
        drop(outbox);
        // However long the client takes to read the last of the output: it may be a person with a pager.
        let _ = writer.await;
        sleep(FAREWELL).await;
    };
    // What the client still sends is read: closing a socket with unread input throws away its output.
    let closed = async { while let Some(Ok(_)) = source.next().await {} };
    let stopped = async {
        shutdown.ended().await;
        sleep(FAREWELL).await;
    };
    tokio::select! {
        () = said => {}
        () = closed => {}
        () = stopped => {}
    }
    abort.abort();
}

/// What the client wants to run; nothing when it went away without a word.
async fn opened(source: &mut SplitStream<WebSocket>) -> Result<Option<(StreamTarget, bool)>, Problem> {
    let first = async {
        loop {
            match source.next().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => return other,
            }
        }
    };
    let late = |_| Problem::new(ProblemCode::Invalid, "the first frame, `open`, did not come in time");
    match timeout(HANDSHAKE_LIMIT.get(), first).await.map_err(late)? {
        Some(Ok(Message::Text(text))) => match request(&text)? {
            ExecRequest::Open { target, stdin } => Ok(Some((target, stdin))),
            ExecRequest::Resize { .. } | ExecRequest::Signal { .. } | ExecRequest::Taken { .. } => {
                Err(invalid("the first frame must be `open`"))
            }
        },
        Some(Ok(Message::Binary(_))) => Err(invalid("the first frame must be `open`, as text")),
        Some(Ok(_) | Err(_)) | None => Ok(None),
    }
}

/// Carries frames both ways until the process or the client is gone. Answers with what to tell the
/// client last.
async fn bridge(
    source: &mut SplitStream<WebSocket>,
    outbox: &mpsc::Sender<Message>,
    mut stream: Stream,
) -> Option<ExecEvent> {
    let mut pings = interval(PING);
    let mut paid = Instant::now();
    loop {
        tokio::select! {
            message = source.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let obeyed = request(&text).and_then(|request| obey(&stream, &request).map(|()| request));
                    match obeyed {
                        Ok(ExecRequest::Resize { .. } | ExecRequest::Signal { .. }) => {
                            paid = paid.max(Instant::now()) + PACE;
                            sleep(paid.saturating_duration_since(Instant::now()).saturating_sub(PACE_OWED)).await;
                        }
                        Ok(_) => {}
                        Err(problem) => return Some(ExecEvent::Failed { problem }),
                    }
                }
                Some(Ok(Message::Binary(bytes))) => match input(&bytes) {
                    Ok(frame) => stream.send(frame.offset, frame.end, frame.data),
                    Err(problem) => return Some(ExecEvent::Failed { problem }),
                },
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            },
            next = next_with_room(outbox, &mut stream) => {
                let (room, event) = next?;
                match spoken(event) {
                    Spoken::On(message) => room.send(message),
                    Spoken::Last(event) => return Some(event),
                }
            }
            // A full outbox is traffic enough to notice a client that is gone.
            _ = pings.tick() => drop(outbox.try_send(Message::Ping(Bytes::new()))),
        }
    }
}

fn ended(why: Ended) -> Problem {
    let (code, reason) = match why {
        Ended::Server => (ProblemCode::Unavailable, "the controller is going down; the process was ended"),
        Ended::Token => {
            (ProblemCode::Unauthorized, "the token that opened this was revoked or has expired; the process was ended")
        }
    };
    Problem::new(code, reason)
}

/// Takes an event only when there is room for it. Nothing when the client is gone.
async fn next_with_room<'a>(
    outbox: &'a mpsc::Sender<Message>,
    stream: &mut Stream,
) -> Option<(mpsc::Permit<'a, Message>, Option<StreamEvent>)> {
    let room = outbox.reserve().await.ok()?;
    Some((room, stream.next().await))
}

enum Spoken {
    On(Message),
    Last(ExecEvent),
}

/// What to tell the client of an event.
fn spoken(event: Option<StreamEvent>) -> Spoken {
    let lost = |reason: String| {
        let problem = Problem::new(ProblemCode::Offline, reason);
        let problem = problem.remedy("Look into the agent before running it again: it may have done its work or not.");
        Spoken::Last(ExecEvent::Failed { problem })
    };
    match event {
        Some(StreamEvent::Opened { offset }) => Spoken::On(text(&ExecEvent::Opened { offset })),
        Some(StreamEvent::Taken { offset }) => Spoken::On(text(&ExecEvent::Taken { offset })),
        Some(StreamEvent::Data { channel, offset, end, data }) => {
            Spoken::On(Message::Binary(Frame { stream: STREAM, channel, offset, end, data }.encode()))
        }
        Some(StreamEvent::Ended(outcome)) => Spoken::Last(ExecEvent::Ended { outcome }),
        Some(StreamEvent::Lost(reason)) => lost(reason),
        None => lost("the stream of the process ended without an outcome".to_owned()),
    }
}

fn obey(stream: &Stream, request: &ExecRequest) -> Result<(), Problem> {
    match *request {
        ExecRequest::Open { .. } => return Err(invalid("the process is open already")),
        ExecRequest::Signal { signal } => stream.signal(signal),
        ExecRequest::Resize { size } => stream.resize(size),
        ExecRequest::Taken { channel: Channel::Stdin, .. } => return Err(invalid("input is not taken by the client")),
        ExecRequest::Taken { channel, offset } => stream.taken(channel, offset),
    }
    Ok(())
}

/// A frame of input.
fn input(bytes: &Bytes) -> Result<Frame, Problem> {
    let frame = Frame::decode(bytes).map_err(|error| invalid(error.to_string()))?;
    if frame.stream != STREAM || frame.channel != Channel::Stdin {
        return Err(invalid("binary frames to the controller are input of stream 0"));
    }
    Ok(frame)
}

fn request(text: &str) -> Result<ExecRequest, Problem> {
    serde_json::from_str(text).map_err(|error| invalid(format!("a text frame is no request of `exec`: {error}")))
}

fn text(event: &ExecEvent) -> Message {
    Message::Text(serde_json::to_string(event).expect("an event is JSON with texts as keys").into())
}

fn invalid(reason: impl Into<String>) -> Problem {
    Problem::new(ProblemCode::Invalid, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_input_of_stream_0_is_taken_from_a_client() {
        let frame = |stream, channel| Frame { stream, channel, offset: 0, end: false, data: Bytes::from_static(b"x") };
        assert_eq!(input(&frame(0, Channel::Stdin).encode()), Ok(frame(0, Channel::Stdin)));
        for wrong in [frame(1, Channel::Stdin), frame(0, Channel::Stdout)] {
            assert_eq!(input(&wrong.encode()).unwrap_err().code, ProblemCode::Invalid);
        }
        assert!(input(&Bytes::from_static(b"short")).unwrap_err().reason.contains("header"));
    }

    #[test]
    fn a_lost_process_is_not_said_to_have_ended() {
        for event in [Some(StreamEvent::Lost("the runtime is gone".to_owned())), None] {
            let Spoken::Last(ExecEvent::Failed { problem }) = spoken(event) else { panic!("expected a failure") };
            assert_eq!(problem.code, ProblemCode::Offline);
        }
    }
}
