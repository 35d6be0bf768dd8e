use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::Connection;
use vm_agent_schemas::api::{AuditEntry, FleetSource};
use vm_agent_schemas::credential::{ApiToken, Binding, Credential, JoinToken, Role};
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::fleet::{AgentSpec, DeclaredAgent, DriverName, Field, Origin, PowerState, SourceFile};
use vm_agent_schemas::ids::{
    Boot, ClaimId, Digest, Epoch, GroupId, Incarnation, Life, MessageId, Nonce, OperationId, OverrideId, Revision,
    Secret, TaskId, TokenId,
};
use vm_agent_schemas::intent::{Change, Override, OverridePath, Presence};
use vm_agent_schemas::message::{Message, MessageState};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Action, Backoff, Birth, Claim, Operation, Proof, Standing};
use vm_agent_schemas::task::{Job, Task, TaskSource, TaskState, Terms};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{Address, TaskOutcome};

use super::approvals::Approval;
use super::revisions::{NewRevision, StoredRevision};
use super::tasks::Filter;
use super::*;
use crate::migrations::{migrate, migrate_to};

fn database() -> Connection {
    let mut conn = Connection::open_in_memory().unwrap();
    migrate(&mut conn).unwrap();
    conn
}

fn agent(name: &str) -> AgentName {
    name.parse().unwrap()
}

/// A time with more than milliseconds, `seconds` after another.
fn at(seconds: i64) -> Timestamp {
    Timestamp::new(1_700_000_000 + seconds, 123_456_789).unwrap()
}

fn claim(name: &str) -> Claim {
    Claim {
        id: ClaimId::generate(),
        fleet: "lab".parse().unwrap(),
        agent: agent(name),
        driver: DriverName::Local,
        instance: format!("lab-{name}").parse().unwrap(),
        nonce: Nonce::generate(),
        incarnation: Incarnation(3),
        created_at: at(0),
        proof: Proof::Pending,
        birth: Birth::of(&AgentSpec::default()),
        standing: Standing::Up,
        protect: false,
        left_in_mass: false,
        asleep: false,
        history: Default::default(),
    }
}

fn operation(name: &str) -> Operation {
    Operation {
        id: OperationId::generate(),
        agent: agent(name),
        driver: DriverName::Multipass,
        action: Action::Create,
        snapshot: None,
        started_at: at(0),
        deadline: at(60),
        life: Life(2),
    }
}

fn credential(name: &str) -> Credential {
    Credential {
        agent: agent(name),
        incarnation: Incarnation(1),
        nonce: Nonce::generate(),
        join: Some(JoinToken { digest: Secret::generate().digest(), expires_at: at(60) }),
        binding: None,
        boot: Boot(1),
        epoch: Epoch(4),
    }
}

fn task(name: &str, source: TaskSource) -> Task {
    let terms = Terms { timeout: "90s".parse().unwrap(), ..Terms::default() };
    Task::new(TaskId::generate(), Some(agent(name)), source, Job::exec(["make", "test"]), terms, at(0))
}

fn requested(name: &str) -> Task {
    task(name, TaskSource::Request { author: "ann".into(), key: None })
}

fn called(name: &str, key: &str) -> Task {
    task(name, TaskSource::Request { author: "ann".into(), key: Some(key.into()) })
}

fn ended(task: &Task, code: i32) -> Task {
    let state = TaskState::Ended { outcome: TaskOutcome::Exited { code } };
    Task { state, ended_at: Some(at(5)), ..task.clone() }
}

fn dead(task: &Task) -> Task {
    Task { dead: Some("its agent is gone".into()), ..ended(task, 1) }
}

fn message(from: Address, to: Address) -> Message {
    Message {
        id: MessageId::generate(),
        from,
        to,
        subject: "build".into(),
        body: serde_json::json!({"revision": 7}),
        in_reply_to: None,
        author: None,
        created_at: at(0),
        expires_at: at(60),
        state: MessageState::Waiting,
    }
}

fn to_agent(name: &str) -> Message {
    message(Address::Host, Address::Agent(agent(name)))
}

fn taken(message: &Message) -> Message {
    Message { state: MessageState::Taken { at: at(1) }, ..message.clone() }
}

fn given_up(message: &Message) -> Message {
    let state = MessageState::Dead { at: at(2), reason: "nobody took it".into() };
    Message { state, ..message.clone() }
}

