use bytes::Bytes;
use vm_agent_schemas::ids::TerminalId;
use vm_agent_schemas::wire::{
    Channel, DATA_MAX, Frame, FromHub, FromRuntime, RefusalCode, Signal, StreamEnded, StreamOpen, StreamOpened,
    StreamRef, StreamResize, StreamSignal, StreamTaken, StreamTarget, TEXT_MAX, TaskOutcome, TerminalSize, WINDOW,
};

use super::world::*;
use crate::state::streams::STREAMS_MAX;
use crate::state::{ConnId, Effect, Event, OpenError, StreamKey};
use crate::stream::StreamEvent;

const KEY: StreamKey = StreamKey(7);

fn with_stream(stdin: bool) -> World {
    let mut world = World::joined();
    let effects = world.tell(Event::OpenStream { key: KEY, agent: name("web"), target: target(), stdin });
    assert_eq!(effects[0], Effect::Opening { key: KEY, answer: Ok(()) });
    assert_eq!(sent(&effects, 1), [FromHub::StreamOpen(StreamOpen { stream: 1, target: target(), stdin })]);
    world
}

fn out(offset: u64, end: bool, len: usize) -> Frame {
    Frame { stream: 1, channel: Channel::Stdout, offset, end, data: vec![b'x'; len].into() }
}

fn input(world: &mut World, offset: u64, end: bool, len: usize) -> Vec<Effect> {
    world.tell(Event::Input { key: KEY, offset, end, data: vec![b'i'; len].into() })
}

fn events(effects: &[Effect]) -> Vec<StreamEvent> {
    let events = effects.iter().filter_map(|effect| match effect {
        Effect::Client { key: KEY, event } => Some(event.clone()),
        _ => None,
    });
    events.collect()
}

fn lost(effects: &[Effect]) -> bool {
    matches!(events(effects)[..], [StreamEvent::Lost(_)])
}

#[test]
fn a_stream_opens_carries_both_ways_and_ends() {
    let mut world = with_stream(true);
    let opened = world.say(1, "web", FromRuntime::StreamOpened(StreamOpened { stream: 1, offset: 0 }));
    assert_eq!(events(&opened), [StreamEvent::Opened { offset: 0 }]);
    assert_eq!(world.say(1, "web", FromRuntime::StreamOpened(StreamOpened { stream: 1, offset: 0 })), [], "once");
    let data = events(&world.data(1, out(0, false, 3)));
    let expected =
        StreamEvent::Data { channel: Channel::Stdout, offset: 0, end: false, data: Bytes::from_static(b"xxx") };
    assert_eq!(data, [expected]);
    let frame = Frame { stream: 1, channel: Channel::Stdin, offset: 0, end: true, data: Bytes::from_static(b"ii") };
    assert_eq!(input(&mut world, 0, true, 2), [Effect::SendData { conn: ConnId(1), frame }]);
    let taken = StreamTaken { stream: 1, channel: Channel::Stdin, offset: 2 };
    assert_eq!(events(&world.say(1, "web", FromRuntime::StreamTaken(taken))), [StreamEvent::Taken { offset: 2 }]);
    let signal = world.tell(Event::Signal { key: KEY, signal: Signal::Int });
    assert_eq!(sent(&signal, 1), [FromHub::StreamSignal(StreamSignal { stream: 1, signal: Signal::Int })]);
    let outcome = TaskOutcome::Exited { code: 3 };
    let end = FromRuntime::StreamEnded(StreamEnded { stream: 1, outcome: outcome.clone() });
    assert_eq!(events(&world.say(1, "web", end)), [StreamEvent::Ended(outcome)]);
    assert_eq!(world.tell(Event::CloseStream { key: KEY }), []);
}

#[test]
fn a_stream_needs_a_session() {
    let mut world = World::joined();
    let open = |agent| Event::OpenStream { key: KEY, agent: name(agent), target: target(), stdin: false };
    assert_eq!(world.tell(open("db")), [Effect::Opening { key: KEY, answer: Err(OpenError::Offline) }]);
    world.tell(Event::Shutdown);
    assert_eq!(world.tell(open("web")), [Effect::Opening { key: KEY, answer: Err(OpenError::Shutdown) }]);
}

