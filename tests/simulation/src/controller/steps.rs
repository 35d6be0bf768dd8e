//! Looking at drivers, and carrying steps out on them.

use std::sync::Arc;

use vm_agent_daemon::engine::job::{Called, settle};
use vm_agent_daemon::engine::sight::OBSERVE_EVERY;
use vm_agent_drivers::DriverError;
use vm_agent_plan::Listing;
use vm_agent_schemas::fleet::DriverName;

use crate::clock::{Millis, SECOND};
use crate::controller::{Whose, Within};
use crate::deed::Deed;
use crate::driver::{Asked, Begun, Call, Fate};
use crate::world::{Event, World};

impl World {
    /// Asks for a look at a driver soon.
    pub(super) fn look_at(&mut self, driver: DriverName) {
        let now = self.clock.wall();
        let Some(observer) = self.life_mut().observers.get_mut(&driver) else { return };
        if observer.busy {
            observer.asked = true;
            return;
        }
        (observer.busy, observer.asked) = (true, false);
        observer.begun += 1;
        observer.began = Some(now);
        observer.timer += 1;
        let delay = self.rng.u64(1..60);
        self.within(delay, Within::Lists(driver));
    }

    pub(super) fn lists(&mut self, name: DriverName) {
        let driver = &self.drivers[&name];
        let limit = millis(driver.capabilities.deadlines.list);
        let (delay, answer) = if driver.out_until > self.clock.mono {
            if driver.hangs {
                (limit, Err("a listing took too long".to_owned()))
            } else {
                (10, Err("it is down".to_owned()))
            }
        } else {
            (self.rng.u64(1..150), Ok(driver.list()))
        };
        self.within(delay, Within::Listed(name, answer));
    }

    pub(super) fn listed(
        &mut self,
        name: DriverName,
        answer: Result<Vec<vm_agent_schemas::observe::Instance>, String>,
    ) {
        let now = self.clock.wall();
        let Some(observer) = self.life_mut().observers.get_mut(&name) else { return };
        observer.busy = false;
        let sight = observer.sight.after(observer.begun, observer.began.unwrap_or(now), answer, now);
        let differs = sight.listing != observer.sight.listing;
        let (round, listing) = (sight.round, sight.listing.clone());
        observer.sight = sight;
        let (due, waiting) = std::mem::take(&mut observer.waiting).into_iter().partition(|(_, from)| round >= *from);
        observer.waiting = waiting;
        let (asked, timer) = (observer.asked, observer.timer);
        if asked {
            self.look_at(name);
        } else {
            self.within(u64::try_from(OBSERVE_EVERY.as_millis()).unwrap_or(SECOND), Within::Observe(name, timer));
        }
        if differs {
            self.wake();
        }
        let due: Vec<(u64, u64)> = due;
        for (job, _) in due {
            self.looked(job, listing.clone());
        }
    }