#[test]
fn meta_keeps_texts_and_values() {
    let conn = database();
    assert_eq!(meta::get(&conn, "fleet").unwrap(), None);
    meta::set(&conn, "fleet", "lab").unwrap();
    meta::set(&conn, "fleet", "default").unwrap();
    assert_eq!(meta::get(&conn, "fleet").unwrap().as_deref(), Some("default"));
    meta::set_json(&conn, "ports", &vec![9090, 9091]).unwrap();
    assert_eq!(meta::get_json(&conn, "ports").unwrap(), Some(vec![9090, 9091]));
    let error = meta::get_json::<bool>(&conn, "ports").unwrap_err();
    assert!(matches!(error, StoreError::Unreadable { table: "meta", .. }), "{error}");
}

#[test]
fn each_life_is_the_one_after() {
    let conn = database();
    assert_eq!([1, 2, 3].map(|_| meta::next_life(&conn).unwrap()), [Life(1), Life(2), Life(3)]);
}

#[test]
fn a_revision_comes_back_as_it_was_put() {
    let conn = database();
    assert_eq!(revisions::latest(&conn).unwrap(), None);
    let new = new_revision(b"a", "/f/fleet.yaml", "ann");
    let revision = revisions::put(&conn, &new).unwrap();
    let NewRevision { source, digest, author, at, summary } = new;
    let stored = StoredRevision { revision, source, digest, author, at, summary };
    assert_eq!(revisions::latest(&conn).unwrap(), Some(stored.clone()));
    assert_eq!(revisions::get(&conn, revision).unwrap(), Some(stored));
    assert_eq!(revisions::get(&conn, revision.next()).unwrap(), None);
}

#[test]
fn the_same_file_twice_is_one_revision_that_learns_the_path() {
    let conn = database();
    let put = |digest: &[u8], path, author| revisions::put(&conn, &new_revision(digest, path, author)).unwrap();
    assert_eq!(put(b"a", "/one", "ann"), Revision(1));
    assert_eq!(put(b"a", "/two", "bob"), Revision(1));
    let latest = revisions::latest(&conn).unwrap().unwrap();
    assert_eq!((latest.source.roots, latest.author.as_str()), (vec!["/two".into()], "ann"));
    assert_eq!(put(b"b", "/two", "ann"), Revision(2));
    // Going back to an earlier file is a new decision.
    assert_eq!(put(b"a", "/two", "ann"), Revision(3));
    let newest = revisions::newest(&conn, 2).unwrap();
    assert_eq!(newest.iter().map(|it| it.revision).collect::<Vec<_>>(), [Revision(3), Revision(2)]);
}

#[test]
fn the_oldest_revisions_go_and_their_numbers_are_not_given_again() {
    let conn = database();
    for text in [b"a", b"b", b"c", b"d"] {
        revisions::put(&conn, &new_revision(text, "/f", "ann")).unwrap();
    }
    assert_eq!(revisions::prune(&conn, 4).unwrap(), 0);
    assert_eq!(revisions::prune(&conn, 2).unwrap(), 2);
    let left = || revisions::newest(&conn, 9).unwrap().iter().map(|it| it.revision.0).collect::<Vec<_>>();
    assert_eq!(left(), [4, 3]);
    revisions::put(&conn, &new_revision(b"e", "/f", "ann")).unwrap();
    assert_eq!(left(), [5, 4, 3]);
}

fn new_revision(digest: &[u8], path: &str, author: &str) -> NewRevision {
    let file = SourceFile { name: path.into(), path: Some(path.into()), text: "agents: {}\n".into() };
    let source = FleetSource { roots: vec![path.into()], files: vec![file] };
    NewRevision { source, digest: Digest::of(digest), author: author.into(), at: at(0), summary: "1 to create".into() }
}

#[test]
fn claims_are_one_for_each_agent() {
    let conn = database();
    let (web, db) = (claim("web"), claim("db"));
    claims::put(&conn, &web).unwrap();
    claims::put(&conn, &db).unwrap();
    let confirmed = Claim { proof: Proof::Confirmed, ..web };
    claims::put(&conn, &confirmed).unwrap();
    assert_eq!(claims::all(&conn).unwrap(), [db, confirmed.clone()]);
    assert_eq!(claims::get(&conn, &agent("web")).unwrap(), Some(confirmed));
    assert!(claims::remove(&conn, &agent("web")).unwrap());
    assert!(!claims::remove(&conn, &agent("web")).unwrap());
    assert_eq!(claims::get(&conn, &agent("web")).unwrap(), None);
}

