//! Messages between programs, through the runtime's own subcommands.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::{Hub, Runtime, Session, until};
use futures::SinkExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message as Frame;
use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::{MessageRefused, Post, RefusedCode};
use vm_agent_schemas::wire::{Address, Envelope, FromHub, FromRuntime, MessageRef, Seed, TaskOutcome};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vm-agent-runtime");

struct Scene {
    place: tempfile::TempDir,
    hub: Hub,
    seed: Seed,
    runtime: Runtime,
    session: Session,
}

impl Scene {
    async fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let hub = Hub::plain().await;
        let seed = hub.seed(place.path(), None);
        let runtime = Runtime::start(place.path(), &seed);
        let (session, _) = hub.session().await;
        Self { place, hub, seed, runtime, session }
    }

    fn socket(&self) -> PathBuf {
        self.place.path().join("socket")
    }

    /// Runs the subcommand to its end.
    async fn program(&self, arguments: &[&str]) -> Output {
        let command = program(&self.socket(), arguments);
        tokio::task::spawn_blocking(|| command.wait_with_output()).await.unwrap().unwrap()
    }

    /// What `receive` gives, as JSON.
    async fn receive(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.program(&[&["receive"], arguments].concat()).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The next message for somebody.
    async fn posted(&mut self) -> (MessageId, Address, Post) {
        let post = self.session.hear_that(|said| match said {
            FromRuntime::Message(post) => Some(post),
            _ => None,
        });
        let post = post.await;
        let (id, to) = self.session.heading.clone().unwrap();
        (id, to, post)
    }

    /// Sends a message, and waits until it is taken.
    async fn deliver(&mut self, message: MessageId, subject: &str, in_reply_to: Option<MessageId>) {
        let post = Post { subject: subject.to_owned(), body: json!({"n": 7}), in_reply_to, ttl_ms: None };
        let from = Address::Agent("tester".parse().unwrap());
        let to = Address::Agent("web".parse().unwrap());
        let envelope = Envelope { id: message, from, to, timestamp: 5, body: FromHub::Message(post) };
        self.session.socket.send(Frame::text(serde_json::to_string(&envelope).unwrap())).await.unwrap();
        let taken = self.session.hear_that(|said| match said {
            FromRuntime::MessageTaken(taken) => Some(taken.message),
            _ => None,
        });
        assert_eq!(taken.await, message);
    }
}

fn program(socket: &Path, arguments: &[&str]) -> std::process::Child {
    Command::new(PROGRAM)
        .arg("message")
        .args(arguments)
        .env("VM_AGENT_SOCKET", socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_process_finds_the_way_and_its_message_reaches_the_hub() {
    let mut scene = Scene::new().await;
    let line = format!("exec '{PROGRAM}' message send tester ready '{{\"commit\": 1}}' --ttl 1m");
    scene.session.open(1, &line, false).await;
    let (id, to, post) = scene.posted().await;
    assert_eq!(to, Address::Agent("tester".parse().unwrap()));
    let expected =
        Post { subject: "ready".to_owned(), body: json!({"commit": 1}), in_reply_to: None, ttl_ms: Some(60_000) };
    assert_eq!(post, expected);
    scene.session.say(FromHub::MessageAccepted(MessageRef { message: id })).await;
    let followed = scene.session.follow(1).await;
    assert_eq!(followed.outcome, TaskOutcome::Exited { code: 0 });
    assert_eq!(String::from_utf8(followed.stdout).unwrap(), format!("{id}\n"));
}

#[tokio::test]
async fn a_message_survives_the_runtime_until_the_hub_has_it() {
    let mut scene = Scene::new().await;
    let mut sender = program(&scene.socket(), &["send", "host", "ready"]);
    let (id, ..) = scene.posted().await;
    scene.runtime.kill();
    sender.wait().unwrap();
    scene.runtime = Runtime::start(scene.place.path(), &scene.seed);
    (scene.session, _) = scene.hub.session().await;
    let (again, to, _) = scene.posted().await;
    assert_eq!((again, to), (id, Address::Host));
}

#[tokio::test]
async fn a_refusal_is_told_with_its_reason() {
    let mut scene = Scene::new().await;
    let sender = program(&scene.socket(), &["send", "tester", "ready"]);
    let (message, ..) = scene.posted().await;
    let reason = "the fleet file does not allow web to write to tester".to_owned();
    let refused = MessageRefused { message, code: RefusedCode::Denied, reason: reason.clone() };
    scene.session.say(FromHub::MessageRefused(refused)).await;
    let output = tokio::task::spawn_blocking(|| sender.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("vm-agent-runtime: {reason}\n"));
}

#[tokio::test]
async fn whoever_asks_gets_the_answer() {
    let mut scene = Scene::new().await;
    let sender = program(&scene.socket(), &["send", "tester", "question", "--wait", "1m"]);
    let (question, ..) = scene.posted().await;
    scene.session.say(FromHub::MessageAccepted(MessageRef { message: question })).await;
    scene.deliver(MessageId::generate(), "news", None).await;
    let answer = MessageId::generate();
    scene.deliver(answer, "answer", Some(question)).await;
    let output = tokio::task::spawn_blocking(|| sender.wait_with_output()).await.unwrap().unwrap();
    assert!(output.status.success());
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = json!({"id": answer, "from": "tester", "timestamp": 5, "subject": "answer", "body": {"n": 7},
                          "inReplyTo": question});
    assert_eq!(told, expected);
    let left = scene.receive(&[]).await;
    assert_eq!((left.len(), &left[0]["subject"]), (1, &json!("news")));
}

#[tokio::test]
async fn what_has_come_is_given_once_in_order_and_survives_the_runtime() {
    let mut scene = Scene::new().await;
    let ids: Vec<MessageId> = (0..3).map(|_| MessageId::generate()).collect();
    for (id, subject) in ids.iter().zip(["a", "b", "a"]) {
        scene.deliver(*id, subject, None).await;
    }
    scene.runtime.kill();
    scene.runtime = Runtime::start(scene.place.path(), &scene.seed);
    (scene.session, _) = scene.hub.session().await;
    let given = |given: Vec<Value>| given.iter().map(|it| it["id"].clone()).collect::<Vec<_>>();
    assert_eq!(given(scene.receive(&["--subject", "b"]).await), [json!(ids[1])]);
    assert_eq!(given(scene.receive(&["--count", "1", "--follow"]).await), [json!(ids[0])]);
    // The hub did not hear that it was taken, and sends it again.
    scene.deliver(ids[0], "a", None).await;
    assert_eq!(given(scene.receive(&[]).await), [json!(ids[2])]);
    assert_eq!(scene.receive(&[]).await, Vec::<Value>::new());
    until("an empty inbox", || std::fs::read_dir(scene.place.path().join("messages/inbox")).unwrap().count() == 0)
        .await;
}

#[tokio::test]
async fn without_a_runtime_the_program_says_so() {
    let place = tempfile::tempdir().unwrap();
    let output = program(&place.path().join("socket"), &["receive"]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("the runtime can't be reached at") && said.contains("is it running?: No such file"),
        "{said}"
    );
    let output = program(&place.path().join("socket"), &["recieve"]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr).unwrap().contains("there is no `recieve`; say `send` or `receive`\n\nusage: ")
    );
}
