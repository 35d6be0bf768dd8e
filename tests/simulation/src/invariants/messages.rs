//! Messages between programs, and the keys of those that carry them.

use std::collections::{BTreeMap, BTreeSet};

use vm_agent_hub::{Directory, Record};
use vm_agent_schemas::ids::{MessageId, Nonce};
use vm_agent_schemas::message::{Message, MessageState, Party};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::{Address, RefusalCode};

use crate::deed::Deed;

use super::{DOORS, Invariant, POST, hold, invariant};

type Way = (MessageId, Address, Address);

fn way(message: &Message) -> Way {
    (message.id, message.from.clone(), message.to.clone())
}

fn messages(records: &[Record]) -> impl Iterator<Item = &Message> {
    records.iter().filter_map(|record| match record {
        Record::Message(message) => Some(message),
        _ => None,
    })
}

/// A message is told as accepted only when it is stored; it ends taken or dead, and that never changes.
#[derive(Debug, Default)]
pub(super) struct MessagesEndOnce {
    ended: BTreeMap<Way, MessageState>,
}

impl Invariant for MessagesEndOnce {
    invariant!(MessagesEndOnce, POST);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::MessageAccepted { stored, .. } => {
                hold(!stored.is_empty(), || "a message is accepted, and not stored".to_owned())
            }
            Deed::Stored(records) => messages(records).try_for_each(|message| {
                let ended = message.state != MessageState::Waiting;
                let before = match self.ended.get(&way(message)) {
                    Some(before) => before,
                    None if ended => self.ended.entry(way(message)).or_insert(message.state.clone()),
                    None => return Ok(()),
                };
                hold(*before == message.state, || format!("a message that was {before:?} is {:?}", message.state))
            }),
            _ => Ok(()),
        }
    }
}

/// A program is never given a message twice in one machine.
#[derive(Debug, Default)]
pub(super) struct MessagesAreGivenOnce {
    given: BTreeSet<(Way, Nonce)>,
}

impl Invariant for MessagesAreGivenOnce {
    invariant!(MessagesAreGivenOnce, POST);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Given(message, nonce) = deed else { return Ok(()) };
        let is_new = self.given.insert((way(message), nonce.clone()));
        hold(is_new, || format!("a program of {} is given a message twice", message.to))
    }
}

/// What one writes to another comes in the order in which it was written, unless the disk refused some of it.
#[derive(Debug, Default)]
pub(super) struct MessagesKeepTheirOrder {
    latest: BTreeMap<(Address, Address, Nonce), u64>,
    refused: BTreeSet<(Address, Address)>,
}

impl Invariant for MessagesKeepTheirOrder {
    invariant!(MessagesKeepTheirOrder, POST);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::NotStored(records) => {
                self.refused.extend(messages(records).map(|message| (message.from.clone(), message.to.clone())));
                Ok(())
            }
            Deed::Given(message, nonce) => {
                let Some(number) = message.body.as_u64() else { return Err("it says nothing".to_owned()) };
                let pair = (message.from.clone(), message.to.clone());
                let before = self.latest.insert((pair.0.clone(), pair.1.clone(), nonce.clone()), number);
                let kept = before.is_none_or(|before| before < number) || self.refused.contains(&pair);
                hold(kept, || format!("word {number} of {} comes to {} after {before:?}", pair.0, pair.1))
            }
            _ => Ok(()),
        }
    }
}

/// Between agents nothing is accepted but what a rule allows, and answers.
#[derive(Debug, Default)]
pub(super) struct OnlyWhoMayWrites {
    directory: Directory,
    known: BTreeSet<Way>,
}

impl OnlyWhoMayWrites {
    fn allows(&self, from: &AgentName, to: &AgentName) -> bool {
        let includes = |party: &Party, name: &AgentName| {
            self.directory.members.get(name).is_some_and(|member| match party {
                Party::Agent(agent) => agent == name,
                Party::Labels { labels } => labels.matches(&member.labels),
            })
        };
        self.directory.allow.iter().any(|rule| includes(&rule.from, from) && includes(&rule.to, to))
    }
}

impl Invariant for OnlyWhoMayWrites {
    invariant!(OnlyWhoMayWrites, POST);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::Declared(directory) => self.directory = directory.clone(),
            Deed::Meant { records, .. } => {
                for message in messages(records) {
                    let (is_new, Message { from, to, .. }) = (self.known.insert(way(message)), message);
                    let (Address::Agent(sender), Address::Agent(receiver)) = (from, to) else { continue };
                    let question = message.in_reply_to.map(|question| (question, to.clone(), from.clone()));
                    let answers = question.is_some_and(|question| self.known.contains(&question));
                    hold(!is_new || answers || self.allows(sender, receiver), || {
                        format!("{sender} writes to {receiver}, and may not")
                    })?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// A runtime that makes itself another key is let in all the same, wherever that is cut off.
#[derive(Debug)]
pub(super) struct KeysAreNotLost;

impl Invariant for KeysAreNotLost {
    invariant!(KeysAreNotLost, DOORS);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Refused(code) = deed else { return Ok(()) };
        hold(*code != RefusalCode::Credential, || "a runtime is refused for its key".to_owned())
    }
}