#[test]
fn a_session_has_so_many_streams_and_a_task_is_not_counted() {
    let mut world = World::joined();
    let open = |key| Event::OpenStream { key: StreamKey(key), agent: name("web"), target: target(), stdin: false };
    assert_eq!(sent(&world.tell(submit(&task("web"))), 1).len(), 1);
    let most = STREAMS_MAX as u64;
    for key in 0..most {
        assert_eq!(sent(&world.tell(open(key)), 1).len(), 1, "{key}");
    }
    let key = StreamKey(most);
    assert_eq!(world.tell(open(most)), [Effect::Opening { key, answer: Err(OpenError::TooMany) }]);
    world.tell(Event::CloseStream { key: StreamKey(3) });
    assert_eq!(sent(&world.tell(open(most)), 1).len(), 1, "where one has ended, there is room");
}

#[test]
fn what_is_too_large_for_any_agent_opens_no_stream() {
    let mut world = World::joined();
    let mut large = run();
    large.argv.push("x".repeat(TEXT_MAX));
    let long = |len| "x".repeat(len);
    let cases = [
        (StreamTarget::Run { run: large.clone() }, "arguments and environment are"),
        (
            StreamTarget::Terminal { run: large, size: TerminalSize::default(), keep: None },
            "arguments and environment are",
        ),
        (StreamTarget::Upload { path: long(4097) }, "the path is"),
        (StreamTarget::Download { path: long(4097) }, "the path is"),
        (StreamTarget::Connect { host: long(256), port: 80 }, "the host's name is"),
    ];
    for (target, what) in cases {
        let effects = world.tell(Event::OpenStream { key: KEY, agent: name("web"), target, stdin: false });
        assert_eq!(effects, [Effect::Opening { key: KEY, answer: Err(OpenError::TooLarge(what)) }]);
    }
    let target = StreamTarget::Upload { path: long(4096) };
    let effects = world.tell(Event::OpenStream { key: KEY, agent: name("web"), target, stdin: true });
    assert_eq!(effects[0], Effect::Opening { key: KEY, answer: Ok(()) });
}

#[test]
fn a_runtime_that_breaks_the_rules_of_streams_is_refused() {
    let stdin = |frame: Frame| Frame { channel: Channel::Stdin, ..frame };
    let never = |frame: Frame| Frame { stream: 2, ..frame };
    let cases = [
        ("a gap", vec![out(1, false, 1)], RefusalCode::Flow),
        ("a repetition", vec![out(0, false, 1), out(0, false, 1)], RefusalCode::Flow),
        ("data after the end", vec![out(0, true, 1), out(1, false, 1)], RefusalCode::Flow),
        ("nothing at all", vec![out(0, false, 0)], RefusalCode::Flow),
        ("input", vec![stdin(out(0, false, 1))], RefusalCode::Protocol),
        ("a stream that never was", vec![never(out(0, false, 1))], RefusalCode::Protocol),
    ];
    for (what, frames, code) in cases {
        let mut world = with_stream(false);
        let effects: Vec<_> = frames.into_iter().flat_map(|frame| world.data(1, frame)).collect();
        assert_eq!(refused(&effects, 1), Some(code), "{what}");
        assert!(matches!(events(&effects).last(), Some(StreamEvent::Lost(_))), "{what}");
    }
}

#[test]
fn output_stops_at_the_window_until_the_client_takes() {
    let mut world = with_stream(false);
    let full = WINDOW / DATA_MAX as u64;
    for n in 0..full {
        assert_eq!(refused(&world.data(1, out(n * DATA_MAX as u64, false, DATA_MAX)), 1), None);
    }
    let taken = world.tell(Event::Taken { key: KEY, channel: Channel::Stdout, offset: 10 });
    let expected = StreamTaken { stream: 1, channel: Channel::Stdout, offset: 10 };
    assert_eq!(sent(&taken, 1), [FromHub::StreamTaken(expected)]);
    assert_eq!(refused(&world.data(1, out(WINDOW, false, 10)), 1), None);
    assert_eq!(refused(&world.data(1, out(WINDOW + 10, false, 1)), 1), Some(RefusalCode::Flow));
}

#[test]
fn a_client_takes_no_more_than_there_is_and_only_once() {
    let mut world = with_stream(false);
    world.data(1, out(0, false, 10));
    for (offset, told) in [(11, false), (10, true), (10, false), (5, false)] {
        let effects = world.tell(Event::Taken { key: KEY, channel: Channel::Stdout, offset });
        assert_eq!(!effects.is_empty(), told, "{offset}");
    }
    assert_eq!(world.tell(Event::Taken { key: KEY, channel: Channel::Stdin, offset: 1 }), []);
}

