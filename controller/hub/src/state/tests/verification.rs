use vm_agent_schemas::credential::{Credential, JoinToken};
use vm_agent_schemas::ids::{Boot, Digest, Epoch, RequestId, Secret};
use vm_agent_schemas::wire::{Evidence, FromHub, FromRuntime, Hello, RefusalCode, VERIFY, Verify};

use super::world::*;
use crate::state::{CloseReason, Effect, Event, Notice, Record, Shown, VerifyError};

/// The hello of a runtime that can show where it runs.
fn able(seed: u8) -> Hello {
    Hello { abilities: [VERIFY.to_owned()].into(), ..hello("web", seed) }
}

/// A hub with a session of such a runtime.
fn with_able() -> World {
    let mut world = World::new();
    world.join(1, &able(1), 1);
    world
}

fn question() -> Verify {
    Verify { request: RequestId::generate(), challenge: Digest::of(b"challenge") }
}

fn ask(world: &mut World, question: &Verify, epoch: u64) -> Vec<Effect> {
    world.tell(Event::Verify { question: question.clone(), agent: name("web"), epoch: Epoch(epoch) })
}

fn evidence(question: &Verify) -> Evidence {
    Evidence {
        request: question.request,
        machine: Some(Digest::of(b"it")),
        boot: None,
        answer: Some(Digest::of(b"so")),
    }
}

fn trust(world: &mut World, epoch: u64) -> Vec<Effect> {
    world.tell(Event::Trust { agent: name("web"), epoch: Epoch(epoch) })
}

fn distrust(world: &mut World, epoch: u64) -> (RequestId, Vec<Effect>) {
    let (request, why) = (RequestId::generate(), "it runs elsewhere".to_owned());
    (request, world.tell(Event::Distrust { request, agent: name("web"), epoch: Epoch(epoch), why }))
}

fn credential_in(effects: &[Effect]) -> Credential {
    match stored(effects).as_slice() {
        [Record::Credential(credential)] => credential.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_question_is_passed_on_and_its_answer_comes_back_with_the_session_that_gave_it() {
    let mut world = World::new();
    let welcomed = world.join(1, &able(1), 1);
    let session = welcome(&welcomed).unwrap().session;
    let question = question();
    assert_eq!(
        ask(&mut world, &question, 1),
        [Effect::Send {
            conn: crate::state::ConnId(1),
            to: vm_agent_schemas::wire::Address::Agent(name("web")),
            body: FromHub::Verify(question.clone()),
        }]
    );
    let evidence = evidence(&question);
    let answer = Ok(Shown { session, evidence: evidence.clone() });
    let told = world.say(1, "web", FromRuntime::Evidence(evidence.clone()));
    assert_eq!(told, [Effect::Shown { request: question.request, answer }]);
    assert_eq!(world.say(1, "web", FromRuntime::Evidence(evidence)), [], "nobody asks any more");
}

#[test]
fn what_can_t_be_asked_is_answered_at_once() {
    let error = |effects: &[Effect]| match effects {
        [Effect::Shown { answer: Err(error), .. }] => error.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(error(&ask(&mut World::new(), &question(), 1)), VerifyError::Offline);
    let mut old = World::joined();
    let version = "0.1.0".to_owned();
    assert_eq!(error(&ask(&mut old, &question(), 1)), VerifyError::TooOld { version });
    assert_eq!(error(&ask(&mut with_able(), &question(), 2)), VerifyError::Offline, "that is another session");
}

#[test]
fn a_question_ends_with_the_next_one_and_with_its_session() {
    let mut world = with_able();
    let (first, second) = (question(), question());
    ask(&mut world, &first, 1);
    let over = |request, error| Effect::Shown { request, answer: Err(error) };
    assert_eq!(ask(&mut world, &second, 1)[0], over(first.request, VerifyError::Overtaken));
    assert_eq!(world.say(1, "web", FromRuntime::Evidence(evidence(&first))), [], "it comes too late");
    let closed = world.tell(Event::Closed { conn: crate::state::ConnId(1) });
    assert!(closed.contains(&over(second.request, VerifyError::Offline)), "{closed:?}");
}

#[test]
fn an_answer_that_is_no_digest_is_no_message() {
    let mut world = with_able();
    let question = question();
    ask(&mut world, &question, 1);
    let wrong = Evidence { answer: Some(Digest::from("\u{1b}[31m".to_owned())), ..evidence(&question) };
    assert_eq!(refused(&world.say(1, "web", FromRuntime::Evidence(wrong)), 1), Some(RefusalCode::Protocol));
}

#[test]
fn a_runtime_that_has_shown_where_it_runs_has_to_be_able_to_from_then_on() {
    let mut world = with_able();
    assert_eq!(trust(&mut world, 2), [], "that is another session");
    assert!(credential_in(&trust(&mut world, 1)).binding.unwrap().verified);
    assert_eq!(trust(&mut world, 1), [], "it is known");
    let silent = world.join(2, &Hello { boot: Boot(2), ..hello("web", 1) }, 1);
    assert_eq!(refused(&silent, 2), Some(RefusalCode::Unverified));
    let again = world.join(3, &Hello { boot: Boot(2), ..able(1) }, 1);
    assert_eq!(refused(&again, 3), None);
    assert!(credential_in(&again).binding.unwrap().verified, "it stays known");
}

#[test]
fn a_runtime_that_runs_elsewhere_is_refused_with_its_key_and_the_machine_joins_anew() {
    let mut world = with_able();
    // It says to have been started more often than its original ever will be.
    world.join(2, &Hello { boot: Boot(1000), ..able(1) }, 1);
    let (request, effects) = distrust(&mut world, 2);
    assert_eq!(refused(&effects, 2), Some(RefusalCode::Unverified));
    let told = |effect: &Effect| {
        matches!(effect, Effect::Notify(Notice::SessionClosed {
            why: CloseReason::Refused { code: RefusalCode::Unverified, message }, ..
        }) if message == "it runs elsewhere")
    };
    assert!(effects.iter().any(told), "{effects:?}");
    let revoked = credential_in(&effects);
    assert_eq!((revoked.join, revoked.binding, revoked.boot), (None, None, Boot(0)));
    let [.., Effect::Store(_), last] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(*last, Effect::Distrusted { request, revoked: true }, "it is told once it is stored");
    assert!(last.grants());

    for (conn, hello) in [(3, able(1)), (4, Hello { join_token: None, ..able(1) })] {
        assert_eq!(refused(&world.join(conn, &hello, 1), conn), Some(RefusalCode::JoinToken));
    }
    let fresh = Secret::from_text("fresh");
    let join = Some(JoinToken { digest: fresh.digest(), expires_at: at(1000) });
    world.tell(Event::Enroll(Credential { join, ..credential("web", 1) }, None));
    let original = Hello { join_token: Some(fresh), ..able(7) };
    assert_eq!(refused(&world.join(5, &original, 7), 5), None);
    assert_eq!(
        refused(&world.join(6, &able(1), 1), 6),
        Some(RefusalCode::Credential),
        "the stolen key is worth nothing"
    );
}

#[test]
fn a_verdict_on_a_session_that_is_over_says_nothing_of_the_next() {
    let mut world = with_able();
    world.join(2, &able(1), 1);
    let (request, effects) = distrust(&mut world, 1);
    assert_eq!(effects, [Effect::Distrusted { request, revoked: false }]);
}
