//! What applying a file would change, field by field: what the plan sees of the machines, and what the
//! file says otherwise than the one in force.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use vm_agent_schemas::fleet::{DeclaredAgent, DriftPolicy, Field, Fleet};
use vm_agent_schemas::intent::Override;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::plan::{AgentPlan, Cost, Drift, DriftClass, Plan};

use crate::render::{covering, field, origin, origin_of};

/// What applying a file would change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Diff {
    /// What it says otherwise of the fleet as a whole.
    pub(crate) fleet: Vec<FieldDiff>,
    /// The agents that would change.
    pub(crate) items: Vec<AgentDiff>,
}

/// What would change of one agent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct AgentDiff {
    pub(crate) agent: AgentName,
    pub(crate) change: Kind,
    /// What it takes, of an agent that comes or goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cost: Option<Cost>,
    pub(crate) fields: Vec<FieldDiff>,
}

/// What becomes of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    New,
    Changed,
    Gone,
}

/// One field that would change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct FieldDiff {
    pub(crate) path: String,
    pub(crate) observed: Value,
    pub(crate) wanted: Value,
    pub(crate) cost: Cost,
    /// The layer that the wanted value comes from.
    pub(crate) origin: Option<String>,
    /// Whether it would be changed, or only shown.
    pub(crate) policy: DriftPolicy,
}

impl Diff {
    /// Whether applying the file would change anything. What is only warned of would stay.
    pub(crate) fn is_empty(&self) -> bool {
        let stays = |field: &FieldDiff| field.policy == DriftPolicy::Warn;
        self.fleet.is_empty()
            && self.items.iter().all(|item| item.change == Kind::Changed && item.fields.iter().all(stays))
    }
}

/// Compares a file with the fleet as it is. `plan` was made for the file; `accepted` is the one in force,
/// where there is one.
pub(crate) fn diff(
    plan: &Plan,
    accepted: Option<&Fleet>,
    wanted: &Fleet,
    overrides: &[Override],
    now: Timestamp,
) -> Diff {
    let of_agent = |agent: &AgentPlan| {
        let before = accepted.and_then(|fleet| fleet.agents.get(&agent.name));
        let after = wanted.agents.get(&agent.name);
        compare(agent, before.zip(after).map(|(before, after)| (&**before, &**after)), overrides, now)
    };
    Diff {
        fleet: accepted.map_or_else(Vec::new, |before| settings(before, wanted)),
        items: plan.agents.iter().filter_map(of_agent).collect(),
    }
}

fn compare(
    agent: &AgentPlan,
    specs: Option<(&DeclaredAgent, &DeclaredAgent)>,
    overrides: &[Override],
    now: Timestamp,
) -> Option<AgentDiff> {
    let existence = agent.drift.iter().find(|it| matches!(it.class, DriftClass::Missing | DriftClass::Unexpected));
    if let Some(drift) = existence {
        let change = if drift.class == DriftClass::Missing { Kind::New } else { Kind::Gone };
        return Some(AgentDiff { agent: agent.name.clone(), change, cost: Some(drift.cost), fields: Vec::new() });
    }
    let told = |declared: &DeclaredAgent, path: &str| {
        let layer = declared.origins.get(&field(path)?)?;
        Some(origin(layer, covering(overrides, &agent.name, path), now))
    };
    let mut fields: Vec<FieldDiff> = Vec::new();
    let written = specs.map_or_else(Vec::new, |(before, after)| {
        let mut written = leaves(&spec(before), &spec(after));
        written.iter_mut().for_each(|field| field.origin = told(after, &field.path));
        written
    });
    // What the file says otherwise is told key by key, which says more than that the whole differs.
    let configuration = written.iter().any(|it| field(&it.path).is_some_and(reaches_runtime));
    for drift in agent.drift.iter().filter(|drift| is_change(drift)) {
        if drift.class != DriftClass::Provisioning || !configuration {
            let origin = agent.wanted.as_deref().and_then(|it| origin_of(drift, it, overrides, &agent.name, now));
            fields.extend(of_drift(drift).map(|field| FieldDiff { origin: origin.clone(), ..field }));
        }
    }
    for field in written {
        let within = |it: &FieldDiff| field.path == it.path || field.path.starts_with(&format!("{}.", it.path));
        if !fields.iter().any(within) {
            fields.push(field);
        }
    }
    (!fields.is_empty()).then(|| AgentDiff { agent: agent.name.clone(), change: Kind::Changed, cost: None, fields })
}

