//! Tasks, output, messages and dead letters as a client sees them.

use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::json;
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::wire::{Channel, TaskRef};
use vm_agent_store::output::OutputRecord;

use super::*;

const NOBODY: &str = "0190c5a8-0000-7000-8000-000000000000";

/// A controller with the agents `web` and `db`, both of team a and neither of them up, and its socket.
async fn with_agents() -> (Controller, Router) {
    let controller = Controller::for_tests().await;
    let socket = router(controller.clone(), Door::Socket { user: "ann".to_owned() });
    for name in ["web", "db"] {
        let spec = json!({"spec": {"labels": {"team": "a"}, "power": "stopped"}});
        let made = tell(&socket, "PUT", &format!("/agents/{name}"), &spec).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.text);
    }
    (controller, socket)
}

async fn tell(socket: &Router, method: &str, path: &str, body: &Value) -> Reply {
    send(socket, request(method, path).body(Body::from(body.to_string())).unwrap()).await
}

fn document(reply: &Reply) -> Value {
    assert!(reply.status.is_success(), "{} {}", reply.status, reply.text);
    serde_json::from_str(&reply.text).unwrap()
}

fn task() -> Value {
    json!({"job": {"work": {"type": "exec", "argv": ["make"]}}})
}

async fn submitted(socket: &Router) -> String {
    let reply = tell(socket, "POST", "/agents/web/task", &task()).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED, "{}", reply.text);
    document(&reply)["id"].as_str().unwrap().to_owned()
}

/// What a path answers once that is so.
async fn until(socket: &Router, controller: &Controller, path: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let mut news = controller.news();
    let seen = async {
        loop {
            let answer = document(&ask(socket, "GET", path).await);
            if is_so(&answer) {
                return answer;
            }
            news.changed().await.unwrap();
        }
    };
    tokio::time::timeout(SOON, seen).await.expect("it comes to be so")
}

