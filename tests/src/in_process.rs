//! A whole controller in the process of a test, in a folder and on ports of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::OpenFlags;
use rusqlite::types::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use vm_agent_daemon::{Actor, Config, Controller, Running};
use vm_agent_drivers::Driver;
use vm_agent_drivers::fake::Fake;
use vm_agent_schemas::api::{AgentView, Applied, ApplyRequest, FleetSource, Problem};
use vm_agent_schemas::credential::Role;
use vm_agent_schemas::event::{Event, EventKind};
use vm_agent_schemas::fleet::{DriverName, HubSettings, SourceFile};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::net::Listen;
use vm_agent_schemas::observe::{Capabilities, Host};
use vm_agent_schemas::plan::{Health, Sync};
use vm_agent_schemas::units::Span;

/// Far longer than anything here takes, on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// A fake under the name of driver `qemu`, whose calls may take so long.
#[must_use]
pub fn qemu(limit: Span) -> Fake {
    Fake::new(DriverName::Qemu, capabilities(limit))
}

/// What the fakes here can do: much at once, each within that time.
#[must_use]
pub fn capabilities(limit: Span) -> Capabilities {
    let mut capabilities = Fake::capabilities_default();
    capabilities.lanes = 16;
    let deadlines = &mut capabilities.deadlines;
    for deadline in [
        &mut deadlines.create,
        &mut deadlines.start,
        &mut deadlines.stop,
        &mut deadlines.resize,
        &mut deadlines.destroy,
        &mut deadlines.snapshot,
        &mut deadlines.restore,
    ] {
        *deadline = limit;
    }
    capabilities
}

/// Starts a controller with runtimes that are heard every second.
///
/// # Panics
/// When it does not start.
pub async fn start(state: &Path, drivers: &[&Fake]) -> Running {
    start_with(state, drivers, Some(Span::from_secs(1))).await
}

/// Starts a controller with this heartbeat.
///
/// # Panics
/// When it does not start.
pub async fn start_with(state: &Path, drivers: &[&Fake], heartbeat: Option<Span>) -> Running {
    start_on(state, drivers, heartbeat, None).await
}

/// Starts a controller on a host that has this.
///
/// # Panics
/// When it does not start.
pub async fn start_on(state: &Path, drivers: &[&Fake], heartbeat: Option<Span>, host: Option<Host>) -> Running {
    let free = Some(Listen::At(([127, 0, 0, 1], 0).into()));
    let hub = HubSettings { listen: free, api_listen: free, dashboard_listen: free, heartbeat, advertise: None };
    let config =
        Config { state_dir: state.to_owned(), hub, fleet: None, up: true, expects_file: false, watch: true, host };
    let drivers = drivers.iter().map(|fake| Arc::new(Fake::clone(fake)) as Arc<dyn Driver>).collect();
    Running::start(config, drivers).await.expect("the controller starts")
}

/// Waits until a look gives something.
///
/// # Panics
/// When it takes far too long.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("it should have come to this by now: {what}"))
}

/// Who asks in tests.
#[must_use]
pub fn ann() -> Actor {
    Actor { name: "ann".to_owned(), role: Role::Admin }
}

/// A request to accept this file.
#[must_use]
pub fn file(text: &str) -> ApplyRequest {
    let file = SourceFile { name: "fleet.yaml".to_owned(), path: None, text: text.to_owned() };
    let source = FleetSource { roots: Vec::new(), files: vec![file] };
    ApplyRequest { source, plan: None, approve: false, dry_run: false }
}

/// Applies a fleet file.
///
/// # Panics
/// When it is refused.
pub async fn apply(controller: &Controller, text: &str) -> Applied {
    controller.apply(file(text), &ann()).await.unwrap_or_else(|problem| panic!("{problem:?}"))
}

/// Applies a fleet file and says yes to all that waits for it.
///
/// # Errors
/// When it is refused.
pub async fn approve(controller: &Controller, text: &str, applied: &Applied) -> Result<Applied, Problem> {
    let request = ApplyRequest { plan: Some(applied.plan.id.clone()), approve: true, ..file(text) };
    controller.apply(request, &ann()).await
}

/// An agent; nothing when there is none of that name.
pub async fn agent(controller: &Controller, name: &str) -> Option<AgentView> {
    let name: AgentName = name.parse().expect("the test gives a valid name");
    controller.agent(&name).await.ok()
}