#[test]
fn a_client_that_breaks_the_rules_loses_its_stream_and_the_session_stays() {
    type Inputs = &'static [(u64, bool, usize)];
    let beyond: Inputs = &[(0, false, WINDOW as usize + 1)];
    let cases: [(&str, bool, Inputs); 5] = [
        ("a gap", true, &[(1, false, 1)]),
        ("a repetition", true, &[(0, false, 1), (0, false, 1)]),
        ("input after the end", true, &[(0, true, 1), (1, false, 1)]),
        ("input beyond the window", true, beyond),
        ("input without stdin", false, &[(0, false, 1)]),
    ];
    for (what, stdin, inputs) in cases {
        let mut world = with_stream(stdin);
        let effects: Vec<_> = inputs.iter().flat_map(|(at, end, len)| input(&mut world, *at, *end, *len)).collect();
        assert!(lost(&effects), "{what}");
        assert!(sent(&effects, 1).contains(&FromHub::StreamClose(StreamRef { stream: 1 })), "{what}");
        assert_eq!(world.hub.sessions().len(), 1);
    }
}

#[test]
fn input_is_cut_into_frames_and_may_fill_the_window() {
    let mut world = with_stream(true);
    let effects = input(&mut world, 0, true, usize::try_from(WINDOW).unwrap());
    let frames = effects.iter().map(|effect| match effect {
        Effect::SendData { frame, .. } => (frame.offset, frame.data.len(), frame.end),
        other => panic!("{other:?}"),
    });
    let frames = frames.collect::<Vec<_>>();
    assert_eq!(frames.len() as u64, WINDOW / DATA_MAX as u64);
    assert_eq!(frames[1], (DATA_MAX as u64, DATA_MAX, false));
    assert_eq!(frames.last().unwrap(), &(WINDOW - DATA_MAX as u64, DATA_MAX, true));
}

#[test]
fn a_runtime_can_not_take_input_that_was_never_sent() {
    let taken = |channel, offset| FromRuntime::StreamTaken(StreamTaken { stream: 1, channel, offset });
    let mut world = with_stream(true);
    input(&mut world, 0, false, 5);
    assert_eq!(events(&world.say(1, "web", taken(Channel::Stdin, 5))).len(), 1);
    assert_eq!(world.say(1, "web", taken(Channel::Stdin, 5)), [], "no news");
    assert_eq!(refused(&world.say(1, "web", taken(Channel::Stdin, 6)), 1), Some(RefusalCode::Flow));
    let mut world = with_stream(true);
    assert_eq!(refused(&world.say(1, "web", taken(Channel::Stdout, 0)), 1), Some(RefusalCode::Protocol));
}

#[test]
fn a_client_that_leaves_ends_the_process_and_what_still_comes_is_dropped() {
    let mut world = with_stream(true);
    let effects = world.tell(Event::CloseStream { key: KEY });
    assert_eq!(sent(&effects, 1), [FromHub::StreamClose(StreamRef { stream: 1 })]);
    assert_eq!(world.data(1, out(0, false, 3)), []);
    let outcome = TaskOutcome::Signaled { signal: 9 };
    assert_eq!(world.say(1, "web", FromRuntime::StreamEnded(StreamEnded { stream: 1, outcome })), []);
    assert_eq!(input(&mut world, 0, false, 1), []);
}

#[test]
fn the_loss_of_a_session_is_the_loss_of_its_streams_and_numbers_begin_anew() {
    let mut world = with_stream(true);
    assert!(lost(&world.tell(Event::Closed { conn: ConnId(1) })));
    world.join(2, &hello("web", 1), 1);
    assert_eq!(input(&mut world, 0, false, 1), []);
    let open = Event::OpenStream { key: StreamKey(8), agent: name("web"), target: target(), stdin: false };
    let [FromHub::StreamOpen(open)] = &sent(&world.tell(open), 2)[..] else { panic!("no stream was opened") };
    assert_eq!(open.stream, 1);
}

fn open(world: &mut World, target: StreamTarget) -> Vec<Effect> {
    world.tell(Event::OpenStream { key: KEY, agent: name("web"), target, stdin: true })
}

fn terminal() -> StreamTarget {
    StreamTarget::Terminal { run: run(), size: TerminalSize::default(), keep: Some(TerminalId::generate()) }
}

fn attach(offset: u64) -> StreamTarget {
    StreamTarget::Attach { terminal: TerminalId::generate(), offset, size: TerminalSize::default() }
}

