//! The effective spec of an agent, with where each field comes from.

use jiff::Timestamp;
use serde_json::Value;
use vm_agent_schemas::fleet::{DeclaredAgent, Field, Origin};
use vm_agent_schemas::intent::Override;
use vm_agent_schemas::names::AgentName;

use super::plan::{covering, origin};
use super::{says_nothing, value};
use crate::table::{Cell, Table};
use crate::ui::{BUSY, FAINT, PLAIN, STRONG};

/// A table of fields. A map has a line for each of its keys.
pub(crate) fn spec(wanted: &DeclaredAgent, overrides: &[Override], agent: &AgentName, now: Timestamp) -> String {
    let mut table = Table::new(&["FIELD", "VALUE", "ORIGIN"]);
    for (path, value, layer) in rows(wanted) {
        let style = match layer {
            Some(Origin::BuiltIn) | None => FAINT,
            Some(Origin::Override) => BUSY,
            Some(_) => PLAIN,
        };
        let told = layer.map_or_else(String::new, |layer| origin(layer, covering(overrides, agent, &path), now));
        table.row(vec![Cell::new(&path, STRONG), value.into(), Cell::new(&told, style)]);
    }
    table.render()
}

/// Each field with its value and its layer; fields with several keys, key by key.
fn rows(wanted: &DeclaredAgent) -> Vec<(String, String, Option<&Origin>)> {
    let spec = serde_json::to_value(&wanted.spec).expect("a spec can be written as JSON");
    let mut rows = Vec::new();
    for field in Field::ALL {
        let (key, layer) = (field.key(), wanted.origins.get(&field));
        match spec.get(key).unwrap_or(&Value::Null) {
            Value::Object(map) if !map.is_empty() => {
                rows.extend(map.iter().map(|(name, it)| (format!("{key}.{name}"), one_line(name, it), layer)));
            }
            empty if says_nothing(empty) => rows.push((key.to_owned(), String::new(), layer)),
            it => rows.push((key.to_owned(), one_line(key, it), layer)),
        }
    }
    rows
}

fn one_line(key: &str, it: &Value) -> String {
    value(key, it).replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use vm_agent_schemas::fleet::parse;

    #[test]
    fn each_field_has_its_value_and_its_layer() {
        let fleet = parse(
            "fleet.yaml",
            "defaults: {driver: local}\nprofiles: {small: {memory: 2G, env: {A: '1'}}}\n\
             agents: {web: {profile: small, env: {PORT: '8080'}, idle: 30m, secrets: {T: {env: T}}}}",
        )
        .unwrap();
        let mut wanted = fleet.agents["web"].as_ref().clone();
        wanted.origins.insert(Field::Power, Origin::Override);
        let overrides = samples::overridden("web").overrides;
        let table = spec(&wanted, &overrides, &samples::name("web"), samples::now());
        insta::assert_snapshot!(anstream::adapter::strip_str(&table).to_string());
    }
}
