use std::sync::mpsc;

use tempfile::{TempDir, tempdir};
use vm_agent_schemas::event::{EventKind, NewEvent};

use super::*;
use crate::{events, meta};

fn open() -> (TempDir, Store) {
    let temp = tempdir().unwrap();
    let store = Store::open(&temp.path().join("state.db")).unwrap();
    (temp, store)
}

async fn keys(store: &Store) -> Vec<String> {
    let read = |conn: &Connection| {
        let mut statement = conn.prepare("SELECT key FROM meta ORDER BY key")?;
        let keys = statement.query_map((), |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(keys)
    };
    store.read(read).await.unwrap()
}

async fn set(store: &Store, key: &'static str) -> Result<(), StoreError> {
    store.write(move |conn| meta::set(conn, key, "")).await
}

/// Keeps the writer busy until told to go on, so that what is asked for meanwhile queues.
async fn hold_writer(store: &Store) -> impl FnOnce() + use<> {
    let (holding, held) = tokio::sync::oneshot::channel();
    let (go, wait) = mpsc::channel::<()>();
    let job = move |_: &Connection| {
        holding.send(()).unwrap();
        wait.recv().unwrap();
        Ok(())
    };
    tokio::spawn({
        let store = store.clone();
        async move { store.write(job).await }
    });
    held.await.unwrap();
    move || go.send(()).unwrap()
}

async fn until_queued(store: &Store, jobs: usize) {
    while store.shared.writer.queued() < jobs {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_read_sees_every_write_that_was_answered() {
    let (_temp, store) = open();
    for key in ["a", "b", "c"] {
        set(&store, key).await.unwrap();
        assert!(keys(&store).await.contains(&key.to_owned()));
    }
}

#[tokio::test]
async fn a_reader_can_t_write() {
    let (_temp, store) = open();
    let error = store.read(|conn| meta::set(conn, "a", "")).await.unwrap_err();
    assert!(matches!(error, StoreError::Database(_)), "{error}");
}

#[tokio::test]
async fn reads_go_on_while_a_write_is_under_way_and_writes_while_a_read_is() {
    let (_temp, store) = open();
    let go = hold_writer(&store).await;
    assert_eq!(keys(&store).await, [""; 0]);
    go();

    let (holding, held) = tokio::sync::oneshot::channel();
    let (go, wait) = mpsc::channel::<()>();
    let slow = store.read(move |_| {
        holding.send(()).unwrap();
        wait.recv().unwrap();
        Ok(())
    });
    let meanwhile = async {
        held.await.unwrap();
        set(&store, "a").await.unwrap();
        go.send(()).unwrap();
    };
    let (read, ()) = tokio::join!(slow, meanwhile);
    read.unwrap();
}

#[tokio::test]
async fn writes_that_queue_share_one_commit() {
    const WRITERS: u64 = 100;
    let (_temp, store) = open();
    let go = hold_writer(&store).await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { store.write(move |conn| meta::set(conn, &number.to_string(), "")).await })
        })
        .collect();
    until_queued(&store, writers.len()).await;
    go();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    // One for the write that held the writer, one for all the others.
    assert_eq!(store.stats(), StoreStats { commits: 2, writes: WRITERS + 1 });
    assert_eq!(keys(&store).await.len() as u64, WRITERS);
}

#[tokio::test]
async fn a_write_that_fails_or_panics_is_undone_alone() {
    let (_temp, store) = open();
    let go = hold_writer(&store).await;
    let failing = store.write(|conn| {
        meta::set(conn, "failing", "")?;
        Err::<(), _>(StoreError::Closed)
    });
    let panicking = store.write(|conn| -> Result<(), StoreError> {
        meta::set(conn, "panicking", "")?;
        panic!("this one means to")
    });
    let together = async { tokio::join!(set(&store, "before"), failing, panicking, set(&store, "after")) };
    let release = async {
        until_queued(&store, 4).await;
        go();
    };
    let ((before, failed, panicked, after), ()) = tokio::join!(together, release);
    before.unwrap();
    after.unwrap();
    assert!(matches!(failed, Err(StoreError::Closed)), "{failed:?}");
    assert!(matches!(panicked, Err(StoreError::Panicked)), "{panicked:?}");
    assert_eq!(keys(&store).await, ["after", "before"]);
    assert_eq!(store.stats(), StoreStats { commits: 2, writes: 3 });
    set(&store, "later").await.unwrap();
}

#[tokio::test]
async fn a_read_that_panics_does_not_end_reading() {
    let (_temp, store) = open();
    let panicked = store.read(|_| -> Result<(), StoreError> { panic!("this one means to") }).await;
    assert!(matches!(panicked, Err(StoreError::Panicked)), "{panicked:?}");
    assert_eq!(keys(&store).await, [""; 0]);
}

#[tokio::test]
async fn when_a_transaction_is_lost_all_in_it_fail_and_those_behind_do_not() {
    let (_temp, store) = open();
    let go = hold_writer(&store).await;
    // What SQLite does by itself on a full disk.
    let losing = store.write(|conn| Ok(conn.execute_batch("ROLLBACK")?));
    let together = async { tokio::join!(set(&store, "before"), losing, set(&store, "after")) };
    let release = async {
        until_queued(&store, 3).await;
        go();
    };
    let ((before, losing, after), ()) = tokio::join!(together, release);
    assert!(matches!(before, Err(StoreError::Commit(_))), "{before:?}");
    assert!(matches!(losing, Err(StoreError::Commit(_))), "{losing:?}");
    after.unwrap();
    assert_eq!(keys(&store).await, ["after"]);
}

