//! The records on the disk: how each change is written, and how a life reads what those before it left.
//! Synchronous, on a connection that somebody else holds, and within their transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use vm_agent_hub::Record;
use vm_agent_plan::{Mode, Shared};
use vm_agent_schemas::event::Event;
use vm_agent_schemas::fleet;
use vm_agent_schemas::ids::{Life, Revision};
use vm_agent_schemas::names::FleetName;
use vm_agent_schemas::plan::ApprovalRequest;
use vm_agent_store::{self as store, StoreError};

use crate::engine::notices::news_of;
use crate::engine::records::{AcceptedFile, Change, NEVER_BLOWN, NewFile, Records};

const FUSE_KEY: &str = "fuse";
const PAUSE_KEY: &str = "pause";
const MODE_KEY: &str = "mode";
const FLEET_KEY: &str = "fleet";
const WATCHED_KEY: &str = "file";

/// Accepted fleet files kept to go back to: a year of changes every workday and more.
const REVISIONS_KEPT: u32 = 500;

/// What a life finds: the records but for the fleet file, and the accepted fleet file.
///
/// # Errors
/// When the database fails.
pub fn read(
    conn: &rusqlite::Connection,
    life: Life,
) -> Result<(Records, Option<store::revisions::StoredRevision>), StoreError> {
    let owner = store::meta::get(conn, FLEET_KEY)?.and_then(|name| name.parse().ok());
    let mut records = Records {
        life,
        said: 0,
        fleet: Arc::default(),
        file: None,
        watched: store::meta::get_json(conn, WATCHED_KEY)?.unwrap_or_default(),
        owner,
        overrides: store::overrides::all(conn)?,
        claims: store::claims::all(conn)?.into_iter().map(|c| (c.agent.clone(), c)).collect(),
        credentials: store::credentials::all(conn)?.into_iter().map(|c| (c.agent.clone(), c)).collect(),
        operations: store::operations::open_operations(conn)?.into_iter().map(|o| (o.agent.clone(), o)).collect(),
        tasks: Shared::default(),
        work: BTreeMap::new(),
        pooled: BTreeMap::new(),
        snapshots: Shared::default(),
        errands: BTreeMap::new(),
        approvals: store::approvals::all(conn)?.into_iter().map(|approval| (approval.id, approval.agent)).collect(),
        incarnations: store::claims::incarnations(conn)?.into(),
        mode: store::meta::get(conn, MODE_KEY)?.map_or(Mode::Up, |text| mode_of(&text)),
        backoffs: store::backoffs::all(conn)?.into_iter().map(|b| (b.agent.clone(), b)).collect(),
        pause: store::meta::get_json(conn, PAUSE_KEY)?.flatten(),
        fuse: store::meta::get_json(conn, FUSE_KEY)?.unwrap_or(NEVER_BLOWN),
    };
    let snapshots = store::snapshots::all(conn)?.into_iter().map(|it| Change::Snapshot(Box::new(it)));
    let errands = store::errands::open(conn)?.into_iter().map(|it| Change::Errand(Box::new(it)));
    snapshots.chain(errands).for_each(|change| records.apply(change));
    // In the order in which they were accepted: of the runs of one task the last one counts.
    let open = store::tasks::unfinished(conn)?;
    store::tasks::all_from_file(conn)?.iter().chain(&open).for_each(|task| records.note_task(task));
    Ok((records, store::revisions::latest(conn)?))
}

/// Why the ledger could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The accepted fleet file no longer reads: a later version refuses what an earlier one took.
    #[error("the accepted fleet file (revision {revision}) is refused by this version: {problem}")]
    File {
        /// Its number.
        revision: Revision,
        /// What is wrong with it.
        problem: String,
    },
}

/// The records with the accepted fleet file, read and resolved.
///
/// # Errors
/// When the file no longer reads.
pub fn with_file(records: Records, file: store::revisions::StoredRevision) -> Result<Records, LedgerError> {
    let fleet = fleet::parse_all(&file.source.files).map_err(|problems| LedgerError::File {
        revision: file.revision,
        problem: problems.first().map_or_else(String::new, ToString::to_string),
    })?;
    let file = AcceptedFile {
        revision: file.revision,
        source: file.source,
        digest: file.digest,
        author: file.author,
        at: file.at,
    };
    Ok(Records { fleet: Arc::new(fleet), file: Some(file), ..records })
}

/// Writes changes, and gives the events among them their place in the order.
///
/// # Errors
/// When the database fails, or one of them contradicts what is stored.
pub fn write(conn: &rusqlite::Connection, changes: &[Change], now: Timestamp) -> Result<Vec<Event>, StoreError> {
    let mut events = Vec::new();
    for change in changes {
        events.extend(write_one(conn, change, now)?);
    }
    Ok(events)
}

