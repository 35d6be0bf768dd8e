//! The processes of streams.

use crate::support::{Followed, Heard, Hub, Runtime, Session, until};
use bytes::Bytes;
use vm_agent_schemas::wire::{
    Channel, DATA_MAX, Frame, FromHub, FromRuntime, Run, Signal, StreamOpen, StreamOpened, StreamRef, StreamSignal,
    StreamTarget, TaskOutcome, WINDOW,
};

struct Scene {
    place: tempfile::TempDir,
    runtime: Runtime,
    session: Session,
}

async fn scene() -> Scene {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let runtime = Runtime::start(place.path(), &seed);
    let (session, _) = hub.session().await;
    Scene { place, runtime, session }
}

async fn opened(session: &mut Session, stream: u32) {
    let opened = session.hear_that(|said| match said {
        FromRuntime::StreamOpened(opened) => Some(opened),
        _ => None,
    });
    assert_eq!(opened.await, StreamOpened { stream, offset: 0 });
}

#[tokio::test]
async fn output_and_exit_code_arrive_on_their_channels() {
    let mut scene = scene().await;
    scene.session.open(1, "echo out; echo err >&2; exit 7", false).await;
    opened(&mut scene.session, 1).await;
    let Followed { stdout, stderr, ended, outcome } = scene.session.follow(1).await;
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (b"out\n".as_slice(), b"err\n".as_slice()));
    assert_eq!(ended, [Channel::Stdout, Channel::Stderr]);
    assert_eq!(outcome, TaskOutcome::Exited { code: 7 });
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_named() {
    let mut scene = scene().await;
    let run = Run { argv: vec!["no-such-program".to_owned()], ..Run::default() };
    let target = StreamTarget::Run { run };
    scene.session.say(FromHub::StreamOpen(StreamOpen { stream: 1, target, stdin: false })).await;
    let outcome = scene.session.follow(1).await.outcome;
    assert_eq!(outcome, TaskOutcome::NotStarted { reason: "there is no program `no-such-program`".to_owned() });
}

#[tokio::test]
async fn ten_megabytes_arrive_whole_and_in_order() {
    let mut scene = scene().await;
    let size = 10 << 20;
    let line = format!("seq 1 10000000 | head -c {size}");
    scene.session.open(1, &line, false).await;
    let Followed { stdout, outcome, .. } = scene.session.follow(1).await;
    assert_eq!(outcome, TaskOutcome::Exited { code: 0 });
    let expected: Vec<u8> = (1..).flat_map(|number: u32| format!("{number}\n").into_bytes()).take(size).collect();
    assert!(stdout == expected, "{} bytes arrived", stdout.len());
}

#[tokio::test]
async fn a_process_waits_for_a_hub_that_does_not_take_its_output() {
    let mut scene = scene().await;
    scene.session.open(1, "yes", false).await;
    let mut received = 0;
    while received < WINDOW {
        if let Some(Heard::Data(frame)) = scene.session.next().await {
            received += frame.data.len() as u64;
        }
    }
    assert_eq!(received, WINDOW);
    // What the hub says after that is answered, and nothing of the stream comes before the answer.
    scene.session.open(2, "exit 0", false).await;
    loop {
        match scene.session.next().await.unwrap() {
            Heard::Data(frame) => assert_eq!(frame.stream, 2, "the window of stream 1 is used up"),
            Heard::Said(FromRuntime::StreamEnded(ended)) => break assert_eq!(ended.stream, 2),
            Heard::Said(_) => {}
        }
    }
}

#[tokio::test]
async fn input_comes_back_from_cat_and_its_end_ends_cat() {
    let mut scene = scene().await;
    scene.session.open(1, "exec cat", true).await;
    opened(&mut scene.session, 1).await;
    let data: Vec<u8> = (0..WINDOW).map(|index| (index % 251) as u8).collect();
    let mut offset = 0;
    for chunk in data.chunks(DATA_MAX) {
        let chunk = Bytes::copy_from_slice(chunk);
        let len = chunk.len() as u64;
        let frame = Frame { stream: 1, channel: Channel::Stdin, offset, end: offset + len == WINDOW, data: chunk };
        scene.session.send(&frame).await;
        offset += len;
    }
    let Followed { stdout, outcome, .. } = scene.session.follow(1).await;
    assert!(stdout == data, "{} bytes came back", stdout.len());
    assert_eq!(outcome, TaskOutcome::Exited { code: 0 });
}

