//! What a life remembers, and its end forgets; and how a moment becomes the inputs of a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use vm_agent_hub::SessionInfo;
use vm_agent_plan::{DriverView, Inputs, Listing, SessionSeen, is_at_work};
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Claim, Host};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::HealthReport;

use super::clock::{ClockWatch, Jump};
use super::directory::called;
use super::records::Records;

/// A file system this full, in percent, makes an agent Degraded: builds begin to fail for want of room
/// some time before the last byte.
const DISK_FULL: u64 = 95;

/// How often runtimes report their health unless the file says otherwise.
pub const HEARTBEAT: Span = Span::from_secs(30);

/// How long a runtime may be silent before it counts as lost: two and a half heartbeats, for one may
/// be lost and the next late.
#[must_use]
pub fn silence(heartbeat: Span) -> Duration {
    heartbeat.get() * 5 / 2
}

/// What a life remembers besides its records. Nothing that is done rests on it alone.
#[derive(Debug, Default)]
pub struct Memory {
    /// The runtimes heard of.
    heard: BTreeMap<AgentName, SessionSeen>,
    /// How many messages wait for the agents whose runtimes are connected.
    messages: BTreeMap<AgentName, u32>,
    /// When the last step began that brought a machine up.
    last_success: Option<Timestamp>,
    /// The drivers that did not answer when it was last told.
    silent: BTreeSet<DriverName>,
    /// What this host has.
    host: Option<Host>,
    clock: ClockWatch,
    /// When the wall clock last jumped.
    resumed_at: Option<Timestamp>,
    /// A jump that was not told yet.
    untold: Option<Jump>,
}

/// What is seen and heard at one moment.
#[derive(Debug)]
pub struct Moment {
    /// What the drivers see.
    pub drivers: BTreeMap<DriverName, DriverView>,
    /// The sessions.
    pub sessions: Vec<SessionInfo>,
    /// How long a runtime may be silent.
    pub silence: Duration,
    /// What the clock says.
    pub clock: Timestamp,
    /// What a clock says that no sleep and nobody sets: the time since any fixed moment.
    pub monotonic: Duration,
    /// Agents whose secrets could not be read, and why.
    pub unread: BTreeMap<AgentName, String>,
}

impl Memory {
    /// What a life on this host remembers when it begins.
    #[must_use]
    pub fn of(host: Option<Host>) -> Self {
        Self { host, ..Self::default() }
    }

    /// Everything that a plan is made from.
    pub fn inputs(&mut self, records: &Records, moment: Moment) -> Inputs {
        let Moment { mut drivers, sessions, silence, clock, monotonic, unread } = moment;
        if let Some(jump) = self.clock.observe(monotonic, clock) {
            self.resumed_at = Some(clock);
            self.untold = Some(jump);
        }
        let mut sessions = self.hear(&sessions, &records.claims);
        for (agent, problem) in unread {
            if let Some(seen) = sessions.get_mut(&agent) {
                seen.problems.push(problem);
            }
        }
        seen_by(&mut drivers, clock);
        let (last_success, host, resumed_at) = (self.last_success, self.host, self.resumed_at);
        let mut inputs = Inputs { drivers, sessions, last_success, silence, host, resumed_at, ..records.inputs(clock) };
        inputs.work.extend(called(records, &inputs));
        inputs
    }

    /// The runtimes heard of: those connected now, and when the others were last heard.
    fn hear(
        &mut self,
        sessions: &[SessionInfo],
        claims: &BTreeMap<AgentName, Claim>,
    ) -> BTreeMap<AgentName, SessionSeen> {
        for seen in self.heard.values_mut() {
            seen.connected = false;
        }
        self.messages = sessions.iter().map(|session| (session.agent.clone(), session.messages)).collect();
        for session in sessions {
            let services = session.health.as_ref().map(|report| report.services.clone()).unwrap_or_default();
            // The hub knows of tasks and streams. That a service was at work is remembered here, else an agent
            // would fall asleep at the first moment in which it is not.
            let worked_at = if services.values().any(is_at_work) {
                Some(session.last_seen)
            } else {
                self.heard
                    .get(&session.agent)
                    .filter(|seen| seen.incarnation == session.incarnation)
                    .map(|it| it.active_at)
            };
            let seen = SessionSeen {
                incarnation: session.incarnation,
                connected: true,
                connected_at: session.connected_at,
                last_seen: session.last_seen,
                version: session.runtime_version.clone(),
                stays: None,
                configured: session.configured.clone(),
                problems: session.problems.clone(),
                ailing: session.health.as_ref().is_some_and(is_ailing),
                busy: session.busy,
                active_at: session.active_at.max(worked_at.unwrap_or(session.active_at)),
                tasks: session.tasks,
                running: session.running,
                streams: session.streams,
                services,
            };
            self.heard.insert(session.agent.clone(), seen);
        }
        // Who spoke for an earlier machine of that name is of no interest any more.
        self.heard.retain(|agent, seen| claims.get(agent).is_some_and(|claim| seen.incarnation == claim.incarnation));
        self.heard.clone()
    }