#[test]
fn credentials_are_one_for_each_agent() {
    let conn = database();
    let joining = credential("web");
    credentials::put(&conn, &joining).unwrap();
    assert_eq!(credentials::get(&conn, &agent("web")).unwrap(), Some(joining.clone()));
    let binding =
        Some(Binding { public_key: "key".into(), next_key: None, machine_id: Digest::of(b"machine"), verified: true });
    let bound = Credential { join: None, binding, ..joining };
    credentials::put(&conn, &bound).unwrap();
    assert_eq!(credentials::all(&conn).unwrap(), [bound]);
    assert!(credentials::remove(&conn, &agent("web")).unwrap());
    assert_eq!(credentials::all(&conn).unwrap(), []);
}

#[test]
fn backoffs_are_one_for_each_agent() {
    let conn = database();
    let first = Backoff {
        agent: agent("web"),
        failures: 1,
        failed_at: at(0),
        not_before: at(10),
        step: None,
        last: "no image".into(),
    };
    backoffs::put(&conn, &first).unwrap();
    assert_eq!(backoffs::get(&conn, &agent("web")).unwrap(), Some(first.clone()));
    let second = Backoff { failures: 2, not_before: at(30), ..first };
    backoffs::put(&conn, &second).unwrap();
    assert_eq!(backoffs::all(&conn).unwrap(), [second]);
    assert!(backoffs::remove(&conn, &agent("web")).unwrap());
    assert_eq!(backoffs::all(&conn).unwrap(), []);
}

#[test]
fn a_second_operation_of_an_agent_is_refused_until_the_first_is_closed() {
    let conn = database();
    let (first, second, other) = (operation("web"), operation("web"), operation("db"));
    operations::open(&conn, &first).unwrap();
    operations::open(&conn, &other).unwrap();
    let error = operations::open(&conn, &second).unwrap_err();
    assert_eq!(error.to_string(), "there is already an operation under way for web");
    assert_eq!(operations::open_operations(&conn).unwrap(), [first.clone(), other.clone()]);

    assert!(operations::close(&conn, first.id, "succeeded", at(9)).unwrap());
    assert!(!operations::close(&conn, first.id, "failed", at(10)).unwrap());
    let outcome: String = conn
        .query_row("SELECT outcome FROM operations WHERE id = ?1", [first.id.to_string()], |row| row.get(0))
        .unwrap();
    assert_eq!(outcome, "succeeded");
    operations::open(&conn, &second).unwrap();
    assert_eq!(operations::open_operations(&conn).unwrap(), [other, second]);
}

#[test]
fn overrides_are_one_for_each_agent_and_path() {
    let conn = database();
    let declared = DeclaredAgent {
        spec: AgentSpec { memory: ByteSize::from_gib(8), ..AgentSpec::default() },
        origins: BTreeMap::from([(Field::Memory, Origin::Override), (Field::Image, Origin::BuiltIn)]),
        clone_of: None,
    };
    let power = Override {
        id: OverrideId::generate(),
        agent: agent("web"),
        change: Change::Power { wanted: PowerState::Stopped, covers: PowerState::Running },
        author: "ann".into(),
        reason: Some("too loud".into()),
        created_at: at(0),
        expires_at: Some(at(3600)),
    };
    let presence = Override {
        change: Change::Presence(Presence::Present(declared)),
        reason: None,
        expires_at: None,
        ..power.clone()
    };
    overrides::put(&conn, &power).unwrap();
    overrides::put(&conn, &presence).unwrap();
    assert_eq!(overrides::all(&conn).unwrap(), [power, presence.clone()]);

    let absent = Override { change: Change::Presence(Presence::Absent), ..presence };
    overrides::put(&conn, &absent).unwrap();
    assert!(overrides::remove(&conn, &agent("web"), OverridePath::Power).unwrap());
    assert!(!overrides::remove(&conn, &agent("web"), OverridePath::Power).unwrap());
    assert_eq!(overrides::all(&conn).unwrap(), [absent]);
}

