//! Terminals, and what is left of them when the connection is lost.

use crate::support::{Heard, Hub, Runtime, Session, shell, until};
use bytes::Bytes;
use vm_agent_schemas::ids::TerminalId;
use vm_agent_schemas::wire::{
    Channel, Frame, FromHub, FromRuntime, Run, Seed, Signal, StreamOpen, StreamRef, StreamResize, StreamSignal,
    StreamTaken, StreamTarget, TaskOutcome, TerminalSize, WINDOW,
};

struct Scene {
    place: tempfile::TempDir,
    hub: Hub,
    _seed: Seed,
    runtime: Runtime,
    session: Session,
}

async fn scene() -> Scene {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let runtime = Runtime::start(place.path(), &seed);
    let (session, _) = hub.session().await;
    Scene { place, hub, _seed: seed, runtime, session }
}

const SIZE: TerminalSize = TerminalSize { cols: 90, rows: 30 };

fn terminal(line: &str, keep: Option<TerminalId>) -> StreamTarget {
    StreamTarget::Terminal { run: shell(line), size: SIZE, keep }
}

/// One client's view of a terminal.
struct Client {
    stream: u32,
    typed: u64,
    /// How much of the output is known.
    known: u64,
    shown: Vec<u8>,
}

impl Client {
    /// Opens a stream, and waits until it has begun.
    async fn open(session: &mut Session, stream: u32, target: StreamTarget) -> Self {
        session.say(FromHub::StreamOpen(StreamOpen { stream, target, stdin: true })).await;
        let known = session.hear_that(|said| match said {
            FromRuntime::StreamOpened(opened) if opened.stream == stream => Some(opened.offset),
            FromRuntime::StreamEnded(ended) if ended.stream == stream => panic!("{}", ended.outcome),
            _ => None,
        });
        Self { stream, typed: 0, known: known.await, shown: Vec::new() }
    }

    async fn attach(session: &mut Session, stream: u32, terminal: TerminalId, offset: u64) -> Self {
        Self::open(session, stream, StreamTarget::Attach { terminal, offset, size: SIZE }).await
    }

    async fn enter(&mut self, session: &mut Session, text: &'static str) {
        let data = Bytes::from_static(text.as_bytes());
        let frame = Frame { stream: self.stream, channel: Channel::Stdin, offset: self.typed, end: false, data };
        self.typed += text.len() as u64;
        session.send(&frame).await;
    }

    /// Takes output until enough is there; the outcome, should the terminal end before.
    async fn see(&mut self, session: &mut Session, mut enough: impl FnMut(&str) -> bool) -> Option<TaskOutcome> {
        while !enough(&String::from_utf8_lossy(&self.shown)) {
            match session.next().await.expect("the connection lives") {
                Heard::Data(frame) if frame.stream == self.stream => {
                    assert_eq!(
                        (frame.channel, frame.offset),
                        (Channel::Stdout, self.known),
                        "nothing is lost or twice"
                    );
                    self.known += frame.data.len() as u64;
                    self.shown.extend_from_slice(&frame.data);
                    let taken = StreamTaken { stream: self.stream, channel: Channel::Stdout, offset: self.known };
                    session.say(FromHub::StreamTaken(taken)).await;
                }
                Heard::Said(FromRuntime::StreamEnded(ended)) if ended.stream == self.stream => {
                    return Some(ended.outcome);
                }
                _ => {}
            }
        }
        None
    }

    async fn see_text(&mut self, session: &mut Session, text: &str) {
        let ended = self.see(session, |shown| shown.contains(text)).await;
        assert_eq!(ended, None, "it ended without `{text}`: {}", String::from_utf8_lossy(&self.shown));
    }

    async fn see_end(&mut self, session: &mut Session) -> TaskOutcome {
        self.see(session, |_| false).await.unwrap()
    }
}

#[tokio::test]
async fn a_terminal_that_is_kept_survives_the_session_and_shows_every_byte_once() {
    let mut scene = scene().await;
    let id = TerminalId::generate();
    let line = "stty raw -echo; seq 1 60000; echo done; read end; seq 60001 70000";
    let mut first = Client::open(&mut scene.session, 1, terminal(line, Some(id))).await;
    first.see(&mut scene.session, |shown| shown.len() > 100_000).await;
    drop(scene.session);
    let (mut session, _) = scene.hub.session().await;
    let mut second = Client::attach(&mut session, 7, id, first.known).await;
    assert_eq!(second.known, first.known);
    second.see_text(&mut session, "done").await;
    second.enter(&mut session, "\n").await;
    assert_eq!(second.see_end(&mut session).await, TaskOutcome::Exited { code: 0 });
    let shown = String::from_utf8([first.shown, second.shown].concat()).unwrap();
    let numbers = |from: u32, to: u32| (from..=to).map(|number| format!("{number}\n")).collect::<String>();
    assert!(shown == format!("{}done\n{}", numbers(1, 60_000), numbers(60_001, 70_000)));
}

