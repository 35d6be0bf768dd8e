use serde_json::json;
use vm_agent_schemas::wire::Envelope;

use super::*;
use crate::outgoing::Queued;

/// A runtime's messages with programs by hand, and the hub's end of a session.
struct Scene {
    place: tempfile::TempDir,
    messages: Messages,
    outgoing: Outgoing,
    queued: mpsc::UnboundedReceiver<Queued>,
    heard: BTreeMap<u64, mpsc::UnboundedReceiver<Answer>>,
}

impl Scene {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let (outgoing, queued) = Outgoing::new("web".parse().unwrap());
        let messages = Messages::at(place.path(), mpsc::channel(1).1, None).unwrap();
        Self { place, messages, outgoing, queued, heard: BTreeMap::new() }
    }

    /// The runtime starts anew, and a new session begins.
    fn restart(&mut self) {
        self.messages = Messages::at(self.place.path(), mpsc::channel(1).1, None).unwrap();
        self.heard.clear();
        self.begin();
    }

    fn begin(&mut self) {
        (self.outgoing, self.queued) = Outgoing::new("web".parse().unwrap());
        self.messages.begin(&self.outgoing);
    }

    fn call(&mut self, program: u64, what: What) {
        self.messages.run(Errand::Called(Call { program, what }), Some(&self.outgoing));
    }

    fn ask(&mut self, program: u64, request: Request) {
        let mut come = None;
        self.heard.entry(program).or_insert_with(|| {
            let (say, heard) = mpsc::unbounded_channel();
            come = Some(say);
            heard
        });
        if let Some(say) = come {
            self.call(program, What::Come(say));
        }
        self.call(program, What::Asked(request));
    }

    fn send(&mut self, program: u64, subject: &str, wait: bool) -> MessageId {
        let to = Address::Agent("tester".parse().unwrap());
        self.ask(program, Request::Send { to, post: post(subject), wait });
        match self.heard(program) {
            Some(Answer::Kept { message }) => message,
            other => panic!("{other:?}"),
        }
    }

    fn receive(&mut self, program: u64, subject: Option<&str>, follow: bool) {
        self.ask(program, Request::Receive { subject: subject.map(str::to_owned), follow });
    }

    fn heard(&mut self, program: u64) -> Option<Answer> {
        self.heard.get_mut(&program).unwrap().try_recv().ok()
    }

    /// The message that a program was given, if it was.
    fn given(&mut self, program: u64) -> Option<MessageId> {
        match self.heard(program)? {
            Answer::Message { message } => Some(message.id),
            other => panic!("{other:?}"),
        }
    }

    fn come(&mut self, letter: &Letter) {
        self.messages.come(letter.clone(), &self.outgoing);
    }

    /// What the hub is told: messages by their ids, and what was taken.
    fn told(&mut self) -> Vec<(&'static str, MessageId)> {
        let mut told = Vec::new();
        while let Ok(queued) = self.queued.try_recv() {
            let envelope: Envelope<FromRuntime> = serde_json::from_str(queued.text().unwrap()).unwrap();
            told.push(match envelope.body {
                FromRuntime::Message(_) => ("message", envelope.id),
                FromRuntime::MessageTaken(taken) => ("taken", taken.message),
                other => panic!("{other:?}"),
            });
        }
        told
    }
}

fn post(subject: &str) -> Post {
    Post { subject: subject.to_owned(), body: json!({"n": 1}), in_reply_to: None, ttl_ms: None }
}

fn letter(subject: &str, in_reply_to: Option<MessageId>) -> Letter {
    let post = Post { in_reply_to, ..post(subject) };
    Letter { id: MessageId::generate(), from: Address::Host, timestamp: 1, post }
}

#[test]
fn a_message_goes_out_in_every_session_until_it_is_accepted() {
    let mut scene = Scene::new();
    let message = scene.send(1, "ready", false);
    assert_eq!(scene.told(), [("message", message)]);
    scene.restart();
    assert_eq!(scene.told(), [("message", message)]);
    scene.messages.accepted(message, &scene.outgoing);
    scene.restart();
    assert_eq!(scene.told(), []);
}

#[test]
fn the_sender_hears_what_became_of_its_message() {
    let mut scene = Scene::new();
    let (first, second) = (scene.send(1, "one", false), scene.send(2, "two", false));
    scene.messages.accepted(second, &scene.outgoing);
    let reason = "there is no agent `tester`".to_owned();
    let refused = MessageRefused { message: first, code: RefusedCode::Unknown, reason: reason.clone() };
    scene.messages.refused(refused, &scene.outgoing);
    assert_eq!(scene.heard(1), Some(Answer::Refused { message: first, code: RefusedCode::Unknown, reason }));
    assert_eq!(scene.heard(2), Some(Answer::Accepted { message: second }));
    scene.restart();
    assert_eq!(scene.told(), []);
}

