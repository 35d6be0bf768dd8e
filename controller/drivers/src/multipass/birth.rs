//! From an order to an instance that runs with its seed, whatever was tried before and however that ended. Create,
//! start and the end of a restore are all this way, entered at different places.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::sleep;
use vm_agent_schemas::guest::{FromGuest, State as GuestState, ToGuest};
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::observe::Sizes;
use vm_agent_schemas::wire::Seed;

use super::answer::State;
use super::cli::Said;
use super::copies::locked;
use super::guest::Guest;
use super::record::{Identity, Power, later};
use super::trouble::Trouble;
use super::{Fault, Held, Multipass, UNCLEAR};
use crate::provisioning::launch_data;
use crate::{Base, CreateOrder, DriverError, Mounts};

/// How much longer than its limit a command may take to say so, as a part of that.
const MARGIN: u32 = 5;
/// How long an instance that is up may take until it has its seed.
const SEED_LIMIT: SignedDuration = SignedDuration::from_mins(8);
/// How long the machine's own cloud-init may take to have written down whose it is.
pub(super) const SETTLE_LIMIT: Duration = Duration::from_secs(600);
/// How long a machine may take to have what it is to have besides the runtime.
const PROVISION_LIMIT: Duration = Duration::from_secs(20 * 60);
/// How often that is asked for.
const PROVISION_PAUSE: Duration = Duration::from_secs(3);
/// How many lines are told of what could not be brought about.
const PROVISION_LINES: usize = 8;
/// How long to wait for a state that passes by itself, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));
/// How often an instance is started that goes down again at once.
const STARTS_MAX: u32 = 2;

/// What is to be done next for an instance to come up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// To make it.
    Launch,
    /// To take it out of those that are deleted.
    Recover,
    /// To start it.
    Start,
    /// To end it by force: it lives, and its daemon can't reach it any more by itself.
    Force,
    /// To wait: it is on its way.
    Wait,
    /// To give it its seed.
    Enter,
    /// Nobody can say.
    Unclear,
}

/// What a listing and a record say about an instance that is to be up.
fn next(seen: Option<State>, power: Power, now: Timestamp) -> Next {
    match seen {
        None => Next::Launch,
        Some(State::Deleted) => Next::Recover,
        // A start also takes back that it is to be stopped soon.
        Some(State::Stopped | State::Suspended | State::DelayedShutdown) => Next::Start,
        Some(State::Running) => Next::Enter,
        // A first boot shows as unknown until the guest lets the daemon in.
        Some(State::Unknown) if power.is_under_way(now) => Next::Wait,
        Some(State::Unknown) => Next::Force,
        Some(State::Starting | State::Suspending) => Next::Wait,
        Some(State::Other) => Next::Unclear,
    }
}

/// What to make of a launch, a copy or a start that did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// The daemon goes on with it, or somebody else's is still under way.
    GoesOn,
    /// It is over; the instance shows what came of it.
    Look,
    /// The daemon itself is in trouble.
    Daemon,
    /// It came to nothing.
    Fail,
}

/// Decides that. A command that gave up or was killed leaves the daemon at work, whatever it said before, and so may one
/// that says what makes no sense; what the daemon itself gives up is over.
pub(super) const fn after(trouble: Trouble, client_gave_up: bool) -> After {
    match trouble {
        _ if client_gave_up => After::GoesOn,
        Trouble::Busy | Trouble::Exists | Trouble::Other => After::GoesOn,
        Trouble::Late | Trouble::Deleted | Trouble::Lost | Trouble::Transport => After::Look,
        Trouble::Unreachable | Trouble::Denied => After::Daemon,
        Trouble::Missing
        | Trouble::State
        | Trouble::ImageAway
        | Trouble::Image
        | Trouble::ImageLocked
        | Trouble::Invalid
        | Trouble::Unsupported => After::Fail,
    }
}

/// How far a way up has come.
#[derive(Debug, Default)]
struct Tried {
    /// Whether this very call had it launched.
    launched: bool,
    recovered: bool,
    forced: bool,
    starts: u32,
    /// What the last that failed said.
    why: Option<String>,
}

