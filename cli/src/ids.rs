//! Tasks and messages by their ids, or by as much of an id as tells it apart.

use std::fmt::Display;
use std::str::FromStr;

use vm_agent_schemas::api::{DeadLetters, List};
use vm_agent_schemas::ids::{MessageId, TaskId};
use vm_agent_schemas::task::Task;

use crate::client::Client;
use crate::exit::{CommandError, Exit};

/// Fewest characters that stand for an id: fewer are a slip of the finger.
const FEWEST: usize = 4;
/// Most ids that are named to somebody whose word fits several.
const SHOWN: usize = 3;

/// The task that is meant, among the latest where the id is not whole.
pub(crate) async fn task(client: &Client, word: &str) -> Result<TaskId, CommandError> {
    let known = || async {
        let tasks = client.get::<List<Task>>("/tasks?limit=1000").await?.content.items;
        Ok(tasks.into_iter().map(|task| task.id).collect())
    };
    among(word, "task", "vm-agent task ls", known).await
}

/// The dead letter that is meant, of tasks.
pub(crate) async fn dead_task(client: &Client, word: &str) -> Result<TaskId, CommandError> {
    let known = || async {
        let dead = client.get::<DeadLetters>("/dead-letters?limit=1000").await?.content;
        Ok(dead.tasks.into_iter().map(|task| task.id).collect())
    };
    among(word, "task", "vm-agent dead", known).await
}

/// The dead letter that is meant, of messages.
pub(crate) async fn dead_message(client: &Client, word: &str) -> Result<MessageId, CommandError> {
    let known = || async {
        let dead = client.get::<DeadLetters>("/dead-letters?limit=1000").await?.content;
        Ok(dead.messages.into_iter().map(|message| message.id).collect())
    };
    among(word, "message", "vm-agent dead", known).await
}

/// A whole id of a message, as flags take it.
pub(crate) fn message(word: &str) -> Result<MessageId, String> {
    word.parse().map_err(|_| "it is no message's id; see which there are: vm-agent message ls".to_owned())
}

/// The one that a word is, or that it begins or ends.
async fn among<T, F>(word: &str, kind: &str, list: &str, known: impl FnOnce() -> F) -> Result<T, CommandError>
where
    T: Copy + Display + FromStr + Ord,
    F: Future<Output = Result<Vec<T>, CommandError>>,
{
    if let Ok(id) = word.parse() {
        return Ok(id);
    }
    let could_be = word.len() >= FEWEST && word.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    let mut meant = if could_be { known().await? } else { Vec::new() };
    meant.retain(|id| {
        let id = id.to_string();
        id.starts_with(word) || id.ends_with(word)
    });
    meant.sort();
    meant.dedup();
    match meant.as_slice() {
        [id] => Ok(*id),
        [] => Err(CommandError::new(Exit::NOT_FOUND, format!("`{word}` is no {kind}'s id"))
            .hint(format!("see which there are: {list}"))),
        several => {
            let shown: Vec<String> = several.iter().take(SHOWN).map(T::to_string).collect();
            let more = if several.len() > SHOWN { ", …" } else { "" };
            Err(CommandError::new(Exit::USAGE, format!("`{word}` could be {} {kind}s", several.len()))
                .hint(format!("write more of the one that you mean: {}{more}", shown.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 3] = [
        "0190c5a8-0000-7000-8000-00000000aaaa",
        "0190c5a8-0000-7000-8000-00000000bbbb",
        "0191ffff-0000-7000-8000-00000000aaaa",
    ];

    async fn meant(word: &str) -> Result<String, (Exit, String)> {
        let known = || async { Ok(IDS.map(|id| id.parse::<TaskId>().unwrap()).to_vec()) };
        let found = among(word, "task", "vm-agent task ls", known).await;
        found.map(|id| id.to_string()).map_err(|error| (error.exit, error.to_string()))
    }

    #[tokio::test]
    async fn a_beginning_or_an_end_is_enough_where_it_tells_one_apart() {
        assert_eq!(meant("0191").await, Ok(IDS[2].to_owned()));
        assert_eq!(meant("bbbb").await, Ok(IDS[1].to_owned()));
        assert_eq!(meant(IDS[0]).await, Ok(IDS[0].to_owned()));
        assert_eq!(meant("aaaa").await, Err((Exit::USAGE, "`aaaa` could be 2 tasks".to_owned())));
        for word in ["nope", "c5a8", "aaa", ""] {
            assert_eq!(meant(word).await, Err((Exit::NOT_FOUND, format!("`{word}` is no task's id"))));
        }
    }
}