#[tokio::test]
async fn when_no_transaction_can_begin_every_write_fails() {
    let (temp, store) = open();
    let other = Connection::open(temp.path().join("state.db")).unwrap();
    let impatient = |conn: &Connection| Ok(conn.busy_timeout(Duration::ZERO)?);
    store.write(impatient).await.unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (one, two) = tokio::join!(set(&store, "one"), set(&store, "two"));
    assert!(matches!(one, Err(StoreError::Commit(_))), "{one:?}");
    assert!(matches!(two, Err(StoreError::Commit(_))), "{two:?}");
    other.execute_batch("ROLLBACK").unwrap();
    set(&store, "three").await.unwrap();
    assert_eq!(keys(&store).await, ["three"]);
}

#[tokio::test]
async fn closing_finishes_what_was_asked_for_and_refuses_the_rest() {
    let (temp, store) = open();
    let go = hold_writer(&store).await;
    let write = tokio::spawn({
        let store = store.clone();
        async move { set(&store, "queued").await }
    });
    until_queued(&store, 1).await;
    let closing = store.close();
    let release = async { go() };
    tokio::join!(closing, release);
    write.await.unwrap().unwrap();
    assert!(matches!(set(&store, "late").await, Err(StoreError::Closed)));
    assert!(matches!(store.read(|_| Ok(())).await, Err(StoreError::Closed)));
    store.close().await;

    // The log has been tidied up into the database.
    assert!(!temp.path().join("state.db-wal").exists());
    let store = Store::open(&temp.path().join("state.db")).unwrap();
    assert_eq!(keys(&store).await, ["queued"]);
}

#[tokio::test]
async fn dropping_the_last_handle_finishes_what_was_asked_for() {
    let (temp, store) = open();
    let go = hold_writer(&store).await;
    let mut ended = store.shared.writer.ended();
    let (done, written) = tokio::sync::oneshot::channel();
    let write = tokio::spawn({
        let store = store.clone();
        async move {
            let job = |conn: &Connection| {
                done.send(()).unwrap();
                meta::set(conn, "queued", "")
            };
            store.write(job).await
        }
    });
    until_queued(&store, 1).await;
    // Nobody waits for the write any more, and nobody holds the store.
    write.abort();
    assert!(write.await.unwrap_err().is_cancelled());
    drop(store);
    go();
    written.await.unwrap();
    while ended.changed().await.is_ok() {}
    let store = Store::open(&temp.path().join("state.db")).unwrap();
    assert_eq!(keys(&store).await, ["queued"]);
}

#[tokio::test]
async fn the_database_and_its_companions_are_readable_by_the_owner_alone() {
    let temp = tempdir().unwrap();
    let path = temp.path().join("state.db");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let store = Store::open(&path).unwrap();
    set(&store, "a").await.unwrap();
    for name in ["state.db", "state.db-wal", "state.db-shm"] {
        let mode = fs::metadata(temp.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn what_is_no_database_is_refused_and_named() {
    let temp = tempdir().unwrap();
    let path = temp.path().join("state.db");
    fs::write(&path, "this is a letter, not a database. ".repeat(100)).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn every_commit_is_flushed() {
    let (_temp, store) = open();
    let settings = |conn: &Connection| {
        let journal: String = conn.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        let synchronous: u8 = conn.pragma_query_value(None, "synchronous", |row| row.get(0))?;
        let foreign_keys: bool = conn.pragma_query_value(None, "foreign_keys", |row| row.get(0))?;
        Ok((journal, synchronous, foreign_keys))
    };
    const FULL: u8 = 2;
    assert_eq!(store.write(settings).await.unwrap(), ("wal".to_owned(), FULL, true));
}

#[tokio::test]
async fn a_backup_taken_during_a_write_opens_and_holds_what_was_answered() {
    let (temp, store) = open();
    let event = NewEvent::fleet(EventKind::FleetApplied, "the first");
    let stored = store.write(move |conn| events::append(conn, &event, jiff::Timestamp::UNIX_EPOCH)).await.unwrap();
    let go = hold_writer(&store).await;
    let path = temp.path().join("copy's.db");
    store.backup_to(&path).await.unwrap();
    go();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let copy = Store::open(&path).unwrap();
    assert_eq!(copy.read(|conn| events::latest(conn, None, 9)).await.unwrap(), [stored]);
}

#[tokio::test]
async fn a_backup_replaces_nothing_and_leaves_nothing_when_it_fails() {
    let (temp, store) = open();
    let path = temp.path().join("copy.db");
    fs::write(&path, "dear").unwrap();
    let error = store.backup_to(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::BackupExists { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"dear");
    let error = store.backup_to(&temp.path().join("nowhere/copy.db")).await.unwrap_err();
    assert!(matches!(error, StoreError::Backup { .. }), "{error}");
    assert!(!temp.path().join("copy.db.partial").exists());
}
