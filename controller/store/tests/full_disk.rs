//! A disk that is full takes nothing that was stored, and what is stored later is as if it had never been
//! full.

#![expect(clippy::unwrap_used, reason = "helpers of a test; clippy knows only the test itself as one")]

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::wire::{Channel, TaskRef};
use vm_agent_store::output::{Limits, OutputLog, OutputRecord, Position, Wanted};

/// Tells the test, run anew in a mount namespace of its own, to put a small file system there.
const CHILD: &str = "VM_AGENT_STORE_TEST_MOUNT_AT";
const THIS_TEST: &str = "a_full_disk_takes_nothing_that_was_stored";

/// What the child says when it has come to its end, so that one that tested nothing is not taken for one
/// that did.
const DONE: &str = "the disk was full and is not any more";

#[test]
fn a_full_disk_takes_nothing_that_was_stored() {
    if let Some(place) = env::var_os(CHILD) {
        fill(Path::new(&place));
        println!("{DONE}");
        return;
    }
    let namespace = ["--user", "--map-root-user", "--mount"];
    let works = Command::new("unshare").args(namespace).arg("true").stderr(Stdio::null()).status();
    if !works.is_ok_and(|status| status.success()) {
        // Not everybody may make one; then there is no small disk to be had.
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let mut child = Command::new("unshare");
    child.args(namespace).arg("--").arg(env::current_exe().unwrap());
    child.args(["--exact", THIS_TEST, "--nocapture"]).env(CHILD, place.path());
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(DONE), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

fn fill(place: &Path) {
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k", "small"]).arg(place).status();
    assert!(mount.unwrap().success());
    let limits = Limits { segment: 100_000, ..Limits::default() };
    let log = OutputLog::open(&place.join("output"), limits).unwrap();
    let task = TaskRef { task: TaskId::generate(), attempt: 1 };
    let data = Bytes::from(vec![b'x'; 10_000]);
    let piece = |offset| OutputRecord { task, channel: Channel::Stdout, offset, data: data.clone() };
    fs::write(place.join("ballast"), vec![0; 200_000]).unwrap();

    let mut offset = 0;
    while log.append(&[piece(offset)]).and_then(|()| log.sync()).is_ok() {
        offset += 10_000;
        assert!(offset < 1_000_000, "the disk is never full");
    }
    assert!(log.append(&[piece(offset)]).is_err());
    let stored = |log: &OutputLog| {
        let wanted = Wanted { task: task.task, attempt: None, channel: None };
        let pieces = log.read(wanted, Position::default(), usize::MAX).unwrap().pieces;
        pieces.iter().map(|piece| piece.data.len() as u64).sum::<u64>()
    };
    assert_eq!(stored(&log), offset);
    assert_eq!(log.known(task).unwrap().stdout, offset);

    fs::remove_file(place.join("ballast")).unwrap();
    log.append(&[piece(offset)]).unwrap();
    log.sync().unwrap();
    drop(log);
    let log = OutputLog::open(&place.join("output"), limits).unwrap();
    assert_eq!(stored(&log), offset + 10_000);
    assert_eq!(log.known(task).unwrap().stdout, offset + 10_000);
}
