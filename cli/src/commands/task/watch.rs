//! Following tasks to their ends: their output as it comes, and what becomes of them.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::try_join_all;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use vm_agent_schemas::api::OutputPiece;
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::Channel;

use crate::Context;
use crate::client::Client;
use crate::exit::{CommandError, Exit};
use crate::render;

/// How long a controller may be away, as it is while it starts anew.
const AWAY_LIMIT: Duration = Duration::from_secs(60);
/// Pause before it is looked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Most pieces of output that wait to be written.
const WAITING: usize = 64;

/// What a person's Ctrl-C means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    /// To look no longer. The tasks go on.
    Detach,
    /// To cancel the tasks; a second one, to look no longer.
    Cancel,
}

/// Waits until all of these tasks have ended. With `show` their output is written as it comes: that of one task
/// as it is, that of several line by line with whose it is.
pub(crate) async fn watch(
    context: &mut Context,
    client: &Client,
    tasks: &[Task],
    show: bool,
    on_interrupt: OnInterrupt,
) -> Result<Vec<Task>, CommandError> {
    let (sender, mut said) = mpsc::channel(WAITING);
    let follow = |(index, task): (usize, &Task)| follow(client, task.id, index, sender.clone());
    let mut following = std::pin::pin!(try_join_all(tasks.iter().enumerate().map(follow).collect::<Vec<_>>()));
    drop(sender);
    let mut follows = true;
    let mut interrupts =
        signal(SignalKind::interrupt()).map_err(|error| CommandError::io("Ctrl-C can't be listened for", &error))?;
    let mut cancels = on_interrupt == OnInterrupt::Cancel;
    let mut ended: Vec<Option<Task>> = vec![None; tasks.len()];
    let mut printer = Printer::new(labels(tasks), tokio::io::stdout(), tokio::io::stderr());
    loop {
        tokio::select! {
            result = &mut following, if follows => {
                result?;
                follows = false;
            }
            next = said.recv() => match next {
                Some((index, Said::News(news))) if show => {
                    if news.left_out > 0 {
                        let size = ByteSize::from_bytes(news.left_out).rounded();
                        context.ui.status(format_args!("({size} of its output are left out here)"))?;
                    }
                    printer.write(index, news.channel, &news.data).await?;
                }
                Some((_, Said::News(_))) => {}
                Some((index, Said::Ended(task))) => {
                    printer.end(index).await?;
                    if tasks.len() > 1 {
                        let outcome = task.outcome().map(ToString::to_string).unwrap_or_default();
                        context.ui.status(format_args!("{}: {outcome}", render::whose(&task)))?;
                    }
                    ended[index] = Some(*task);
                }
                None => return Ok(ended.into_iter().flatten().collect()),
            },
            _ = interrupts.recv() => {
                let open: Vec<TaskId> = tasks.iter().zip(&ended).filter(|(_, end)| end.is_none()).map(|(it, _)| it.id).collect();
                if !cancels {
                    return Err(detached(&open));
                }
                cancels = false;
                context.ui.status("\ncancelling; Ctrl-C again waits no longer")?;
                for id in open {
                    client.ask::<Task>(&format!("/tasks/{id}/cancel")).await?;
                }
            }
        }
    }
}

/// What Ctrl-C means while a task is waited for.
fn detached(open: &[TaskId]) -> CommandError {
    let ids: Vec<String> = open.iter().map(ToString::to_string).collect();
    let (id, ids) = (ids.first().cloned().unwrap_or_default(), ids.join(" "));
    let sentence = if open.len() == 1 { "detached; the task goes on" } else { "detached; the tasks go on" };
    CommandError::new(Exit::INTERRUPTED, sentence)
        .hint(format!("`vm-agent task output --follow {id}` comes back to it; `vm-agent task cancel {ids}` ends it"))
}

/// Something of a task.
enum Said {
    News(News),
    Ended(Box<Task>),
}

/// Output that was not seen before.
#[derive(Debug, PartialEq, Eq)]
struct News {
    channel: Channel,
    /// How many bytes before it will never be seen.
    left_out: u64,
    data: Vec<u8>,
}

/// How much of each attempt's output has been seen: after a lost connection all of it comes again.
#[derive(Debug, Default)]
struct Seen(BTreeMap<(u32, Channel), u64>);

