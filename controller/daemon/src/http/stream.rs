//! Streams of server-sent events: events and logs, followed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::marker::PhantomData;
use std::time::Duration;

use aide::generate::GenContext;
use aide::openapi::{Operation, Response as Answered};
use aide::{OperationInput, OperationOutput};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, stream};
use schemars::JsonSchema;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use vm_agent_schemas::api::{Kind, LogPage, Problem};
use vm_agent_schemas::event::Event;
use vm_agent_schemas::ids::{Digest, Secret};
use vm_agent_schemas::names::AgentName;

use super::answer::Doc;
use super::openapi::{Described, content};
use super::serve::Seat;
use crate::controller::Controller;

/// How often a stream without news says that it lives: below the minute after which proxies and
/// clients commonly give up on a silent connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How many events are read from the store at a time.
const PAGE: usize = 500;

/// How long a client whose stream has ended may take to read the last of it.
pub(super) const FAREWELL: Duration = Duration::from_secs(5);

/// The server's word to stop, among the extensions of each request.
#[derive(Debug, Clone, Default)]
pub(super) struct Server(pub CancellationToken);

/// The token with which a request was let in.
#[derive(Clone)]
pub(super) struct Pass {
    controller: Controller,
    digest: Digest,
}

impl Pass {
    pub(super) fn new(controller: Controller, token: &Secret) -> Self {
        Self { controller, digest: token.digest() }
    }
}

/// Ends streams: when the server shuts down, and when the token that opened them works no more. Without either
/// it never does.
#[derive(Clone, Default)]
pub(super) struct Shutdown {
    server: Server,
    pass: Option<Pass>,
    seat: Option<Seat>,
}

/// Why a stream has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The server shuts down.
    Server,
    /// The token that opened it was revoked or has expired.
    Token,
}

