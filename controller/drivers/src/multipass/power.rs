//! Taking instances down, to their saved memory, and away.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep, timeout};
use vm_agent_schemas::names::InstanceName;

use super::answer::State;
use super::record::{Identity, Power, Record, later};
use super::trouble::Trouble;
use super::{FORCE_LIMIT, Held, Multipass, SHORT_LIMIT, STOP_LIMIT, SUSPEND_LIMIT, UNCLEAR};
use crate::{Act, DriverError};

/// How long a machine that is coming up may take until it can be stopped. Then it is stopped by force.
const COMING_LIMIT: Duration = Duration::from_secs(90);
/// How long a machine may take to save its memory after the command for that was given up.
const PASSING_LIMIT: Duration = Duration::from_secs(120);
/// The pause between looks at a state that passes.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a machine may take to show whose it is before it is deleted or stopped by force. One that can't is in the
/// state for which that is.
const RECOGNISE_LIMIT: Duration = Duration::from_secs(30);

/// What takes an instance down that is in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Down {
    /// It is down.
    Done,
    /// It is asked to, by its power button.
    Ask,
    /// It is ended.
    Force,
    /// It is on its way somewhere, and can't be asked yet.
    Wait,
    /// Nobody can say.
    Unclear,
}

/// Decides that. `lost_on_the_way` is whether it was never seen up since it was last started.
const fn down(state: State, lost_on_the_way: bool) -> Down {
    match state {
        State::Stopped | State::Deleted => Down::Done,
        State::Running | State::DelayedShutdown => Down::Ask,
        // It never had its seed: there is nothing in it that could be lost.
        State::Unknown if lost_on_the_way => Down::Force,
        State::Unknown => Down::Ask,
        // Its memory is of no use to anybody who wants it stopped.
        State::Suspended => Down::Force,
        State::Starting | State::Suspending => Down::Wait,
        State::Other => Down::Unclear,
    }
}

impl Multipass {
    /// Has an instance not run.
    pub(super) async fn bring_down(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        let lost_on_the_way = matches!(held.record.power, Power::Coming { .. });
        // Before it goes down, so that no listing takes that for a crash.
        held.record.power = Power::Down;
        self.remember(held).await?;
        let begun = Instant::now();
        let (mut asked, mut forced) = (false, false);
        loop {
            let state = self.state(held).await?;
            match down(state, lost_on_the_way) {
                Down::Done => {
                    if state == State::Stopped
                        && let Err(error) = self.delete_dropped(held).await
                    {
                        // It is down all the same, and the next time it is they are tried again.
                        tracing::warn!(instance = held.name(), %error, "deleted snapshots are still on a disk");
                    }
                    return Ok(());
                }
                Down::Ask if asked => {
                    return Err(held.failed("Multipass says that it is stopped, and lists it as running"));
                }
                Down::Ask => {
                    if !held.record.is_known() {
                        self.recognise_if_possible(held).await?;
                    }
                    asked = self.ask_to_stop(held).await? || begun.elapsed() >= COMING_LIMIT;
                    if !asked {
                        sleep(PAUSE).await;
                    }
                }
                Down::Wait if begun.elapsed() < COMING_LIMIT => sleep(PAUSE).await,
                Down::Force | Down::Wait if forced => {
                    return Err(held.failed("Multipass says that it is stopped by force, and lists it as it was"));
                }
                Down::Force | Down::Wait => {
                    forced = true;
                    self.stop_by_force(held).await?;
                }
                Down::Unclear => return Err(held.failed(UNCLEAR)),
            }
        }
    }