impl Seen {
    /// What is new in a piece.
    fn news(&mut self, piece: &OutputPiece) -> Result<Option<News>, CommandError> {
        let data = STANDARD.decode(&piece.data).map_err(|error| {
            CommandError::new(Exit::FAILURE, format!("a piece of output is not understood: {error}"))
        })?;
        let seen = self.0.entry((piece.attempt, piece.channel)).or_default();
        let end = piece.offset + data.len() as u64;
        if end <= *seen {
            return Ok(None);
        }
        let known = usize::try_from(seen.saturating_sub(piece.offset)).unwrap_or(usize::MAX).min(data.len());
        let left_out = piece.offset.saturating_sub(*seen);
        *seen = end;
        Ok(Some(News { channel: piece.channel, left_out, data: data[known..].to_vec() }))
    }
}

/// Tells all that comes of a task, up to its end, through restarts of the controller.
async fn follow(
    client: &Client,
    id: TaskId,
    index: usize,
    said: mpsc::Sender<(usize, Said)>,
) -> Result<(), CommandError> {
    let mut seen = Seen::default();
    let mut heard = Instant::now();
    loop {
        let error = match listen(client, id, &mut seen, &mut heard, |it| said.send((index, it))).await {
            Err(error) if error.exit == Exit::UNREACHABLE && heard.elapsed() < AWAY_LIMIT => error,
            Err(error) => return Err(error.hint(format!("what becomes of it: vm-agent task show {id}"))),
            Ok(()) => return Ok(()),
        };
        drop(error);
        sleep(LOOK_AGAIN).await;
    }
}

async fn listen<F, R>(
    client: &Client,
    id: TaskId,
    seen: &mut Seen,
    heard: &mut Instant,
    tell: F,
) -> Result<(), CommandError>
where
    F: Fn(Said) -> R,
    R: Future<Output = Result<(), mpsc::error::SendError<(usize, Said)>>>,
{
    let odd = |error: serde_json::Error| {
        CommandError::new(Exit::FAILURE, format!("what the controller says of the task is not understood: {error}"))
    };
    let mut stream = client.stream(&format!("/tasks/{id}/output?follow=true")).await?;
    while let Some(event) = stream.next().await? {
        *heard = Instant::now();
        let said = match event.kind.as_str() {
            "ended" => Some(Said::Ended(serde_json::from_str(&event.data).map_err(odd)?)),
            "message" | "output" => {
                let piece: OutputPiece = serde_json::from_str(&event.data).map_err(odd)?;
                seen.news(&piece)?.map(Said::News)
            }
            _ => None,
        };
        let Some(said) = said else { continue };
        let last = matches!(said, Said::Ended(_));
        // Nobody listens any more only once this is given up as well.
        let _ = tell(said).await;
        if last {
            return Ok(());
        }
    }
    Err(CommandError::new(Exit::UNREACHABLE, "the controller went away meanwhile"))
}

/// What stands before each line; nothing where there is only one task.
fn labels(tasks: &[Task]) -> Vec<String> {
    if let [_] = tasks {
        return vec![String::new()];
    }
    let names: Vec<String> = tasks.iter().map(render::whose).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    names.into_iter().map(|name| format!("{name:width$} | ")).collect()
}

/// Writes the output of tasks: where there are several, whole lines with whose they are.
struct Printer<O, E> {
    labels: Vec<String>,
    /// The lines that have not ended yet.
    open: BTreeMap<(usize, Channel), Vec<u8>>,
    stdout: O,
    stderr: E,
}

impl<O: AsyncWrite + Unpin, E: AsyncWrite + Unpin> Printer<O, E> {
    fn new(labels: Vec<String>, stdout: O, stderr: E) -> Self {
        Self { labels, open: BTreeMap::new(), stdout, stderr }
    }

    async fn write(&mut self, index: usize, channel: Channel, data: &[u8]) -> Result<(), CommandError> {
        if self.labels[index].is_empty() {
            return self.put(channel, data).await;
        }
        let line = self.open.entry((index, channel)).or_default();
        line.extend_from_slice(data);
        let Some(end) = line.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        let rest = line.split_off(end + 1);
        let lines = std::mem::replace(line, rest);
        let text = labelled(&self.labels[index], &lines);
        self.put(channel, &text).await
    }

