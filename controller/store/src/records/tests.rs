use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::Connection;
use vm_agent_schemas::api::FleetSource;
use vm_agent_schemas::credential::{ApiToken, Binding, Credential, JoinToken};
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::fleet::{AgentSpec, DeclaredAgent, DriverName, Field, Origin, PowerState, SourceFile};
use vm_agent_schemas::ids::{
    Boot, ClaimId, Digest, Epoch, Incarnation, Life, Nonce, OperationId, OverrideId, Revision, Secret, TaskId, TokenId,
};
use vm_agent_schemas::intent::{Change, Override, OverridePath, Presence};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Action, Backoff, Birth, Claim, Operation, Proof, Standing};
use vm_agent_schemas::task::{Task, TaskSource, TaskState};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{Run, TaskOutcome};

use super::approvals::Approval;
use super::revisions::{NewRevision, StoredRevision};
use super::*;
use crate::migrations::migrate;

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
    }
}

fn operation(name: &str) -> Operation {
    Operation {
        id: OperationId::generate(),
        agent: agent(name),
        driver: DriverName::Multipass,
        action: Action::Create,
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
    Task {
        id: TaskId::generate(),
        agent: agent(name),
        source,
        run: Run { argv: vec!["make".into(), "test".into()], env: BTreeMap::new(), cwd: None },
        timeout: "90s".parse().unwrap(),
        attempt: 1,
        state: TaskState::Queued,
        created_at: at(0),
        started_at: None,
        ended_at: None,
        output: String::new(),
    }
}

fn requested(name: &str) -> Task {
    task(name, TaskSource::Request { author: "ann".into() })
}

fn ended(task: &Task, code: i32, output: &str) -> Task {
    let state = TaskState::Ended { outcome: TaskOutcome::Exited { code } };
    Task { state, ended_at: Some(at(5)), output: output.into(), ..task.clone() }
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
    let binding = Some(Binding { public_key: "key".into(), machine_id: Digest::of(b"machine") });
    let bound = Credential { join: None, binding, ..joining };
    credentials::put(&conn, &bound).unwrap();
    assert_eq!(credentials::all(&conn).unwrap(), [bound]);
    assert!(credentials::remove(&conn, &agent("web")).unwrap());
    assert_eq!(credentials::all(&conn).unwrap(), []);
}

#[test]
fn backoffs_are_one_for_each_agent() {
    let conn = database();
    let first =
        Backoff { agent: agent("web"), failures: 1, failed_at: at(0), not_before: at(10), last: "no image".into() };
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
fn a_task_goes_its_way_and_keeps_its_output() {
    let conn = database();
    let queued = requested("web");
    tasks::put(&conn, &queued).unwrap();
    assert_eq!(tasks::unfinished(&conn).unwrap(), std::slice::from_ref(&queued));
    let state = TaskState::Running { incarnation: Incarnation(1) };
    let running = Task { state, started_at: Some(at(1)), ..queued.clone() };
    tasks::put(&conn, &running).unwrap();
    assert_eq!(tasks::unfinished(&conn).unwrap(), std::slice::from_ref(&running));
    let done = ended(&running, 0, "ok\n");
    tasks::put(&conn, &done).unwrap();
    assert_eq!(tasks::unfinished(&conn).unwrap(), []);
    assert_eq!(tasks::get(&conn, queued.id).unwrap(), Some(done));
}

#[test]
fn a_task_that_has_ended_never_changes() {
    let conn = database();
    let queued = requested("web");
    let done = ended(&queued, 0, "ok\n");
    tasks::put(&conn, &queued).unwrap();
    tasks::put(&conn, &done).unwrap();
    tasks::put(&conn, &done).unwrap();
    for other in [queued, ended(&done, 1, "ok\n"), ended(&done, 0, "other\n")] {
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
    let error = tasks::put(&conn, &Task { agent: agent("db"), ..mine.clone() }).unwrap_err();
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
    tasks::put(&conn, &ended(&first, 0, "much output")).unwrap();
    let error = tasks::put(&conn, &of_file(machine, &wording)).unwrap_err();
    assert_eq!(error.to_string(), "there is already a task of this wording for `build` on `web`");

    let (new_machine, new_wording) =
        (of_file(ClaimId::generate(), &wording), of_file(machine, &Digest::of(b"make check")));
    tasks::put(&conn, &new_machine).unwrap();
    tasks::put(&conn, &new_wording).unwrap();
    tasks::put(&conn, &requested("web")).unwrap();
    assert_eq!(tasks::all_from_file(&conn).unwrap(), [ended(&first, 0, ""), new_machine, new_wording]);
}

#[test]
fn the_latest_tasks_of_an_agent_come_first() {
    let conn = database();
    let tasks = [requested("web"), requested("web"), requested("web")];
    for task in tasks.iter().chain([&requested("db")]) {
        tasks::put(&conn, task).unwrap();
    }
    let [_, second, third] = tasks;
    assert_eq!(tasks::of_agent(&conn, &agent("web"), 2).unwrap(), [third, second]);
}

#[test]
fn a_token_is_found_by_its_digest_alone() {
    let conn = database();
    let token = |name: &str| ApiToken {
        id: TokenId::generate(),
        name: name.into(),
        digest: Secret::generate().digest(),
        created_at: at(0),
    };
    let (one, two) = (token("ci"), token("laptop"));
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
    assert_eq!(events::since(&conn, 0, 1000).unwrap(), appended);
    assert_eq!(events::since(&conn, appended[1].seq, 2).unwrap(), appended[2..4]);
    assert_eq!(events::latest(&conn, 3).unwrap(), appended[appended.len() - 3..]);
}

#[test]
fn pruned_events_never_lend_their_place() {
    let conn = database();
    let append = || events::append(&conn, &NewEvent::fleet(EventKind::FleetApplied, "x"), at(0)).unwrap();
    let all: Vec<_> = (0..5).map(|_| append()).collect();
    assert_eq!(events::prune(&conn, 9).unwrap(), 0);
    assert_eq!(events::prune(&conn, 2).unwrap(), 3);
    assert_eq!(events::latest(&conn, 9).unwrap(), all[3..]);
    assert_eq!(events::prune(&conn, 0).unwrap(), 2);
    assert!(append().seq > all[4].seq);
}

#[test]
fn the_audit_keeps_who_asked_for_what() {
    let conn = database();
    audit::append(&conn, at(0), "ann", "POST", "/fleet/apply", 200).unwrap();
    let row = conn.query_row("SELECT at, actor, method, path, status FROM audit", (), |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
    });
    let expected = (at(0).to_string(), "ann".to_owned(), "POST".to_owned(), "/fleet/apply".to_owned(), 200);
    assert_eq!(row.unwrap(), expected);
}

#[test]
fn a_record_that_is_not_one_is_an_error_that_names_its_table() {
    let conn = database();
    conn.execute("INSERT INTO claims (agent, record) VALUES ('web', '{}')", ()).unwrap();
    let error = claims::all(&conn).unwrap_err();
    assert_eq!(error.to_string(), "a record of table `claims` can't be read");
    conn.execute("INSERT INTO events (at, kind, message) VALUES ('2026-01-01T00:00:00Z', 'Nonsense', '')", ()).unwrap();
    let error = events::latest(&conn, 1).unwrap_err();
    assert!(matches!(error, StoreError::Unreadable { table: "events", .. }), "{error}");
}
