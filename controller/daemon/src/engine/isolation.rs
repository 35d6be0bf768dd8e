//! What the answers of a machine and of the runtime that speaks for it come to.

use std::time::Duration;

use vm_agent_schemas::guest::Witness;
use vm_agent_schemas::ids::{Nonce, Secret, SessionId};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::verification::{Contradiction, Obstacle, Verdict};
use vm_agent_schemas::wire::{Evidence, answer};

/// How long a runtime that is heard may take to answer.
pub const ANSWERED_WITHIN: Span = Span::from_secs(30);

/// When a session that could not be judged is looked at again, and how often: machines that just came up are busy.
const AGAIN: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(60)];

/// What was asked, and of whom.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// What was laid into the machine.
    pub challenge: &'a Secret,
    /// The nonce of the agent's claim.
    pub nonce: &'a Nonce,
    /// The session in which the runtime was asked.
    pub session: SessionId,
}

/// Compares what a machine says of itself with what the runtime says that speaks for it.
#[must_use]
pub fn judge(question: Question<'_>, witness: &Witness, evidence: &Evidence) -> Verdict {
    let Some(machine) = witness.machine_id.as_ref().map(vm_agent_schemas::guest::MachineId::digest) else {
        let reason = "it has no machine id".to_owned();
        return Verdict::Unable { obstacle: Obstacle::NoWitness { reason } };
    };
    let elsewhere = |why| Verdict::NotInMachine { why };
    if witness.nonce.as_ref() != Some(question.nonce) {
        return elsewhere(Contradiction::OtherLife);
    }
    if evidence.machine.as_ref() != Some(&machine) {
        return elsewhere(Contradiction::OtherMachine);
    }
    if evidence.boot != Some(witness.boot_id) {
        return elsewhere(Contradiction::OtherBoot);
    }
    let Some(given) = &evidence.answer else { return elsewhere(Contradiction::NoChallenge) };
    // A challenge is used once: how long this takes helps nobody to guess.
    if *given != answer(question.challenge, question.session, &machine, witness.boot_id) {
        return elsewhere(Contradiction::WrongAnswer);
    }
    match &witness.hypervisor {
        Some(hypervisor) => Verdict::Verified { hypervisor: hypervisor.clone() },
        None => Verdict::Unable { obstacle: Obstacle::NoHypervisor },
    }
}

/// How a session is judged that nobody asked about: again after a pause where that may help, and not for ever. A runtime
/// that is heard, can answer and never does has something to hide.
#[derive(Debug, Default)]
pub struct Patience {
    tries: usize,
    silent: usize,
}