    /// How many messages waited for an agent when it was last looked at, while its runtime was connected.
    #[must_use]
    pub fn messages_waiting(&self, agent: &AgentName) -> u32 {
        self.messages.get(agent).copied().unwrap_or_default()
    }

    /// Notes that a step that began then brought a machine up.
    pub fn brought_up(&mut self, began: Timestamp) {
        self.last_success = Some(began);
    }

    /// What there is to tell of the clock: that it jumped. It is told once.
    pub fn clock_event(&mut self) -> Option<NewEvent> {
        let by = self.untold.take()?.by;
        let span = Span::from(by.unsigned_abs());
        let message = if by.is_positive() {
            format!("the clock jumped ahead by {span}: this host slept, or its clock was set")
        } else {
            format!("the clock was set back by {span}")
        };
        Some(NewEvent::fleet(EventKind::ClockJumped, message))
    }

    /// What there is to tell of drivers: who stopped answering, and who answers again. Of a driver that
    /// was not asked yet there is no listing.
    pub fn driver_events<'a>(
        &mut self,
        listings: impl IntoIterator<Item = (DriverName, Option<&'a Listing>)>,
    ) -> Vec<NewEvent> {
        let mut events = Vec::new();
        for (name, listing) in listings {
            match listing {
                Some(Listing::Unanswered { reason, .. }) if self.silent.insert(name) => {
                    let message = format!("driver {name} does not answer: {reason}");
                    events.push(NewEvent::fleet(EventKind::DriverLost, message));
                }
                Some(Listing::Seen(_)) if self.silent.remove(&name) => {
                    events.push(NewEvent::fleet(EventKind::DriverBack, format!("driver {name} answers again")));
                }
                _ => {}
            }
        }
        events
    }
}

/// Nothing was seen later than now: what says so was seen before the clock was set back.
fn seen_by(drivers: &mut BTreeMap<DriverName, DriverView>, now: Timestamp) {
    for view in drivers.values_mut() {
        if let Listing::Seen(instances) = &mut view.listing {
            instances.values_mut().for_each(|observed| observed.since = observed.since.min(now));
        }
    }
}

fn is_ailing(report: &HealthReport) -> bool {
    let (used, total) = (report.disk_used.bytes(), report.disk_total.bytes());
    total > 0 && used.saturating_mul(100) >= total.saturating_mul(DISK_FULL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_schemas::fleet::Fleet;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn moment(wall: i64, monotonic: u64) -> Moment {
        Moment {
            drivers: BTreeMap::new(),
            sessions: Vec::new(),
            silence: silence(HEARTBEAT),
            clock: at(wall),
            monotonic: Duration::from_secs(monotonic),
            unread: BTreeMap::new(),
        }
    }

    #[test]
    fn a_jump_of_the_clock_is_remembered_and_told_once() {
        let (mut memory, records) = (Memory::of(None), Records::empty(Fleet::default()));
        assert_eq!(memory.inputs(&records, moment(0, 0)).resumed_at, None);
        assert_eq!(memory.inputs(&records, moment(7_200, 1)).resumed_at, Some(at(7_200)));
        assert!(memory.clock_event().unwrap().message.contains("ahead by 1h59m59s"));
        assert_eq!(memory.clock_event(), None);
        assert_eq!(memory.inputs(&records, moment(7_201, 2)).resumed_at, Some(at(7_200)));
        memory.inputs(&records, moment(1, 3));
        assert!(memory.clock_event().unwrap().message.contains("set back by 2h"));
    }

    #[test]
    fn time_goes_on_when_the_clock_was_set_back() {
        let (mut memory, records) = (Memory::of(None), Records::empty(Fleet::default()));
        assert_eq!(memory.inputs(&records, moment(7_200, 0)).now, at(7_200));
        assert_eq!(memory.inputs(&records, moment(10, 1)).now, at(10));
    }
}