impl Multipass {
    /// Has an instance run with its seed, and with these mounts and no others. Where it does not exist it is made for
    /// this order.
    pub(super) async fn bring_up(
        &self,
        held: &mut Held<'_>,
        order: Option<&CreateOrder>,
        seed: &Seed,
        mounts: &Mounts,
    ) -> Result<(), DriverError> {
        let (mut tried, mut pause) = (Tried::default(), PAUSES.0);
        loop {
            let seen = self.look(held.act).await?.get(held.name()).copied();
            match next(seen, held.record.power, Timestamp::now()) {
                Next::Launch => {
                    let order = order.ok_or_else(|| DriverError::Missing { instance: held.act.1.clone() })?;
                    self.launch(held, order, &mut tried).await?;
                }
                Next::Recover if tried.recovered => {
                    return Err(held.failed("Multipass says that it is recovered, and lists it as deleted"));
                }
                Next::Recover => {
                    tried.recovered = true;
                    self.recover(held).await?;
                }
                Next::Start => self.start_it(held, mounts, &mut tried).await?,
                Next::Force if tried.forced => return Err(self.give_up(held, &tried).await),
                Next::Force => {
                    tried.forced = true;
                    self.force(held).await?;
                }
                Next::Enter => return self.enter(held, seed, mounts).await,
                Next::Wait => {}
                Next::Unclear => return Err(held.failed(UNCLEAR)),
            }
            if matches!(next(seen, held.record.power, Timestamp::now()), Next::Wait | Next::Launch) {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }

    /// Has the daemon make the instance. Its name was free in the last listing.
    async fn launch(&self, held: &mut Held<'_>, order: &CreateOrder, tried: &mut Tried) -> Result<(), DriverError> {
        if let Base::Snapshot(source, snapshot) = &order.base {
            return self.clone_from(held, order, source, snapshot).await;
        }
        let image = super::image(order)?;
        let Err(fault) = self.launch_from(held, order, image.as_deref(), tried).await? else { return Ok(()) };
        if fault.trouble() != Trouble::ImageLocked {
            return Err(self.trouble(held.act, &fault));
        }
        tracing::info!(instance = held.name(), %fault, "an instance gets a copy of its image for itself");
        let but = match self.own_image(held, image.as_deref()).await {
            Err(error) => format!("a copy for it alone can't be made: {error}"),
            Ok(own) => match self.launch_from(held, order, Some(&own.address()), tried).await? {
                Ok(()) => return Ok(()),
                Err(fault) => format!("it could not be made from a copy for it alone either: {fault}"),
            },
        };
        Err(held.failed(&format!("{}; {but}", locked(&fault.to_string()))))
    }

    /// Has the daemon make the instance from an image. The fault is inside, if that came to nothing.
    async fn launch_from(
        &self,
        held: &mut Held<'_>,
        order: &CreateOrder,
        image: Option<&str>,
        tried: &mut Tried,
    ) -> Result<Result<(), Fault>, DriverError> {
        let is_first = !matches!(held.record.power, Power::Coming { .. });
        let Err(fault) = self.call_launch(held, order, image).await? else {
            tried.launched = true;
            return self.came_up(held).await.map(Ok);
        };
        if is_first && fault.trouble() == Trouble::Exists {
            // Somebody was faster, while this waited for its turn.
            self.forget(held).await?;
            return Err(DriverError::Foreign { instance: held.act.1.clone() });
        }
        tried.launched |= !matches!(fault.trouble(), Trouble::Exists | Trouble::Busy);
        tried.why = Some(fault.to_string());
        self.what_is_left(held, fault).await
    }

    /// Tells the daemon to make the instance, and how long to wait for it.
    async fn call_launch(
        &self,
        held: &mut Held<'_>,
        order: &CreateOrder,
        image: Option<&str>,
    ) -> Result<Result<Said, Fault>, DriverError> {
        let data = launch_data(&order.provision, &held.record.birth, !order.mounts.is_empty());
        let limit = self.limits.launch;
        let arguments = launch_arguments(order, image, limit);
        // Stored before the daemon is told: whatever comes of it is ours then.
        // The daemon gives each of its two waits as long as the whole.
        held.record.power = Power::Coming { until: later(Timestamp::now(), signed(2 * limit)) };
        held.record.given = held.record.birth.clone();
        self.remember(held).await?;
        let call = self.call(&arguments, Some(data.as_bytes()), limit + limit / MARGIN);
        Ok(self.lanes.coming_up(call).await)
    }

    /// Finds out what a launch that failed has left. The fault is inside, if that is nothing.
    async fn what_is_left(&self, held: &mut Held<'_>, fault: Fault) -> Result<Result<(), Fault>, DriverError> {
        let after = after(fault.trouble(), fault.is_clients());
        if after == After::Daemon {
            return Err(self.trouble(held.act, &fault));
        }
        // Neither the command's end nor its words tell whether the daemon still makes it, which no list shows as long
        // as it prepares the image. To let go of it now would make it nobody's when it is there.
        self.until_nobody_makes_it(held).await?;
        match (self.look(held.act).await?.contains_key(held.name()), after) {
            (true, After::GoesOn) => Ok(Ok(())),
            (true, _) => self.is_over(held).await.map(Ok),
            // Nobody heard from the daemon that it came to nothing: should it come after all, it is ours.
            (false, After::GoesOn) => self.is_over(held).await.map(|()| Err(fault)),
            (false, _) => self.forget(held).await.map(|()| Err(fault)),
        }
    }

    /// Starts an instance that is down.
    async fn start_it(&self, held: &mut Held<'_>, mounts: &Mounts, tried: &mut Tried) -> Result<(), DriverError> {
        if tried.starts == STARTS_MAX {
            let why = tried.why.take().unwrap_or_else(|| "it goes down again as soon as it is up".to_owned());
            return Err(held.failed(&why));
        }
        tried.starts += 1;
        self.unmount_others(held, mounts).await?;
        let limit = self.limits.start;
        let later_than_limit = limit + limit / MARGIN;
        held.record.power = Power::Coming { until: later(Timestamp::now(), signed(later_than_limit)) };
        self.remember(held).await?;
        let timeout = limit.as_secs().to_string();
        let arguments = ["start", held.name(), "--timeout", &timeout];
        let called = self.lanes.coming_up(self.call(&arguments, None, later_than_limit)).await;
        let Err(fault) = called else { return self.came_up(held).await };
        tried.why = Some(fault.to_string());
        match after(fault.trouble(), fault.is_clients()) {
            After::GoesOn => Ok(()),
            After::Daemon => Err(self.trouble(held.act, &fault)),
            After::Look | After::Fail => self.is_over(held).await,
        }
    }

    /// Takes a deleted instance of ours back.
    async fn recover(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        let _turn = self.lanes.change(format!("recover {}", held.name())).await;
        let called = self.call(&["recover", held.name()], None, super::SHORT_LIMIT).await;
        match called {
            Err(fault) => Err(self.trouble(held.act, &fault)),
            Ok(_) => Ok(()),
        }
    }

    /// Ends an instance that can't be reached, to start it anew.
    async fn force(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        tracing::warn!(
            instance = held.name(),
            "the daemon of Multipass has lost sight of an instance, which is stopped by force and started"
        );
        self.stop_by_force(held).await
    }

    /// It does not come up, also after it was ended by force. One that was made by this very call has nothing in it,
    /// and was watched from when its name was free: it is taken back.
    async fn give_up(&self, held: &mut Held<'_>, tried: &Tried) -> DriverError {
        let why = tried.why.clone().unwrap_or_else(|| "its guest does not answer".to_owned());
        if !tried.launched || held.record.is_known() {
            return held
                .failed(&format!("{why}; it was stopped by force and started again, and still is not to be reached"));
        }
        match self.purge(held).await {
            Ok(()) => held.failed(&format!("{why}; what was made of it is deleted again")),
            Err(error) => error,
        }
    }

    /// It is up; it has yet to get its seed.
    async fn came_up(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        held.record.power = Power::Coming { until: later(Timestamp::now(), SEED_LIMIT) };
        self.remember(held).await
    }

    /// The daemon is not at it any more.
    async fn is_over(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        held.record.power = Power::Coming { until: Timestamp::now() };
        self.remember(held).await
    }

    /// Gives an instance that is up what it is to have, and its seed.
    async fn enter(&self, held: &mut Held<'_>, seed: &Seed, mounts: &Mounts) -> Result<(), DriverError> {
        if !matches!(held.record.power, Power::Coming { .. }) {
            self.came_up(held).await?;
        }
        let entered = self.try_to_enter(held, seed, mounts).await;
        if entered.is_err() && matches!(held.record.power, Power::Coming { .. }) {
            self.is_over(held).await?;
        }
        entered
    }

    async fn try_to_enter(&self, held: &mut Held<'_>, seed: &Seed, mounts: &Mounts) -> Result<(), DriverError> {
        let installed = self.recognise(held).await?;
        let guest = self.guest(held.act.1);
        let kit = self.kit(held).await?;
        let digest = Digest::of(&kit);
        if installed.as_deref() != Some(digest.as_str()) {
            let put = guest.install(&kit, &digest).await;
            if let Err(fault) = put {
                return Err(self.trouble(held.act, &fault));
            }
        }
        if held.record.adopting {
            self.keep_machine_id(held).await?;
        }
        self.mount(held, mounts).await?;
        match guest.seed(seed, &held.record.machine_id).await {
            Ok(FromGuest::Failed { reason, .. }) => return Err(held.failed(&reason)),
            Ok(_) => {}
            Err(fault) => return Err(self.trouble(held.act, &fault)),
        }
        if !held.record.provisioned {
            if held.record.provision.takes_time() {
                self.provisioned(held).await?;
            }
            held.record.provisioned = true;
        }
        (held.record.power, held.record.adopting) = (Power::Up, false);
        self.remember(held).await
    }

    /// Sees to it that an instance that is up is the one that was made for the record, and tells what was installed in
    /// it last.
    async fn recognise(&self, held: &mut Held<'_>) -> Result<Option<String>, DriverError> {
        let guest = self.guest(held.act.1);
        if held.record.adopting {
            self.brand(held).await?;
        }
        self.rebrand(held).await?;
        let mut shown = guest.shown().await;
        if matches!(&shown, Ok(shown) if shown.birth.is_none()) && !held.record.is_known() {
            // It may be so early that it has not been written down yet.
            guest.settled(SETTLE_LIMIT).await.map_err(|fault| self.trouble(held.act, &fault))?;
            shown = guest.shown().await;
        }
        let shown = match shown {
            Ok(shown) => shown,
            Err(fault) => return Err(self.trouble(held.act, &fault)),
        };
        let is_ours = shown.birth.as_ref() == Some(&held.record.birth);
        let identity = match held.record.identity {
            _ if is_ours => Identity::Shown,
            Identity::Shown => Identity::Doubtful,
            other => other,
        };
        if held.record.identity != identity {
            held.record.identity = identity;
            self.remember(held).await?;
        }
        if is_ours { Ok(shown.installed) } else { Err(DriverError::Foreign { instance: held.act.1.clone() }) }
    }

    /// Waits until an instance has what it is to have besides the runtime. One that can't have it is deleted again:
    /// nothing ever ran in it.
    async fn provisioned(&self, held: &mut Held<'_>) -> Result<(), DriverError> {
        let mut last = Vec::new();
        let watched = tokio::time::timeout(PROVISION_LIMIT, watch(self.guest(held.act.1), &mut last)).await;
        let why = match watched {
            Ok(Ok(Ok(()))) => return Ok(()),
            Ok(Ok(Err(why))) => why,
            Ok(Err(fault)) => return Err(self.trouble(held.act, &fault)),
            Err(_) => format!("it is not there after {} min: {}", PROVISION_LIMIT.as_secs() / 60, last_lines(&last)),
        };
        self.purge(held).await?;
        Err(held.failed(&format!("the machine did not get what it is to have besides the runtime: {why}")))
    }
}

/// Asks how it goes until it has ended, and how that was.
async fn watch(guest: Guest<'_>, last: &mut Vec<String>) -> Result<Result<(), String>, Fault> {
    loop {
        let FromGuest::State(GuestState { provision: Some(unit), .. }) = guest.ask(|id| ToGuest::Status { id }).await?
        else {
            return Ok(Err("its guest program knows nothing of it".to_owned()));
        };
        *last = unit.journal;
        match unit.state.as_str() {
            "active" => return Ok(Ok(())),
            "failed" => return Ok(Err(last_lines(last))),
            _ => sleep(PROVISION_PAUSE).await,
        }
    }
}

/// The last lines that say something, in one.
fn last_lines(lines: &[String]) -> String {
    let lines: Vec<_> = lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(PROVISION_LINES)..].join("; ")
}

/// The arguments of a launch. What to tell cloud-init comes on the input, which also the command of a snap can read.
fn launch_arguments(order: &CreateOrder, image: Option<&str>, limit: Duration) -> Vec<String> {
    let mut arguments = vec!["launch".to_owned()];
    arguments.extend(image.map(str::to_owned));
    let Sizes { cpus, memory, disk } = order.sizes;
    let options = [
        ("--name", order.instance.to_string()),
        ("--cpus", cpus.to_string()),
        ("--memory", memory.bytes().to_string()),
        ("--disk", disk.bytes().to_string()),
        ("--timeout", limit.as_secs().to_string()),
        ("--cloud-init", "-".to_owned()),
    ];
    let networks = order.provision.networks.iter().map(|network| ("--network", network.to_string()));
    arguments.extend(options.into_iter().chain(networks).flat_map(|(option, value)| [option.to_owned(), value]));
    arguments
}

/// As timestamps count.
pub(super) fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::an_order;