#[test]
fn a_task_goes_its_way() {
    let conn = database();
    let queued = requested("web");
    tasks::put(&conn, &queued).unwrap();
    assert_eq!(tasks::unfinished(&conn).unwrap(), std::slice::from_ref(&queued));
    let state = TaskState::Running { incarnation: Incarnation(1) };
    let running = Task { state, started_at: Some(at(1)), ..queued.clone() };
    tasks::put(&conn, &running).unwrap();
    assert_eq!(tasks::unfinished(&conn).unwrap(), std::slice::from_ref(&running));
    let done = ended(&running, 0);
    tasks::put(&conn, &done).unwrap();
    assert_eq!(tasks::unfinished(&conn).unwrap(), []);
    assert_eq!(tasks::get(&conn, queued.id).unwrap(), Some(done));
}

#[test]
fn a_task_that_has_ended_never_changes() {
    let conn = database();
    let queued = requested("web");
    let done = ended(&queued, 0);
    tasks::put(&conn, &queued).unwrap();
    tasks::put(&conn, &done).unwrap();
    tasks::put(&conn, &done).unwrap();
    for other in [queued, ended(&done, 1), dead(&done)] {
        let error = tasks::put(&conn, &other).unwrap_err();
        assert!(matches!(error, StoreError::TaskEnded { task } if task == done.id), "{error}");
    }
    assert_eq!(tasks::get(&conn, done.id).unwrap(), Some(done));
}

#[test]
fn the_id_of_a_task_can_t_be_taken_for_another_one() {
    let conn = database();
    let mine = requested("web");
    tasks::put(&conn, &mine).unwrap();
    let error = tasks::put(&conn, &Task { agent: Some(agent("db")), ..mine.clone() }).unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
    assert_eq!(tasks::get(&conn, mine.id).unwrap(), Some(mine));
}

#[test]
fn a_task_of_the_file_is_accepted_once_for_each_machine_and_wording() {
    let conn = database();
    let (machine, wording) = (ClaimId::generate(), Digest::of(b"make test"));
    let of_file = |claim: ClaimId, digest: &Digest| {
        task("web", TaskSource::File { name: "build".parse().unwrap(), digest: digest.clone(), claim, due: None })
    };
    let first = of_file(machine, &wording);
    tasks::put(&conn, &first).unwrap();
    tasks::put(&conn, &ended(&first, 0)).unwrap();
    let error = tasks::put(&conn, &of_file(machine, &wording)).unwrap_err();
    assert_eq!(error.to_string(), "there is already a task of this wording for `build` on `web`");

    let (new_machine, new_wording) =
        (of_file(ClaimId::generate(), &wording), of_file(machine, &Digest::of(b"make check")));
    tasks::put(&conn, &new_machine).unwrap();
    tasks::put(&conn, &new_wording).unwrap();
    tasks::put(&conn, &requested("web")).unwrap();
    assert_eq!(tasks::all_from_file(&conn).unwrap(), [ended(&first, 0), new_machine, new_wording]);
}

#[test]
fn a_task_of_the_file_is_done_again_beside_the_one_that_it_does_again_as_often_as_somebody_wants() {
    let conn = database();
    let first = task("web", of_file(ClaimId::generate(), "build"));
    tasks::put(&conn, &first).unwrap();
    tasks::put(&conn, &ended(&first, 1)).unwrap();
    let again = || Task { replay_of: Some(first.id), ..task("web", first.source.clone()) };
    let (second, third) = (again(), again());
    tasks::put(&conn, &second).unwrap();
    tasks::put(&conn, &third).unwrap();
    assert_eq!(tasks::all_from_file(&conn).unwrap(), [ended(&first, 1), second, third]);
}

#[test]
fn the_latest_tasks_of_an_agent_come_first() {
    let conn = database();
    let tasks = [requested("web"), requested("web"), requested("web")];
    for task in tasks.iter().chain([&requested("db")]) {
        tasks::put(&conn, task).unwrap();
    }
    let [_, second, third] = tasks;
    let of_web = Filter { agent: Some(agent("web")), ..Filter::default() };
    assert_eq!(tasks::list(&conn, &of_web, 2).unwrap(), [third, second]);
}