    /// A step calls its driver.
    pub(super) fn call(&mut self, id: u64) {
        let Some(run) = self.life().jobs.get(&id).filter(|run| run.called.is_none()) else { return };
        if run.job.is_late(self.clock.wall()) {
            let late = Called::TimedOut(run.job.deadline);
            return self.called(id, late);
        }
        let (job, limit) = (&run.job, u64::try_from(run.job.deadline.as_millis()).unwrap_or(SECOND));
        let (name, asked, target) = (job.operation.driver, Asked::of(&job.work), job.target());
        let operation = job.operation.clone();
        let number = self.life().number;
        let driver = &self.drivers[&name];
        let now = self.clock.mono;
        // By a clock that has jumped nobody can tell how long it may still go on.
        let goes_on = |call: &&Call| call.goes_on(now) && call.jumps == self.clock.jumps;
        let still = driver.calls.values().filter(goes_on).any(|call| call.target.instance == target.instance);
        self.trace(|| format!("call {} {}", operation.action, operation.agent));
        self.tell(&Deed::Called {
            driver: name,
            operation: operation.id,
            agent: operation.agent.clone(),
            action: operation.action,
            instance: target.instance.clone(),
            nonce: target.nonce.clone(),
            still,
            records: Arc::clone(&self.life().records),
        });
        let now = self.clock.mono;
        let driver = &self.drivers[&name];
        let fate = if driver.begun.is_some() {
            Fate { half: None, effect: None, answer: None }
        } else if driver.out_until > now {
            Fate { half: None, effect: None, answer: (!driver.hangs).then_some((now + 20, true)) }
        } else {
            driver.fate(&asked, now, limit, self.calm, &mut self.rng)
        };
        // A controller likes to die in the middle of something.
        if !self.calm && self.rng.u8(..16) == 0 {
            let soon = self.rng.u64(..3 * SECOND);
            self.after(soon, Event::Kill);
        }
        self.last_call += 1;
        let call = self.last_call;
        for (at, event) in [
            (fate.half, Event::CallHalf(name, call)),
            (fate.effect, Event::CallEffect(name, call)),
            (fate.answer.map(|(at, _)| at), Event::CallAnswer(name, call, number, id)),
        ] {
            if let Some(at) = at {
                self.at(at, event);
            }
        }
        let begun = Begun { call, life: number, job: id, asked: asked.clone() };
        let entry = Call { target, asked, jumps: self.clock.jumps, waited_for: true, fate };
        let driver = self.drivers.get_mut(&name).expect("it was just looked at");
        driver.calls.insert(call, entry);
        driver.begun.iter_mut().for_each(|calls| calls.push(begun.clone()));
        let run = self.life_mut().jobs.get_mut(&id).expect("it was just looked at");
        run.call = Some(call);
        let timed_out = Called::TimedOut(run.job.deadline);
        self.within(limit, Within::Called(id, timed_out));
    }

    /// A call was answered, or its time is over. What comes second comes too late.
    pub(crate) fn called(&mut self, id: u64, called: Called) {
        let Some(run) = self.life_mut().jobs.get_mut(&id).filter(|run| run.called.is_none()) else { return };
        let text = match &called {
            Called::Done => "done".to_owned(),
            Called::Failed(error) => error.to_string(),
            Called::TimedOut(_) => "timed out".to_owned(),
            Called::GivenUp => "given up".to_owned(),
        };
        run.called = Some(called);
        let (operation, call) = (run.job.operation.clone(), run.call);
        self.trace(|| format!("called {} {}: {text}", operation.action, operation.agent));
        self.tell(&Deed::CallOver(operation.id));
        if let Some(call) = call {
            self.abandon(operation.driver, call);
        }
        let observer = self.life_mut().observers.get_mut(&operation.driver).expect("each driver is observed");
        let from = observer.begun + 1;
        observer.waiting.push((id, from));
        self.look_at(operation.driver);
    }

    pub(super) fn looked(&mut self, id: u64, listing: Option<Listing>) {
        let Some(run) = self.life_mut().jobs.get_mut(&id) else { return };
        run.listing = listing;
        let proves = run.job.asks_for_proof(run.listing.as_ref());
        let (driver, instance) = (run.job.operation.driver, run.job.claim.instance.clone());
        if !proves {
            return self.settle(id);
        }
        let driver = &self.drivers[&driver];
        if driver.out_until > self.clock.mono {
            let delay = if driver.hangs { millis(driver.capabilities.deadlines.list) } else { 10 };
            return self.within(delay, Within::Proved(id, None));
        }
        let nonce = driver.prove(&instance);
        self.soon(Within::Proved(id, nonce));
    }

    pub(super) fn settle(&mut self, id: u64) {
        let now = self.clock.wall();
        let jitter = self.rng.f64();
        let life = self.life();
        let Some(run) = life.jobs.get(&id) else { return };
        let Some(called) = &run.called else { return };
        let before = life.records.backoffs.get(&run.job.operation.agent);
        let settled = settle(&run.job, called, run.listing.as_ref(), run.proved.as_ref(), before, jitter, now);
        let sequence = settled.into_effects(&run.job);
        self.begin_strand(vec![sequence], now, Whose::Step(id));
    }
}

fn millis(span: vm_agent_schemas::units::Span) -> Millis {
    u64::try_from(span.get().as_millis()).unwrap_or(SECOND)
}

/// The answer that a driver gives when it has failed.
pub(crate) fn failed(call: &Call) -> Called {
    Called::Failed(DriverError::Failed {
        action: "act on",
        instance: call.target.instance.clone(),
        reason: "it went wrong".to_owned(),
    })
}