    #[test]
    fn a_create_that_was_given_up_goes_on_from_whatever_is_there() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let under_way = Power::Coming { until: later(now, SignedDuration::from_secs(1)) };
        let powers = [Power::Down, Power::Up, under_way, Power::Coming { until: now }];
        let states = [
            None,
            Some(State::Running),
            Some(State::DelayedShutdown),
            Some(State::Starting),
            Some(State::Unknown),
            Some(State::Stopped),
            Some(State::Suspending),
            Some(State::Suspended),
            Some(State::Deleted),
            Some(State::Other),
        ];
        let cell = |state| powers.map(|power| format!("{:?}", next(state, power, now))).join(", ");
        let table: Vec<_> = states.map(|state| format!("{state:?} -> {}", cell(state))).into();
        insta::assert_snapshot!(table.join("\n"), @"
        None -> Launch, Launch, Launch, Launch
        Some(Running) -> Enter, Enter, Enter, Enter
        Some(DelayedShutdown) -> Start, Start, Start, Start
        Some(Starting) -> Wait, Wait, Wait, Wait
        Some(Unknown) -> Force, Force, Wait, Force
        Some(Stopped) -> Start, Start, Start, Start
        Some(Suspending) -> Wait, Wait, Wait, Wait
        Some(Suspended) -> Start, Start, Start, Start
        Some(Deleted) -> Recover, Recover, Recover, Recover
        Some(Other) -> Unclear, Unclear, Unclear, Unclear
        ");
    }