/// Waits until an agent is like this.
///
/// # Panics
/// When that takes far too long.
pub async fn becomes(controller: &Controller, name: &str, is: impl Fn(&AgentView) -> bool) -> AgentView {
    let mut last = None;
    let look = async {
        loop {
            last = agent(controller, name).await;
            if last.as_ref().is_some_and(&is) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, look).await;
    match (waited, last) {
        (Ok(()), Some(view)) => view,
        (_, last) => panic!("`{name}` should be otherwise by now: {last:#?}"),
    }
}

/// Whether an agent is as wanted and well.
#[must_use]
pub fn is_well(agent: &AgentView) -> bool {
    (agent.sync, agent.health) == (Sync::Synced, Health::Healthy)
}

/// Waits until each of these agents is Synced and Healthy.
///
/// # Panics
/// When that takes far too long.
pub async fn well(controller: &Controller, names: &[&str]) {
    for name in names {
        becomes(controller, name, is_well).await;
    }
}

/// Has the loop look once more, and waits until it has.
///
/// # Panics
/// When the controller refuses its own file.
pub async fn pass(controller: &Controller, text: &str) {
    let before = passes(controller).await;
    apply(controller, text).await;
    until("another pass", async || (passes(controller).await > before).then_some(())).await;
}

async fn passes(controller: &Controller) -> u64 {
    controller.stats().await.expect("counting does not fail").passes
}

/// The latest events.
///
/// # Panics
/// When the store fails.
pub async fn events(controller: &Controller) -> Vec<Event> {
    controller.events(None, None, 1000).await.expect("the store answers")
}

/// How many events of a kind an agent has.
pub async fn count(controller: &Controller, kind: EventKind, name: &str) -> usize {
    let of = |event: &&Event| event.kind == kind && event.agent.as_ref().is_some_and(|agent| agent.as_str() == name);
    events(controller).await.iter().filter(of).count()
}

/// Whether an agent has no machine and is to have none. One that a person let go is told of all the same,
/// while the file declares it.
pub async fn is_gone(controller: &Controller, name: &str) -> bool {
    agent(controller, name).await.is_none_or(|it| it.power.is_none() && it.incarnation.is_none())
}

/// Waits until an agent is gone.
///
/// # Panics
/// When that takes far too long.
pub async fn gone(controller: &Controller, name: &str) {
    until(&format!("`{name}` is gone"), async || is_gone(controller, name).await.then_some(())).await;
}

/// Waits until that many events of a kind are told of an agent.
///
/// # Panics
/// When that takes far too long, and when there are more.
pub async fn told(controller: &Controller, kind: EventKind, name: &str, times: usize) {
    let look = async || (count(controller, kind, name).await >= times).then_some(());
    until(&format!("{kind} of `{name}` is told {times} times"), look).await;
    assert_eq!(count(controller, kind, name).await, times, "{kind} of `{name}`");
}

/// Waits until these agents are well, all of that is written down, and passes find nothing to add.
///
/// # Panics
/// When that takes far too long.
pub async fn settled(controller: &Controller, text: &str, names: &[&str]) {
    well(controller, names).await;
    for name in names {
        let told = async || (count(controller, EventKind::RuntimeConnected, name).await > 0).then_some(());
        until("the connection is told", told).await;
    }
    for _ in 0..2 {
        pass(controller, text).await;
    }
}

/// Everything that the store holds except the audit, as text.
///
/// # Panics
/// When it can't be read.
#[must_use]
pub fn stored(state: &Path) -> Vec<String> {
    let conn = rusqlite::Connection::open_with_flags(state.join("state.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)
        .expect("the database is there");
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name != 'audit' ORDER BY name";
    let tables: Vec<String> = rows(&conn, tables, |row| row.get(0));
    let mut all = Vec::new();
    for table in tables {
        let content: Vec<String> = rows(&conn, &format!("SELECT * FROM \"{table}\""), |row| {
            let columns = row.as_ref().column_count();
            let values: Vec<Value> = (0..columns).map(|at| row.get(at)).collect::<Result<_, _>>()?;
            Ok(format!("{table}: {values:?}"))
        });
        all.extend(content);
    }
    all
}

fn rows<T>(
    conn: &rusqlite::Connection,
    sql: &str,
    read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Vec<T> {
    let mut statement = conn.prepare(sql).expect("the statement is right");
    let rows = statement.query_map((), read).expect("the table can be read");
    rows.map(|row| row.expect("the row can be read")).collect()
}

/// Sends an HTTP request to a TCP port, and gives the status and the body of the answer.
///
/// # Panics
/// When nobody answers.
pub async fn http(
    address: std::net::SocketAddr,
    method: &str,
    path: &str,
    authorization: Option<&str>,
    body: &str,
) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("the port is open");
    let authorization = authorization.map(|text| format!("Authorization: {text}\r\n")).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{authorization}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("the request is taken");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.expect("the answer comes in time").expect("the answer comes");
    let answer = String::from_utf8(answer).expect("the answer is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("the answer has a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("the answer has a status");
    (status, body.to_owned())
}

/// A timestamp that much after another.
///
/// # Panics
/// Beyond the end of time.
#[must_use]
pub fn after(at: Timestamp, span: Span) -> Timestamp {
    at.checked_add(span.get()).expect("tests take place in our time")
}
