//! Webhooks: who the file names is told of every event that it asks for, in order, whatever fails meanwhile.

use std::fs;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use vm_agent_drivers::fake::Fake;
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::units::Span;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{apply, capabilities, events, start, until, well};

const SECRET: &str = "correct horse battery staple";

/// Machines that may have folders of the host.
fn machines() -> Fake {
    Fake::new(DriverName::Multipass, capabilities(Span::from_secs(60)))
}

/// One call that came.
#[derive(Debug, Clone)]
struct Call {
    head: String,
    body: String,
}

impl Call {
    fn header(&self, name: &str) -> Option<&str> {
        let line =
            self.head.lines().find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)));
        line.map(|(_, value)| value)
    }

    fn event(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A receiver that answers what it is told to, and keeps what came.
#[derive(Clone)]
struct Receiver {
    port: u16,
    calls: Arc<Mutex<Vec<Call>>>,
    /// The answers to the first calls; all others are 204.
    answers: Arc<Mutex<Vec<u16>>>,
}

impl Receiver {
    async fn new(answers: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let receiver = Self { port, calls: Arc::default(), answers: Arc::new(Mutex::new(answers.to_vec())) };
        let serving = receiver.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serving.clone().answer(socket));
            }
        });
        receiver
    }

    async fn answer(self, mut socket: TcpStream) {
        let mut text = Vec::new();
        let call = loop {
            if socket.read_buf(&mut text).await.unwrap_or(0) == 0 {
                return;
            }
            let so_far = String::from_utf8_lossy(&text);
            let Some((head, body)) = so_far.split_once("\r\n\r\n") else { continue };
            let call = Call { head: head.to_owned(), body: body.to_owned() };
            if call.header("content-length").and_then(|length| length.parse().ok()) == Some(body.len()) {
                break call;
            }
        };
        let status = {
            let mut answers = self.answers.lock().unwrap();
            if answers.is_empty() { 204 } else { answers.remove(0) }
        };
        self.calls.lock().unwrap().push(call);
        let answer =
            format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nlocation: /elsewhere\r\nconnection: close\r\n\r\n");
        let _ = socket.write_all(answer.as_bytes()).await;
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    fn file(&self, secret: &std::path::Path, agents: &str) -> String {
        format!(
            "defaults: {{driver: multipass}}\nagents: {{{agents}}}\nwebhooks:\n  - url: http://127.0.0.1:{}/hook\n    events: \
             [RuntimeJoined]\n    secret: {{file: {}}}\n",
            self.port,
            secret.display()
        )
    }
}

#[tokio::test]
async fn a_webhook_is_told_of_the_events_that_it_asks_for_and_can_check_who_tells() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("secret");
    fs::write(&source, SECRET).unwrap();
    let (fake, receiver) = (machines(), Receiver::new(&[]).await);
    let _runtimes = Runtimes::of(&fake);
    let running = start(&folder.path().join("state"), &[&fake]).await;
    apply(running.controller(), &receiver.file(&source, "web: {}, db: {}")).await;
    well(running.controller(), &["web", "db"]).await;
    until("both events are told", async || (receiver.calls().len() == 2).then_some(())).await;
    let calls = receiver.calls();
    for call in &calls {
        assert!(call.head.starts_with("POST /hook HTTP/1.1"), "{}", call.head);
        let body = call.event();
        assert_eq!(body["type"], "RuntimeJoined");
        assert_eq!(body["data"]["message"], "its runtime joined as incarnation 1", "{body}");
        let (id, at) = (call.header("webhook-id").unwrap(), call.header("webhook-timestamp").unwrap());
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
        let tag = hmac::sign(&key, format!("{id}.{at}.{}", call.body).as_bytes());
        assert_eq!(call.header("webhook-signature").unwrap(), format!("v1,{}", STANDARD.encode(tag)));
    }
    assert_ne!(calls[0].header("webhook-id"), calls[1].header("webhook-id"));
    running.shut_down().await;
}