    /// Asks it to go down; answers whether it could be asked.
    async fn ask_to_stop(&self, held: &mut Held<'_>) -> Result<bool, DriverError> {
        let called = {
            let _turn = self.lanes.change(format!("stop {}", held.name())).await;
            self.call(&["stop", held.name()], None, STOP_LIMIT).await
        };
        let Err(fault) = called else { return Ok(true) };
        match fault.trouble() {
            // It is on its way up, or was about to come down by itself.
            Trouble::Busy => Ok(false),
            Trouble::Deleted => Ok(true),
            Trouble::Late | Trouble::Transport | Trouble::Lost => {
                tracing::warn!(instance = held.name(), %fault, "an instance does not go down when asked");
                self.stop_by_force(held).await.map(|()| true)
            }
            _ => Err(self.trouble(held.act, &fault)),
        }
    }

    /// Ends an instance at once, and drops its saved memory.
    pub(super) async fn stop_by_force(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        let version = self.sight.versions().map(|versions| versions.common());
        if version.is_some_and(|version| !version.has_forced_stop()) {
            return self.stop_without_force(held).await;
        }
        self.recognise_if_possible(held).await?;
        let _turn = self.lanes.change(format!("stop --force {}", held.name())).await;
        match self.call(&["stop", "--force", held.name()], None, FORCE_LIMIT).await {
            Err(fault) => Err(self.trouble(held.act, &fault)),
            Ok(_) => Ok(()),
        }
    }

    /// What versions can do that know no force: a suspended instance goes down by way of running.
    async fn stop_without_force(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        let why = "it does not go down, and this version of Multipass can't force it; install 1.14 or a later one, or \
                   restart its daemon";
        if self.state(held).await? != State::Suspended {
            return Err(held.failed(why));
        }
        for (verb, limit) in [("start", self.limits.start), ("stop", STOP_LIMIT)] {
            let _turn = self.lanes.change(format!("{verb} {}", held.name())).await;
            self.call(&[verb, held.name()], None, limit).await.map_err(|fault| self.trouble(held.act, &fault))?;
        }
        Ok(())
    }

    /// Saves the memory of an instance that runs.
    pub(super) async fn put_to_sleep(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        let begun = Instant::now();
        let mut asked = false;
        loop {
            match self.state(held).await? {
                State::Suspended | State::Stopped | State::Deleted => break,
                // It says that it is done, and does nothing, when it can't reach the machine.
                State::Unknown => {
                    return Err(held.failed("its daemon has lost sight of it; stop it, and start it again"));
                }
                State::Other => return Err(held.failed(UNCLEAR)),
                State::Starting | State::Suspending if begun.elapsed() < PASSING_LIMIT => sleep(PAUSE).await,
                State::Starting | State::Suspending => return Err(held.failed("it is still on its way")),
                State::Running | State::DelayedShutdown if asked => {
                    return Err(held.failed("Multipass says that it is suspended, and lists it as running"));
                }
                State::Running | State::DelayedShutdown => {
                    asked = true;
                    let _turn = self.lanes.change(format!("suspend {}", held.name())).await;
                    self.call(&["suspend", held.name()], None, SUSPEND_LIMIT)
                        .await
                        .map_err(|fault| self.trouble(held.act, &fault))?;
                }
            }
        }
        if held.record.power != Power::Down && self.state(held).await? == State::Suspended {
            held.record.power = Power::Down;
            self.remember(held).await?;
        }
        Ok(())
    }

    /// Deletes an instance with all its snapshots, and forgets it.
    pub(super) async fn purge(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        self.recognise_if_possible(held).await?;
        {
            let _turn = self.lanes.change(format!("delete {}", held.name())).await;
            // One name a call, and nothing else: with a snapshot's name beside it, the whole instance goes.
            match self.call(&["delete", "--purge", held.name()], None, FORCE_LIMIT).await {
                Err(fault) if fault.trouble() == Trouble::Missing => {}
                Err(fault) => return Err(self.trouble(held.act, &fault)),
                Ok(_) => {}
            }
        }
        if self.look(held.act).await?.contains_key(held.name()) {
            return Err(held.failed("Multipass says that it is deleted, and lists it"));
        }
        self.sight.snapshots_changed();
        self.forget(held).await
    }

