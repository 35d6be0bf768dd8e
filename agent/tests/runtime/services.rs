//! Services and secrets of a configuration, over reconnects, crashes and ends of the runtime.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Heard, Hub, Runtime, Session, order, until};
use vm_agent_schemas::ids::{Digest, Secret};
use vm_agent_schemas::wire::{Configuration, FromHub, FromRuntime, ServiceReport, ServiceState};

const STAYS: &str = "echo $$ >> starts; exec sleep 1000";

fn configuration(services: Value) -> Configuration {
    let digest = Digest::of(services.to_string().as_bytes());
    let services = serde_json::from_value(services).unwrap();
    Configuration { digest, services, ..Configuration::default() }
}

fn starts(place: &TempDir) -> usize {
    fs::read_to_string(place.path().join("work/starts")).unwrap_or_default().lines().count()
}

/// The first report in which a service is so.
async fn report(session: &mut Session, name: &str, holds: impl Fn(&ServiceReport) -> bool) -> ServiceReport {
    session
        .hear_that(|said| match said {
            FromRuntime::Health(mut report) => report.services.remove(name).filter(|service| holds(service)),
            _ => None,
        })
        .await
}

async fn configured(session: &mut Session) -> Option<Digest> {
    session
        .hear_that(|said| match said {
            FromRuntime::Configured(configured) => Some(configured.digest),
            _ => None,
        })
        .await
}

#[tokio::test]
async fn a_service_that_changes_its_state_is_reported_at_once_and_what_it_writes_is_in_the_log() {
    let place = tempfile::tempdir().unwrap();
    let mut hub = Hub::plain().await;
    let line = "echo here; until test -e go; do sleep 0.01; done; exit 4";
    let services = json!({"web": {"exec": line}, "once": {"exec": "exit 5", "restart": "never"}});
    hub.configuration = Some(configuration(services));
    let seed = hub.seed(place.path(), None);
    let _runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    // The heartbeat is half a minute: none of these waits for it.
    let began = std::time::Instant::now();
    let written = session.hear_that(|said| match said {
        FromRuntime::Log(log) => log.lines.contains(&"service web | here".to_owned()).then_some(()),
        _ => None,
    });
    written.await;
    fs::write(place.path().join("work/go"), "").unwrap();
    let failing = report(&mut session, "web", |service| service.state == ServiceState::Failing).await;
    assert_eq!(failing.problem.as_deref(), Some("it ended with exit code 4"));
    fs::remove_file(place.path().join("work/go")).unwrap();
    let again = report(&mut session, "web", |service| service.restarts > 0).await;
    assert_eq!(again.state, ServiceState::Running);
    assert!(began.elapsed() < Duration::from_secs(25), "reports came at once");
    let ended = Configuration {
        digest: Digest::of(b"less"),
        ..configuration(json!({"once": {"exec": "exit 5", "restart": "never"}}))
    };
    session.say(FromHub::Configure(ended)).await;
    let last = session.hear_that(|said| match said {
        FromRuntime::Health(report) => (!report.services.contains_key("web")).then_some(report.services),
        _ => None,
    });
    let last = last.await;
    let once = last.get("once").unwrap();
    assert_eq!((once.state, once.problem.as_deref()), (ServiceState::Ended, Some("it ended with exit code 5")));
}

#[tokio::test]
async fn services_and_secrets_outlive_the_connection_and_a_welcome_without_configuration() {
    let place = tempfile::tempdir().unwrap();
    let mut hub = Hub::plain().await;
    let secrets = [("TOKEN".to_owned(), Secret::from_text("kept"))].into();
    let first = Configuration { secrets, ..configuration(json!({"web": {"exec": STAYS}})) };
    hub.configuration = Some(first.clone());
    let seed = hub.seed(place.path(), None);
    let runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    assert_eq!(configured(&mut session).await, Some(first.digest.clone()));
    until("its start", || starts(&place) == 1).await;
    drop(session);
    hub.configuration = None;
    let (mut session, _) = hub.session().await;
    assert_eq!(configured(&mut session).await, Some(first.digest.clone()));
    let service = report(&mut session, "web", |_| true).await;
    assert_eq!((service.state, service.restarts), (ServiceState::Running, 0));
    session.open(1, "echo $TOKEN", false).await;
    assert_eq!(session.follow(1).await.stdout, b"kept\n");
    session.say(FromHub::Configure(first)).await;
    configured(&mut session).await;
    assert_eq!((starts(&place), runtime.processes().len()), (1, 1), "it is the one that was started");
}

