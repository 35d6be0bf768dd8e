use serde_json::Value;
use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::{
    Allow, BODY_MAX, BURST, Message, MessageRefused, MessageState, Party, Post, RATE, RefusedCode, SUBJECT_MAX,
    WAITING_MAX,
};
use vm_agent_schemas::wire::{
    Address, Configuration, Configured, Envelope, FromHub, FromRuntime, MessageRef, RefusalCode, TEXT_MAX,
};

use super::world::*;
use crate::state::post_office::{IN_FLIGHT_MAX, REMEMBERED_MAX, WAITING_BYTES_MAX};
use crate::state::{ConnId, Directory, Effect, Event, Inbound, Member, Notice, PostError, Record};

const WEB: u64 = 1;
const DB: u64 = 2;

fn agent(agent: &str) -> Address {
    Address::Agent(name(agent))
}

/// `web` may write to everybody of its team: `db` and `idle`. `db` may write to nobody.
fn directory() -> Directory {
    let member = |team: &str| {
        let labels = [("team".to_owned(), team.to_owned())].into();
        Member { labels, ..Member::default() }
    };
    let members = [("web", "shop"), ("db", "shop"), ("idle", "shop"), ("other", "office")];
    Directory {
        members: members.map(|(agent, team)| (name(agent), member(team))).into(),
        allow: vec![Allow {
            from: Party::Agent(name("web")),
            to: Party::Labels { labels: "team=shop".parse().unwrap() },
        }],
    }
}

/// That fleet, with sessions of `web` and `db`; `idle` and `other` have no machine.
fn fleet() -> World {
    let mut world = World::new();
    world.tell(Event::Directory(directory()));
    connect(&mut world, WEB, "web", 1);
    connect(&mut world, DB, "db", 2);
    world
}

/// Opens a session, and answers with what is said once its runtime is ready.
fn connect(world: &mut World, conn: u64, agent: &str, seed: u8) -> Vec<Effect> {
    world.join(conn, &hello(agent, seed), seed);
    let configured = Configured { digest: Some(Configuration::default().digest), problems: Vec::new() };
    world.say(conn, agent, FromRuntime::Configured(configured))
}

fn letter(from: &str, to: Address, id: MessageId, post: Post) -> Inbound {
    Inbound::Message(Envelope { id, from: agent(from), to, timestamp: 0, body: FromRuntime::Message(post) })
}

fn send_as(world: &mut World, conn: u64, from: &str, to: Address, id: MessageId, post: Post) -> Vec<Effect> {
    world.tell(Event::Received { conn: ConnId(conn), inbound: letter(from, to, id, post) })
}

/// Sends a message of `web` to `db`.
fn send(world: &mut World, id: MessageId) -> Vec<Effect> {
    send_as(world, WEB, "web", agent("db"), id, post())
}

fn take(world: &mut World, conn: u64, from: &str, id: MessageId) -> Vec<Effect> {
    world.say(conn, from, FromRuntime::MessageTaken(MessageRef { message: id }))
}

fn ids<const N: usize>() -> [MessageId; N] {
    [(); N].map(|()| MessageId::generate())
}

fn accepted(effects: &[Effect], conn: u64) -> bool {
    sent(effects, conn).iter().any(|body| matches!(body, FromHub::MessageAccepted(_)))
}

fn denied(effects: &[Effect], conn: u64) -> Option<RefusedCode> {
    sent(effects, conn).into_iter().find_map(|body| match body {
        FromHub::MessageRefused(MessageRefused { code, .. }) => Some(code),
        _ => None,
    })
}

fn delivered(effects: &[Effect], conn: u64) -> Vec<MessageId> {
    let delivered = effects.iter().filter_map(|effect| match effect {
        Effect::Deliver { conn: to, message } if *to == ConnId(conn) => Some(message.id),
        _ => None,
    });
    delivered.collect()
}

fn records(effects: &[Effect]) -> Vec<Message> {
    let messages = stored(effects).into_iter().map(|record| match record {
        Record::Message(message) => message,
        other => panic!("{other:?}"),
    });
    messages.collect()
}

