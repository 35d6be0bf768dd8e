//! `schemas/PROTOCOL.md` says what the types say.

use std::collections::BTreeSet;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use vm_agent_schemas::wire::{Envelope, FromHub, FromRuntime, Hello, RefusalCode, Seed, json_schema};

use crate::state::handshake::check_proof;

const DOCUMENT: &str = include_str!("../../../../../schemas/PROTOCOL.md");

/// The values of `type` that a schema definition of messages lists.
pub(super) fn message_types(schema: &Value, direction: &str) -> BTreeSet<String> {
    fn collect(value: &Value, types: &mut BTreeSet<String>) {
        if let Some(name) = value.pointer("/properties/type/const").and_then(Value::as_str) {
            types.insert(name.to_owned());
        }
        match value {
            Value::Object(map) => map.values().for_each(|value| collect(value, types)),
            Value::Array(list) => list.iter().for_each(|value| collect(value, types)),
            _ => {}
        }
    }
    let property = if direction == "FromRuntime" { "from_runtime" } else { "from_hub" };
    let mut definition = &schema["properties"][property];
    if let Some(reference) = definition["$ref"].as_str() {
        definition = schema.pointer(reference.trim_start_matches('#')).unwrap();
    }
    let mut types = BTreeSet::new();
    collect(definition, &mut types);
    assert!(!types.is_empty(), "{definition}");
    types
}

pub(super) fn types_of<B: Serialize>(messages: &[B]) -> BTreeSet<String> {
    let name = |message| serde_json::to_value(message).unwrap()["type"].as_str().unwrap().to_owned();
    messages.iter().map(name).collect()
}

/// The examples with this mark after `json`.
fn examples(mark: &str) -> Vec<Value> {
    let fence = format!("```json {mark}\n");
    let blocks = DOCUMENT.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(|block| serde_json::from_str(block).unwrap_or_else(|error| panic!("{error} in {block}"))).collect()
}

/// The examples as values of their type; all that they say is understood.
fn parsed<T: DeserializeOwned + Serialize>(mark: &str) -> Vec<T> {
    let parse = |example: Value| {
        let value: T = serde_json::from_value(example.clone()).unwrap_or_else(|error| panic!("{error}: {example}"));
        assert_eq!(serde_json::to_value(&value).unwrap(), example, "the example says more or less than the type");
        value
    };
    examples(mark).into_iter().map(parse).collect()
}

#[test]
fn every_message_has_an_example_that_is_one() {
    let schema = serde_json::to_value(json_schema()).unwrap();
    let from_runtime: Vec<Envelope<FromRuntime>> = parsed("from-runtime");
    assert_eq!(types_of(&from_runtime), message_types(&schema, "FromRuntime"));
    let from_hub: Vec<Envelope<FromHub>> = parsed("from-hub");
    assert_eq!(types_of(&from_hub), message_types(&schema, "FromHub"));
    assert_eq!(parsed::<Seed>("seed").len(), 1);
}

#[test]
fn every_json_block_is_checked() {
    let marks = ["from-runtime", "from-hub", "seed"].map(|mark| examples(mark).len());
    assert_eq!(DOCUMENT.matches("```json").count(), marks.iter().sum::<usize>());
}

#[test]
fn every_refusal_code_is_told_with_whether_to_try_again() {
    use RefusalCode::*;
    let codes = [
        Protocol,
        Version,
        Fleet,
        UnknownAgent,
        Incarnation,
        JoinToken,
        Credential,
        Clone,
        StaleBoot,
        Superseded,
        Impersonation,
        Silence,
        Flow,
        Revoked,
        Shutdown,
        Internal,
    ];
    for code in codes {
        let retry = if code.retry() { "yes" } else { "no" };
        let row = format!("| `{code}` | {retry} |");
        assert!(DOCUMENT.contains(&row), "{row}");
    }
}

/// The examples of the handshake are one handshake: they serve as test vector.
#[test]
fn the_example_of_a_handshake_holds() {
    let from_runtime: Vec<Envelope<FromRuntime>> = parsed("from-runtime");
    let from_hub: Vec<Envelope<FromHub>> = parsed("from-hub");
    let hello = from_runtime.iter().find_map(|it| match &it.body {
        FromRuntime::Hello(hello) => Some(hello),
        _ => None,
    });
    let proof = from_runtime.iter().find_map(|it| match &it.body {
        FromRuntime::Proof(proof) => Some(proof),
        _ => None,
    });
    let challenge = from_hub.iter().find_map(|it| match &it.body {
        FromHub::Challenge(challenge) => Some(challenge),
        _ => None,
    });
    let (hello, proof, challenge): (&Hello, _, _) = (hello.unwrap(), proof.unwrap(), challenge.unwrap());
    let signed = String::from_utf8(challenge.signed_bytes(hello)).unwrap();
    assert!(DOCUMENT.contains(&signed), "the document shows what is signed:\n{signed}");
    let key = super::world::key(7);
    let expected = super::world::sign(&key, challenge, hello);
    assert_eq!(hello.public_key, super::world::public(&key));
    assert_eq!(FromRuntime::Proof(proof.clone()), expected);
    assert_eq!(check_proof(hello, challenge, proof), Ok(()));
    let seed = parsed::<Seed>("seed").remove(0);
    assert_eq!((&seed.fleet, &seed.agent, &seed.nonce), (&hello.fleet, &hello.agent, &hello.nonce));
}

#[test]
fn the_example_of_configured_says_back_the_mark_of_configure() {
    let configure = parsed::<Envelope<FromHub>>("from-hub").into_iter().find_map(|it| match it.body {
        FromHub::Configure(configuration) => Some(configuration.digest.clone()),
        _ => None,
    });
    let configured = parsed::<Envelope<FromRuntime>>("from-runtime").into_iter().find_map(|it| match it.body {
        FromRuntime::Configured(configured) => configured.digest,
        _ => None,
    });
    assert_eq!(configured, configure);
}
