//! The files of a configuration, on the disk and in what the hub is told.

use std::fs;
use std::path::Path;

use crate::support::{Hub, Runtime, Session};
use vm_agent_schemas::fleet::FileContent;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::wire::{Configuration, Configured, FromHub, FromRuntime};

fn configuration(mark: &str, files: &[(&str, &str)]) -> Configuration {
    let file = |content: &str| FileContent { content: content.to_owned(), mode: "0600".parse().unwrap() };
    let files = files.iter().map(|&(path, content)| (path.to_owned(), file(content))).collect();
    Configuration { digest: Digest::of(mark.as_bytes()), files, ..Configuration::default() }
}

async fn configured(session: &mut Session) -> Configured {
    session
        .hear_that(|said| match said {
            FromRuntime::Configured(configured) => Some(configured),
            _ => None,
        })
        .await
}

fn read(place: &Path, name: &str) -> Option<String> {
    fs::read_to_string(place.join("work").join(name)).ok()
}

#[tokio::test]
async fn files_are_there_when_it_is_said_and_go_when_they_are_named_no_more() {
    let place = tempfile::tempdir().unwrap();
    let mut hub = Hub::plain().await;
    hub.configuration = Some(configuration("one", &[("a/b", "first"), ("gone", "g")]));
    let seed = hub.seed(place.path(), None);
    let mut runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    let told = configured(&mut session).await;
    assert_eq!((told.digest, told.problems), (Some(Digest::of(b"one")), Vec::new()));
    assert_eq!(read(place.path(), "a/b").as_deref(), Some("first"));
    session.say(FromHub::Configure(configuration("two", &[("a/b", "second"), ("late", "l")]))).await;
    assert_eq!(configured(&mut session).await.digest, Some(Digest::of(b"two")));
    let now = ["a/b", "gone", "late"].map(|name| read(place.path(), name));
    assert_eq!(now, [Some("second".to_owned()), None, Some("l".to_owned())]);
    runtime.kill();
    hub.configuration = None;
    let _restarted = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    assert_eq!(configured(&mut session).await.digest, None, "it has none yet");
    assert!(read(place.path(), "late").is_some());
    session.say(FromHub::Configure(configuration("three", &[("a/b", "second")]))).await;
    configured(&mut session).await;
    assert_eq!(["a/b", "late"].map(|name| read(place.path(), name)), [Some("second".to_owned()), None]);
}

#[tokio::test]
async fn a_changed_file_is_put_right_at_a_heartbeat_and_the_log_says_so() {
    let place = tempfile::tempdir().unwrap();
    let mut hub = Hub::plain().await;
    hub.heartbeat_ms = 100;
    hub.configuration = Some(configuration("one", &[("file", "right")]));
    let seed = hub.seed(place.path(), None);
    let _runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    configured(&mut session).await;
    fs::write(place.path().join("work/file"), "wrong!").unwrap();
    let told = session.hear_that(|said| match said {
        FromRuntime::Log(log) => log.lines.into_iter().find(|line| line.contains("was changed from outside")),
        _ => None,
    });
    assert!(told.await.contains("`file`"));
    assert_eq!(read(place.path(), "file").as_deref(), Some("right"));
}

#[tokio::test]
async fn what_can_not_be_written_is_told_and_told_again_when_it_can() {
    let place = tempfile::tempdir().unwrap();
    let mut hub = Hub::plain().await;
    hub.heartbeat_ms = 100;
    hub.configuration = Some(configuration("one", &[("taken", "t"), ("free", "f")]));
    let seed = hub.seed(place.path(), None);
    fs::create_dir_all(place.path().join("work/taken")).unwrap();
    let _runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    let problem = "`taken` can't be written: something else than a file is there".to_owned();
    let told = configured(&mut session).await;
    assert_eq!(told, Configured { digest: Some(Digest::of(b"one")), problems: vec![problem] });
    assert_eq!(read(place.path(), "free").as_deref(), Some("f"));
    fs::remove_dir(place.path().join("work/taken")).unwrap();
    let told = configured(&mut session).await;
    assert_eq!(told, Configured { digest: Some(Digest::of(b"one")), problems: Vec::new() });
    assert_eq!(read(place.path(), "taken").as_deref(), Some("t"));
}

#[tokio::test]
async fn a_heartbeat_without_a_configuration_touches_nothing() {
    let place = tempfile::tempdir().unwrap();
    let mut hub = Hub::plain().await;
    hub.configuration = Some(configuration("one", &[("file", "f")]));
    let seed = hub.seed(place.path(), None);
    let mut runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    configured(&mut session).await;
    runtime.kill();
    hub.heartbeat_ms = 50;
    hub.configuration = None;
    let _restarted = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    for _ in 0..2 {
        session.hear_that(|said| matches!(said, FromRuntime::Health(_)).then_some(())).await;
    }
    assert!(read(place.path(), "file").is_some());
}
