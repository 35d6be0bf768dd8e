//! Who may write to whom in a fleet.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::diagnostic::{Finding, nearest};
use crate::message::{Allow, Party};
use crate::names::AgentName;

/// What agents may say to each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Messages {
    /// Who may write to whom, each an agent or `{labels: "team=build"}`. Between agents nothing is allowed
    /// that no such rule allows. The host may always be written to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "default" = [],
        "x-cost" = "live",
        "examples" = [[{"from": "builder", "to": {"labels": "team=test"}}]]
    ))]
    pub allow: Vec<Allow>,
}

/// Finds names of nobody. A name stands for one agent: several alike are meant by their labels, so that
/// the rules stay as many as were written.
pub(super) fn check_messages(
    messages: &Messages,
    agents: &BTreeSet<&AgentName>,
    sets: &BTreeMap<AgentName, Vec<AgentName>>,
    findings: &mut Vec<Finding>,
) {
    for (index, Allow { from, to }) in messages.allow.iter().enumerate() {
        for (key, party) in [("from", from), ("to", to)] {
            let Party::Agent(name) = party else { continue };
            if agents.contains(name) {
                continue;
            }
            let path = ["messages", "allow", &index.to_string(), key].map(str::to_owned);
            findings.push(if sets.contains_key(name) {
                let finding = Finding::at(&path, format!("`{name}` is several agents"));
                finding.advised(format!("write `{name}-1` for one of them, or {{labels: …}} for all"))
            } else {
                let finding = Finding::at(&path, format!("there is no agent `{name}` in the file"));
                match nearest(name.as_str(), agents.iter().map(|agent| agent.as_str())) {
                    Some(word) => finding.hinted(Some(word)),
                    None => finding.advised("agents made by hand are meant by their labels".to_owned()),
                }
            });
        }
    }
}
