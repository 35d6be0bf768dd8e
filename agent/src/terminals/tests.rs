use std::collections::BTreeMap;
use std::path::Path;

use tokio::time::Instant;
use vm_agent_schemas::ids::Nonce;

use super::keeper::UNATTENDED;
use super::*;
use crate::outgoing::Outgoing;
use crate::streams::Streams;

fn surroundings(work: &Path) -> Surroundings {
    let (env, secrets) = (BTreeMap::new(), BTreeMap::new());
    Surroundings { work: work.to_owned(), nonce: Nonce::generate(), socket: work.join("socket"), env, secrets }
}

fn cat() -> Run {
    Run { argv: vec!["cat".to_owned()], ..Run::default() }
}

#[tokio::test(start_paused = true)]
async fn a_terminal_that_nobody_attends_to_ends_after_a_day() {
    let place = tempfile::tempdir().unwrap();
    let surroundings = surroundings(place.path());
    let (outgoing, _queued) = Outgoing::new("web".parse().unwrap());
    let (mut terminals, mut streams, tracker) = (Terminals::default(), Streams::default(), TaskTracker::new());
    let wire = streams.wire(1, true, &outgoing);
    let terminal = TerminalId::generate();
    terminals.open(wire, cat(), TerminalSize::default(), Some(terminal), &surroundings, &tracker);
    assert_eq!(terminals.report().len(), 1);
    drop(streams);
    let alone = Instant::now();
    tracker.close();
    tracker.wait().await;
    assert!(alone.elapsed() >= UNATTENDED);
    assert!(terminals.is_empty());
}

#[tokio::test]
async fn no_more_terminals_are_kept_than_there_is_room_for() {
    let place = tempfile::tempdir().unwrap();
    let surroundings = surroundings(place.path());
    let (outgoing, mut queued) = Outgoing::new("web".parse().unwrap());
    let (mut terminals, mut streams, tracker) = (Terminals::default(), Streams::default(), TaskTracker::new());
    for number in 1..=17 {
        let wire = streams.wire(number, true, &outgoing);
        terminals.open(wire, cat(), TerminalSize::default(), Some(TerminalId::generate()), &surroundings, &tracker);
    }
    assert_eq!(terminals.report().len(), KEPT_MAX);
    let mut refusal = None;
    while let Ok(said) = queued.try_recv() {
        if let Some(text) = said.text().filter(|text| text.contains("stream.ended")) {
            refusal = Some(text.to_owned());
        }
    }
    assert!(refusal.unwrap().contains("16 terminals are kept already; end one of them first"));
    drop((streams, terminals));
    tracker.close();
    tracker.wait().await;
}
