//! A dry run answers as if, and changes nothing.

use serde_json::{Value, json};
use vm_agent_schemas::api::TokenRequest;
use vm_agent_schemas::credential::Role;
use vm_agent_schemas::units::Span;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{ann, http, pass, qemu, settled, start, stored};

const FILE: &str = "defaults: {driver: qemu}\nagents: {db: {}, rest: {power: stopped}, web: {}}\n";
const OTHER: &str = "defaults: {driver: qemu}\nagents: {new: {}, web: {image: debian, cpus: 7}}\n";

#[tokio::test]
async fn a_dry_run_of_every_mutating_call_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let fake = qemu(Span::from_secs(60));
    let _runtimes = Runtimes::of(&fake);
    let running = start(folder.path(), &[&fake]).await;
    let controller = running.controller();
    let token = controller
        .create_token(TokenRequest { name: "test".to_owned(), role: Role::Admin, lasting: None }, &ann())
        .await
        .unwrap();
    let bearer = format!("Bearer {}", token.secret.expose());
    vm_agent_tests::in_process::apply(controller, FILE).await;
    settled(controller, FILE, &["db", "web"]).await;
    vm_agent_tests::in_process::becomes(controller, "rest", |it| it.sync == vm_agent_schemas::plan::Sync::Synced).await;

    let (before, instances) = (stored(folder.path()), fake.instances());
    let mutating = fake.mutating_calls();
    let api = controller.status().await.unwrap().addresses.api;
    let source = json!({"files": [{"name": "fleet.yaml", "text": OTHER}]});
    let cases = [
        ("POST", "/apply", json!({"source": source, "dryRun": true})),
        ("POST", "/plan", json!({"source": source})),
        ("PUT", "/agents/hand", json!({"spec": {"driver": "qemu"}, "dryRun": true})),
        ("DELETE", "/agents/web", json!({"dryRun": true})),
        ("DELETE", "/agents/web?dryRun=true", Value::Null),
        ("POST", "/agents/web/stop", json!({"dryRun": true, "lasting": "1s"})),
        ("POST", "/agents/rest/start", json!({"dryRun": true, "sticky": true})),
        ("POST", "/down", json!({"dryRun": true})),
        ("POST", "/down", json!({"dryRun": true, "destroy": true})),
    ];
    for (method, path, body) in cases {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = http(api, method, path, Some(&bearer), &body).await;
        assert_eq!(status, 200, "{method} {path}: {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let steps = answer.pointer("/plan/steps").or(answer.get("steps")).and_then(Value::as_array);
        assert!(steps.is_some_and(|steps| !steps.is_empty()), "{method} {path} shows what it would do: {answer}");
        assert_eq!(stored(folder.path()), before, "{method} {path}");
    }
    // Had one of them been taken for real, the next pass would act on it.
    pass(controller, FILE).await;
    assert_eq!(fake.mutating_calls(), mutating);
    assert_eq!(fake.instances(), instances);
    assert_eq!(stored(folder.path()), before);
    running.shut_down().await;
}