    /// Waits until nobody is making an instance any more that no listing shows. Its name is taken already, and once it
    /// is there it would be nobody's.
    pub(super) async fn until_nobody_makes_it(&self, held: &Held<'_>) -> Result<(), DriverError> {
        while !self.look(held.act).await?.contains_key(held.name())
            && self.is_being_made(held.act, &held.record).await?
        {
            sleep(PAUSE * 4).await;
        }
        Ok(())
    }

    /// Whether an instance is being made that no listing shows yet. It is asked for by way of a change that an instance
    /// which is not there can't have: the daemon refuses it, and tells why.
    pub(super) async fn is_being_made(&self, act: Act<'_>, record: &Record) -> Result<bool, DriverError> {
        let change = format!("local.{}.cpus={}", act.1, record.sizes.cpus);
        match self.call(&["set", &change], None, SHORT_LIMIT).await {
            Ok(_) => Ok(false),
            Err(fault) => match fault.trouble() {
                Trouble::Busy => Ok(true),
                Trouble::Missing | Trouble::State | Trouble::Deleted => Ok(false),
                _ => Err(self.trouble(act, &fault)),
            },
        }
    }

    /// Before something is done that can't be undone: an instance that runs and can be spoken to has to show that it is
    /// the one that is meant.
    async fn recognise_if_possible(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        if self.look(held.act).await?.get(held.name()) != Some(&State::Running) {
            return Ok(());
        }
        let shown = timeout(RECOGNISE_LIMIT, self.guest(held.act.1).shown()).await;
        let Ok(Ok(shown)) = shown else { return Ok(()) };
        if shown.birth.as_ref().is_some_and(|birth| held.record.is_of(birth)) {
            return Ok(());
        }
        // One that was never known may be too young to show anything.
        let young = later(Timestamp::now(), SignedDuration::ZERO);
        if shown.birth.is_none() && !held.record.is_known() && held.record.power.is_under_way(young) {
            return Ok(());
        }
        Err(DriverError::Foreign { instance: held.act.1.clone() })
    }

    /// Has an instance whose name was free meanwhile show that it is the one that is meant. Only one that runs can.
    pub(super) async fn recognise_again(&self, held: &mut Held<'_>, state: State) -> Result<(), DriverError> {
        let shown = async { timeout(RECOGNISE_LIMIT, self.guest(held.act.1).shown()).await.ok()?.ok()?.birth };
        let shown = if state == State::Running { shown.await } else { None };
        if !shown.is_some_and(|birth| held.record.is_of(&birth)) {
            return Err(DriverError::Foreign { instance: held.act.1.clone() });
        }
        held.record.identity = Identity::Shown;
        self.remember(held).await
    }

    /// The state of an instance that is there.
    pub(super) async fn state(&self, held: &Held<'_>) -> Result<State, DriverError> {
        let seen = self.look(held.act).await?.get(held.name()).copied();
        seen.ok_or_else(|| missing(held.act.1))
    }
}

/// There is no such instance.
pub(super) fn missing(instance: &InstanceName) -> DriverError {
    DriverError::Missing { instance: instance.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_nothing_to_lose_is_ended_without_being_asked() {
        let states = [
            State::Running,
            State::DelayedShutdown,
            State::Unknown,
            State::Starting,
            State::Stopped,
            State::Suspending,
            State::Suspended,
            State::Deleted,
            State::Other,
        ];
        let lines = states.map(|state| format!("{state:?} -> {:?}, lost {:?}", down(state, false), down(state, true)));
        insta::assert_snapshot!(lines.join("\n"), @"
        Running -> Ask, lost Ask
        DelayedShutdown -> Ask, lost Ask
        Unknown -> Ask, lost Force
        Starting -> Wait, lost Wait
        Stopped -> Done, lost Done
        Suspending -> Wait, lost Wait
        Suspended -> Force, lost Force
        Deleted -> Done, lost Done
        Other -> Unclear, lost Unclear
        ");
    }
}