fn opened_at(world: &mut World, offset: u64) -> Vec<Effect> {
    world.say(1, "web", FromRuntime::StreamOpened(StreamOpened { stream: 1, offset }))
}

#[test]
fn whatever_is_to_be_at_the_other_end_reaches_the_runtime_as_it_was_asked_for() {
    let path = || "/srv/data".to_owned();
    let connect = StreamTarget::Connect { host: "127.0.0.1".to_owned(), port: 8080 };
    let copies = [StreamTarget::Upload { path: path() }, StreamTarget::Download { path: path() }];
    for target in [target(), terminal(), attach(7), connect].into_iter().chain(copies) {
        let effects = open(&mut World::joined(), target.clone());
        assert_eq!(sent(&effects, 1), [FromHub::StreamOpen(StreamOpen { stream: 1, target, stdin: true })]);
    }
}

#[test]
fn the_output_of_a_terminal_that_is_attached_to_begins_where_the_runtime_says() {
    const AT: u64 = 70_000;
    let mut world = World::joined();
    open(&mut world, attach(60_000));
    assert_eq!(events(&opened_at(&mut world, AT)), [StreamEvent::Opened { offset: AT }]);
    for n in 0..WINDOW / DATA_MAX as u64 {
        let effects = world.data(1, out(AT + n * DATA_MAX as u64, false, DATA_MAX));
        assert!(matches!(events(&effects)[..], [StreamEvent::Data { .. }]), "{n}");
    }
    assert_eq!(world.tell(Event::Taken { key: KEY, channel: Channel::Stdout, offset: AT }), [], "that it had before");
    let taken = world.tell(Event::Taken { key: KEY, channel: Channel::Stdout, offset: AT + 1 });
    let expected = StreamTaken { stream: 1, channel: Channel::Stdout, offset: AT + 1 };
    assert_eq!(sent(&taken, 1), [FromHub::StreamTaken(expected)]);
    assert_eq!(refused(&world.data(1, out(AT + WINDOW, false, 1)), 1), None);
    assert_eq!(
        refused(&world.data(1, out(AT + WINDOW + 1, false, 1)), 1),
        Some(RefusalCode::Flow),
        "a window from there"
    );
}

#[test]
fn no_other_output_begins_elsewhere_than_at_its_beginning() {
    for target in [target(), terminal()] {
        let mut world = World::joined();
        open(&mut world, target);
        assert_eq!(refused(&opened_at(&mut world, 5), 1), Some(RefusalCode::Protocol));
    }
    let mut world = World::joined();
    open(&mut world, attach(0));
    world.data(1, out(0, false, 3));
    assert_eq!(refused(&opened_at(&mut world, 5), 1), Some(RefusalCode::Protocol), "it has begun already");
    let mut world = World::joined();
    open(&mut world, attach(0));
    opened_at(&mut world, 5);
    assert_eq!(opened_at(&mut world, 9), [], "it begins once");
    assert_eq!(refused(&world.data(1, out(9, false, 1)), 1), Some(RefusalCode::Flow));
}

#[test]
fn only_what_has_a_terminal_has_a_size() {
    let size = TerminalSize { cols: 132, rows: 50 };
    let resized = FromHub::StreamResize(StreamResize { stream: 1, size });
    for (target, reaches) in [(terminal(), true), (attach(0), true), (target(), false)] {
        let mut world = World::joined();
        open(&mut world, target);
        let effects = world.tell(Event::Resize { key: KEY, size });
        assert_eq!(sent(&effects, 1).contains(&resized), reaches);
        world.tell(Event::CloseStream { key: KEY });
        assert_eq!(world.tell(Event::Resize { key: KEY, size }), [], "that comes too late");
    }
}

#[test]
fn a_runtime_speaks_of_no_stream_that_never_was() {
    let outcome = TaskOutcome::Exited { code: 0 };
    let said = [
        FromRuntime::StreamOpened(StreamOpened { stream: 2, offset: 0 }),
        FromRuntime::StreamEnded(StreamEnded { stream: u32::MAX, outcome }),
        FromRuntime::StreamTaken(StreamTaken { stream: 0, channel: Channel::Stdin, offset: 0 }),
    ];
    for said in said {
        let mut world = with_stream(true);
        world.join(2, &hello("db", 2), 2);
        let effects = world.say(1, "web", said.clone());
        assert_eq!(refused(&effects, 1), Some(RefusalCode::Protocol), "{said:?}");
        assert_eq!(world.hub.sessions().len(), 1, "the others feel nothing");
    }
}
