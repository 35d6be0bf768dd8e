//! The hub: its events, and its effects in the order in which its records become durable.

use std::sync::Arc;

use vm_agent_daemon::disk;
use vm_agent_daemon::engine::HubCall;
use vm_agent_daemon::engine::notices::{event_of, looks_at, matters};
use vm_agent_daemon::engine::records::Change;
use vm_agent_daemon::storing::{Sorted, sorted};
use vm_agent_hub::state::{Effect as HubEffect, Event as HubEvent, Record};
use vm_agent_schemas::message::{Message, Post};
use vm_agent_schemas::wire::{Address, Envelope, FromHub, TaskRef};
use vm_agent_store::output::OutputRecord;
use vm_agent_store::{self as store, StoreError};

use crate::controller::{Held, Within};
use crate::deed::{By, Deed};
use crate::world::World;

impl World {
    pub(super) fn tell_hub(&mut self, call: HubCall) {
        match &call {
            HubCall::Submit(task, _) => self.tell(&Deed::Submitted(task.clone())),
            HubCall::Directory(directory) => self.tell(&Deed::Declared(directory.clone())),
            _ => {}
        }
        self.hub(match call {
            HubCall::Enroll(credential, configuration) => HubEvent::Enroll(*credential, configuration),
            HubCall::Claimed(agent, claim) => HubEvent::Claimed(agent, claim),
            HubCall::Revoke(agent) => HubEvent::Revoke(agent),
            HubCall::Unbind(agent) => HubEvent::Unbind(agent),
            HubCall::Cordon(agents) => HubEvent::Cordon(agents),
            HubCall::Configure(agent, configuration) => HubEvent::Configure(agent, configuration),
            HubCall::Directory(directory) => HubEvent::Directory(directory),
            HubCall::Submit(task, known) => HubEvent::Submit(*task, known),
            HubCall::Cancel(task, by) => HubEvent::CancelTask { task, by },
            HubCall::Restore(message) => HubEvent::Restore(*message),
        });
    }

    /// Something happens to the hub. Effects that wait for a record wait in line.
    pub(crate) fn hub(&mut self, event: HubEvent) {
        let now = self.clock.wall();
        let Some(life) = &mut self.life else { return };
        let mut at_once = Vec::new();
        let mut depends = false;
        let effects = life.hub.handle(event, now);
        let meant: Vec<Record> = effects.iter().filter_map(stored_by).cloned().collect();
        if !meant.is_empty() {
            self.tell(&Deed::Meant { records: meant, at: now });
        }
        let life = self.life.as_mut().expect("it was just looked at");
        let mut effects = effects.into_iter().peekable();
        while let Some(effect) = effects.next() {
            if let HubEffect::Store(record) = effect {
                let mut records = vec![record];
                while let Some(HubEffect::Store(record)) = effects.next_if(|next| matches!(next, HubEffect::Store(_))) {
                    records.push(record);
                }
                life.held.push_back(Held { records, dependent: Vec::new(), later: Vec::new() });
                depends = true;
                continue;
            }
            match life.held.back_mut() {
                Some(held) if depends => held.dependent.push(effect),
                Some(held) => held.later.push(effect),
                None => at_once.push(effect),
            }
        }
        let begins = !life.held.is_empty() && !std::mem::replace(&mut life.storing, true);
        if begins {
            self.soon(Within::Store);
        }
        self.carry_out_hub(at_once);
    }

    pub(super) fn store(&mut self) {
        let Some(Held { records, mut dependent, later }) = self.life_mut().held.pop_front() else {
            self.life_mut().storing = false;
            return;
        };
        let now = self.clock.wall();
        let event = if self.keep(&records).is_ok() {
            let known = Arc::make_mut(&mut self.life_mut().records);
            known.note(&records);
            self.tell(&Deed::Stored(records.clone()));
            self.attempts_are_over(&records);
            HubEvent::Stored(records)
        } else {
            dependent.retain(|effect| !effect.grants());
            self.tell(&Deed::NotStored(records.clone()));
            HubEvent::StoreFailed(records)
        };
        let answer = self.life_mut().hub.handle(event, now);
        self.carry_out_hub(answer);
        self.carry_out_hub(dependent);
        self.carry_out_hub(later);
        if self.life().held.is_empty() {
            self.life_mut().storing = false;
        } else {
            self.soon(Within::Store);
        }
    }

    /// Stores records, as the real storage does.
    fn keep(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let Sorted { output, over, .. } = sorted(records);
        let kept = self.keep_sorted(&output, records, &over);
        let holes = &mut self.life_mut().holes;
        match kept {
            Ok(()) => holes.stored(&output, &over),
            Err(_) => holes.failed(&output),
        }
        kept
    }