#[tokio::test]
async fn a_task_is_accepted_listed_cancelled_and_done_again() {
    let (_controller, socket) = with_agents().await;
    let id = submitted(&socket).await;
    let listed = |query: &str| {
        let (socket, path) = (socket.clone(), format!("/tasks{query}"));
        async move { document(&ask(&socket, "GET", &path).await)["items"].as_array().unwrap().len() }
    };
    for (query, count) in
        [("", 1), ("?agent=web&state=queued", 1), ("?agent=db", 0), ("?state=ended", 0), ("?dead=true", 0)]
    {
        assert_eq!(listed(query).await, count, "{query}");
    }
    assert_eq!(
        tell(&socket, "POST", &format!("/tasks/{id}/replay"), &json!({})).await.problem().code,
        ProblemCode::Conflict
    );
    for _ in 0..2 {
        let canceled = document(&ask(&socket, "POST", &format!("/tasks/{id}/cancel")).await);
        assert_eq!(
            (&canceled["canceledBy"], &canceled["state"]["outcome"]["end"]),
            (&"ann".into(), &"canceled".into())
        );
    }
    let again = document(&ask(&socket, "POST", &format!("/tasks/{id}/replay")).await);
    assert_eq!(
        (&again["replayOf"], &again["agent"], &again["state"]["state"]),
        (&id.as_str().into(), &"web".into(), &"queued".into())
    );
    assert_eq!(listed("?state=ended").await, 1);
    assert_eq!(document(&ask(&socket, "GET", "/agents/web/tasks").await)["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_key_asks_once_and_only_for_one_thing() {
    let (_controller, socket) = with_agents().await;
    let with = |field: &str, value: &str| {
        let mut task = task();
        task[field] = value.into();
        task
    };
    for (field, value) in [("key", "nightly"), ("id", NOBODY)] {
        let asked = with(field, value);
        let first = document(&tell(&socket, "POST", "/agents/web/task", &asked).await);
        assert_eq!(document(&tell(&socket, "POST", "/agents/web/task", &asked).await)["id"], first["id"]);
        let mut other = asked.clone();
        other["job"]["work"]["argv"] = json!(["other"]);
        for (agent, task) in [("web", &other), ("db", &asked)] {
            let refused = tell(&socket, "POST", &format!("/agents/{agent}/task"), task).await;
            assert_eq!(refused.problem().code, ProblemCode::Conflict, "{}", refused.text);
        }
    }
    let group = json!({"to": {"each": "team=a"}, "task": with("key", "weekly")});
    let ids = |reply: &Reply| {
        let items = document(reply)["items"].as_array().unwrap().clone();
        items.iter().map(|task| task["id"].clone()).collect::<Vec<_>>()
    };
    let first = ids(&tell(&socket, "POST", "/tasks", &group).await);
    assert_eq!(first.len(), 2);
    assert_eq!(ids(&tell(&socket, "POST", "/tasks", &group).await), first);
}

#[tokio::test]
async fn at_the_same_time_one_key_still_asks_once() {
    let (_controller, socket) = with_agents().await;
    let mut asked = task();
    asked["key"] = "nightly".into();
    let ask = || tell(&socket, "POST", "/agents/web/task", &asked);
    let (one, two, three) = tokio::join!(ask(), ask(), ask());
    let ids = [one, two, three].map(|reply| document(&reply)["id"].clone());
    assert!(ids[0] == ids[1] && ids[1] == ids[2], "{ids:?}");
}

#[tokio::test]
async fn who_can_not_do_a_task_is_named() {
    let (_controller, socket) = with_agents().await;
    assert_eq!(tell(&socket, "POST", "/agents/gone/task", &task()).await.problem().status, 404);
    for to in [json!({"any": "team=b"}), json!({"each": "team=b"}), json!({"agents": ["web", "gone"]})] {
        let refused = tell(&socket, "POST", "/tasks", &json!({"to": to, "task": task()})).await;
        assert_eq!(refused.problem().status, 404, "{}", refused.text);
    }
    let nothing = json!({"to": {"any": "team=a"}, "task": {"job": {"work": {"type": "exec", "argv": []}}}});
    assert_eq!(tell(&socket, "POST", "/tasks", &nothing).await.problem().status, 400);
}

#[tokio::test]
async fn a_task_for_any_of_several_waits_for_one() {
    let (_controller, socket) = with_agents().await;
    let reply = tell(&socket, "POST", "/tasks", &json!({"to": {"any": "team=a"}, "task": task()})).await;
    let waiting = &document(&reply)["items"][0];
    assert_eq!((&waiting["pool"], &waiting["agent"]), (&"team=a".into(), &Value::Null));
}

#[tokio::test]
async fn a_task_whose_deadline_passes_is_a_dead_letter_until_it_is_dropped() {
    let (controller, socket) = with_agents().await;
    let mut late = task();
    late["terms"] = json!({"deadline": "2020-01-01T00:00:00Z"});
    let id = document(&tell(&socket, "POST", "/agents/web/task", &late).await)["id"].as_str().unwrap().to_owned();
    let dead = until(&socket, &controller, "/dead-letters", |it| !it["tasks"].as_array().unwrap().is_empty()).await;
    assert_eq!((&dead["kind"], &dead["tasks"][0]["id"]), (&"DeadLetters".into(), &id.as_str().into()));
    let path = format!("/tasks/{id}/dead");
    assert_eq!(ask(&socket, "DELETE", &path).await.status, StatusCode::NO_CONTENT);
    assert_eq!(ask(&socket, "DELETE", &path).await.problem().status, 404);
    let left = document(&ask(&socket, "GET", "/dead-letters").await);
    assert!(left["tasks"].as_array().unwrap().is_empty());
    assert_eq!(document(&ask(&socket, "GET", &format!("/tasks/{id}")).await)["state"]["outcome"]["end"], "expired");
}

async fn wrote(controller: &Controller, id: &str, channel: Channel, offset: u64, data: &'static str) {
    let task = TaskRef { task: id.parse::<TaskId>().unwrap(), attempt: 1 };
    let record = OutputRecord { task, channel, offset, data: Bytes::from_static(data.as_bytes()) };
    controller.core().output.append(vec![record], false).await.unwrap();
    controller.core().output.tell();
}

#[tokio::test]
async fn output_is_given_as_it_came() {
    let (controller, socket) = with_agents().await;
    let id = submitted(&socket).await;
    let path = format!("/tasks/{id}/output");
    let empty = ask(&socket, "GET", &path).await;
    assert_eq!((empty.status, empty.text.as_str()), (StatusCode::OK, ""));
    wrote(&controller, &id, Channel::Stdout, 0, "one\n").await;
    wrote(&controller, &id, Channel::Stderr, 0, "oops\n").await;
    wrote(&controller, &id, Channel::Stdout, 4, "two\n").await;
    let whole = ask(&socket, "GET", &path).await;
    assert_eq!((whole.header("content-type"), whole.text.as_str()), ("application/octet-stream", "one\noops\ntwo\n"));
    assert_eq!(ask(&socket, "GET", &format!("{path}?channel=stderr")).await.text, "oops\n");
    assert_eq!(ask(&socket, "GET", &format!("{path}?channel=stdout&attempt=1")).await.text, "one\ntwo\n");
    assert_eq!(ask(&socket, "GET", &format!("{path}?attempt=2")).await.text, "");
    assert_eq!(ask(&socket, "GET", &format!("{path}?channel=stdin")).await.problem().status, 400);
    assert_eq!(ask(&socket, "GET", &format!("/tasks/{NOBODY}/output")).await.problem().status, 404);
}

#[tokio::test]
async fn output_is_followed_until_the_task_is_over_and_from_where_it_was_left() {
    let (controller, socket) = with_agents().await;
    let id = submitted(&socket).await;
    let path = format!("/tasks/{id}/output?follow=true");
    wrote(&controller, &id, Channel::Stdout, 0, "one").await;
    let response = socket.clone().oneshot(request("GET", &path).body(Body::empty()).unwrap()).await.unwrap();
    let mut body = response.into_body().into_data_stream();
    let mut next = async || {
        let chunk = tokio::time::timeout(SOON, body.next()).await.expect("there is more");
        chunk.map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap())
    };
    let first = next().await.unwrap();
    assert!(first.contains(r#"{"attempt":1,"channel":"stdout","offset":0,"data":"b25l"}"#), "{first}");
    let number = first.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
    wrote(&controller, &id, Channel::Stderr, 0, "two").await;
    assert!(next().await.unwrap().contains(r#""data":"dHdv""#));
    ask(&socket, "POST", &format!("/tasks/{id}/cancel")).await;
    let ended = next().await.unwrap();
    assert!(ended.contains("event: ended") && ended.contains(r#""end":"canceled""#), "{ended}");
    assert_eq!(next().await, None);

    let resumed = request("GET", &format!("/tasks/{id}/output"));
    let resumed = resumed.header("accept", "text/event-stream").header("last-event-id", number);
    let rest = send(&socket, resumed.body(Body::empty()).unwrap()).await.text;
    assert!(!rest.contains("b25l") && rest.contains("dHdv") && rest.contains("event: ended"), "{rest}");
}

#[tokio::test]
async fn a_message_waits_for_its_agent_and_is_sent_once() {
    let (_controller, socket) = with_agents().await;
    let said = json!({"to": {"agent": "web"}, "post": {"subject": "build", "body": {"revision": 7}}, "id": NOBODY});
    for _ in 0..2 {
        let sent = document(&tell(&socket, "POST", "/messages", &said).await);
        let message = &sent["items"][0];
        assert_eq!(
            (&message["id"], &message["author"], &message["state"]["state"]),
            (&NOBODY.into(), &"ann".into(), &"waiting".into())
        );
    }
    let mut other = said.clone();
    other["post"]["subject"] = "other".into();
    assert_eq!(tell(&socket, "POST", "/messages", &other).await.problem().code, ProblemCode::Conflict);
    let all = json!({"to": "all", "post": {"subject": "hello", "body": null}});
    assert_eq!(document(&tell(&socket, "POST", "/messages", &all).await)["items"].as_array().unwrap().len(), 2);
    for (path, count) in [("?agent=web", 2), ("?agent=db", 1), ("?box=host", 0), ("", 0)] {
        let listed = document(&ask(&socket, "GET", &format!("/messages{path}")).await);
        assert_eq!(
            (&listed["kind"], listed["items"].as_array().unwrap().len()),
            (&"MessageList".into(), count),
            "{path}"
        );
    }
    let after = format!("/messages?agent=web&after={NOBODY}");
    assert_eq!(document(&ask(&socket, "GET", &after).await)["items"][0]["subject"], "hello");
    for (path, status) in [("?agent=gone", 404), ("?agent=web&box=host", 400), ("?box=web", 400), ("?limit=1001", 400)]
    {
        assert_eq!(ask(&socket, "GET", &format!("/messages{path}")).await.problem().status, status, "{path}");
    }
}

#[tokio::test]
async fn a_message_to_an_agent_that_no_pass_has_told_the_hub_of_is_accepted() {
    let (controller, socket) = with_agents().await;
    controller.core().hub.directory(vm_agent_hub::Directory::default());
    let said = json!({"to": {"agent": "web"}, "post": {"subject": "x", "body": 1}});
    let sent = document(&tell(&socket, "POST", "/messages", &said).await);
    assert_eq!(sent["items"][0]["state"]["state"], "waiting");
}

#[tokio::test]
async fn a_message_that_can_not_go_anywhere_is_refused_with_the_reason() {
    let (_controller, socket) = with_agents().await;
    let refused = async |to: Value, subject: &str| {
        let said = json!({"to": to, "post": {"subject": subject, "body": 1}});
        tell(&socket, "POST", "/messages", &said).await.problem().status
    };
    assert_eq!(refused(json!({"agent": "gone"}), "x").await, 404);
    assert_eq!(refused(json!({"each": "team=b"}), "x").await, 404);
    assert_eq!(refused(json!({"agent": "web"}), &"x".repeat(200)).await, 400);
}

#[tokio::test]
async fn a_message_that_is_not_taken_in_its_time_can_be_sent_again_or_dropped() {
    let (controller, socket) = with_agents().await;
    let said = json!({"to": {"agent": "web"}, "post": {"subject": "x", "body": 1, "ttlMs": 1}, "id": NOBODY});
    tell(&socket, "POST", "/messages", &said).await;
    let is_dead = |it: &Value| it["messages"].as_array().unwrap().iter().any(|message| message["id"] == NOBODY);
    until(&socket, &controller, "/dead-letters", is_dead).await;
    let again = document(&ask(&socket, "POST", &format!("/messages/{NOBODY}/replay?to=web")).await);
    assert_eq!(again["items"][0]["state"]["state"], "waiting");
    assert_ne!(again["items"][0]["id"], NOBODY);
    assert_eq!(ask(&socket, "POST", &format!("/messages/{NOBODY}/replay")).await.problem().status, 404);
    let id = again["items"][0]["id"].as_str().unwrap().to_owned();
    let is_dead = |it: &Value| it["messages"].as_array().unwrap().iter().any(|message| message["id"] == id.as_str());
    until(&socket, &controller, "/dead-letters", is_dead).await;
    assert_eq!(ask(&socket, "DELETE", &format!("/messages/{id}/dead")).await.status, StatusCode::NO_CONTENT);
    assert_eq!(ask(&socket, "DELETE", &format!("/messages/{id}/dead")).await.problem().status, 404);
}

#[tokio::test]
async fn a_mailbox_is_followed_without_gaps() {
    let (controller, socket) = with_agents().await;
    let post = async |subject: &str| {
        let said = json!({"to": {"agent": "web"}, "post": {"subject": subject, "body": 1}});
        tell(&socket, "POST", "/messages", &said).await;
    };
    post("first").await;
    let response =
        socket.clone().oneshot(request("GET", "/messages?agent=web&follow=true").body(Body::empty()).unwrap());
    let mut body = response.await.unwrap().into_body().into_data_stream();
    let mut next = async || {
        let chunk = tokio::time::timeout(SOON, body.next()).await.expect("there is more").unwrap().unwrap();
        String::from_utf8(chunk.to_vec()).unwrap()
    };
    assert!(next().await.contains("first"));
    post("second").await;
    post("third").await;
    assert!(next().await.contains("second"));
    assert!(next().await.contains("third"));
    drop(controller);
}