#[test]
fn a_filter_lets_through_what_everything_in_it_holds_for() {
    let conn = database();
    let group = Some(GroupId::generate());
    let [queued, grouped, over, letter] =
        [requested("web"), Task { group, ..requested("web") }, ended(&requested("db"), 0), dead(&requested("web"))];
    for task in [&queued, &grouped, &over, &letter] {
        tasks::put(&conn, task).unwrap();
    }
    let listed = |filter: Filter| tasks::list(&conn, &filter, 10).unwrap();
    let all = Filter::default();
    assert_eq!(listed(all.clone()), [&letter, &over, &grouped, &queued].map(Clone::clone));
    assert_eq!(listed(Filter { group, ..all.clone() }), std::slice::from_ref(&grouped));
    assert_eq!(listed(Filter { state: Some("queued"), ..all.clone() }), [grouped, queued]);
    assert_eq!(listed(Filter { state: Some("ended"), dead: Some(false), ..all.clone() }), [over]);
    assert_eq!(listed(Filter { dead: Some(true), ..all.clone() }), [letter]);
    assert_eq!(listed(Filter { dead: Some(true), agent: Some(agent("db")), ..all }), []);
}

#[test]
fn a_task_of_a_pool_goes_from_agent_to_agent_and_no_other_does() {
    let conn = database();
    let pool = Some("team=build".parse().unwrap());
    let pooled = Task { agent: None, pool, ..requested("web") };
    for name in [None, Some("web"), None, Some("db")] {
        let task = Task { agent: name.map(agent), ..pooled.clone() };
        tasks::put(&conn, &task).unwrap();
        assert_eq!(tasks::unfinished(&conn).unwrap(), [task]);
    }
    let of_db = Filter { agent: Some(agent("db")), ..Filter::default() };
    assert_eq!(tasks::list(&conn, &of_db, 9).unwrap().len(), 1);
}

#[test]
fn a_key_is_of_one_request_though_it_makes_several_tasks() {
    let conn = database();
    let group = Some(GroupId::generate());
    let [web, db] = ["web", "db"].map(|name| Task { group, ..called(name, "nightly") });
    tasks::put(&conn, &web).unwrap();
    tasks::put(&conn, &db).unwrap();
    for other in [called("ci", "nightly"), Task { group: Some(GroupId::generate()), ..called("ci", "nightly") }] {
        let error = tasks::put(&conn, &other).unwrap_err();
        assert_eq!(error.to_string(), "there is already a task with the key for nightly");
    }
    tasks::put(&conn, &called("ci", "weekly")).unwrap();
    assert_eq!(tasks::by_key(&conn, "nightly").unwrap(), [web, db]);
    assert_eq!(tasks::by_key(&conn, "yearly").unwrap(), []);
}

#[test]
fn a_dead_letter_is_dropped_once_and_its_outcome_stays() {
    let conn = database();
    let letter = dead(&requested("web"));
    tasks::put(&conn, &letter).unwrap();
    assert!(tasks::drop_dead(&conn, letter.id).unwrap());
    assert!(!tasks::drop_dead(&conn, letter.id).unwrap());
    assert_eq!(tasks::get(&conn, letter.id).unwrap(), Some(Task { dead: None, ..letter }));
}

#[test]
fn the_oldest_ended_tasks_go_and_what_a_machine_was_given_stays() {
    let conn = database();
    let present = claim("web");
    claims::put(&conn, &present).unwrap();
    let of = |claim| ended(&task("web", of_file(claim, "build")), 0);
    let (given, of_former) = (of(present.id), of(ClaimId::generate()));
    let by_hand: Vec<Task> = (0..4).map(|code| ended(&requested("web"), code)).collect();
    let letters = [dead(&requested("web")), dead(&requested("web"))];
    let open = requested("web");
    for task in [&given, &of_former, &open].into_iter().chain(&by_hand).chain(&letters) {
        tasks::put(&conn, task).unwrap();
    }
    assert_eq!(tasks::prune(&conn, 2, 1).unwrap(), 4);
    let left = tasks::list(&conn, &Filter::default(), 99).unwrap();
    assert_eq!(left, [&letters[1], &by_hand[3], &by_hand[2], &open, &given].map(Clone::clone));
    assert_eq!(tasks::prune(&conn, 2, 1).unwrap(), 0);
}

fn of_file(claim: ClaimId, name: &str) -> TaskSource {
    TaskSource::File { name: name.parse().unwrap(), digest: Digest::of(name.as_bytes()), claim, due: None }
}