/// Whether applying has to do with a difference: what only has to be waited for comes by itself.
fn is_change(drift: &Drift) -> bool {
    drift.cost != Cost::Wait || drift.class == DriftClass::Unknown
}

/// A difference key by key, where it is one of maps.
fn of_drift(drift: &Drift) -> impl Iterator<Item = FieldDiff> {
    let mut found = Vec::new();
    descend(drift.path.clone(), &drift.observed, &drift.wanted, &mut found);
    let Drift { cost, policy, .. } = *drift;
    found.into_iter().map(move |field| FieldDiff { cost, policy, ..field })
}

/// Whether a field is handed to the runtime as a part of its configuration.
fn reaches_runtime(field: Field) -> bool {
    matches!(field, Field::Env | Field::Labels | Field::Secrets | Field::Files | Field::Services)
}

fn spec(declared: &DeclaredAgent) -> Value {
    serde_json::to_value(&declared.spec).expect("a spec can be written as JSON")
}

/// What two files say otherwise beside their agents.
fn settings(before: &Fleet, after: &Fleet) -> Vec<FieldDiff> {
    let settings = |fleet: &Fleet| {
        serde_json::json!({
            "limits": fleet.limits, "windows": fleet.windows, "prune": fleet.prune, "hub": fleet.hub,
            "messages": fleet.messages, "webhooks": fleet.webhooks,
        })
    };
    leaves(&settings(before), &settings(after))
}

/// Each place in which two documents differ, as deep as both have maps there.
fn leaves(before: &Value, after: &Value) -> Vec<FieldDiff> {
    let mut found = Vec::new();
    descend(String::new(), before, after, &mut found);
    found
}

fn descend(path: String, before: &Value, after: &Value, found: &mut Vec<FieldDiff>) {
    if before == after {
        return;
    }
    let (Some(old), Some(new)) = (before.as_object(), after.as_object()) else {
        let (observed, wanted) = (before.clone(), after.clone());
        let (cost, policy) = (Cost::Live, DriftPolicy::default());
        found.push(FieldDiff { path, observed, wanted, cost, origin: None, policy });
        return;
    };
    let get = |map: &Map<String, Value>, key: &str| map.get(key).cloned().unwrap_or(Value::Null);
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    for key in new.keys().chain(gone) {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        descend(path, &get(old, key), &get(new, key), found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;
    use vm_agent_schemas::fleet::parse;

    fn fleet(text: &str) -> Fleet {
        parse("fleet.yaml", text).unwrap()
    }

    fn told(diff: &Diff) -> Vec<String> {
        let agents = diff.items.iter().flat_map(|item| {
            let whole = (item.change != Kind::Changed).then(|| format!("{:?} {}", item.change, item.agent));
            whole.into_iter().chain(item.fields.iter().map(|it| format!("{}.{}", item.agent, it.path)))
        });
        diff.fleet.iter().map(|it| it.path.clone()).chain(agents).collect()
    }

    #[test]
    fn machines_and_files_are_compared_field_by_field() {
        let before = fleet("agents: {db: {driver: local, memory: 8G, env: {A: '1', B: '2'}}}");
        let after = fleet(
            "prune: auto\nagents: {web: {}, db: {driver: local, memory: 8G, restart: never, env: {A: '2', C: '3'}}}",
        );
        let found = diff(&samples::plan(), Some(&before), &after, &[], samples::now());
        assert_eq!(
            told(&found),
            ["prune", "db.memory", "db.env.A", "db.env.C", "db.env.B", "db.restart", "Gone old", "New web"]
        );
        assert!(!found.is_empty());
        assert_eq!(found.items[0].fields[3].observed, "2");
        assert_eq!(found.items[0].fields[3].wanted, Value::Null);
    }

    #[test]
    fn what_is_only_warned_of_is_shown_and_is_no_difference() {
        let same = fleet("agents: {db: {driver: local}}");
        let found = diff(&samples::quiet_plan(), Some(&same), &same, &[], samples::now());
        assert_eq!(told(&found), ["db.memory"]);
        assert!(found.is_empty());
    }

    #[test]
    fn the_same_file_on_a_fleet_as_it_says_is_no_difference() {
        let same = fleet("agents: {web: {driver: local}}");
        let found = diff(&samples::empty_plan(), Some(&same), &same, &[], samples::now());
        assert_eq!(told(&found), Vec::<String>::new());
    }
}