#[tokio::test]
async fn input_is_acknowledged_as_it_is_taken() {
    let mut scene = scene().await;
    scene.session.open(1, "exec cat", true).await;
    let data = Bytes::from_static(b"hello");
    scene.session.send(&Frame { stream: 1, channel: Channel::Stdin, offset: 0, end: false, data }).await;
    let taken = scene.session.hear_that(|said| match said {
        FromRuntime::StreamTaken(taken) => Some(taken),
        _ => None,
    });
    let taken = taken.await;
    assert_eq!((taken.stream, taken.channel, taken.offset), (1, Channel::Stdin, 5));
}

#[tokio::test]
async fn a_hub_that_breaks_the_rules_of_flow_loses_the_session() {
    let mut scene = scene().await;
    scene.session.open(1, "exec cat", true).await;
    let data = Bytes::from_static(b"hello");
    scene.session.send(&Frame { stream: 1, channel: Channel::Stdin, offset: 9, end: false, data }).await;
    while scene.session.next().await.is_some() {}
    until("the stream's end", || scene.runtime.processes().is_empty()).await;
}

#[tokio::test]
async fn a_signal_reaches_the_whole_group() {
    let mut scene = scene().await;
    scene.session.open(1, "sleep 1000 & echo up; wait", false).await;
    while !matches!(scene.session.next().await, Some(Heard::Data(_))) {}
    scene.session.say(FromHub::StreamSignal(StreamSignal { stream: 1, signal: Signal::Kill })).await;
    let outcome = scene.session.hear_that(|said| match said {
        FromRuntime::StreamEnded(ended) => Some(ended.outcome),
        _ => None,
    });
    assert_eq!(outcome.await, TaskOutcome::Signaled { signal: 9 });
    until("the end of the group", || scene.runtime.processes().is_empty()).await;
}

#[tokio::test]
async fn a_closed_stream_ends_its_process() {
    let mut scene = scene().await;
    scene.session.open(1, "trap '' TERM; echo up; while :; do sleep 0.1; done", false).await;
    while !matches!(scene.session.next().await, Some(Heard::Data(_))) {}
    scene.session.say(FromHub::StreamClose(StreamRef { stream: 1 })).await;
    until("the process's end", || scene.runtime.processes().is_empty()).await;
}

#[tokio::test]
async fn a_process_left_behind_does_not_hold_the_stream() {
    let mut scene = scene().await;
    scene.session.open(1, "sleep 1000 & echo done", false).await;
    let Followed { stdout, outcome, .. } = scene.session.follow(1).await;
    assert_eq!(stdout, b"done\n");
    assert_eq!(outcome, TaskOutcome::Exited { code: 0 });
    assert_eq!(scene.runtime.processes().len(), 1, "it may go on in the background");
}

/// Opens a stream with this at its other end, and waits until it has begun.
async fn open(session: &mut Session, stream: u32, target: StreamTarget, stdin: bool) {
    session.say(FromHub::StreamOpen(StreamOpen { stream, target, stdin })).await;
    opened(session, stream).await;
}

/// Sends input in frames, and waits until the last of it is taken; it ends if it is to.
pub(crate) async fn send_all(session: &mut Session, stream: u32, data: &[u8], end: bool) {
    let (mut sent, mut taken) = (0, 0);
    while taken < data.len() as u64 {
        while sent < data.len() && sent as u64 - taken < WINDOW - DATA_MAX as u64 {
            let piece = &data[sent..data.len().min(sent + DATA_MAX)];
            let offset = sent as u64;
            sent += piece.len();
            let end = end && sent == data.len();
            let data = Bytes::copy_from_slice(piece);
            session.send(&Frame { stream, channel: Channel::Stdin, offset, end, data }).await;
        }
        let told = session.hear_that(|said| match said {
            FromRuntime::StreamTaken(told) => Some(told.offset),
            FromRuntime::StreamEnded(ended) => panic!("{}", ended.outcome),
            _ => None,
        });
        taken = told.await;
    }
}

async fn ended(session: &mut Session, stream: u32) -> TaskOutcome {
    let ended = session.hear_that(|said| match said {
        FromRuntime::StreamEnded(ended) if ended.stream == stream => Some(ended.outcome),
        _ => None,
    });
    ended.await
}

const DONE: TaskOutcome = TaskOutcome::Exited { code: 0 };