#[test]
fn tasks_from_before_attempts_are_carried_over() {
    let mut conn = Connection::open_in_memory().unwrap();
    migrate_to(&mut conn, 2).unwrap();
    let (id, claim) = (TaskId::generate(), ClaimId::generate());
    let record = serde_json::json!({
        "id": id, "agent": "web", "source": {"from": "File", "name": "build", "digest": "d", "claim": claim},
        "run": {"argv": ["make"], "env": {"CI": "1"}, "cwd": "src"}, "timeout": "90s", "attempt": 1,
        "state": {"state": "ended", "outcome": {"end": "exited", "code": 2}},
        "createdAt": at(0), "startedAt": at(1), "endedAt": at(2), "output": "",
    });
    let record = record.to_string().replace("\"File\"", "\"file\"");
    let sql = "INSERT INTO tasks (id, agent, ended, claim, name, digest, record, output) VALUES (?1, 'web', 1, ?2, 'build', 'd', ?3, 'x')";
    conn.execute(sql, (id.to_string(), claim.to_string(), record)).unwrap();
    let plain = serde_json::json!({
        "id": TaskId::generate(), "agent": "db", "source": {"from": "request", "author": "ann"}, "run": {"argv": ["ls"]},
        "timeout": "1h", "attempt": 1, "state": {"state": "sent", "incarnation": 4}, "createdAt": at(0),
        "startedAt": null, "endedAt": null, "output": "",
    });
    let sql = "INSERT INTO tasks (id, agent, ended, record, output) VALUES (?1, 'db', 0, ?2, '')";
    conn.execute(sql, (plain["id"].as_str().unwrap(), plain.to_string())).unwrap();
    migrate(&mut conn).unwrap();

    let carried = tasks::get(&conn, id).unwrap().unwrap();
    let job = Job { env: [("CI".into(), "1".into())].into(), cwd: Some("src".into()), ..Job::exec(["make"]) };
    assert_eq!((&carried.job, carried.terms.timeout), (&job, "90s".parse().unwrap()));
    assert_eq!(carried.outcome(), Some(&TaskOutcome::Exited { code: 2 }));
    assert_eq!(tasks::all_from_file(&conn).unwrap(), [carried]);
    let open = tasks::unfinished(&conn).unwrap();
    assert_eq!((open.len(), &open[0].job), (1, &Job::exec(["ls"])));
    assert_eq!(open[0].handed_to(), Some(Incarnation(4)));
}

#[test]
fn a_message_is_stored_once_and_goes_one_way() {
    let conn = database();
    let waiting = to_agent("web");
    for message in [&waiting, &waiting, &taken(&waiting), &waiting, &given_up(&waiting)] {
        messages::put(&conn, message).unwrap();
    }
    assert_eq!(messages::get(&conn, waiting.id, None).unwrap(), [taken(&waiting)]);
}

#[test]
fn an_id_is_its_senders_and_goes_to_several_receivers() {
    let conn = database();
    let first = to_agent("web");
    let second = Message { to: Address::Agent(agent("db")), ..first.clone() };
    let forged = Message { from: Address::Agent(agent("ci")), body: "other".into(), ..first.clone() };
    for message in [&first, &second, &forged] {
        messages::put(&conn, message).unwrap();
    }
    assert_eq!(messages::get(&conn, first.id, Some(&Address::Host)).unwrap(), [first.clone(), second]);
    assert_eq!(messages::get(&conn, first.id, None).unwrap().len(), 3);
}

#[test]
fn what_waits_is_remembered_whole_and_what_is_over_without_what_it_said() {
    let conn = database();
    let (old, waiting, letter) = (taken(&to_agent("web")), to_agent("web"), given_up(&to_agent("web")));
    for message in [&old, &waiting, &letter] {
        messages::put(&conn, message).unwrap();
    }
    let emptied = |message: &Message| Message { body: serde_json::Value::Null, ..message.clone() };
    assert_eq!(messages::remembered(&conn).unwrap(), [emptied(&old), waiting, emptied(&letter)]);
    assert_eq!(messages::dead(&conn, 9).unwrap(), [letter]);
}

