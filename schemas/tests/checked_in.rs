//! The JSON Schemas that are checked in are those of the types, and the one of the fleet file explains
//! each key to whoever writes one.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use vm_agent_schemas::fleet::{self, AgentEntry, FleetFile, HubSettings, Limits, Messages, TaskEntry, Webhook};
use vm_agent_schemas::wire;

#[test]
fn the_checked_in_schemas_are_those_of_the_types() {
    let files = [("fleet.schema.json", fleet::json_schema()), ("protocol.schema.json", wire::json_schema())];
    for (name, schema) in files {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let made = format!("{:#}\n", schema.as_value());
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(checked_in == made, "schemas/{name} is out of date: `cargo xtask schemas` writes it anew");
    }
}

/// Checks one object of the fleet file. Beside one of `minimals`, which are what it can't do without, each
/// key can be read.
fn check<T: DeserializeOwned>(place: &str, schema: &Value, minimals: &[Value]) {
    assert_eq!(schema["additionalProperties"], false, "{place} takes unknown keys");
    let no_keys = Vec::new();
    let required = schema["required"].as_array().unwrap_or(&no_keys);
    let reads = |key: &str, value: &Value| {
        let read = |minimal: &Value| {
            let mut object: Map<String, Value> = minimal.as_object().expect("a minimal value is an object").clone();
            object.insert(key.to_owned(), value.clone());
            serde_json::from_value::<T>(object.into()).map(drop)
        };
        let results: Vec<_> = minimals.iter().map(read).collect();
        assert!(results.iter().any(Result::is_ok), "{place}.{key}: {value} is in the schema and refused: {results:?}");
    };
    let keys = schema["properties"].as_object().expect("the type has keys");
    assert!(!keys.is_empty());
    for (key, about) in keys {
        assert!(about["description"].as_str().is_some_and(|text| !text.is_empty()), "{place}.{key}: no description");
        assert!(about["x-cost"].as_str().is_some_and(|text| !text.is_empty()), "{place}.{key}: no x-cost");
        let examples = about["examples"].as_array().unwrap_or_else(|| panic!("{place}.{key}: no example"));
        examples.iter().for_each(|example| reads(key, example));
        match about.get("default") {
            Some(default) => reads(key, default),
            None => assert!(required.contains(&json!(key)), "{place}.{key} may be left out and has no default"),
        }
    }
}

#[test]
fn every_key_of_the_fleet_file_says_what_it_means_what_holds_without_it_and_what_changing_it_costs() {
    let schema = fleet::json_schema().to_value();
    let part = |name: &str| &schema["$defs"][name];
    check::<FleetFile>("", &schema, &[json!({"agents": {}})]);
    check::<AgentEntry>("agents", part("AgentEntry"), &[json!({})]);
    let tasks = [
        json!({"exec": "true"}),
        json!({"type": "build"}),
        json!({"type": "script", "script": "true"}),
        json!({"type": "file:write", "path": "x", "content": ""}),
        json!({"type": "git:clone", "url": "x"}),
        json!({"type": "git:pull"}),
    ];
    check::<TaskEntry>("tasks", part("TaskEntry"), &tasks);
    check::<Webhook>("webhooks", part("Webhook"), &[json!({"url": "https://example.com"})]);
    check::<Messages>("messages", part("Messages"), &[json!({})]);
    check::<Limits>("limits", part("Limits"), &[json!({})]);
    check::<HubSettings>("hub", part("HubSettings"), &[json!({})]);
}

#[test]
fn the_example_is_right_in_the_eyes_of_the_parser_and_of_the_schema() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fleet.example.yaml")).unwrap();
    let fleet = fleet::parse("fleet.example.yaml", &text).unwrap_or_else(|wrong| panic!("{wrong:?}"));
    let builder = fleet.agents.iter().find(|(name, _)| name.as_str() == "builder").unwrap().1;
    let schema = fleet::json_schema().to_value();
    let rules = schema["$defs"]["TaskEntry"]["allOf"].as_array().unwrap();
    let written: Value = serde_yaml::from_str(&text).unwrap();
    for (name, task) in written["agents"]["builder"]["tasks"].as_object().unwrap() {
        let kind = task.get("type").cloned().unwrap_or_else(|| json!("exec"));
        let rule = rules.iter().find(|rule| rule["if"]["properties"]["type"]["const"] == kind).unwrap();
        let then = &rule["then"];
        assert!(
            then["required"].as_array().unwrap().iter().all(|key| task.get(key.as_str().unwrap()).is_some()),
            "{name}"
        );
        assert!(task.as_object().unwrap().keys().all(|key| then["properties"].get(key).is_none()), "{name}");
    }
    assert_eq!(builder.spec.tasks.len(), 4);
}

#[test]
fn names_are_checked_by_the_schema_too_as_values_and_as_keys() {
    let schema = fleet::json_schema().to_value();
    assert_eq!(schema["properties"]["name"]["maxLength"], 63);
    let agents = schema["properties"]["agents"].as_object().unwrap();
    assert_eq!(agents["additionalProperties"], false);
    let pattern = agents["patternProperties"].as_object().unwrap().keys().next().unwrap();
    assert_eq!(pattern, "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$");
}
