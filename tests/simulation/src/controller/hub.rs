//! The hub: its events, and its effects in the order in which its records become durable.

use std::sync::Arc;

use vm_agent_daemon::disk;
use vm_agent_daemon::engine::HubCall;
use vm_agent_daemon::engine::notices::{event_of, looks_at, matters};
use vm_agent_daemon::engine::records::Change;
use vm_agent_hub::state::{Effect as HubEffect, Event as HubEvent};
use vm_agent_schemas::wire::FromHub;
use vm_agent_store as store;

use crate::controller::{Held, Within};
use crate::deed::{By, Deed};
use crate::world::World;

impl World {
    pub(super) fn tell_hub(&mut self, call: HubCall) {
        self.hub(match call {
            HubCall::Enroll(credential, configuration) => HubEvent::Enroll(*credential, configuration),
            HubCall::Claimed(agent, claim) => HubEvent::Claimed(agent, claim),
            HubCall::Revoke(agent) => HubEvent::Revoke(agent),
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
        let mut effects = life.hub.handle(event, now).into_iter().peekable();
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
        let stored = self.transaction(|conn| disk::note(conn, &records));
        let event = if stored.is_ok() {
            let known = Arc::make_mut(&mut self.life_mut().records);
            known.note(&records);
            self.tell(&Deed::Stored(records.clone()));
            HubEvent::Stored(records)
        } else {
            dependent
                .retain(|it| !matches!(it, HubEffect::Send { .. } | HubEffect::SendData { .. } | HubEffect::Notify(_)));
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
                        _ => {}
                    }
                    self.send_to_runtime(conn, body);
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