#[test]
fn a_mailbox_is_read_on_from_where_it_was_left() {
    let conn = database();
    let web = Address::Agent(agent("web"));
    let to_host: Vec<Message> = (0..5).map(|_| message(web.clone(), Address::Host)).collect();
    let to_web = to_agent("web");
    for message in to_host.iter().chain([&to_web, &to_agent("db")]) {
        messages::put(&conn, message).unwrap();
    }
    let of_host = |after: Option<MessageId>, limit| messages::of(&conn, &Address::Host, false, after, limit).unwrap();
    assert_eq!(of_host(None, 2), to_host[3..]);
    assert_eq!(of_host(Some(to_host[1].id), 2), to_host[2..4]);
    assert_eq!(of_host(Some(to_host[4].id), 2), []);
    assert_eq!(of_host(Some(MessageId::generate()), 1), to_host[4..]);
    assert_eq!(messages::of(&conn, &web, true, None, 99).unwrap().len(), 6);
    assert_eq!(messages::of(&conn, &web, false, None, 99).unwrap(), [to_web]);
}

#[test]
fn the_oldest_messages_go_and_what_waits_stays() {
    let conn = database();
    let waiting = to_agent("web");
    let over: Vec<Message> = (0..3).map(|_| taken(&to_agent("web"))).collect();
    let letters: Vec<Message> = (0..3).map(|_| given_up(&to_agent("web"))).collect();
    for message in [&waiting].into_iter().chain(&over).chain(&letters) {
        messages::put(&conn, message).unwrap();
    }
    assert_eq!(messages::prune(&conn, 1, 2).unwrap(), 3);
    assert_eq!(messages::remembered(&conn).unwrap().len(), 4);
    assert_eq!(messages::dead(&conn, 9).unwrap(), [letters[2].clone(), letters[1].clone()]);
    let other = Address::Agent(agent("db"));
    assert_eq!(messages::drop_dead(&conn, letters[1].id, Some(&other)).unwrap(), 0);
    assert_eq!(messages::drop_dead(&conn, letters[1].id, None).unwrap(), 1);
    assert_eq!(messages::drop_dead(&conn, waiting.id, None).unwrap(), 0);
}

#[test]
fn closed_operations_and_the_audit_are_bounded() {
    let conn = database();
    for second in 0..4 {
        let operation = operation("web");
        operations::open(&conn, &operation).unwrap();
        operations::close(&conn, operation.id, "succeeded", at(second)).unwrap();
        audit::append(&conn, at(second), "ann", "POST", "/apply", 200).unwrap();
    }
    let open = operation("web");
    operations::open(&conn, &open).unwrap();
    assert_eq!((operations::prune(&conn, 1).unwrap(), audit::prune(&conn, 3).unwrap()), (3, 1));
    assert_eq!(operations::open_operations(&conn).unwrap(), [open]);
    let oldest: String = conn.query_row("SELECT min(at) FROM audit", (), |row| row.get(0)).unwrap();
    assert_eq!(oldest, at(1).to_string());
}

#[test]
fn a_token_is_found_by_its_digest_alone() {
    let conn = database();
    let token = |name: &str| ApiToken {
        id: TokenId::generate(),
        name: name.into(),
        digest: Secret::generate().digest(),
        role: Role::Lifecycle,
        created_at: at(0),
        expires_at: None,
    };
    let (one, two) = (token("ci"), ApiToken { role: Role::Read, expires_at: Some(at(60)), ..token("laptop") });
    tokens::put(&conn, &one).unwrap();
    tokens::put(&conn, &two).unwrap();
    assert_eq!(tokens::find(&conn, &one.digest).unwrap(), Some(one.clone()));
    assert_eq!(tokens::find(&conn, &Digest::of(b"a guess")).unwrap(), None);
    let error = tokens::put(&conn, &ApiToken { id: TokenId::generate(), ..one.clone() }).unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
    assert!(tokens::remove(&conn, one.id).unwrap());
    assert!(!tokens::remove(&conn, one.id).unwrap());
    assert_eq!(tokens::find(&conn, &one.digest).unwrap(), None);
    assert_eq!(tokens::all(&conn).unwrap(), [two]);
}

#[test]
fn an_incarnation_is_never_given_twice() {
    let conn = database();
    claims::put(&conn, &claim("web")).unwrap();
    claims::remove(&conn, &agent("web")).unwrap();
    assert_eq!(claims::incarnations(&conn).unwrap()[&agent("web")], Incarnation(3));
}