fn dead(effects: &[Effect]) -> Vec<MessageId> {
    let dead = records(effects).into_iter().filter(|it| matches!(it.state, MessageState::Dead { .. }));
    dead.map(|message| message.id).collect()
}

fn waiting(world: &World, agent: &str) -> u32 {
    let sessions = world.hub.sessions();
    sessions.iter().find(|session| session.agent == name(agent)).unwrap().messages
}

/// A message of the host's.
fn from_host(to: &str) -> Message {
    Message {
        id: MessageId::generate(),
        from: Address::Host,
        to: agent(to),
        subject: "news".to_owned(),
        body: Value::Null,
        in_reply_to: None,
        author: Some("ann".to_owned()),
        created_at: at(0),
        expires_at: at(1000),
        state: MessageState::Waiting,
    }
}

fn posted(effects: &[Effect]) -> Option<Result<(), PostError>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Posted { answer, .. } => Some(answer.clone()),
        _ => None,
    })
}

#[test]
fn a_message_is_stored_then_accepted_delivered_and_over_when_it_is_taken() {
    let mut world = fleet();
    let [id] = ids();
    let post = Post { ttl_ms: Some(60_000), in_reply_to: Some(id), ..post() };
    let effects = send_as(&mut world, WEB, "web", agent("db"), id, post.clone());
    let message = Message {
        id,
        from: agent("web"),
        to: agent("db"),
        subject: post.subject,
        body: post.body,
        in_reply_to: Some(id),
        author: None,
        created_at: at(0),
        expires_at: at(60),
        state: MessageState::Waiting,
    };
    let expected = [
        Effect::Store(Record::Message(message.clone())),
        Effect::Send {
            conn: ConnId(WEB),
            to: agent("web"),
            body: FromHub::MessageAccepted(MessageRef { message: id }),
        },
        Effect::Notify(Notice::Message(message.clone())),
        Effect::Deliver { conn: ConnId(DB), message: message.clone() },
    ];
    assert_eq!(effects, expected);
    assert_eq!(waiting(&world, "db"), 1);
    let taken = Message { state: MessageState::Taken { at: at(5) }, ..message };
    world.now = 5;
    let effects = take(&mut world, DB, "db", id);
    assert_eq!(effects, [Effect::Store(Record::Message(taken.clone())), Effect::Notify(Notice::Message(taken))]);
    assert_eq!(waiting(&world, "db"), 0);
    assert_eq!(take(&mut world, DB, "db", id), [], "once");
    assert_eq!(records(&world.tick_at(100)), []);
}

#[test]
fn an_agent_writes_only_to_whom_a_rule_allows() {
    let cases = [
        (WEB, "web", agent("db"), None),
        (WEB, "web", agent("idle"), None),
        (WEB, "web", agent("other"), Some(RefusedCode::Denied)),
        (WEB, "web", agent("nobody"), Some(RefusedCode::Unknown)),
        (WEB, "web", Address::Host, None),
        (DB, "db", agent("web"), Some(RefusedCode::Denied)),
        (DB, "db", agent("db"), Some(RefusedCode::Denied)),
        (DB, "db", Address::Broadcast, Some(RefusedCode::Denied)),
        (DB, "db", Address::Host, None),
    ];
    for (conn, from, to, refused) in cases {
        let mut world = fleet();
        let [id] = ids();
        let effects = send_as(&mut world, conn, from, to.clone(), id, post());
        assert_eq!(denied(&effects, conn), refused, "{from} to {to}");
        assert_eq!(accepted(&effects, conn), refused.is_none(), "{from} to {to}");
        assert_eq!(records(&effects).len(), usize::from(refused.is_none()), "{from} to {to}");
        let told = notices(&effects)
            .iter()
            .any(|it| matches!(it, Notice::MessageRefused { agent, .. } if *agent == name(from)));
        assert_eq!(told, refused.is_some(), "{from} to {to}");
        assert_eq!(world.hub.sessions().len(), 2, "a refused message ends no session");
    }
}

