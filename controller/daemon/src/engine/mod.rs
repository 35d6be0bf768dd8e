//! The decisions of the controller, without their doing.
//!
//! A decision is a synchronous function over plain data: no clock, no disk, no sockets, no chance but
//! what it is handed. What it wants done it answers as a [`Sequence`] of [`Effect`]s, whose order is
//! part of the decision: what must be durable before a side effect stands before it. Two runners
//! carry sequences out: the daemon, with a store, a hub and drivers, and the simulation in `tests/`,
//! which may end a life between any two effects.
//!
//! ```text
//! records ─┐                     ┌─ Note(changes): write them down, look again
//! memory  ─┼─▶ inputs ─▶ turn() ─┤
//! sights  ─┤                     └─ Act(sequences) ─▶ Announce ─▶ Hub(Enroll) ─▶ Begin(job)
//! sessions ┘                                                                        │ driver's call, a look
//!                                               Hub(Revoke) ─▶ Record ◀─ settle() ──┘
//! ```
//!
//! - [`records`]: what survives, and each change of it
//! - [`memory`]: what a life remembers, and how a moment becomes the inputs of a plan
//! - [`clock`]: when the wall clock jumped
//! - [`sight`]: what a driver's listing says in the light of the one before
//! - [`pass`]: what a pass comes to
//! - [`job`]: a step on an instance, from what it needs to what it came to
//! - [`isolation`]: whether a runtime runs in its machine
//! - [`errand`]: what is to be done with snapshots
//! - [`life`]: how a life begins
//! - [`intent`]: what people say
//! - [`adopt`]: instances that others made, taken over and let go
//! - [`directory`]: what of the declared agents tasks and messages go by
//! - [`file`]: how a fleet file gets into force, and what becomes of a change of it
//! - [`reach`]: what a fleet lets guests do to the host
//! - [`notices`]: what the hub tells
//! - [`tasks`]: tasks by hand

pub mod adopt;
pub mod clock;
pub mod directory;
pub mod errand;
pub mod file;
pub mod intent;
pub mod isolation;
pub mod job;
pub mod life;
pub mod memory;
pub mod notices;
pub mod pass;
pub mod reach;
pub mod records;
pub mod sight;
pub mod tasks;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use vm_agent_hub::{Directory, OutputKnown};
use vm_agent_schemas::credential::Credential;
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::fleet::{DriverName, SecretSource};
use vm_agent_schemas::ids::{ClaimId, OperationId, TaskId};
use vm_agent_schemas::message::Message;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::Configuration;

use job::Job;
use records::Change;

/// Effects in order: each is carried out when the one before it is over, and none after one that
/// failed. A life may end between any two of them.
pub type Sequence = Vec<Effect>;

/// One thing that a decision wants done.
#[derive(Debug)]
pub enum Effect {
    /// Make these changes durable, all or none, and then known.
    Record(Vec<Change>),
    /// The same, unless people have said something since they had said so much: then the sequence ends
    /// here, and what may begin is decided anew.
    Announce(Vec<Change>, u64),
    /// Make these changes durable and known, with a task that is new. Is it known already, then what follows has been done as well:
    /// the sequence ends here, and nothing has failed.
    Accept(Vec<Change>),
    /// Tell the hub.
    Hub(HubCall),
    /// Tell the hub of the agents as they are declared by then: it may have heard of more since this was decided.
    Declare,
    /// Find out what the agent's secrets are, beside everything else, and give it this configuration
    /// with them.
    Configure(AgentName, Box<Configuration>, BTreeMap<String, SecretSource>),
    /// Offer the agent's runtime the version that belongs to the controller, beside everything else and one
    /// agent at a time.
    Upgrade(AgentName, DriverName),
    /// Carry a step out, beside everything else.
    Begin(Box<Job>),
    /// Give a step up that is under way: nobody wants any more what it is to bring about.
    GiveUp(OperationId),
    /// Remember that a step which began then brought a machine up.
    BroughtUp(Timestamp),
    /// Look again at once.
    Wake,
    /// Look again by and by: this happens all the time where there is much to do.
    Nudge,
}

/// One thing to tell the hub.
#[derive(Debug, Clone, PartialEq)]
pub enum HubCall {
    /// The agent's runtime may speak with this credential, which is stored already. Without a
    /// configuration it goes on with the one that it has, until it is told otherwise.
    Enroll(Box<Credential>, Option<Configuration>),
    /// The agent's machine is that of this claim.
    Claimed(AgentName, ClaimId),
    /// The agent's instance is no more.
    Revoke(AgentName),
    /// The agent's machine is down, and another has what is in it: its key opens nothing any more.
    Unbind(AgentName),
    /// The agent has another configuration.
    Configure(AgentName, Configuration),
    /// The declared agents are these, and who may write to whom.
    Directory(Directory),
    /// This task, accepted and stored, is to be delivered. So much of its present attempt's output is stored.
    Submit(Box<Task>, OutputKnown),
    /// Nobody wants this task any more, says somebody.
    Cancel(TaskId, String),
    /// This message, accepted and stored in an earlier life, waits for its receiver.
    Restore(Box<Message>),
    /// The machines of these agents, and of no others, are about to go down: they get no new task.
    Cordon(BTreeSet<AgentName>),
}

/// Accepts a task: durable first, then on its way.
#[must_use]
pub fn accept(task: Task, message: impl Into<String>) -> Sequence {
    accept_all(vec![task], message, Vec::new())
}

/// Accepts tasks, all or none, with changes that belong to that.
#[must_use]
pub fn accept_all(tasks: Vec<Task>, message: impl Into<String>, mut changes: Vec<Change>) -> Sequence {
    let message = message.into();
    for task in &tasks {
        let event = NewEvent { kind: EventKind::TaskAccepted, agent: task.agent.clone(), message: message.clone() };
        changes.extend([Change::Task(Box::new(task.clone())), Change::Event(event)]);
    }
    // Nothing is written yet of a task that nobody has begun.
    let submit = |task| Effect::Hub(HubCall::Submit(Box::new(task), OutputKnown::default()));
    let mut sequence = vec![Effect::Accept(changes)];
    sequence.extend(tasks.into_iter().map(submit));
    sequence.push(Effect::Nudge);
    sequence
}