#[tokio::test]
async fn a_runtime_that_was_never_configured_says_so() {
    let place = tempfile::tempdir().unwrap();
    let mut hub = Hub::plain().await;
    hub.configuration = None;
    let seed = hub.seed(place.path(), None);
    let _runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    assert_eq!(configured(&mut session).await, None);
}

#[tokio::test]
async fn a_killed_runtime_leaves_no_service_behind_once_it_is_started_again() {
    let place = tempfile::tempdir().unwrap();
    let mut hub = Hub::plain().await;
    let line = format!("setsid sleep 1000 & {STAYS}");
    hub.configuration = Some(configuration(json!({"web": {"exec": line}})));
    let seed = hub.seed(place.path(), None);
    let mut runtime = Runtime::start(place.path(), &seed);
    let _session = hub.session().await;
    until("its processes", || starts(&place) == 1 && runtime.processes().len() == 2).await;
    runtime.kill();
    assert_eq!(runtime.processes().len(), 2, "a service outlives a crash of the runtime");
    hub.configuration = None;
    let restarted = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    assert_eq!(configured(&mut session).await, None);
    until("the end of what was left", || restarted.processes().is_empty()).await;
    session.say(FromHub::Configure(configuration(json!({"web": {"exec": STAYS}})))).await;
    until("its new start", || starts(&place) == 2).await;
}

#[tokio::test]
async fn services_end_with_the_runtime() {
    let place = tempfile::tempdir().unwrap();
    let mut hub = Hub::plain().await;
    let stubborn = "trap '' TERM; echo $$ >> starts; while :; do sleep 0.05; done";
    hub.configuration = Some(configuration(json!({"web": {"exec": STAYS}, "stubborn": {"exec": stubborn}})));
    let seed = hub.seed(place.path(), None);
    let mut runtime = Runtime::start(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    until("their start", || starts(&place) == 2).await;
    let closing = async { while session.next().await.is_some() {} };
    let (status, ()) = tokio::join!(runtime.terminate(), closing);
    assert!(status.success());
    assert_eq!(runtime.processes(), Vec::<u32>::new());
}

#[tokio::test]
async fn secrets_are_in_the_environment_and_nowhere_else() {
    const SECRET: &str = "correct-horse-battery-staple";
    let place = tempfile::tempdir().unwrap();
    let mut hub = Hub::plain().await;
    // Seen by their effect: that a service, its probe and a task have it.
    let digest = "printf %s \"$TOKEN\" | sha256sum | cut -c1-64";
    let services = json!({
        "web": {
            "exec": format!("{digest} > web; exec sleep 1000"),
            "probe": {"exec": format!("{digest} > probe"), "every": "100ms"},
        },
        "broken": {"exec": ["no-such-program"]},
    });
    let env = [("TOKEN".to_owned(), "public".to_owned())].into();
    let secrets = [("TOKEN".to_owned(), Secret::from_text(SECRET))].into();
    hub.configuration = Some(Configuration { env, secrets, ..configuration(services) });
    let seed = hub.seed(place.path(), None);
    let mut runtime = Runtime::start_logged(place.path(), &seed);
    let (mut session, _) = hub.session().await;
    session.say(FromHub::Task(order(&format!("{digest} > task"), 1))).await;
    let seen = |name: &str| fs::read_to_string(place.path().join("work").join(name)).unwrap_or_default();
    let expected = format!("{}\n", Digest::of(SECRET.as_bytes()));
    until("all to have it", || ["web", "probe", "task"].iter().all(|name| seen(name) == expected)).await;
    session.open(2, "echo $TOKEN", false).await;
    let mut said = Vec::new();
    loop {
        match session.next().await.unwrap() {
            Heard::Said(FromRuntime::StreamEnded(_)) => break,
            Heard::Said(message) => said.push(serde_json::to_string(&message).unwrap()),
            Heard::Data(_) => {}
        }
    }
    assert!(said.iter().any(|message| message.contains("no-such-program")), "{said:?}");
    let closing = async {
        while let Some(heard) = session.next().await {
            if let Heard::Said(message) = heard {
                said.push(serde_json::to_string(&message).unwrap());
            }
        }
    };
    let (status, ()) = tokio::join!(runtime.terminate(), closing);
    assert!(status.success());
    assert!(said.iter().all(|message| !message.contains(SECRET)));
    let log = runtime.log();
    assert!(log.contains("told to end") && !log.contains(SECRET), "{log}");
    assert_eq!(files_with(place.path(), SECRET), Vec::<String>::new());
    assert!(!files_with(place.path(), expected.trim()).is_empty(), "all files are looked at");
}

/// The files below a folder in which a text stands.
fn files_with(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if String::from_utf8_lossy(&fs::read(&path).unwrap()).contains(text) {
            found.push(path.display().to_string());
        }
    }
    found
}