#[test]
fn whoever_was_sent_a_message_may_answer_it_and_nobody_else_may() {
    let mut world = fleet();
    let [question, other] = ids();
    let answer_to = |question| Post { in_reply_to: Some(question), ..post() };
    let answers = |world: &mut World, to: &str, question| {
        let effects = send_as(world, DB, "db", agent(to), MessageId::generate(), answer_to(question));
        denied(&effects, DB).is_none()
    };
    assert!(!answers(&mut world, "web", question), "it was not asked yet");
    send(&mut world, question);
    send_as(&mut world, WEB, "web", agent("idle"), other, post());
    assert!(answers(&mut world, "web", question), "it waits");
    take(&mut world, DB, "db", question);
    assert!(answers(&mut world, "web", question), "it was taken");
    assert!(!answers(&mut world, "idle", question), "another one asked");
    assert!(!answers(&mut world, "web", other), "another one was asked");
}

#[test]
fn a_broadcast_is_one_message_for_each_agent_that_its_sender_may_write_to() {
    let mut world = fleet();
    let [id] = ids();
    let effects = send_as(&mut world, WEB, "web", Address::Broadcast, id, post());
    let receivers: Vec<_> = records(&effects).into_iter().map(|message| (message.id, message.to)).collect();
    assert_eq!(receivers, [(id, agent("db")), (id, agent("idle"))]);
    assert_eq!(sent(&effects, WEB), [FromHub::MessageAccepted(MessageRef { message: id })]);
    assert_eq!((delivered(&effects, DB), delivered(&effects, WEB)), (vec![id], vec![]));
    let answer = Post { in_reply_to: Some(id), ..post() };
    assert!(accepted(&send_as(&mut world, DB, "db", agent("web"), MessageId::generate(), answer), DB));
    let again = send_as(&mut world, WEB, "web", Address::Broadcast, id, post());
    assert_eq!((accepted(&again, WEB), records(&again).len()), (true, 0));
}

#[test]
fn a_broadcast_passes_by_whose_mailbox_is_full_and_says_so_in_a_dead_letter() {
    let mut world = fleet();
    fill(&mut world, "idle");
    let [id, other] = ids();
    let effects = send_as(&mut world, WEB, "web", Address::Broadcast, id, post());
    assert!(accepted(&effects, WEB));
    let states: Vec<_> =
        records(&effects).into_iter().map(|it| (it.to, matches!(it.state, MessageState::Dead { .. }))).collect();
    assert_eq!(states, [(agent("idle"), true), (agent("db"), false)]);
    fill(&mut world, "db");
    world.now += 100;
    let effects = send_as(&mut world, WEB, "web", Address::Broadcast, other, post());
    assert_eq!(denied(&effects, WEB), Some(RefusedCode::Full), "nobody has room");
}

/// As many messages for an agent as may wait.
fn fill(world: &mut World, to: &str) {
    while posted(&world.tell(Event::Post(from_host(to)))) == Some(Ok(())) {}
}

