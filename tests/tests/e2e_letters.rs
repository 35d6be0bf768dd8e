//! What came to nothing, from the command line: tasks and messages that are dead letters are listed, looked at,
//! tried again and given up, through a restart of the controller.

use vm_agent_schemas::api::{DeadLetters, List};
use vm_agent_schemas::message::{Message, MessageState};
use vm_agent_schemas::task::Task;
use vm_agent_tests::e2e::{Fleet, runtime_program};

const ONE: &str = "defaults: {driver: local}\nagents:\n  web: {}\n";

fn up() -> Fleet {
    let fleet = Fleet::new(ONE);
    fleet.up();
    fleet
}

fn dead(fleet: &Fleet) -> DeadLetters {
    fleet.document(&["dead"])
}

/// A task that has failed as often as it may.
fn dead_task(fleet: &Fleet, line: &str) -> String {
    let id = fleet.ok(&["task", "web", "--retry", "2", "--backoff", "10ms", "--", line]).trim().to_owned();
    let is_dead = || fleet.document::<Task>(&["task", "show", &id]).dead.is_some().then_some(());
    fleet.wait_for("the task to be a dead letter", is_dead);
    id
}

/// A message that nobody took in its time.
fn dead_message(fleet: &Fleet, body: &str) -> String {
    let id = fleet.ok(&["message", "send", "web", "ask", body, "--ttl", "300ms"]).trim().to_owned();
    let is_dead = || dead(fleet).messages.iter().any(|message| message.id.to_string() == id).then_some(());
    fleet.wait_for("the message to be a dead letter", is_dead);
    id
}

#[test]
fn dead_letters_of_both_kinds_are_listed_tried_again_and_given_up() {
    let fleet = up();
    fleet.ok(&["stop", "web"]);
    let messages = [dead_message(&fleet, r#"{"number": 1}"#), dead_message(&fleet, "two")];
    fleet.ok(&["start", "web"]);
    let tasks = [dead_task(&fleet, "test -e mended"), dead_task(&fleet, "exit 7")];

    fleet.kill_controller();
    fleet.up();
    let letters = dead(&fleet);
    assert_eq!((letters.tasks.len(), letters.messages.len()), (2, 2), "{letters:?}");
    let table = fleet.ok(&["dead"]);
    for id in messages.iter().chain(&tasks) {
        assert!(table.contains(id.as_str()), "{table}");
    }
    assert!(fleet.ok(&["message", "dead"]).contains(&messages[1]));
    let told: List<Message> = fleet.document(&["message", "ls", "web"]);
    assert!(told.items.iter().all(|message| matches!(message.state, MessageState::Dead { .. })), "{told:?}");
    assert!(fleet.ok(&["task", "show", &tasks[1]]).contains("ended with exit code 7"));

    fleet.exec("web", "touch mended");
    let again = fleet.ok(&["task", "replay", &tasks[0]]).trim().to_owned();
    assert_eq!(fleet.run(&["task", "output", "--follow", &again]).code, 0);
    fleet.ok(&["task", "drop", &tasks[1]]);

    let again = fleet.ok(&["message", "replay", &messages[0]]).trim().to_owned();
    fleet.ok(&["message", "drop", &messages[1]]);
    let receive = format!("'{}' message receive --follow --count 1", runtime_program().display());
    let came: serde_json::Value = serde_json::from_str(&fleet.ok(&["task", "web", "--wait", "--", &receive])).unwrap();
    assert_eq!((&came["id"], &came["body"]["number"]), (&again.into(), &1.into()), "{came}");

    let letters = dead(&fleet);
    assert!(letters.tasks.is_empty() && letters.messages.is_empty(), "{letters:?}");
    assert_eq!(fleet.ok(&["dead"]), "");
    fleet.finish();
}

#[test]
fn who_means_no_dead_letter_is_told_so() {
    let fleet = up();
    let nobody = "0190c5a8-0000-7000-8000-000000000009";
    let done = fleet.ok(&["task", "web", "--", "true"]).trim().to_owned();
    fleet.ok(&["task", "output", "--follow", &done]);
    let cases: [(&[&str], i32); 5] = [
        (&["task", "replay", nobody], 4),
        (&["task", "drop", nobody], 4),
        (&["message", "replay", nobody], 4),
        (&["message", "drop", nobody], 4),
        (&["task", "show", nobody], 4),
    ];
    for (arguments, code) in cases {
        let ran = fleet.run(arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains("error: ") && ran.stdout.is_empty(), "{arguments:?}: {ran:?}");
    }
    fleet.finish();
}

#[test]
fn one_that_can_not_be_given_up_keeps_nobody_from_the_others() {
    let fleet = up();
    let nobody = "0190c5a8-0000-7000-8000-000000000009";
    let (first, second) = (dead_task(&fleet, "exit 1"), dead_task(&fleet, "exit 2"));
    let replayed = fleet.run(&["task", "replay", nobody, &first]);
    assert_eq!((replayed.code, replayed.stdout.lines().count()), (4, 1), "{replayed:?}");
    let dropped = fleet.run(&["task", "drop", nobody, &second]);
    assert_eq!((dropped.code, dropped.stderr.matches("error: ").count()), (4, 1), "{dropped:?}");
    assert!(dead(&fleet).tasks.iter().all(|task| ![&first, &second].contains(&&task.id.to_string())));
    let rotated = fleet.run(&["rotate", "gone", "web", "other"]);
    assert_eq!((rotated.code, rotated.stderr.matches("there is no agent").count()), (4, 2), "{rotated:?}");
    assert!(rotated.stderr.contains("web: "), "{rotated:?}");
    fleet.ok(&["stop", "web"]);
    let waits = fleet.ok(&["task", "web", "--", "true"]).trim().to_owned();
    let canceled = fleet.run(&["task", "cancel", nobody, &first, &waits]);
    assert_eq!((canceled.code, canceled.stderr.matches("error: ").count()), (4, 2), "{canceled:?}");
    assert!(fleet.document::<Task>(&["task", "show", &waits]).canceled_by.is_some());
    let message = dead_message(&fleet, "1");
    assert_eq!(fleet.run(&["message", "drop", nobody, &message]).code, 4);
    assert!(dead(&fleet).messages.is_empty());
    fleet.finish();
}