#[test]
fn the_first_yes_to_a_thing_is_kept() {
    let conn = database();
    let id = Digest::of(b"replace web");
    let yes =
        |author: &str, when| Approval { id: id.clone(), agent: agent("web"), author: author.into(), at: at(when) };
    approvals::put(&conn, &yes("ann", 0)).unwrap();
    approvals::put(&conn, &yes("bob", 1)).unwrap();
    assert_eq!(approvals::all(&conn).unwrap(), [yes("ann", 0)]);
    assert!(approvals::remove(&conn, &id).unwrap());
    assert!(!approvals::remove(&conn, &id).unwrap());
    assert_eq!(approvals::all(&conn).unwrap(), []);
}

#[test]
fn events_of_every_kind_come_back_in_order() {
    let conn = database();
    let web = agent("web");
    let mut appended = Vec::new();
    for (seconds, kind) in (0..).zip(EventKind::ALL) {
        let new = if seconds % 2 == 0 { NewEvent::of(&web, *kind, "a") } else { NewEvent::fleet(*kind, "b") };
        // Clocks go back at times; the order does not.
        appended.push(events::append(&conn, &new, at(-seconds)).unwrap());
    }
    assert!(appended.is_sorted_by(|a, b| a.seq < b.seq));
    assert_eq!(events::since(&conn, 0, None, 1000).unwrap(), appended);
    assert_eq!(events::since(&conn, appended[1].seq, None, 2).unwrap(), appended[2..4]);
    assert_eq!(events::latest(&conn, None, 3).unwrap(), appended[appended.len() - 3..]);
    let of_web: Vec<_> = appended.iter().filter(|event| event.agent.is_some()).cloned().collect();
    assert_eq!(events::since(&conn, appended[0].seq, Some(&web), 2).unwrap(), of_web[1..3]);
    assert_eq!(events::latest(&conn, Some(&web), 2).unwrap(), of_web[of_web.len() - 2..]);
    assert_eq!(events::latest(&conn, Some(&agent("db")), 2).unwrap(), []);
    let of = |kinds| events::latest_of(&conn, kinds).unwrap();
    assert_eq!(of([appended[3].kind, appended[1].kind]).as_ref(), Some(&appended[3]));
    assert_eq!(of([appended[1].kind; 2]).as_ref(), Some(&appended[1]));
}

#[test]
fn pruned_events_never_lend_their_place() {
    let conn = database();
    let append = || events::append(&conn, &NewEvent::fleet(EventKind::FleetApplied, "x"), at(0)).unwrap();
    let all: Vec<_> = (0..5).map(|_| append()).collect();
    assert_eq!(events::prune(&conn, 9).unwrap(), 0);
    assert_eq!(events::prune(&conn, 2).unwrap(), 3);
    assert_eq!(events::latest(&conn, None, 9).unwrap(), all[3..]);
    assert_eq!(events::prune(&conn, 0).unwrap(), 2);
    assert!(append().seq > all[4].seq);
}

#[test]
fn the_audit_keeps_who_asked_for_what() {
    let conn = database();
    let places = ["/fleet/apply", "/agents/web/stop", "/tokens"];
    for (second, path) in (0..).zip(places) {
        audit::append(&conn, at(second), "ann", "POST", path, 200).unwrap();
    }
    let all = audit::latest(&conn, 9).unwrap();
    let first = AuditEntry {
        seq: all[0].seq,
        at: at(0),
        actor: "ann".to_owned(),
        method: "POST".to_owned(),
        path: "/fleet/apply".to_owned(),
        status: 200,
    };
    assert_eq!((&all[0], all.len()), (&first, 3));
    assert_eq!(audit::latest(&conn, 2).unwrap(), all[1..]);
    assert_eq!(audit::since(&conn, all[0].seq, 1).unwrap(), all[1..2]);
}

#[test]
fn a_record_that_is_not_one_is_an_error_that_names_its_table() {
    let conn = database();
    conn.execute("INSERT INTO claims (agent, record) VALUES ('web', '{}')", ()).unwrap();
    let error = claims::all(&conn).unwrap_err();
    assert_eq!(error.to_string(), "a record of table `claims` can't be read");
    conn.execute("INSERT INTO events (at, kind, message) VALUES ('2026-01-01T00:00:00Z', 'Nonsense', '')", ()).unwrap();
    let error = events::latest(&conn, None, 1).unwrap_err();
    assert!(matches!(error, StoreError::Unreadable { table: "events", .. }), "{error}");
}
