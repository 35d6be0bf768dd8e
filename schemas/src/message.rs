//! Messages between programs: from the host to agents, from agents to the host and to each other.
//!
//! A message that is accepted is on the disk. It is delivered at least once on the wire and kept once by
//! its receiver, which knows it by its id; if it can't be delivered in its time, it is a dead letter.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::fleet::text_or_map;
use crate::ids::MessageId;
use crate::names::AgentName;
use crate::selector::Selector;
use crate::units::Span;
use crate::wire::Address;

/// Most that a message's body may take as JSON, in bytes.
pub const BODY_MAX: usize = 64 * 1024;
/// Longest subject, in characters.
pub const SUBJECT_MAX: usize = 128;
/// How long a message waits for its receiver when nobody says how long: one day.
pub const TTL: Span = Span::from_secs(24 * 3600);
/// Most messages that wait for one receiver. Whoever sends more is told that it is full.
pub const WAITING_MAX: usize = 1000;
/// How many messages a second an agent may send in the long run.
pub const RATE: u32 = 50;
/// How many it may send at once after a quiet time.
pub const BURST: u32 = 200;

/// What is said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Post {
    /// What it is about, for programs to choose by: at most 128 characters, none of them a control
    /// character.
    pub subject: String,
    /// What it says: any JSON, at most 64 KiB of it.
    pub body: serde_json::Value,
    /// The message that it answers. Whoever was sent a message may answer it, allowed or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_reply_to: Option<MessageId>,
    /// How long it may wait for its receiver, in milliseconds; nothing means one day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

/// A message on its way to one receiver. One to several receivers is several of these, of one id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// The message's id.
    pub id: MessageId,
    /// Who sent it: the host or an agent.
    pub from: Address,
    /// Whom it is for: the host or one agent.
    pub to: Address,
    /// What it is about.
    pub subject: String,
    /// What it says.
    pub body: serde_json::Value,
    /// The message that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_reply_to: Option<MessageId>,
    /// Who sent it, where the host did: the person or the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it is given up.
    pub expires_at: Timestamp,
    /// How far it is.
    pub state: MessageState,
}

/// How far a message is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum MessageState {
    /// It waits for its receiver.
    Waiting,
    /// Its receiver keeps it.
    Taken {
        /// Since when.
        at: Timestamp,
    },
    /// It is a dead letter: it was not taken.
    Dead {
        /// Since when.
        at: Timestamp,
        /// Why.
        reason: String,
    },
}

/// A message goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MessageRefused {
    /// The message.
    pub message: MessageId,
    /// Why, for machines.
    pub code: RefusedCode,
    /// Why, for people.
    pub reason: String,
}

/// Why a message goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RefusedCode {
    /// The fleet file does not allow it.
    Denied,
    /// There is no such receiver.
    Unknown,
    /// Too many in too short a time.
    Rate,
    /// Too many wait for that receiver.
    Full,
    /// It is no message: a subject or a body that is too large, or no receiver.
    Invalid,
}

/// Who may write to whom. Between agents nothing is allowed that no such rule allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Allow {
    /// Who writes.
    pub from: Party,
    /// Who is written to.
    pub to: Party,
}

/// An agent, or all those with some labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Party {
    /// This agent.
    Agent(AgentName),
    /// The agents that have these labels.
    Labels {
        /// What their labels have to be like.
        labels: Selector,
    },
}

impl Party {
    /// Whether the agent of that name and those labels is meant.
    #[must_use]
    pub fn includes(&self, agent: &AgentName, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Agent(name) => name == agent,
            Self::Labels { labels: selector } => selector.matches(labels),
        }
    }
}

impl<'de> Deserialize<'de> for Party {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Labels {
            labels: Selector,
        }
        struct Form(Party);
        impl<'de> Deserialize<'de> for Form {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Labels::deserialize(deserializer).map(|Labels { labels }| Self(Party::Labels { labels }))
            }
        }
        let short = |text: &str| text.parse().map(|name| Form(Party::Agent(name))).map_err(|error| format!("{error}"));
        let expecting = "an agent, or {labels: \"team=build\"}";
        text_or_map(deserializer, expecting, short).map(|Form(party)| party)
    }
}