#[test]
fn few_are_under_way_at_once_and_one_that_came_too_soon_goes_later() {
    let mut scene = Scene::new();
    let sent: Vec<MessageId> = (0..FLYING_MAX as u64 + 2).map(|program| scene.send(program, "x", false)).collect();
    assert_eq!(scene.told().len(), FLYING_MAX);
    let reason = "too many".to_owned();
    scene.messages.refused(MessageRefused { message: sent[0], code: RefusedCode::Rate, reason }, &scene.outgoing);
    scene.messages.accepted(sent[1], &scene.outgoing);
    assert_eq!(scene.told(), [], "it waits");
    scene.messages.run(Errand::Resumed, Some(&scene.outgoing));
    assert_eq!(scene.told(), [("message", sent[0]), ("message", sent[FLYING_MAX])]);
}

#[test]
fn what_is_no_message_is_not_kept() {
    let mut scene = Scene::new();
    let long = Post { body: json!("x".repeat(BODY_MAX)), ..post("x") };
    let wrong = [
        (post(""), "the subject has 0 characters; it needs one and may have 128".to_owned()),
        (post("a\nb"), "the subject holds a control character; write it as plain text in one line".to_owned()),
        (long, format!("the body is {} bytes as JSON; it may be {BODY_MAX}", BODY_MAX + 2)),
    ];
    for (post, reason) in wrong {
        scene.ask(1, Request::Send { to: Address::Host, post, wait: false });
        assert_eq!(scene.heard(1), Some(Answer::Error { reason }));
    }
    assert_eq!(scene.told(), []);
}

#[test]
fn what_has_come_is_kept_and_given_once_however_often_it_comes() {
    let mut scene = Scene::new();
    let letter = letter("x", None);
    scene.come(&letter);
    scene.restart();
    scene.come(&letter);
    assert_eq!(scene.told(), [("taken", letter.id)]);
    scene.receive(1, None, true);
    assert_eq!(scene.given(1), Some(letter.id));
    scene.ask(1, Request::Taken { message: letter.id });
    scene.come(&letter);
    scene.restart();
    scene.come(&letter);
    assert_eq!(scene.told(), [("taken", letter.id)]);
    scene.receive(1, None, false);
    assert_eq!(scene.heard(1), Some(Answer::Nothing));
}

#[test]
fn a_message_is_lent_to_one_program_until_it_takes_it_or_goes() {
    let mut scene = Scene::new();
    let letters = [letter("x", None), letter("x", None)];
    letters.iter().for_each(|letter| scene.come(letter));
    scene.receive(1, None, true);
    scene.receive(2, None, true);
    scene.receive(3, None, true);
    assert_eq!((scene.given(1), scene.given(2), scene.given(3)), (Some(letters[0].id), Some(letters[1].id), None));
    scene.call(1, What::Gone);
    assert_eq!(scene.given(3), Some(letters[0].id));
    // Somebody else's message is not one's own to take.
    scene.ask(2, Request::Taken { message: letters[0].id });
    scene.restart();
    scene.receive(1, None, true);
    assert_eq!(scene.given(1), Some(letters[0].id));
}

#[test]
fn programs_choose_by_subject_and_whoever_waits_for_an_answer_gets_it() {
    let mut scene = Scene::new();
    scene.receive(1, None, true);
    scene.receive(2, Some("news"), true);
    let sent = scene.send(3, "question", true);
    let answer = letter("news", Some(sent));
    scene.come(&answer);
    assert_eq!((scene.given(1), scene.given(2), scene.given(3)), (None, None, Some(answer.id)));
    let news = letter("news", None);
    scene.call(1, What::Gone);
    scene.come(&news);
    assert_eq!(scene.given(2), Some(news.id));
    // Nobody waits any more, so the answer is for anybody.
    scene.call(3, What::Gone);
    scene.receive(4, None, false);
    assert_eq!(scene.given(4), Some(answer.id));
}

#[test]
fn with_no_room_the_hub_is_not_answered_until_there_is() {
    let mut scene = Scene::new();
    // As if the disk held so many.
    let first = letter("x", None);
    scene.come(&first);
    for _ in 1..BOX_MAX {
        scene.messages.inbox.pretend(MessageId::generate());
    }
    scene.told();
    let late = letter("x", None);
    scene.come(&late);
    assert_eq!(scene.told(), []);
    scene.receive(1, None, true);
    assert_eq!(scene.given(1), Some(first.id));
    scene.ask(1, Request::Taken { message: first.id });
    assert_eq!(scene.told(), [("taken", late.id)]);
}