    fn keep_sorted(&mut self, output: &[OutputRecord], records: &[Record], over: &[TaskRef]) -> Result<(), StoreError> {
        // A disk has moments in which it refuses one write, and takes the next.
        let fails = !output.is_empty() && !self.calm && self.rng.u8(..150) == 0;
        let full = self.disk_full_until > self.clock.mono && !output.is_empty();
        if !self.life_mut().holes.admit(output) || full || fails {
            return Err(StoreError::Panicked);
        }
        self.log.append(output);
        if !over.is_empty() {
            self.log.flush();
        }
        let now = self.clock.wall();
        let told = self.transaction(|conn| disk::note(conn, records, now))?;
        for event in told {
            let agent = event.agent.map(|agent| agent.to_string()).unwrap_or_default();
            self.trace(|| format!("event {:?} {agent}: {}", event.kind, event.message));
        }
        Ok(())
    }

    fn attempts_are_over(&mut self, records: &[Record]) {
        for record in records {
            let Record::Task(stored) = record else { continue };
            // By its own lights, and not by those of the storage.
            let attempt = if stored.outcome().is_some() { stored.attempt } else { stored.attempt - 1 };
            if attempt == 0 || stored.handed_to().is_some() {
                continue;
            }
            let task = TaskRef { task: stored.id, attempt };
            let (written, output) = (self.spooled(task), self.log.durable(task));
            self.tell(&Deed::AttemptOver { task, stored: Box::new(stored.clone()), written, output });
        }
    }

    pub(super) fn carry_out_hub(&mut self, effects: Vec<HubEffect>) {
        for effect in effects {
            match effect {
                HubEffect::Send { conn, body, .. } => {
                    match &body {
                        FromHub::Welcome(welcome) => self.welcomed(conn, welcome.epoch),
                        FromHub::Task(order) => {
                            let stored = store::tasks::get(&self.disk, order.task.task);
                            let stored = stored.expect("the database in memory reads");
                            let claims = &self.life().records.claims;
                            let agent = stored.as_ref().and_then(|task| task.agent.as_ref());
                            let claim = agent.and_then(|agent| claims.get(agent)).map(|claim| claim.id);
                            self.tell(&Deed::Ordered { stored: stored.map(Box::new), claim });
                        }
                        FromHub::TaskAck(task) => {
                            let stored = store::tasks::get(&self.disk, task.task);
                            let stored = stored.expect("the database in memory reads").map(Box::new);
                            self.tell(&Deed::Acknowledged { task: *task, stored });
                        }
                        FromHub::MessageAccepted(accepted) => {
                            let stored = store::messages::get(&self.disk, accepted.message, None);
                            let stored = stored.expect("the database in memory reads");
                            self.tell(&Deed::MessageAccepted { message: accepted.message, stored });
                        }
                        _ => {}
                    }
                    let envelope = Envelope::new(Address::Host, Address::Broadcast, self.clock.wall(), body);
                    self.send_to_runtime(conn, envelope);
                }
                HubEffect::Deliver { conn, message } => {
                    let Message { id, from, to, subject, body, in_reply_to, .. } = message;
                    let post = FromHub::Message(Post { subject, body, in_reply_to, ttl_ms: None });
                    let envelope = Envelope { id, ..Envelope::new(from, to, self.clock.wall(), post) };
                    self.send_to_runtime(conn, envelope);
                }
                HubEffect::Close { conn } => self.close_from_hub(conn),
                HubEffect::Notify(notice) => {
                    let first = self.life().notices.is_empty();
                    self.life_mut().notices.push(notice);
                    if first {
                        self.soon(Within::Notices);
                    }
                }
                // Nobody opens streams here, and records wait in line.
                _ => {}
            }
        }
    }

    pub(super) fn take_notices(&mut self) {
        let notices = std::mem::take(&mut self.life_mut().notices);
        let wakes = notices.iter().any(matters);
        for agent in notices.iter().filter_map(looks_at) {
            if let Some(driver) = self.life().records.claims.get(agent).map(|claim| claim.driver) {
                self.look_at(driver);
            }
        }
        let events = notices.iter().filter_map(event_of).map(Change::Event).collect();
        let now = self.clock.wall();
        let _ = self.write(By::Teller, events, now);
        if wakes {
            self.wake();
        }
    }
}

const fn stored_by(effect: &HubEffect) -> Option<&Record> {
    match effect {
        HubEffect::Store(record) => Some(record),
        _ => None,
    }
}