#[tokio::test]
async fn a_large_file_goes_in_and_out_again() {
    let mut scene = scene().await;
    let content: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_be_bytes).collect();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o640);
    archive.append_data(&mut header, "big", content.as_slice()).unwrap();
    let archive = archive.into_inner().unwrap();
    open(&mut scene.session, 1, StreamTarget::Upload { path: "copy".to_owned() }, true).await;
    send_all(&mut scene.session, 1, &archive, true).await;
    assert_eq!(ended(&mut scene.session, 1).await, DONE);
    assert!(std::fs::read(scene.place.path().join("work/copy")).unwrap() == content);
    scene
        .session
        .say(FromHub::StreamOpen(StreamOpen {
            stream: 2,
            target: StreamTarget::Download { path: "copy".to_owned() },
            stdin: false,
        }))
        .await;
    let Followed { stdout, outcome, .. } = scene.session.follow(2).await;
    assert_eq!(outcome, DONE);
    let mut archive = tar::Archive::new(stdout.as_slice());
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!((entry.path().unwrap().to_str(), entry.header().mode().unwrap() & 0o777), (Some("copy"), 0o640));
    let mut back = Vec::new();
    std::io::copy(&mut entry, &mut back).unwrap();
    assert!(back == content);
}

#[tokio::test]
async fn an_upload_that_is_broken_off_leaves_nothing() {
    let mut scene = scene().await;
    open(&mut scene.session, 1, StreamTarget::Upload { path: "copy".to_owned() }, true).await;
    let mut header = tar::Header::new_gnu();
    header.set_path("big").unwrap();
    header.set_size(1_000_000);
    header.set_cksum();
    let begun = [header.as_bytes().as_slice(), &[7; 100_000]].concat();
    send_all(&mut scene.session, 1, &begun, false).await;
    let entries = || std::fs::read_dir(scene.place.path().join("work")).unwrap().count();
    until("the first bytes on the disk", || entries() == 1).await;
    scene.session.say(FromHub::StreamClose(StreamRef { stream: 1 })).await;
    until("the end of all traces", || entries() == 0).await;
}

#[tokio::test]
async fn a_copy_that_fails_says_why() {
    let mut scene = scene().await;
    let target = StreamTarget::Download { path: "missing".to_owned() };
    scene.session.say(FromHub::StreamOpen(StreamOpen { stream: 1, target, stdin: false })).await;
    let TaskOutcome::Failed { reason } = scene.session.follow(1).await.outcome else { panic!("it fails") };
    assert!(reason.contains("work/missing` can't be read: No such file"), "{reason}");
    open(&mut scene.session, 2, StreamTarget::Upload { path: "no/such/place".to_owned() }, true).await;
    let TaskOutcome::Failed { reason } = ended(&mut scene.session, 2).await else { panic!("it fails") };
    assert!(reason.contains("there is no folder") && reason.ends_with("make it first"), "{reason}");
}

#[tokio::test]
async fn a_connection_carries_both_ways_and_each_way_ends_by_itself() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut scene = scene().await;
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        let (mut tcp, _) = server.accept().await.unwrap();
        let mut request = String::new();
        tcp.read_to_string(&mut request).await.unwrap();
        // Only now, behind the end of the request, comes the answer: more than a window.
        tcp.write_all(&vec![b'a'; 1_000_000]).await.unwrap();
        request
    });
    open(&mut scene.session, 1, StreamTarget::Connect { host: "127.0.0.1".to_owned(), port }, true).await;
    send_all(&mut scene.session, 1, b"request", true).await;
    let Followed { stdout, outcome, .. } = scene.session.follow(1).await;
    assert_eq!((stdout.len(), outcome), (1_000_000, DONE));
    assert_eq!(serving.await.unwrap(), "request");
}

#[tokio::test]
async fn a_connection_that_nobody_takes_fails_with_the_reason() {
    let mut scene = scene().await;
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let target = StreamTarget::Connect { host: "127.0.0.1".to_owned(), port: free };
    scene.session.say(FromHub::StreamOpen(StreamOpen { stream: 1, target, stdin: true })).await;
    let TaskOutcome::Failed { reason } = ended(&mut scene.session, 1).await else { panic!("it fails") };
    assert!(reason.starts_with(&format!("could not connect to 127.0.0.1:{free}: Connection refused")), "{reason}");
}