#[tokio::test]
async fn what_fails_is_told_again_and_nothing_is_told_twice_after_it_was_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (source, state) = (folder.path().join("secret"), folder.path().join("state"));
    fs::write(&source, SECRET).unwrap();
    // A redirect is no success, and is not followed.
    let (fake, receiver) = (machines(), Receiver::new(&[500, 302]).await);
    let _runtimes = Runtimes::of(&fake);
    let running = start(&state, &[&fake]).await;
    apply(running.controller(), &receiver.file(&source, "web: {}")).await;
    until("it is told a third time", async || (receiver.calls().len() == 3).then_some(())).await;
    let ids: Vec<_> = receiver.calls().iter().map(|call| call.header("webhook-id").unwrap().to_owned()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    running.shut_down().await;
    // Another life goes on where the last one was.
    let running = start(&state, &[&fake]).await;
    apply(running.controller(), &receiver.file(&source, "web: {}, db: {}")).await;
    until("the next event is told", async || (receiver.calls().len() == 4).then_some(())).await;
    assert_ne!(receiver.calls()[3].header("webhook-id").unwrap(), ids[0]);
    assert!(receiver.calls().iter().all(|call| call.head.starts_with("POST /hook ")));
    running.shut_down().await;
}

#[tokio::test]
async fn a_receiver_that_is_gone_for_good_is_not_told_again_and_people_hear_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("secret");
    fs::write(&source, SECRET).unwrap();
    let (fake, receiver) = (machines(), Receiver::new(&[410]).await);
    let _runtimes = Runtimes::of(&fake);
    let running = start(&folder.path().join("state"), &[&fake]).await;
    apply(running.controller(), &receiver.file(&source, "web: {}")).await;
    let told = async || events(running.controller()).await.into_iter().find(|it| it.kind == EventKind::WebhookFailed);
    let told = until("people are told", told).await;
    assert!(told.message.contains("410"), "{}", told.message);
    assert_eq!(receiver.calls().len(), 1);
    running.shut_down().await;
}

#[tokio::test]
async fn a_secret_that_an_agent_can_write_signs_nothing_and_events_wait_for_one_that_none_can() {
    let folder = tempfile::tempdir().unwrap();
    let top = fs::canonicalize(folder.path()).unwrap();
    let (shared, source) = (top.join("shared"), top.join("secret"));
    fs::create_dir(&shared).unwrap();
    let program = shared.join("program");
    for (path, content) in [(shared.join("secret"), SECRET), (source.clone(), SECRET), (program.clone(), "#!/bin/sh\n")]
    {
        fs::write(path, content).unwrap();
    }
    let (fake, receiver) = (machines(), Receiver::new(&[]).await);
    let _runtimes = Runtimes::of(&fake);
    let running = start(&top.join("state"), &[&fake]).await;
    let web = format!("web: {{mounts: {{/shared: {{source: {:?}, writable: true}}}}}}", shared.display());
    let failed = async |times: u64| {
        let metrics = running.controller().metrics().await.unwrap();
        let line = metrics.lines().find(|line| line.starts_with("vmagent_webhook_calls_total{result=\"failed\"}"))?;
        (line.rsplit(' ').next()?.parse::<u64>().ok()? >= times).then_some(())
    };
    apply(running.controller(), &receiver.file(&shared.join("secret"), &web)).await;
    until("the secret's file is refused", async || failed(1).await).await;
    let command = receiver
        .file(&source, &web)
        .replace(&format!("{{file: {}}}", source.display()), &format!("{{command: [{:?}]}}", program.display()));
    apply(running.controller(), &command).await;
    until("the command is refused", async || failed(2).await).await;
    assert!(receiver.calls().is_empty(), "nothing was told, signed or not");
    apply(running.controller(), &receiver.file(&source, &web)).await;
    until("it is told", async || (receiver.calls().len() == 1).then_some(())).await;
    running.shut_down().await;
}

#[tokio::test]
async fn a_webhook_whose_secret_is_not_set_is_told_of_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (fake, receiver) = (machines(), Receiver::new(&[]).await);
    let _runtimes = Runtimes::of(&fake);
    let running = start(&folder.path().join("state"), &[&fake]).await;
    let file = receiver.file(&folder.path().join("secret"), "web: {}");
    let unset =
        file.lines().map(|line| if line.contains("secret:") { "    secret: {env: NOBODY_SETS_THIS}" } else { line });
    apply(running.controller(), &unset.collect::<Vec<_>>().join("\n")).await;
    let told = async || events(running.controller()).await.into_iter().find(|it| it.kind == EventKind::WebhookFailed);
    let told = until("people are told", told).await;
    assert!(told.message.contains("it is not set in the controller's environment"), "{}", told.message);
    let conditions = running.controller().status().await.unwrap().conditions;
    let condition = conditions.iter().find(|it| it.kind == "WebhooksTold").unwrap();
    assert!(condition.message.contains("NOBODY_SETS_THIS"), "{}", condition.message);
    running.shut_down().await;
}