impl Shutdown {
    /// Waits until the stream has to end.
    pub(super) async fn ended(&self) -> Ended {
        let token_ends = async {
            match &self.pass {
                Some(pass) => pass.controller.token_ends(&pass.digest).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.server.0.cancelled() => Ended::Server,
            () = token_ends => Ended::Token,
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Shutdown {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let server = parts.extensions.get().cloned().unwrap_or_default();
        Ok(Self { server, pass: parts.extensions.get().cloned(), seat: parts.extensions.get().cloned() })
    }
}

impl OperationInput for Shutdown {}

/// A document, or the same as a stream that goes on.
pub(super) struct Followed<T> {
    response: Response,
    document: PhantomData<T>,
}

impl<T> Followed<T> {
    /// The document, once.
    pub(super) fn once(document: T) -> Self
    where
        Doc<T>: IntoResponse,
    {
        Self { response: Doc::<T>(document).into_response(), document: PhantomData }
    }

    /// The stream, until it has to end.
    pub(super) fn live(messages: impl Stream<Item = Message> + Send + 'static, shutdown: Shutdown) -> Self {
        Self { response: sse(messages, shutdown), document: PhantomData }
    }
}

/// A stream of server-sent events, until it has to end. A client that does not read is not waited for: it can't be
/// told, and loses its connection.
pub(super) fn sse(messages: impl Stream<Item = Message> + Send + 'static, shutdown: Shutdown) -> Response {
    let over = CancellationToken::new();
    let told = over.clone();
    let end = AbortOnDropHandle::new(tokio::spawn(async move {
        shutdown.ended().await;
        told.cancel();
        tokio::time::sleep(FAREWELL).await;
        if let Some(seat) = &shutdown.seat {
            seat.vacate();
        }
    }));
    let messages = messages.take_until(over.cancelled_owned()).map(move |message| {
        let _with_the_stream = &end;
        Ok::<_, Infallible>(message)
    });
    Sse::new(messages).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

impl<T> IntoResponse for Followed<T> {
    fn into_response(self) -> Response {
        self.response
    }
}

impl<T: Kind + JsonSchema> OperationOutput for Followed<T> {
    type Inner = T;

    fn inferred_responses(_: &mut GenContext, _: &mut Operation) -> Vec<(Option<u16>, Answered)> {
        let content = [content::<Described<T>>("application/json"), content::<String>("text/event-stream")];
        let response = Answered {
            description: "The document asked for, or with `follow=true` a stream of server-sent events.".to_owned(),
            content: content.into_iter().collect(),
            ..Answered::default()
        };
        vec![(Some(200), response)]
    }
}

/// Where events are kept, and heard of.
pub(super) trait Journal: Send + 'static {
    /// Events from now on.
    fn subscribe(&self) -> broadcast::Receiver<Event>;
    /// Events after `since`, of all or of one agent, oldest first, at most `limit`; without `since` the latest `limit`.
    fn read(
        &self,
        since: Option<u64>,
        of: Option<AgentName>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Event>, Problem>> + Send;
}

impl Journal for Controller {
    fn subscribe(&self) -> broadcast::Receiver<Event> {
        Self::subscribe(self)
    }

    async fn read(&self, since: Option<u64>, of: Option<AgentName>, limit: usize) -> Result<Vec<Event>, Problem> {
        self.events(since, of, limit).await
    }
}

/// Follows a journal, or what it says of one agent, without gaps and without repeats.
///
/// The journal is what counts; what is heard live only says that there may be more in it. Only an
/// event that directly follows the last one is passed on without a look: that saves the read in the
/// usual case. After anything else (a gap, or too slow a client) the journal is read on from the last.
struct Follower<J> {
    journal: J,
    live: broadcast::Receiver<Event>,
    of: Option<AgentName>,
    /// What was passed on, or let by, last.
    last: u64,
    /// Whether the journal may hold more than the last.
    behind: bool,
    ready: VecDeque<Event>,
}

impl<J: Journal> Follower<J> {
    /// Begins after `since`, or with the latest `limit`.
    async fn begin(journal: J, since: Option<u64>, of: Option<AgentName>, limit: usize) -> Result<Self, Problem> {
        // Subscribed before reading: what happens in between is in both, and told apart by its number.
        let live = journal.subscribe();
        let newest = journal.read(None, None, 1).await?.last().map_or(0, |event| event.seq);
        let mut follower = Self { journal, live, of, last: 0, behind: false, ready: VecDeque::new() };
        // A number beyond the newest is of another journal, such as before a restore.
        if let Some(since) = since.filter(|since| *since <= newest) {
            follower.last = since;
            follower.behind = true;
        } else {
            follower.take(follower.journal.read(None, follower.of.clone(), limit).await?);
        }
        Ok(follower)
    }

    fn take(&mut self, events: Vec<Event>) {
        self.last = events.last().map_or(self.last, |event| event.seq);
        self.ready.extend(events);
    }

    /// Everything that was there at the beginning; then, one by one, what comes.
    async fn next(&mut self) -> Result<Option<Event>, Problem> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            if self.behind {
                let events = self.journal.read(Some(self.last), self.of.clone(), PAGE).await?;
                self.behind = !events.is_empty();
                self.take(events);
                continue;
            }
            match self.heard().await {
                Heard::Next(event) => return Ok(Some(event)),
                Heard::More => self.behind = true,
                Heard::End => return Ok(None),
            }
        }
    }

    fn is_meant(&self, event: &Event) -> bool {
        self.of.is_none() || event.agent == self.of
    }

    /// Waits for something newer than the last event.
    async fn heard(&mut self) -> Heard {
        loop {
            match self.live.recv().await {
                Ok(event) if event.seq <= self.last => {}
                Ok(event) if event.seq == self.last + 1 => {
                    self.last = event.seq;
                    if self.is_meant(&event) {
                        return Heard::Next(event);
                    }
                }
                // Nothing of what may have come before it is lost: the next that is meant shows the gap.
                Ok(event) if !self.is_meant(&event) => {}
                Ok(_) | Err(RecvError::Lagged(_)) => return Heard::More,
                Err(RecvError::Closed) => return Heard::End,
            }
        }
    }
}

enum Heard {
    /// The event that directly follows.
    Next(Event),
    /// There may be more in the journal.
    More,
    /// There will be no more.
    End,
}

/// Events after `since`, or the latest `limit`, of all or of one agent, and then what comes.
pub(super) async fn events<J: Journal>(
    journal: J,
    since: Option<u64>,
    of: Option<AgentName>,
    limit: usize,
) -> Result<impl Stream<Item = Message> + Send, Problem> {
    let follower = Follower::begin(journal, since, of, limit).await?;
    Ok(stream::unfold(follower, async |mut follower| match follower.next().await {
        Ok(event) => event.map(|event| (message(&event), follower)),
        Err(problem) => {
            // The client comes back with `Last-Event-ID`, and misses nothing.
            tracing::warn!(%problem, "a stream of events ends, because they can't be read");
            None
        }
    }))
}

fn message(event: &Event) -> Message {
    let message = Message::default().id(event.seq.to_string());
    message.json_data(event).expect("an event is JSON with texts as keys")
}

/// The lines so far, and then what comes, each message a page of lines.
///
/// The caller subscribes before it reads `so_far`: no line is lost, and one that comes in between may
/// stand there twice.
pub(super) fn log(so_far: Vec<String>, live: broadcast::Receiver<String>) -> impl Stream<Item = Message> + Send {
    let later = stream::unfold(live, async |mut live| {
        let message = match live.recv().await {
            Ok(line) => page(vec![line]),
            Err(RecvError::Lagged(lines)) => Message::default().event("dropped").data(lines.to_string()),
            Err(RecvError::Closed) => return None,
        };
        Some((message, live))
    });
    stream::iter([page(so_far)]).chain(later)
}

fn page(lines: Vec<String>) -> Message {
    Message::default().json_data(LogPage { lines }).expect("lines are JSON")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use vm_agent_schemas::event::EventKind;

    use super::*;

    /// A journal that remembers all, and speaks of what it is told to speak of.
    #[derive(Clone)]
    struct Memory {
        events: Arc<Mutex<Vec<Event>>>,
        live: broadcast::Sender<Event>,
    }

    impl Memory {
        fn with(events: u64) -> Self {
            let memory = Self { events: Arc::default(), live: broadcast::channel(2).0 };
            for _ in 0..events {
                memory.write();
            }
            memory
        }

        fn write(&self) -> Event {
            self.write_of(None)
        }

        fn write_of(&self, agent: Option<&AgentName>) -> Event {
            let mut events = self.events.lock().unwrap();
            let seq = events.len() as u64 + 1;
            let event = Event {
                seq,
                at: jiff::Timestamp::UNIX_EPOCH,
                kind: EventKind::StepStarted,
                agent: agent.cloned(),
                message: String::new(),
            };
            events.push(event.clone());
            event
        }

        fn write_and_tell(&self) {
            let event = self.write();
            self.live.send(event).unwrap();
        }
    }

    impl Journal for Memory {
        fn subscribe(&self) -> broadcast::Receiver<Event> {
            self.live.subscribe()
        }

        async fn read(&self, since: Option<u64>, of: Option<AgentName>, limit: usize) -> Result<Vec<Event>, Problem> {
            let mut events = self.events.lock().unwrap().clone();
            events.retain(|event| of.is_none() || event.agent == of);
            Ok(match since {
                Some(since) => events.into_iter().filter(|event| event.seq > since).take(limit).collect(),
                None => events.split_off(events.len().saturating_sub(limit)),
            })
        }
    }

    async fn seqs(follower: &mut Follower<Memory>, count: usize) -> Vec<u64> {
        let mut seqs = Vec::new();
        for _ in 0..count {
            seqs.push(follower.next().await.unwrap().unwrap().seq);
        }
        seqs
    }

    #[tokio::test]
    async fn a_follower_begins_with_the_latest_and_goes_on_with_what_comes() {
        let memory = Memory::with(5);
        let mut follower = Follower::begin(memory.clone(), None, None, 2).await.unwrap();
        assert_eq!(seqs(&mut follower, 2).await, [4, 5]);
        memory.write_and_tell();
        memory.write_and_tell();
        assert_eq!(seqs(&mut follower, 2).await, [6, 7]);
    }

    #[tokio::test]
    async fn a_follower_that_comes_back_misses_nothing_and_hears_nothing_twice() {
        let memory = Memory::with(PAGE as u64 * 2 + 3);
        let mut follower = Follower::begin(memory.clone(), Some(2), None, 1).await.unwrap();
        memory.write_and_tell();
        let expected: Vec<u64> = (3..=PAGE as u64 * 2 + 4).collect();
        assert_eq!(seqs(&mut follower, expected.len()).await, expected);
    }

    #[tokio::test]
    async fn a_follower_that_was_too_slow_reads_what_it_missed() {
        let memory = Memory::with(1);
        let mut follower = Follower::begin(memory.clone(), None, None, 10).await.unwrap();
        assert_eq!(seqs(&mut follower, 1).await, [1]);
        for _ in 0..10 {
            memory.write_and_tell();
        }
        assert_eq!(seqs(&mut follower, 10).await, (2..=11).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn an_event_that_nobody_told_of_comes_with_the_next() {
        let memory = Memory::with(1);
        let mut follower = Follower::begin(memory.clone(), Some(1), None, 10).await.unwrap();
        assert!(tokio::time::timeout(Duration::ZERO, follower.next()).await.is_err());
        memory.write();
        memory.write_and_tell();
        assert_eq!(seqs(&mut follower, 2).await, [2, 3]);
    }

    #[tokio::test]
    async fn a_follower_of_one_agent_hears_of_it_alone_and_misses_nothing_of_it() {
        let (memory, web) = (Memory::with(3), "web".parse::<AgentName>().unwrap());
        let tell = |event: Event| assert_eq!(memory.live.send(event).unwrap(), 1);
        memory.write_of(Some(&web));
        let mut follower = Follower::begin(memory.clone(), None, Some(web.clone()), 2).await.unwrap();
        assert_eq!(seqs(&mut follower, 1).await, [4]);
        memory.write_and_tell();
        tell(memory.write_of(Some(&web)));
        assert_eq!(seqs(&mut follower, 1).await, [6]);
        // Nobody tells of one of it, and then of one that is not.
        memory.write_of(Some(&web));
        memory.write_and_tell();
        assert!(tokio::time::timeout(Duration::ZERO, follower.next()).await.is_err());
        tell(memory.write_of(Some(&web)));
        assert_eq!(seqs(&mut follower, 2).await, [7, 9]);
    }

    #[tokio::test]
    async fn a_number_of_another_journal_begins_anew() {
        let mut follower = Follower::begin(Memory::with(3), Some(900), None, 2).await.unwrap();
        assert_eq!(seqs(&mut follower, 2).await, [2, 3]);
    }

    #[tokio::test]
    async fn a_follower_of_an_empty_journal_hears_the_first_event() {
        let memory = Memory::with(0);
        let mut follower = Follower::begin(memory.clone(), None, None, 10).await.unwrap();
        memory.write_and_tell();
        assert_eq!(seqs(&mut follower, 1).await, [1]);
    }

    #[tokio::test]
    async fn a_log_says_what_was_dropped() {
        let (sender, receiver) = broadcast::channel(1);
        for line in ["a", "b", "c"] {
            sender.send(line.to_owned()).unwrap();
        }
        drop(sender);
        let followed = Followed::<LogPage>::live(log(vec!["0".to_owned()], receiver), Shutdown::default());
        let body = axum::body::to_bytes(followed.into_response().into_body(), usize::MAX).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert_eq!(text, "data: {\"lines\":[\"0\"]}\n\nevent: dropped\ndata: 2\n\ndata: {\"lines\":[\"c\"]}\n\n");
    }
}