#[test]
fn a_message_to_the_host_is_taken_at_once() {
    let mut world = fleet();
    let [id] = ids();
    let effects = send_as(&mut world, DB, "db", Address::Host, id, post());
    let [message] = &records(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!((&message.from, &message.to), (&agent("db"), &Address::Host));
    assert_eq!(message.state, MessageState::Taken { at: at(0) });
    assert_eq!(notices(&effects), [Notice::Message(message.clone())]);
    let again = send_as(&mut world, DB, "db", Address::Host, id, post());
    assert_eq!(again.len(), 1, "{again:?}");
    assert!(accepted(&again, DB));
}

#[test]
fn what_is_no_message_is_refused_and_the_largest_fits_a_frame() {
    let text = |len: usize| Value::String("x".repeat(len - 2));
    let with = |subject: &str, body: Value| Post { subject: subject.to_owned(), body, ..post() };
    let escaped = Value::String("\u{1}".repeat((BODY_MAX - 2) / 6));
    let cases = [
        ("the longest subject", with(&"ü".repeat(SUBJECT_MAX), Value::Null), None),
        ("a longer one", with(&"x".repeat(SUBJECT_MAX + 1), Value::Null), Some(RefusedCode::Invalid)),
        ("a line end in it", with("a\nb", Value::Null), Some(RefusedCode::Invalid)),
        ("the largest body", with("", text(BODY_MAX)), None),
        ("a larger one", with("", text(BODY_MAX + 1)), Some(RefusedCode::Invalid)),
        ("the largest of escapes", with("", escaped), None),
    ];
    for (what, post, refused) in cases {
        let mut world = fleet();
        let [id] = ids();
        let effects = send_as(&mut world, WEB, "web", agent("db"), id, post.clone());
        assert_eq!(denied(&effects, WEB), refused, "{what}");
        let envelope = Envelope { id, from: agent("web"), to: agent("db"), timestamp: 0, body: FromHub::Message(post) };
        let fits = serde_json::to_string(&envelope).unwrap().len() <= TEXT_MAX;
        assert!(fits || refused.is_some(), "{what}");
        assert_eq!(delivered(&effects, DB).len(), usize::from(refused.is_none()), "{what}");
    }
}

#[test]
fn who_sends_too_much_is_refused_and_the_others_are_not() {
    let mut world = fleet();
    let flood = |world: &mut World, attempts: u32| {
        let send = |_| send_as(world, WEB, "web", Address::Host, MessageId::generate(), post());
        let answers: Vec<_> = (0..attempts).map(send).map(|effects| denied(&effects, WEB)).collect();
        assert!(answers.iter().flatten().all(|code| *code == RefusedCode::Rate));
        u32::try_from(answers.iter().filter(|code| code.is_none()).count()).unwrap()
    };
    assert_eq!(flood(&mut world, 3 * BURST), BURST);
    assert!(accepted(&send_as(&mut world, DB, "db", Address::Host, MessageId::generate(), post()), DB));
    world.now += 2;
    assert_eq!(flood(&mut world, 3 * BURST), 2 * RATE, "what is refused costs nothing");
    world.now -= 3600;
    assert_eq!(flood(&mut world, 10), 0);
    world.now += 1;
    assert_eq!(flood(&mut world, 3 * BURST), RATE, "a clock that was set back costs nothing");
    world.now += 3600;
    assert_eq!(flood(&mut world, 3 * BURST), BURST);
}

#[test]
fn a_broadcast_counts_once_for_each_receiver() {
    let mut world = fleet();
    let broadcast = |world: &mut World| send_as(world, WEB, "web", Address::Broadcast, MessageId::generate(), post());
    let accepted = (0..BURST).filter(|_| accepted(&broadcast(&mut world), WEB)).count();
    assert_eq!(accepted, BURST as usize / 2);
}

#[test]
fn a_message_that_is_known_is_accepted_again_whatever_the_rate() {
    let mut world = fleet();
    let [id] = ids();
    send(&mut world, id);
    while denied(&send_as(&mut world, WEB, "web", Address::Host, MessageId::generate(), post()), WEB).is_none() {}
    let again = send(&mut world, id);
    assert_eq!(sent(&again, WEB), [FromHub::MessageAccepted(MessageRef { message: id })]);
    assert_eq!(again.len(), 1, "stored and delivered once: {again:?}");
    take(&mut world, DB, "db", id);
    assert_eq!(send(&mut world, id).len(), 1, "also when it was taken");
}

#[test]
fn a_full_mailbox_refuses_until_something_is_taken() {
    let mut world = fleet();
    let kept: Vec<_> = (0..WAITING_MAX).map(|_| MessageId::generate()).collect();
    for (n, id) in kept.iter().enumerate() {
        world.now = i64::try_from(n).unwrap();
        assert!(accepted(&send(&mut world, *id), WEB), "{n}");
    }
    assert_eq!(waiting(&world, "db"), 1000);
    let [late] = ids();
    assert_eq!(denied(&send(&mut world, late), WEB), Some(RefusedCode::Full));
    assert!(accepted(&send_as(&mut world, WEB, "web", agent("idle"), late, post()), WEB), "the others feel nothing");
    take(&mut world, DB, "db", kept[0]);
    assert!(accepted(&send(&mut world, MessageId::generate()), WEB));
}

#[test]
fn large_messages_fill_a_mailbox_sooner() {
    let mut world = fleet();
    let body = Value::String("x".repeat(BODY_MAX - 2));
    let large = |id| Post { body: body.clone(), subject: format!("{id}"), ..post() };
    let mut count = 0;
    loop {
        world.now += 1;
        let [id] = ids();
        match denied(&send_as(&mut world, WEB, "web", agent("idle"), id, large(id)), WEB) {
            None => count += 1,
            Some(code) => break assert_eq!(code, RefusedCode::Full),
        }
    }
    assert_eq!(count, WAITING_BYTES_MAX / BODY_MAX);
}

#[test]
fn a_runtime_is_sent_a_few_at_a_time_and_all_again_in_its_next_session() {
    let mut world = fleet();
    let kept: Vec<_> = (0..IN_FLIGHT_MAX + 5).map(|_| MessageId::generate()).collect();
    let first: Vec<_> = kept.iter().flat_map(|id| delivered(&send(&mut world, *id), DB)).collect();
    assert_eq!(first, kept[..IN_FLIGHT_MAX]);
    assert_eq!(delivered(&take(&mut world, DB, "db", kept[3]), DB), [kept[IN_FLIGHT_MAX]], "in whatever order");
    assert_eq!(delivered(&take(&mut world, DB, "db", kept[0]), DB), [kept[IN_FLIGHT_MAX + 1]]);
    world.tell(Event::Closed { conn: ConnId(DB) });
    world.join(3, &hello("db", 2), 2);
    assert_eq!(records(&world.tick_at(1)), [], "a runtime that is not ready is sent nothing");
    let again = connect(&mut world, 4, "db", 2);
    let rest: Vec<_> = kept.iter().copied().filter(|id| *id != kept[0] && *id != kept[3]).collect();
    assert_eq!(delivered(&again, 4), rest[..IN_FLIGHT_MAX]);
}

#[test]
fn what_waits_for_an_agent_reaches_its_next_machine() {
    let mut world = fleet();
    let [id] = ids();
    send(&mut world, id);
    assert_eq!(dead(&world.tell(Event::Revoke(name("db")))), [], "it is declared: another machine will come");
    world.tell(Event::Enroll(credential("db", 2), Some(Configuration::default())));
    let mut hello = hello("db", 5);
    hello.incarnation = vm_agent_schemas::ids::Incarnation(2);
    world.join(9, &hello, 5);
    let configured = Configured { digest: None, problems: Vec::new() };
    let effects = world.say(9, "db", FromRuntime::Configured(configured));
    assert_eq!(delivered(&effects, 9), [id]);
}

#[test]
fn what_waits_for_an_agent_that_is_no_more_is_a_dead_letter() {
    let without_db = || {
        let mut directory = directory();
        directory.members.remove(&name("db"));
        Event::Directory(directory)
    };
    for revoked_first in [true, false] {
        let mut world = fleet();
        let [id] = ids();
        send(&mut world, id);
        let events = [Event::Revoke(name("db")), without_db()];
        let mut effects: Vec<_> = if revoked_first { events.into() } else { events.into_iter().rev().collect() };
        let last = effects.pop().unwrap();
        assert_eq!(dead(&world.tell(effects.remove(0))), []);
        assert_eq!(dead(&world.tell(last)), [id], "{revoked_first}");
        assert_eq!(denied(&send(&mut world, MessageId::generate()), WEB), Some(RefusedCode::Unknown));
    }
}

#[test]
fn what_is_not_taken_in_time_is_a_dead_letter_that_says_how_far_it_came() {
    let mut world = fleet();
    let [to_db, to_idle] = ids();
    let short = || Post { ttl_ms: Some(10_000), ..post() };
    send_as(&mut world, WEB, "web", agent("db"), to_db, short());
    send_as(&mut world, WEB, "web", agent("idle"), to_idle, short());
    assert_eq!(records(&world.tick_at(9)), []);
    let effects = world.tick_at(10);
    assert_eq!(dead(&effects), [to_db, to_idle]);
    let reasons: Vec<_> = records(&effects)
        .into_iter()
        .map(|message| match message.state {
            MessageState::Dead { at: since, reason } => (since == at(10), reason.contains("was sent")),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(reasons, [(true, true), (true, false)]);
    assert_eq!(notices(&effects).len(), 2);
    assert_eq!(take(&mut world, DB, "db", to_db), [], "that comes too late");
    assert_eq!(records(&world.tick_at(100)), []);
}

#[test]
fn a_message_may_wait_for_ever() {
    let mut world = fleet();
    let [id] = ids();
    let post = Post { ttl_ms: Some(u64::MAX), ..post() };
    assert!(accepted(&send_as(&mut world, WEB, "web", agent("idle"), id, post), WEB));
    assert_eq!(records(&world.tick_at(1_000_000_000)), []);
}

#[test]
fn after_a_restart_what_waits_is_delivered_and_what_was_taken_is_known() {
    let mut world = fleet();
    let [waits, taken] = ids();
    let waiting = records(&send(&mut world, waits)).remove(0);
    send(&mut world, taken);
    let over = records(&take(&mut world, DB, "db", taken)).remove(0);

    let mut world = fleet();
    assert_eq!(delivered(&world.tell(Event::Restore(waiting.clone())), DB), [waits]);
    assert_eq!(world.tell(Event::Restore(waiting)), [], "once");
    assert_eq!(world.tell(Event::Restore(over)), []);
    for id in [waits, taken] {
        assert_eq!(send(&mut world, id).len(), 1, "accepted again, and nothing else");
        let answer = Post { in_reply_to: Some(id), ..post() };
        assert!(accepted(&send_as(&mut world, DB, "db", agent("web"), MessageId::generate(), answer), DB));
    }
    assert_eq!(records(&take(&mut world, DB, "db", waits)).len(), 1);
}

#[test]
fn an_id_of_another_senders_message_is_refused() {
    let mut world = fleet();
    let [id] = ids();
    send(&mut world, id);
    let effects = send_as(&mut world, DB, "db", Address::Host, id, post());
    assert_eq!(denied(&effects, DB), Some(RefusedCode::Invalid));
    // Also when so much was sent since that only the mailbox knows it.
    for n in 0..=REMEMBERED_MAX {
        world.now = i64::try_from(n).unwrap();
        send_as(&mut world, WEB, "web", Address::Host, MessageId::generate(), post());
    }
    assert_eq!(send(&mut world, id).len(), 1, "its own sender is told again that it is accepted");
    let message = Message { id, ..from_host("db") };
    let Some(Err(PostError::Refused(refused))) = posted(&world.tell(Event::Post(message))) else { panic!("posted") };
    assert_eq!(refused.code, RefusedCode::Invalid);
}

#[test]
fn the_host_writes_to_every_agent_and_asking_twice_is_asking_once() {
    let mut world = fleet();
    let message = from_host("db");
    let effects = world.tell(Event::Post(message.clone()));
    assert_eq!(posted(&effects), Some(Ok(())));
    assert_eq!((records(&effects), delivered(&effects, DB)), (vec![message.clone()], vec![message.id]));
    let again = world.tell(Event::Post(message.clone()));
    assert_eq!((posted(&again), again.len()), (Some(Ok(())), 1));
    let each = Message { to: agent("other"), ..message };
    assert_eq!(records(&world.tell(Event::Post(each.clone()))), [each], "one id for several receivers");
    let unknown = posted(&world.tell(Event::Post(from_host("nobody"))));
    assert!(matches!(unknown, Some(Err(PostError::Refused(MessageRefused { code: RefusedCode::Unknown, .. })))));
    fill(&mut world, "idle");
    let full = posted(&world.tell(Event::Post(from_host("idle"))));
    assert!(matches!(full, Some(Err(PostError::Refused(MessageRefused { code: RefusedCode::Full, .. })))));
}

/// What comes of an event whose records can't be stored.
fn failing(world: &mut World, event: Event) -> Vec<Effect> {
    let effects = world.hub.handle(event, at(world.now));
    let mut after = world.hub.handle(Event::StoreFailed(stored(&effects)), at(world.now));
    after.extend(effects.into_iter().filter(|effect| !effect.grants() && !matches!(effect, Effect::Store(_))));
    after
}

#[test]
fn a_message_that_could_not_be_stored_is_sent_again_by_its_sender_and_kept_once() {
    for to in [agent("db"), agent("idle"), Address::Host] {
        let mut world = fleet();
        let [id] = ids();
        let event = Event::Received { conn: ConnId(WEB), inbound: letter("web", to.clone(), id, post()) };
        let effects = failing(&mut world, event);
        assert_eq!(refused(&effects, WEB), Some(RefusalCode::Internal), "its sender comes back");
        assert!(!accepted(&effects, WEB));
        assert_eq!(world.hub.sessions().len(), 1, "the others feel nothing");
        connect(&mut world, 3, "web", 1);
        let again = send_as(&mut world, 3, "web", to.clone(), id, post());
        assert!(accepted(&again, 3));
        assert_eq!(records(&again).len(), 1, "{to}");
        assert_eq!(records(&world.tick_at(1)), [], "once is enough");
    }
}

#[test]
fn a_message_that_comes_again_while_it_is_being_stored_is_answered_once() {
    for to in [agent("db"), Address::Host] {
        let mut world = fleet();
        let [id] = ids();
        let event = || Event::Received { conn: ConnId(WEB), inbound: letter("web", to.clone(), id, post()) };
        let first = world.hub.handle(event(), at(0));
        assert_eq!(world.hub.handle(event(), at(0)), [], "else it could hear of a success that never comes");
        world.hub.handle(Event::Stored(stored(&first)), at(0));
        assert!(accepted(&world.tell(event()), WEB));
    }
    let mut world = fleet();
    let message = from_host("db");
    let first = world.hub.handle(Event::Post(message.clone()), at(0));
    assert_eq!(world.hub.handle(Event::Post(message), at(0)), []);
    assert_eq!(posted(&first), Some(Ok(())));
}

#[test]
fn what_could_not_be_stored_of_a_message_is_stored_again() {
    let mut world = fleet();
    let [id] = ids();
    let event = Event::Received { conn: ConnId(WEB), inbound: letter("web", agent("db"), id, post()) };
    failing(&mut world, event);
    assert_eq!(records(&world.tick_at(1)).len(), 1, "though its sender has not come back");
    let inbound = message("db", FromRuntime::MessageTaken(MessageRef { message: id }));
    let effects = failing(&mut world, Event::Received { conn: ConnId(DB), inbound });
    assert_eq!(refused(&effects, DB), None, "nobody waits for this record");
    let effects = world.tick_at(2);
    assert!(matches!(records(&effects)[..], [Message { state: MessageState::Taken { .. }, .. }]), "{effects:?}");
    assert_eq!(records(&world.tick_at(3)), []);
}

#[test]
fn a_message_of_the_hosts_that_could_not_be_stored_is_told_so() {
    let mut world = fleet();
    let message = from_host("db");
    let effects = failing(&mut world, Event::Post(message.clone()));
    assert_eq!(posted(&effects), Some(Err(PostError::NotStored)));
    let again = world.tell(Event::Post(message));
    assert_eq!((posted(&again), records(&again).len()), (Some(Ok(())), 1));
}

#[test]
fn taking_what_was_never_sent_means_nothing() {
    let mut world = fleet();
    let [to_idle] = ids();
    send_as(&mut world, WEB, "web", agent("idle"), to_idle, post());
    assert_eq!(take(&mut world, DB, "db", to_idle), [], "another's");
    assert_eq!(take(&mut world, DB, "db", MessageId::generate()), []);
    assert_eq!(world.hub.sessions().len(), 2);
}

#[test]
fn a_message_in_anothers_name_ends_the_session() {
    let mut world = fleet();
    let [id] = ids();
    let effects = send_as(&mut world, DB, "web", agent("idle"), id, post());
    assert_eq!(refused(&effects, DB), Some(RefusalCode::Impersonation));
    assert_eq!(stored(&effects), []);
    let effects = send_as(&mut world, WEB, "web", agent("idle"), id, post());
    assert!(accepted(&effects, WEB), "whose name it was feels nothing");
}

#[test]
fn only_messages_between_programs_are_for_others_than_the_host() {
    let mut world = fleet();
    let inbound = Inbound::Message(Envelope::new(agent("web"), agent("db"), at(0), FromRuntime::Health(health())));
    let effects = world.tell(Event::Received { conn: ConnId(WEB), inbound });
    assert_eq!(refused(&effects, WEB), Some(RefusalCode::Protocol));
}
