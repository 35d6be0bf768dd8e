//! Messages, and what could not be delivered.

use jiff::Timestamp;
use vm_agent_schemas::api::DeadLetters;
use vm_agent_schemas::message::{Message, MessageState};

use super::tasks::{whose, work};
use super::{ago, left};
use crate::table::{Cell, Table, printable};
use crate::ui::{BAD, BUSY, FAINT, GOOD, PLAIN, STRONG};

/// Messages, in the order given.
pub(crate) fn message_table(messages: &[Message], now: Timestamp) -> String {
    let mut table = Table::new(&["ID", "FROM", "TO", "SENT", "STATE", "SUBJECT", "BODY"]);
    for message in messages {
        let (state, style) = match &message.state {
            MessageState::Waiting => (format!("waiting, given up {}", left(now, message.expires_at)), BUSY),
            MessageState::Taken { .. } => ("taken".to_owned(), GOOD),
            MessageState::Dead { reason, .. } => (format!("dead: {reason}"), BAD),
        };
        table.row(vec![
            Cell::new(&message.id, STRONG),
            (&message.from).into(),
            (&message.to).into(),
            ago(now, message.created_at).into(),
            Cell::new(&state, style),
            (&message.subject).into(),
            (&message.body).into(),
        ]);
    }
    table.render()
}

/// One message, on one line.
pub(crate) fn message_line(message: &Message) -> String {
    let Message { id, from, to, subject, body, .. } = message;
    let at = message.created_at.strftime("%Y-%m-%dT%H:%M:%SZ");
    let said = printable(&format!("{subject} {body}"));
    format!("{FAINT}{at} {id}{FAINT:#} {STRONG}{from}{STRONG:#} to {to}: {said}")
}

/// What could not be delivered, keeps failing, or is of unknown fate.
pub(crate) fn dead_table(dead: &DeadLetters, now: Timestamp) -> String {
    let mut table = Table::new(&["KIND", "ID", "FOR", "SINCE", "WHAT", "WHY"]);
    for task in &dead.tasks {
        table.row(vec![
            "task".into(),
            Cell::new(&task.id, STRONG),
            whose(task).into(),
            ago(now, task.ended_at.unwrap_or(task.created_at)).into(),
            work(&task.job.work).into(),
            Cell::new(&task.dead.as_deref().unwrap_or_default(), BAD),
        ]);
    }
    for message in &dead.messages {
        let (at, why) = match &message.state {
            MessageState::Dead { at, reason } => (*at, Cell::new(reason, BAD)),
            MessageState::Waiting | MessageState::Taken { .. } => (message.created_at, Cell::new(&"", PLAIN)),
        };
        table.row(vec![
            "message".into(),
            Cell::new(&message.id, STRONG),
            (&message.to).into(),
            ago(now, at).into(),
            (&message.subject).into(),
            why,
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use vm_agent_schemas::task::Task;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn dead() -> Message {
        let at = samples::now();
        let state = MessageState::Dead { at, reason: "nobody took it in time".into() };
        Message { state, ..samples::message("host", "db") }
    }

    #[test]
    fn messages_say_how_far_they_are() {
        insta::assert_snapshot!(plain(&message_table(&[samples::message("web", "host"), dead()], samples::now())), @r#"
        ID                                    FROM  TO    SENT      STATE                         SUBJECT  BODY
        0190c5a8-0000-7000-8000-000000000001  web   host  1m0s ago  waiting, given up in 1h0m     build    {"ref":"main"}
        0190c5a8-0000-7000-8000-000000000001  host  db    1m0s ago  dead: nobody took it in time  build    {"ref":"main"}
        "#);
        insta::assert_snapshot!(plain(&message_line(&dead())), @r#"2026-01-02T03:03:05Z 0190c5a8-0000-7000-8000-000000000001 host to db: build {"ref":"main"}"#);
    }

    #[test]
    fn what_programs_write_is_written_out() {
        let hostile = Message { subject: samples::HOSTILE.into(), body: samples::HOSTILE.into(), ..dead() };
        samples::assert_tame(&message_line(&hostile));
        samples::assert_tame(&message_table(std::slice::from_ref(&hostile), samples::now()));
        let letters = DeadLetters { tasks: vec![samples::hostile_task("web")], messages: vec![hostile] };
        samples::assert_tame(&dead_table(&letters, samples::now()));
    }

    #[test]
    fn dead_letters_of_both_kinds_stand_in_one_table() {
        let task = Task { dead: Some("it may have done its work or not".into()), ..samples::task("web") };
        let letters = DeadLetters { tasks: vec![task], messages: vec![dead()] };
        insta::assert_snapshot!(plain(&dead_table(&letters, samples::now())), @"
        KIND     ID                                    FOR  SINCE   WHAT       WHY
        task     0190c5a8-0000-7000-8000-000000000000  web  1s ago  make test  it may have done its work or not
        message  0190c5a8-0000-7000-8000-000000000001  db   0s ago  build      nobody took it in time
        ");
    }
}
