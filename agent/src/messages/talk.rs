//! What programs and the runtime say to each other: one JSON document a line, over a unix socket. A
//! connection is for one thing, to send a message or to receive some.

use serde::{Deserialize, Serialize};
use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::{BODY_MAX, Post, RefusedCode};
use vm_agent_schemas::wire::Address;

/// The environment variable in which processes find the socket's path.
pub(crate) const SOCKET_VARIABLE: &str = "VM_AGENT_SOCKET";
/// Longest line, in bytes: the largest message, and room for what stands around its body.
pub(super) const LINE_MAX: usize = BODY_MAX + 16 * 1024;

/// What a program asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type", rename_all_fields = "camelCase")]
pub(super) enum Request {
    /// Send a message.
    Send {
        /// Whom to.
        to: Address,
        /// What.
        #[serde(flatten)]
        post: Post,
        /// Whether to give the first answer to this program.
        #[serde(default)]
        wait: bool,
    },
    /// Give messages, one at a time: the next one follows once this one was taken.
    Receive {
        /// Only those with this subject.
        #[serde(default)]
        subject: Option<String>,
        /// Whether to wait for more when there are none.
        #[serde(default)]
        follow: bool,
    },
    /// A message was taken: it is not to be given again.
    Taken {
        /// The message.
        message: MessageId,
    },
}

/// What the runtime answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub(super) enum Answer {
    /// A message is kept, and sent until the hub has it.
    Kept {
        /// The message.
        message: MessageId,
    },
    /// The hub has a message.
    Accepted {
        /// The message.
        message: MessageId,
    },
    /// A message goes nowhere.
    Refused {
        /// The message.
        message: MessageId,
        /// Why, for machines.
        code: RefusedCode,
        /// Why, for people.
        reason: String,
    },
    /// A message for the program.
    Message {
        /// The message.
        message: Letter,
    },
    /// There are no more.
    Nothing,
    /// What the program asked for can't be done.
    Error {
        /// Why.
        reason: String,
    },
}

/// A message that has arrived.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Letter {
    /// The message's id.
    pub(crate) id: MessageId,
    /// Who sent it.
    pub(crate) from: Address,
    /// When it was sent here, in milliseconds since 1970.
    pub(crate) timestamp: i64,
    /// What it says.
    #[serde(flatten)]
    pub(crate) post: Post,
}