/// Writes an accepted fleet file, with the changes that belong to it. The same text twice is one
/// revision.
///
/// # Errors
/// As of [`write`].
pub fn accept(
    conn: &rusqlite::Connection,
    new: &NewFile,
    changes: &[Change],
    now: Timestamp,
) -> Result<(Revision, Vec<Event>), StoreError> {
    let row = store::revisions::NewRevision {
        source: new.source.clone(),
        digest: new.digest(),
        author: new.author.clone(),
        at: now,
        summary: new.summary.clone(),
    };
    belong_to(conn, &new.fleet.name)?;
    let revision = store::revisions::put(conn, &row)?;
    store::revisions::prune(conn, REVISIONS_KEPT)?;
    Ok((revision, write(conn, changes, now)?))
}

/// Notes which fleet the state folder belongs to.
///
/// # Errors
/// When the database fails.
pub fn belong_to(conn: &rusqlite::Connection, fleet: &FleetName) -> Result<(), StoreError> {
    store::meta::set(conn, FLEET_KEY, fleet.as_str())
}

/// Writes what the hub wants to survive, with the events that follow from it: what is told of a task is stored
/// together with what it tells of, and so neither lost nor told twice.
///
/// # Errors
/// When the database fails, or a record contradicts what is stored.
pub fn note(conn: &rusqlite::Connection, records: &[Record], now: Timestamp) -> Result<Vec<Event>, StoreError> {
    let mut events = Vec::new();
    for record in records {
        match record {
            Record::Task(task) => {
                let before = store::tasks::put(conn, task)?;
                for event in news_of(before.as_ref(), task) {
                    events.push(store::events::append(conn, &event, now)?);
                }
            }
            // The loop stores a credential first and drops it last: one that is gone, or of another life of
            // the machine, is not brought back.
            Record::Credential(credential) => {
                let known = store::credentials::get(conn, &credential.agent)?;
                if known.is_some_and(|known| known.incarnation == credential.incarnation) {
                    store::credentials::put(conn, credential)?;
                }
            }
            Record::Message(message) => store::messages::put(conn, message)?,
            // It goes to the output log, where there is one.
            Record::Output { .. } => {}
        }
    }
    Ok(events)
}

fn write_one(conn: &rusqlite::Connection, change: &Change, now: Timestamp) -> Result<Option<Event>, StoreError> {
    match change {
        Change::Claim(claim) => {
            store::claims::put(conn, claim)?;
            store::snapshots::keep(conn, &claim.agent, Some(claim.id))?;
        }
        Change::Learnt(agent, learnt) => {
            if let Some(claim) = store::claims::get(conn, agent)?.and_then(|claim| learnt.applied_to(&claim)) {
                store::claims::put(conn, &claim)?;
            }
        }
        Change::Unclaim(agent) => {
            store::claims::remove(conn, agent)?;
            store::credentials::remove(conn, agent)?;
            store::snapshots::keep(conn, agent, None)?;
        }
        Change::Credential(credential) => store::credentials::put(conn, credential)?,
        Change::Open(operation) => store::operations::open(conn, operation)?,
        Change::Close(operation, outcome) => {
            store::operations::close(conn, operation.id, outcome, now)?;
        }
        Change::Override(entry) => store::overrides::put(conn, entry)?,
        Change::DropOverride(agent, path) => {
            store::overrides::remove(conn, agent, *path)?;
        }
        Change::Backoff(backoff) => store::backoffs::put(conn, backoff)?,
        Change::DropBackoff(agent) => {
            store::backoffs::remove(conn, agent)?;
        }
        Change::Snapshot(snapshot) => store::snapshots::put(conn, snapshot)?,
        Change::DropSnapshot(agent, name) => {
            store::snapshots::remove(conn, agent, name)?;
        }
        Change::Errand(errand) => store::errands::put(conn, errand)?,
        Change::Approve(request, author) => {
            let ApprovalRequest { id, agent, .. } = request.clone();
            store::approvals::put(conn, &store::approvals::Approval { id, agent, author: author.clone(), at: now })?;
        }
        Change::DropApproval(id) => {
            store::approvals::remove(conn, id)?;
        }
        Change::Task(task) => store::tasks::accept(conn, task)?,
        Change::DropDead(task) => {
            store::tasks::drop_dead(conn, *task)?;
        }
        Change::Fuse(fuse) => store::meta::set_json(conn, FUSE_KEY, fuse)?,
        Change::Mode(mode) => store::meta::set(conn, MODE_KEY, mode_text(*mode))?,
        Change::Pause(pause) => store::meta::set_json(conn, PAUSE_KEY, pause)?,
        Change::Watched(watched) => store::meta::set_json(conn, WATCHED_KEY, watched)?,
        Change::Event(event) => return store::events::append(conn, event, now).map(Some),
    }
    Ok(None)
}

const fn mode_text(mode: Mode) -> &'static str {
    match mode {
        Mode::Up => "up",
        Mode::Down => "down",
        Mode::Destroy => "destroy",
    }
}

fn mode_of(text: &str) -> Mode {
    [Mode::Down, Mode::Destroy].into_iter().find(|mode| mode_text(*mode) == text).unwrap_or_default()
}