    /// Writes the lines of a task that never ended.
    async fn end(&mut self, index: usize) -> Result<(), CommandError> {
        for channel in [Channel::Stdout, Channel::Stderr] {
            let Some(mut line) = self.open.remove(&(index, channel)).filter(|line| !line.is_empty()) else { continue };
            line.push(b'\n');
            let text = labelled(&self.labels[index], &line);
            self.put(channel, &text).await?;
        }
        Ok(())
    }

    async fn put(&mut self, channel: Channel, data: &[u8]) -> Result<(), CommandError> {
        match channel {
            Channel::Stderr => {
                self.stderr.write_all(data).await?;
                self.stderr.flush().await?;
            }
            Channel::Stdout | Channel::Stdin => {
                self.stdout.write_all(data).await?;
                self.stdout.flush().await?;
            }
        }
        Ok(())
    }
}

/// Whole lines, each with its label.
fn labelled(label: &str, lines: &[u8]) -> Vec<u8> {
    lines.split_inclusive(|byte| *byte == b'\n').flat_map(|line| [label.as_bytes(), line].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::Peer;
    use crate::render::samples;

    fn piece(attempt: u32, offset: u64, text: &str) -> OutputPiece {
        OutputPiece { attempt, channel: Channel::Stdout, offset, data: STANDARD.encode(text) }
    }

    #[test]
    fn what_comes_again_is_not_news_and_what_is_missing_is_told() {
        let mut seen = Seen::default();
        let mut news = |piece| seen.news(&piece).unwrap().map(|it| (it.left_out, String::from_utf8(it.data).unwrap()));
        let told = |left_out, text: &str| Some((left_out, text.to_owned()));
        assert_eq!(news(piece(1, 0, "abc")), told(0, "abc"));
        assert_eq!(news(piece(1, 0, "abc")), None);
        assert_eq!(news(piece(1, 2, "cde")), told(0, "de"));
        assert_eq!(news(piece(1, 10, "xyz")), told(5, "xyz"));
        assert_eq!(news(piece(2, 0, "abc")), told(0, "abc"));
    }

    #[tokio::test]
    async fn several_tasks_are_told_line_by_line() {
        let tasks = [samples::task("web"), samples::task("builder")];
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut printer = Printer::new(labels(&tasks), &mut stdout, &mut stderr);
        printer.write(0, Channel::Stdout, b"one\ntw").await.unwrap();
        printer.write(1, Channel::Stdout, b"other\n").await.unwrap();
        printer.write(0, Channel::Stdout, b"o\n").await.unwrap();
        printer.write(1, Channel::Stderr, b"no end").await.unwrap();
        printer.end(1).await.unwrap();
        assert_eq!(String::from_utf8(stdout).unwrap(), "web     | one\nbuilder | other\nweb     | two\n");
        assert_eq!(String::from_utf8(stderr).unwrap(), "builder | no end\n");
    }

    #[tokio::test]
    async fn a_task_is_followed_to_its_end_through_a_lost_connection() {
        let peer = Peer::new();
        let task = samples::task("web");
        let (sender, mut said) = mpsc::channel(8);
        let stream = |events: &str| format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n{events}");
        let event = |piece: OutputPiece| format!("data: {}\n\n", serde_json::to_string(&piece).unwrap());
        let client = follow(&peer.client, task.id, 0, sender);
        let server = async {
            let asked = peer.answer(&stream(&event(piece(1, 0, "abc")))).await;
            assert!(asked.starts_with(&format!("GET /tasks/{}/output?follow=true ", task.id)), "{asked}");
            let rest = [event(piece(1, 0, "abc")), event(piece(1, 3, "def"))].concat();
            let end = format!("event: ended\ndata: {}\n\n", serde_json::to_string(&task).unwrap());
            peer.answer(&stream(&(rest + &end))).await;
        };
        let (followed, ()) = tokio::join!(client, server);
        followed.unwrap();
        let mut text = String::new();
        while let Some((_, it)) = said.recv().await {
            match it {
                Said::News(news) => text.push_str(std::str::from_utf8(&news.data).unwrap()),
                Said::Ended(ended) => assert_eq!(*ended, task),
            }
        }
        assert_eq!(text, "abcdef");
    }

    #[test]
    fn who_leaves_is_told_how_to_come_back() {
        let id = samples::task("web").id;
        let error = detached(&[id]);
        assert_eq!(error.exit, Exit::INTERRUPTED);
        assert!(error.hints()[0].contains(&format!("vm-agent task cancel {id}")));
    }
}