#[tokio::test]
async fn a_terminal_has_the_size_that_it_is_given() {
    let mut scene = scene().await;
    let line = "stty size; while read x; do stty size; done";
    let mut client = Client::open(&mut scene.session, 1, terminal(line, None)).await;
    client.see_text(&mut scene.session, "30 90\r\n").await;
    let size = TerminalSize { cols: 132, rows: 50 };
    scene.session.say(FromHub::StreamResize(StreamResize { stream: 1, size })).await;
    client.enter(&mut scene.session, "\n").await;
    client.see_text(&mut scene.session, "50 132\r\n").await;
}

#[tokio::test]
async fn what_is_typed_interrupts_and_ends_as_on_any_terminal() {
    let mut scene = scene().await;
    let line = "trap 'echo caught' INT; echo up; cat; echo; cat; exit 3";
    let mut client = Client::open(&mut scene.session, 1, terminal(line, None)).await;
    client.see_text(&mut scene.session, "up").await;
    client.enter(&mut scene.session, "\x03").await;
    client.see_text(&mut scene.session, "caught").await;
    let end = Frame { stream: 1, channel: Channel::Stdin, offset: 1, end: true, data: Bytes::new() };
    scene.session.send(&end).await;
    assert_eq!(client.see_end(&mut scene.session).await, TaskOutcome::Exited { code: 3 });
}

#[tokio::test]
async fn with_nothing_to_run_it_is_the_users_login_shell() {
    let mut scene = scene().await;
    let target = StreamTarget::Terminal { run: Run::default(), size: SIZE, keep: None };
    let mut client = Client::open(&mut scene.session, 1, target).await;
    client.enter(&mut scene.session, "echo \"<$0> <$TERM>\"; exit 5\n").await;
    assert_eq!(client.see_end(&mut scene.session).await, TaskOutcome::Exited { code: 5 });
    let shown = String::from_utf8_lossy(&client.shown);
    assert!(shown.contains("<-") && shown.contains("<xterm-256color>"), "{shown}");
}

#[tokio::test]
async fn another_client_takes_the_place_of_the_first() {
    let mut scene = scene().await;
    let id = TerminalId::generate();
    let mut first = Client::open(&mut scene.session, 1, terminal("echo up; cat", Some(id))).await;
    first.see_text(&mut scene.session, "up").await;
    let target = StreamTarget::Attach { terminal: id, offset: 0, size: SIZE };
    scene.session.say(FromHub::StreamOpen(StreamOpen { stream: 2, target, stdin: true })).await;
    let reason = "another client attached to this terminal".to_owned();
    assert_eq!(first.see_end(&mut scene.session).await, TaskOutcome::Failed { reason });
    let mut second = Client { stream: 2, typed: 0, known: 0, shown: Vec::new() };
    second.see_text(&mut scene.session, "up").await;
    second.enter(&mut scene.session, "still here\n").await;
    second.see_text(&mut scene.session, "still here").await;
}

#[tokio::test]
async fn a_terminal_that_ended_unattended_tells_how_to_whoever_comes_back() {
    let mut scene = scene().await;
    let id = TerminalId::generate();
    // Its reader goes on when somebody has opened it to write.
    let go = scene.place.path().join("work/go");
    assert!(std::process::Command::new("mkfifo").arg(&go).status().unwrap().success());
    let mut client =
        Client::open(&mut scene.session, 1, terminal("echo up; cat go; echo late; exit 4", Some(id))).await;
    client.see_text(&mut scene.session, "up").await;
    scene.session.say(FromHub::StreamClose(StreamRef { stream: 1 })).await;
    let left = scene.session.hear_that(|said| match said {
        FromRuntime::Health(report) => report.terminals.iter().any(|it| !it.attached).then_some(()),
        _ => None,
    });
    left.await;
    drop(std::fs::File::options().write(true).open(&go).unwrap());
    until("the process's end", || scene.runtime.processes().is_empty()).await;
    let mut client = Client::attach(&mut scene.session, 2, id, client.known).await;
    assert_eq!(client.see_end(&mut scene.session).await, TaskOutcome::Exited { code: 4 });
    assert!(String::from_utf8_lossy(&client.shown).contains("late"));
    let target = StreamTarget::Attach { terminal: id, offset: 0, size: SIZE };
    scene.session.say(FromHub::StreamOpen(StreamOpen { stream: 3, target, stdin: true })).await;
    let reason = format!("there is no terminal `{id}` any more; open a new one");
    assert_eq!(scene.session.follow(3).await.outcome, TaskOutcome::NotStarted { reason });
}

#[tokio::test]
async fn a_terminal_that_is_not_kept_ends_with_its_stream() {
    let mut scene = scene().await;
    let line = "trap '' HUP TERM; echo up; while :; do sleep 0.1; done";
    let mut client = Client::open(&mut scene.session, 1, terminal(line, None)).await;
    client.see_text(&mut scene.session, "up").await;
    scene.session.say(FromHub::StreamClose(StreamRef { stream: 1 })).await;
    until("the process's end", || scene.runtime.processes().is_empty()).await;
}

