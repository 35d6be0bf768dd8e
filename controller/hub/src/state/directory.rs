//! The agents as they are declared: what of the fleet file tasks and messages go by.

use std::collections::BTreeMap;

use vm_agent_schemas::message::Allow;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::selector::Selector;

/// How many tasks of an agent run side by side when nobody says how many.
const SLOTS: u32 = 4;

/// The declared agents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    /// The agents by name.
    pub members: BTreeMap<AgentName, Member>,
    /// Which agents may write to which.
    pub allow: Vec<Allow>,
}

/// A declared agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// How many of its tasks may run side by side.
    pub slots: u32,
}

impl Default for Member {
    /// Without labels, and with the usual number of tasks side by side.
    fn default() -> Self {
        Self { labels: BTreeMap::new(), slots: SLOTS }
    }
}

impl Directory {
    /// How many tasks of this agent may run side by side; at least one, or none would ever run.
    pub(super) fn slots(&self, agent: &AgentName) -> u32 {
        self.members.get(agent).map_or(SLOTS, |member| member.slots.max(1))
    }

    /// Whether the agent is declared and its labels are so.
    pub(super) fn matches(&self, agent: &AgentName, selector: &Selector) -> bool {
        self.members.get(agent).is_some_and(|member| selector.matches(&member.labels))
    }

    /// Whether the one may write to the other. For agents that are not declared there are no rules.
    pub(super) fn allows(&self, from: &AgentName, to: &AgentName) -> bool {
        let (Some(sender), Some(receiver)) = (self.members.get(from), self.members.get(to)) else { return false };
        let fits = |rule: &Allow| rule.from.includes(from, &sender.labels) && rule.to.includes(to, &receiver.labels);
        self.allow.iter().any(fits)
    }
}
