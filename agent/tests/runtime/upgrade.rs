//! Another version of the runtime, as real programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::streams::send_all;
use crate::support::{Hub, Runtime, Session};
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{FromHub, FromRuntime, Seed, StreamRef, TaskOutcome, Upgrade, UpgradeFailed};

const ORIGINAL: &str = env!("CARGO_BIN_EXE_vm-agent-runtime");

struct Scene {
    place: tempfile::TempDir,
    hub: Hub,
    seed: Seed,
    runtime: Runtime,
}

impl Scene {
    async fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let hub = Hub::plain().await;
        let seed = hub.seed(place.path(), None);
        let runtime = Runtime::start(place.path(), &seed);
        Self { place, hub, seed, runtime }
    }

    /// Starts the original anew, as whoever looks after the runtime does.
    fn restart(&mut self) {
        self.runtime.kill();
        self.runtime = Runtime::start(self.place.path(), &self.seed);
    }

    /// The program that runs.
    fn running(&self) -> PathBuf {
        fs::read_link(format!("/proc/{}/exe", self.runtime.child.id())).unwrap()
    }
}

/// A program that is the runtime, and not the one that is running.
fn another_version() -> Vec<u8> {
    [fs::read(ORIGINAL).unwrap(), b"another version".to_vec()].concat()
}

fn stored(folder: &Path, program: &[u8]) -> PathBuf {
    let folder = fs::canonicalize(folder).unwrap();
    folder.join("versions").join(Digest::of(program).as_str()).join("vm-agent-runtime")
}

fn original() -> PathBuf {
    fs::canonicalize(ORIGINAL).unwrap()
}

async fn offer(session: &mut Session, stream: u32, program: &[u8]) {
    let size = ByteSize::from_bytes(program.len() as u64);
    let order = Upgrade { version: "2.0.0".to_owned(), size, sha256: Digest::of(program), stream };
    session.say(FromHub::Upgrade(order)).await;
}

async fn ended(session: &mut Session, stream: u32) -> TaskOutcome {
    let ended = session.hear_that(|said| match said {
        FromRuntime::StreamEnded(ended) if ended.stream == stream => Some(ended.outcome),
        _ => None,
    });
    ended.await
}

async fn failed(session: &mut Session, program: &[u8]) -> String {
    let failed = session.hear_that(|said| match said {
        FromRuntime::UpgradeFailed(UpgradeFailed { sha256, reason, .. }) => Some((sha256, reason)),
        _ => None,
    });
    let (sha256, reason) = failed.await;
    assert_eq!(sha256, Digest::of(program));
    reason
}

#[tokio::test]
async fn another_version_takes_over_when_there_is_nothing_to_do_and_stays() {
    let mut scene = Scene::new().await;
    let (mut session, before) = scene.hub.session().await;
    session.open(1, "exec cat", true).await;
    let program = another_version();
    offer(&mut session, 2, &program).await;
    send_all(&mut session, 2, &program, true).await;
    assert_eq!(ended(&mut session, 2).await, TaskOutcome::Exited { code: 0 });
    // The session goes on as long as there is a stream.
    session.open(3, "exit 7", false).await;
    assert_eq!(ended(&mut session, 3).await, TaskOutcome::Exited { code: 7 });
    assert_eq!(scene.running(), original());
    session.say(FromHub::StreamClose(StreamRef { stream: 1 })).await;
    while session.next().await.is_some() {}
    let (mut session, after) = scene.hub.session().await;
    assert_eq!((after.public_key, after.boot), (before.public_key, before.boot.next()));
    // With an answer the welcome has arrived.
    session.open(1, "exit 0", false).await;
    ended(&mut session, 1).await;
    assert_eq!(scene.running(), stored(scene.place.path(), &program), "as the same process");
    drop(session);
    scene.restart();
    let _session = scene.hub.session().await;
    assert_eq!(scene.running(), stored(scene.place.path(), &program));
}

#[tokio::test]
async fn a_program_that_does_not_even_say_its_version_is_not_taken_into_use() {
    let scene = Scene::new().await;
    let (mut session, _) = scene.hub.session().await;
    let program = b"#!/bin/sh\nexit 1\n";
    offer(&mut session, 1, program).await;
    send_all(&mut session, 1, program, true).await;
    assert_eq!(failed(&mut session, program).await, "called with --version it failed: exit status: 1");
    session.open(2, "exit 7", false).await;
    assert_eq!(ended(&mut session, 2).await, TaskOutcome::Exited { code: 7 });
    assert_eq!(scene.running(), original());
}

#[tokio::test]
async fn a_version_that_does_not_come_up_is_given_up_and_not_tried_again() {
    let mut scene = Scene::new().await;
    let (mut session, _) = scene.hub.session().await;
    let program = b"#!/bin/sh\n[ \"$1\" = --version ]\n";
    offer(&mut session, 1, program).await;
    send_all(&mut session, 1, program, true).await;
    while session.next().await.is_some() {}
    for _ in 0..3 {
        assert_eq!(scene.runtime.end().await.code(), Some(1));
        scene.restart();
    }
    let (mut session, _) = scene.hub.session().await;
    let reason = failed(&mut session, program).await;
    assert_eq!(reason, "the new version was started 3 times and got no welcome");
    assert_eq!(scene.running(), original());
    offer(&mut session, 1, program).await;
    let again = failed(&mut session, program).await;
    assert_eq!(again, format!("this program was tried before, and failed: {reason}"));
}

#[tokio::test]
async fn a_version_that_gets_no_welcome_puts_the_old_one_back() {
    let place = tempfile::tempdir().unwrap();
    let hub = Hub::plain().await;
    let seed = hub.seed(place.path(), None);
    let program = another_version();
    let path = stored(place.path(), &program);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, &program).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    // As the old version leaves it when it makes place, but for the time that it gives.
    let state = serde_json::json!({"good": null, "failed": [], "trial": {
        "version": "2.0.0", "sha256": Digest::of(&program), "path": path, "from": original(),
        "starts": 1, "limitMs": 1000,
    }});
    fs::write(place.path().join("upgrade.json"), state.to_string()).unwrap();
    let runtime = Runtime::start(place.path(), &seed);
    let running = || fs::read_link(format!("/proc/{}/exe", runtime.child.id())).unwrap();
    let mut unwelcome = hub.accept().await.unwrap();
    let FromRuntime::Hello(hello) = unwelcome.hear().await else { panic!("hello comes first") };
    assert_eq!(running(), path);
    let (mut session, back) = hub.session().await;
    assert_eq!(back.boot, hello.boot.next());
    let reason = failed(&mut session, &program).await;
    assert_eq!(reason, "the new version got no welcome within 1 s, and the old one was put back");
    assert_eq!(running(), original());
}