#[tokio::test]
async fn kept_terminals_are_reported_until_they_are_hung_up() {
    let mut scene = scene().await;
    let id = TerminalId::generate();
    scene.hub.heartbeat_ms = 1000;
    drop(scene.session);
    let (mut session, _) = scene.hub.session().await;
    let mut client = Client::open(&mut session, 1, terminal("echo up; cat", Some(id))).await;
    client.see_text(&mut session, "up").await;
    let report = session.hear_that(|said| match said {
        FromRuntime::Health(report) => report.terminals.into_iter().next(),
        _ => None,
    });
    let report = report.await;
    assert_eq!((report.terminal, report.attached, report.argv[0].as_str()), (id, true, "sh"));
    session.say(FromHub::StreamSignal(StreamSignal { stream: 1, signal: Signal::Hup })).await;
    assert_eq!(client.see_end(&mut session).await, TaskOutcome::Signaled { signal: 1 });
    let none = session.hear_that(|said| match said {
        FromRuntime::Health(report) => report.terminals.is_empty().then_some(()),
        _ => None,
    });
    none.await;
}

#[tokio::test]
async fn what_becomes_of_a_kept_terminal_is_told_at_once() {
    let mut scene = scene().await;
    // No heartbeat tells it in time.
    scene.hub.heartbeat_ms = 3_600_000;
    drop(scene.session);
    let (mut session, _) = scene.hub.session().await;
    let id = TerminalId::generate();
    let mut client = Client::open(&mut session, 1, terminal("read x; exit 4", Some(id))).await;
    let told = async |session: &mut Session| {
        session
            .hear_that(|said| match said {
                FromRuntime::Health(report) => {
                    Some(report.terminals.iter().map(|it| (it.attached, it.ended)).collect::<Vec<_>>())
                }
                _ => None,
            })
            .await
    };
    // The first report of a session may come before or after it was opened.
    while told(&mut session).await != [(true, false)] {}
    session.say(FromHub::StreamClose(StreamRef { stream: 1 })).await;
    while told(&mut session).await != [(false, false)] {}
    client = Client::attach(&mut session, 2, id, client.known).await;
    while told(&mut session).await != [(true, false)] {}
    client.enter(&mut session, "\n").await;
    session.say(FromHub::StreamClose(StreamRef { stream: 2 })).await;
    while told(&mut session).await != [(false, true)] {}
    client = Client::attach(&mut session, 3, id, client.known).await;
    assert_eq!(client.see_end(&mut session).await, TaskOutcome::Exited { code: 4 });
    while !told(&mut session).await.is_empty() {}
}

#[tokio::test]
async fn a_long_command_on_a_terminal_does_not_make_a_report_too_long() {
    let mut scene = scene().await;
    scene.hub.heartbeat_ms = 3_600_000;
    drop(scene.session);
    let (mut session, _) = scene.hub.session().await;
    let line = format!("cat # {}", "x".repeat(100_000));
    Client::open(&mut session, 1, terminal(&line, Some(TerminalId::generate()))).await;
    let report = session.hear_that(|said| match said {
        FromRuntime::Health(report) => report.terminals.into_iter().next(),
        _ => None,
    });
    let argv = report.await.argv;
    assert_eq!(argv[..2], ["sh", "-c"]);
    assert!(argv[2].starts_with("cat # xx") && argv[2].ends_with("x…") && argv.concat().len() < 1100, "{argv:?}");
}

#[tokio::test]
async fn a_terminal_never_runs_ahead_of_its_client_further_than_the_window() {
    let mut scene = scene().await;
    let id = TerminalId::generate();
    let mut client = Client::open(&mut scene.session, 1, terminal("yes", Some(id))).await;
    let mut received = 0;
    while received < WINDOW {
        let Some(Heard::Data(frame)) = scene.session.next().await else { continue };
        received += frame.data.len() as u64;
    }
    assert_eq!(received, WINDOW);
    // Anything more of the terminal would come before this answer.
    scene.session.open(2, "exit 0", false).await;
    loop {
        match scene.session.next().await.unwrap() {
            Heard::Data(frame) => assert_eq!(frame.stream, 2, "the window of stream 1 is used up"),
            Heard::Said(FromRuntime::StreamEnded(ended)) => break assert_eq!(ended.stream, 2),
            Heard::Said(_) => {}
        }
    }
    // With nobody attached it runs on, and what is too long ago is forgotten.
    drop(scene.session);
    let (mut session, _) = scene.hub.session().await;
    client = Client::attach(&mut session, 1, id, client.known).await;
    let begun = client.known;
    client.see(&mut session, |shown| shown.len() as u64 > 4 * WINDOW).await;
    let phase = usize::try_from(begun % 3).unwrap();
    assert!(client.shown.iter().zip(b"y\r\n".iter().cycle().skip(phase)).all(|(shown, expected)| shown == expected));
}
