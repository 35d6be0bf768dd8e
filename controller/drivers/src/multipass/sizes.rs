//! The sizes of instances: giving them, and seeing whether somebody else has given others.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::observe::Sizes;

use super::record::Record;
use super::{Held, Multipass, SHORT_LIMIT, answer};
use crate::{Act, DriverError};

/// Whose sizes were looked at last, and when. A list does not tell them, and to ask for those of all would cost the
/// daemon three calls for each.
#[derive(Debug)]
pub(super) struct Audit(Mutex<(Instant, Option<InstanceName>)>);

impl Default for Audit {
    fn default() -> Self {
        Self(Mutex::new((Instant::now(), None)))
    }
}

impl Audit {
    /// Whose turn it is, if it is anybody's by now.
    fn turn(&self, every: std::time::Duration, records: &BTreeMap<InstanceName, Record>) -> Option<InstanceName> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0.elapsed() < every {
            return None;
        }
        let known = |(name, record): (&InstanceName, &Record)| record.is_known().then(|| name.clone());
        let after = last.1.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let next = records.range((after, Bound::Unbounded)).find_map(known);
        let next = next.or_else(|| records.iter().find_map(known))?;
        *last = (Instant::now(), Some(next.clone()));
        Some(next)
    }
}

impl Multipass {
    /// Gives an instance that is down other sizes.
    pub(super) async fn give_sizes(&self, held: &mut Held<'_>, wanted: Sizes) -> Result<(), DriverError> {
        let has = held.record.sizes;
        if wanted.disk < has.disk {
            return Err(held.failed(&format!("its disk has {} already, and a disk only grows", has.disk)));
        }
        let changes = [
            (wanted.cpus != has.cpus, "cpus", wanted.cpus.to_string(), Sizes { cpus: wanted.cpus, ..has }),
            (
                wanted.memory != has.memory,
                "memory",
                wanted.memory.bytes().to_string(),
                Sizes { disk: has.disk, ..wanted },
            ),
            (wanted.disk != has.disk, "disk", wanted.disk.bytes().to_string(), wanted),
        ];
        for (differs, key, value, then) in changes {
            if !differs {
                continue;
            }
            let called = {
                let _turn = self.lanes.change(format!("resize {}", held.name())).await;
                self.call(&["set", &format!("local.{}.{key}={value}", held.name())], None, SHORT_LIMIT).await
            };
            if let Err(fault) = called {
                return Err(self.trouble(held.act, &fault));
            }
            held.record.sizes = then;
            self.remember(held).await?;
        }
        Ok(())
    }

    /// The sizes of an instance as far as Multipass tells them, which is rounded; those that it was given, where it
    /// can still have those.
    pub(super) async fn sizes(&self, act: Act<'_>, given: Option<Sizes>) -> Result<Sizes, DriverError> {
        let unclear = || act.failed(&io::Error::other("Multipass does not tell its sizes"));
        let mut told = [const { Vec::new() }; 3];
        for (told, key) in told.iter_mut().zip(["cpus", "memory", "disk"]) {
            let called = self.call(&["get", &format!("local.{}.{key}", act.1)], None, SHORT_LIMIT).await;
            match called {
                Ok(said) => *told = said.stdout,
                Err(fault) => return Err(self.trouble(act, &fault)),
            }
        }
        let [cpus, memory, disk] = told;
        let (cpus, memory, disk) = (answer::cpus(&cpus), answer::size(&memory), answer::size(&disk));
        let told = Sizes {
            cpus: cpus.ok_or_else(unclear)?,
            memory: memory.ok_or_else(unclear)?,
            disk: disk.ok_or_else(unclear)?,
        };
        Ok(given.map_or(told, |given| answer::corrected(given, told)))
    }

    /// Looks now and then, and at one instance at a time, whether an instance still has the sizes that it was given.
    /// Nobody waits for it.
    pub(super) fn audit_sizes(&self, records: &BTreeMap<InstanceName, Record>) {
        let Some(name) = self.audit.turn(self.limits.audit, records) else { return };
        let driver = self.clone();
        tokio::spawn(async move {
            // Who is at work on it knows better.
            let Some(hold) = driver.holds.try_hold(&name) else { return };
            let act = Act("look at", &name);
            let Ok(Some(record)) = driver.recall(act).await else { return };
            let mut held = Held { act, hold, record };
            match driver.sizes(act, Some(held.record.sizes)).await {
                Ok(sizes) if sizes != held.record.sizes => {
                    tracing::info!(instance = %name, ?sizes, "somebody has given an instance other sizes");
                    held.record.sizes = sizes;
                    if let Err(error) = driver.remember(&held).await {
                        tracing::warn!(instance = %name, %error, "its sizes can't be written down");
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(instance = %name, %error, "its sizes can't be asked for"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::multipass::record::Identity;
    use crate::multipass::record::tests::a_record;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn each_known_instance_has_its_turn_and_then_the_first_again() {
        let every = Duration::from_secs(60);
        let unknown = Record { identity: Identity::Unasked, ..a_record() };
        let all = [("a", a_record()), ("b", unknown), ("c", a_record())];
        let all = all.map(|(name, record)| (name.parse().unwrap(), record)).into();
        let audit = Audit::default();
        assert_eq!(audit.turn(every, &all), None, "what was just read from the disk is right");
        let mut turns = Vec::new();
        for _ in 0..3 {
            tokio::time::advance(every).await;
            turns.push(audit.turn(every, &all).unwrap().to_string());
            assert_eq!(audit.turn(every, &all), None);
        }
        assert_eq!(turns, ["a", "c", "a"]);
        tokio::time::advance(every).await;
        assert_eq!(audit.turn(every, &BTreeMap::new()), None);
    }
}
