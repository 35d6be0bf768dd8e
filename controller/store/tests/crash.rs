//! Whatever was acknowledged survives the death of the process at any moment.

#![expect(clippy::unwrap_used, reason = "helpers of a test; clippy knows only the test itself as one")]

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rusqlite::Connection;
use vm_agent_store::{StateDir, Store, meta};

/// Tells the test, run anew as a child, to write into this folder until it is killed.
const CHILD: &str = "VM_AGENT_STORE_TEST_WRITE_INTO";
const THIS_TEST: &str = "what_was_acknowledged_survives_a_kill";
const ACKNOWLEDGED: &str = "acknowledged ";

const KILLS: usize = 10;

/// Writers at a time in the child, so that commits hold several records.
const WRITERS: usize = 4;

/// Writes to wait for, at most, before a kill: enough to pass SQLite's checkpoints (every 1000 pages)
/// in some rounds.
const MOST_WRITES: u128 = 1000;

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    if let Some(dir) = env::var_os(CHILD) {
        write_until_killed(Path::new(&dir));
    }
    let temp = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for _ in 0..KILLS {
        let before = acknowledged.len();
        let writes = uuid::Uuid::new_v4().as_u128() % MOST_WRITES + 1;
        write_and_kill(temp.path(), usize::try_from(writes).unwrap(), &mut acknowledged);
        assert!(acknowledged.len() > before);
        check(temp.path(), &acknowledged);
    }
}

/// Has a child write, kills it after some acknowledged writes, and collects all of these.
fn write_and_kill(dir: &Path, writes: usize, acknowledged: &mut Vec<String>) {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", THIS_TEST, "--nocapture"]).env(CHILD, dir).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = Killed(child.spawn().unwrap());
    let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut numbers = lines.map_while(Result::ok).filter_map(|line| Some(line.strip_prefix(ACKNOWLEDGED)?.to_owned()));
    acknowledged.extend(numbers.by_ref().take(writes));
    drop(child);
    // What it had said before it died and nobody had read.
    acknowledged.extend(numbers);
}

fn check(dir: &Path, acknowledged: &[String]) {
    // The dead process no longer holds the folder.
    let dir = StateDir::open(dir).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let expected = acknowledged.to_vec();
    runtime.block_on(async {
        let store = Store::open(&dir.database()).unwrap();
        let check = move |conn: &Connection| {
            let integrity: String = conn.pragma_query_value(None, "integrity_check", |row| row.get(0))?;
            assert_eq!(integrity, "ok");
            for number in expected {
                assert!(meta::get(conn, &number)?.is_some(), "write {number} was acknowledged and is gone");
            }
            Ok(())
        };
        store.read(check).await.unwrap();
        store.close().await;
    });
}

/// Acknowledges each write on stdout, once the store has answered it.
fn write_until_killed(dir: &Path) -> ! {
    let dir = StateDir::open(dir).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(&dir.database()).unwrap();
        // The test harness may have begun a line of its own: end it.
        std::io::stdout().write_all(b"\n").unwrap();
        for _ in 0..WRITERS {
            tokio::spawn(write_forever(store.clone()));
        }
        std::future::pending().await
    })
}

async fn write_forever(store: Store) {
    // Long enough for a page to hold few of them.
    let content = "x".repeat(500);
    loop {
        let number = uuid::Uuid::now_v7().to_string();
        let (key, value) = (number.clone(), content.clone());
        store.write(move |conn| meta::set(conn, &key, &value)).await.unwrap();
        let mut stdout = std::io::stdout().lock();
        // The parent has gone when nobody listens: then there is no one to end this child either.
        if writeln!(stdout, "{ACKNOWLEDGED}{number}").and_then(|()| stdout.flush()).is_err() {
            std::process::exit(1);
        }
    }
}