    #[test]
    fn a_command_that_gave_up_or_was_killed_leaves_the_daemon_at_work() {
        for trouble in [Trouble::Late, Trouble::Other, Trouble::Unreachable, Trouble::Invalid] {
            assert_eq!(after(trouble, true), After::GoesOn);
        }
        assert_eq!(after(Trouble::Late, false), After::Look);
        assert_eq!(after(Trouble::Busy, false), After::GoesOn);
        assert_eq!(after(Trouble::Other, false), After::GoesOn);
        assert_eq!(after(Trouble::Exists, false), After::GoesOn);
        assert_eq!(after(Trouble::Unreachable, false), After::Daemon);
        assert_eq!(after(Trouble::Image, false), After::Fail);
    }

    #[test]
    fn a_launch_names_all_that_the_order_says_and_no_secret() {
        let mut order = an_order("web");
        order.provision.networks = ["en0", "br0"].map(|name| name.parse().unwrap()).into();
        let arguments = launch_arguments(&order, Some("24.04"), Duration::from_secs(900)).join(" ");
        insta::assert_snapshot!(arguments, @"launch 24.04 --name web --cpus 1 --memory 1073741824 --disk 5368709120 --timeout 900 --cloud-init - --network br0 --network en0");
        let data = launch_data(&order.provision, &order.seed.nonce, false);
        assert!(!data.contains(order.seed.join_token.expose()));
    }
}
