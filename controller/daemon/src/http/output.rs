//! What a task wrote, as bytes or followed as server-sent events.

use std::collections::VecDeque;

use aide::OperationOutput;
use aide::generate::GenContext;
use aide::openapi::{MediaType, Operation, Response as Answered};
use axum::body::Body;
use axum::http::header;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use tokio::sync::watch;
use vm_agent_schemas::api::{OutputPiece, Problem, ProblemCode};
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::Channel;
use vm_agent_store::output::{Page, Piece, Position, Wanted};

use super::openapi::content;
use super::stream::{Shutdown, sse};
use crate::controller::Controller;

/// About how much is read at a time.
const PAGE: usize = 256 * 1024;

/// An answer with output.
pub(super) struct Output(Response);

impl IntoResponse for Output {
    fn into_response(self) -> Response {
        self.0
    }
}

impl OperationOutput for Output {
    type Inner = OutputPiece;

    fn inferred_responses(_: &mut GenContext, _: &mut Operation) -> Vec<(Option<u16>, Answered)> {
        let bytes = ("application/octet-stream".to_owned(), MediaType::default());
        let response = Answered {
            description: "The output, as it came or piece by piece.".to_owned(),
            content: [bytes, content::<OutputPiece>("text/event-stream")].into_iter().collect(),
            ..Answered::default()
        };
        vec![(Some(200), response)]
    }
}

/// All that there is now, as bytes.
pub(super) async fn whole(controller: Controller, wanted: Wanted) -> Result<Output, Problem> {
    let task = controller.task(wanted.task).await?;
    let first = controller.output(wanted, Position::default(), PAGE).await?;
    if first.pieces.is_empty() && has_written(&task, &wanted) {
        let reason = format!("what task {} wrote is no longer kept", task.id);
        return Err(Problem::new(ProblemCode::NotFound, reason));
    }
    let later = stream::try_unfold((controller, first.next, first.end), move |(controller, after, end)| async move {
        if end {
            return Ok::<_, Problem>(None);
        }
        let page = controller.output(wanted, after, PAGE).await?;
        let (next, end) = (page.next, page.end);
        Ok(Some((bytes_of(page), (controller, next, end))))
    });
    let body = Body::from_stream(stream::iter([Ok(bytes_of(first))]).chain(later));
    Ok(Output(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response()))
}

fn bytes_of(page: Page) -> Bytes {
    let pieces: Vec<Bytes> = page.pieces.into_iter().map(|piece| piece.data).collect();
    pieces.concat().into()
}

/// Whether a task that has ended is known to have written something of that.
fn has_written(task: &Task, wanted: &Wanted) -> bool {
    let is_last = wanted.attempt.is_none_or(|attempt| attempt == task.attempt);
    let Some(report) = task.report.as_ref().filter(|_| is_last) else { return false };
    match wanted.channel {
        None => report.stdout + report.stderr > 0,
        Some(Channel::Stderr) => report.stderr > 0,
        Some(Channel::Stdout | Channel::Stdin) => report.stdout > 0,
    }
}

/// Output after a place, and then what comes, until the task is over.
pub(super) async fn followed(
    controller: Controller,
    wanted: Wanted,
    after: Position,
    shutdown: Shutdown,
) -> Result<Output, Problem> {
    let task = controller.task(wanted.task).await?;
    let news = controller.news();
    let follower = Follower { controller, wanted, after, task, news, ready: VecDeque::new(), over: false };
    Ok(Output(sse(follower.events(), shutdown)))
}

struct Follower {
    controller: Controller,
    wanted: Wanted,
    after: Position,
    /// As it was when it was last looked at.
    task: Task,
    news: watch::Receiver<()>,
    ready: VecDeque<Piece>,
    over: bool,
}

impl Follower {
    fn events(self) -> impl Stream<Item = Event> + Send {
        stream::unfold(self, async |mut follower| match follower.next().await {
            Ok(event) => event.map(|event| (event, follower)),
            Err(problem) => {
                // The client comes back with `Last-Event-ID`, and misses nothing.
                tracing::warn!(%problem, "a stream of output ends, because it can't be read");
                None
            }
        })
    }

    async fn next(&mut self) -> Result<Option<Event>, Problem> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(event(&piece)));
            }
            if self.over {
                return Ok(None);
            }
            // Marked before it is read: what comes in between is news again.
            self.news.borrow_and_update();
            let page = self.controller.output(self.wanted, self.after, PAGE).await?;
            self.after = page.next;
            self.ready = page.pieces.into();
            if !self.ready.is_empty() || !page.end {
                continue;
            }
            // Known to be over before the last look: all output was stored before that.
            if self.task.outcome().is_some() {
                self.over = true;
                let ended = Event::default().event("ended").json_data(&self.task);
                return Ok(Some(ended.expect("a task is JSON with texts as keys")));
            }
            self.task = self.controller.task(self.wanted.task).await?;
            if self.task.outcome().is_none() && self.news.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}

fn event(piece: &Piece) -> Event {
    let data = STANDARD.encode(&piece.data);
    let shown = OutputPiece { attempt: piece.attempt, channel: piece.channel, offset: piece.offset, data };
    let event = Event::default().id(piece.position.number().to_string());
    event.json_data(shown).expect("a piece of output is JSON with texts as keys")
}