impl Patience {
    /// What a try comes to, with those before it, and the pause before the next; nothing where there is none.
    pub fn after(&mut self, verdict: Verdict) -> (Verdict, Option<Duration>) {
        let Verdict::Unable { obstacle } = &verdict else { return (verdict, None) };
        let may_pass = match obstacle {
            Obstacle::NoAnswer { .. } => {
                self.silent += 1;
                true
            }
            Obstacle::NoWitness { .. } => true,
            Obstacle::NoIsolation { .. }
            | Obstacle::NoWayIn { .. }
            | Obstacle::NoHypervisor
            | Obstacle::NoSession
            | Obstacle::TooOld { .. } => false,
        };
        let pause = AGAIN.get(self.tries).filter(|_| may_pass).copied();
        self.tries += 1;
        if pause.is_none() && self.silent > AGAIN.len() {
            return (Verdict::NotInMachine { why: Contradiction::Silence }, None);
        }
        (verdict, pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_schemas::ids::{BootId, Digest, RequestId};
    use vm_agent_schemas::wire::Verify;

    /// A machine, and a runtime in it.
    struct Scene {
        challenge: Secret,
        nonce: Nonce,
        session: SessionId,
        witness: Witness,
        evidence: Evidence,
    }

    impl Scene {
        fn new() -> Self {
            let (challenge, nonce, session) = (Secret::generate(), Nonce::generate(), SessionId::generate());
            let machine_id: vm_agent_schemas::guest::MachineId = "0123456789abcdef0123456789abcdef".parse().unwrap();
            let boot_id = BootId::generate();
            let question = Verify { request: RequestId::generate(), challenge: challenge.digest() };
            let evidence =
                Evidence::new(&question, Some(&challenge), session, Some(machine_id.digest()), Some(boot_id));
            let hypervisor = Some("kvm".to_owned());
            let witness = Witness { nonce: Some(nonce.clone()), machine_id: Some(machine_id), boot_id, hypervisor };
            Self { challenge, nonce, session, witness, evidence }
        }

        fn judge(&self) -> Verdict {
            let question = Question { challenge: &self.challenge, nonce: &self.nonce, session: self.session };
            judge(question, &self.witness, &self.evidence)
        }
    }

    #[test]
    fn a_runtime_is_verified_by_all_of_it_and_found_out_by_each_part() {
        assert_eq!(Scene::new().judge(), Verdict::Verified { hypervisor: "kvm".to_owned() });
        type Change = fn(&mut Scene);
        let table: [(Change, Contradiction); 10] = [
            (|it| it.evidence.answer = None, Contradiction::NoChallenge),
            (|it| it.evidence.answer = Some(Digest::of(b"a guess")), Contradiction::WrongAnswer),
            (|it| it.challenge = Secret::generate(), Contradiction::WrongAnswer),
            (|it| it.session = SessionId::generate(), Contradiction::WrongAnswer),
            (|it| it.evidence.machine = Some(Digest::of(b"another")), Contradiction::OtherMachine),
            (|it| it.evidence.machine = None, Contradiction::OtherMachine),
            (|it| it.evidence.boot = Some(BootId::generate()), Contradiction::OtherBoot),
            (|it| it.evidence.boot = None, Contradiction::OtherBoot),
            (|it| it.witness.nonce = Some(Nonce::generate()), Contradiction::OtherLife),
            (|it| it.witness.nonce = None, Contradiction::OtherLife),
        ];
        for (change, why) in table {
            let mut scene = Scene::new();
            change(&mut scene);
            assert_eq!(scene.judge(), Verdict::NotInMachine { why });
            // A machine without a hypervisor excuses nobody.
            scene.witness.hypervisor = None;
            assert_eq!(scene.judge(), Verdict::NotInMachine { why });
        }
    }

    #[test]
    fn a_machine_that_can_t_say_what_it_is_proves_nothing_against_its_runtime() {
        let mut scene = Scene::new();
        scene.witness.hypervisor = None;
        assert_eq!(scene.judge(), Verdict::Unable { obstacle: Obstacle::NoHypervisor });
        scene.witness.machine_id = None;
        assert_eq!(scene.judge().reason(), "NoWitness");
    }

    #[test]
    fn what_may_pass_is_tried_three_times_and_what_is_decided_once() {
        let unable = |obstacle| Verdict::Unable { obstacle };
        let witness = || unable(Obstacle::NoWitness { reason: "it boots".to_owned() });
        let silence = || unable(Obstacle::NoAnswer { within: ANSWERED_WITHIN });
        let tried = |verdicts: Vec<Verdict>| {
            let mut patience = Patience::default();
            verdicts
                .into_iter()
                .map(|it| patience.after(it))
                .map(|(it, pause)| (it.reason(), pause))
                .collect::<Vec<_>>()
        };
        let [first, second] = AGAIN.map(Some);
        let transient = tried(vec![witness(), silence(), witness()]);
        assert_eq!(transient, [("NoWitness", first), ("NoAnswer", second), ("NoWitness", None)]);
        let silent = tried(vec![silence(), silence(), silence()]);
        assert_eq!(silent, [("NoAnswer", first), ("NoAnswer", second), ("NotInMachine", None)]);
        for decided in [
            Verdict::Verified { hypervisor: "kvm".to_owned() },
            Verdict::NotInMachine { why: Contradiction::WrongAnswer },
            unable(Obstacle::NoIsolation { driver: vm_agent_schemas::fleet::DriverName::Local }),
            unable(Obstacle::NoSession),
        ] {
            assert_eq!(tried(vec![decided.clone()]), [(decided.reason(), None)]);
        }
    }
}
