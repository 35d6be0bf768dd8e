//! Waiting until agents are as wanted. What is ready and what is stuck is decided by pure functions
//! over what the controller says; events only say when to look again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;
use vm_agent_schemas::api::{AgentView, List};
use vm_agent_schemas::fleet::PowerState;
use vm_agent_schemas::ids::Revision;
use vm_agent_schemas::intent::{Change, Override, Presence};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::plan::{AgentPlan, Health, Plan, Sync, WaitsFor};
use vm_agent_schemas::units::Span;

use crate::client::Client;
use crate::exit::{CommandError, Exit};
use crate::render::count;
use crate::table::printable;
use crate::ui::{BAD, GOOD, STRONG, Ui};

/// Pause after an event before looking: many events come at once, and one look covers them all.
const GATHER: Duration = Duration::from_millis(50);
/// Pause before looking without an event: for what no event tells, such as a pass that settles what
/// an event before it began.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The flags of commands that wait.
#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Wait until it is done; this is the default
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Ask for it and don't wait until it is done
    #[arg(long)]
    no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "SPAN", default_value = "10m")]
    timeout: Span,
}

impl WaitArgs {
    /// How long to wait; nothing means not at all.
    pub(crate) fn limit(&self) -> Option<Span> {
        (self.wait || !self.no_wait).then_some(self.timeout)
    }
}

/// What is waited for with one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// To be as this accepted file, or a later one, wants it.
    AsFile(Option<Revision>),
    /// To run, or not.
    Power(PowerState),
    /// To exist no longer.
    Gone,
}

/// What is waited for after a file was accepted. An agent that should go and waits for a person is
/// none of it: the plan has shown it, and all else is done without it.
pub(crate) fn goals_of(plan: &Plan, revision: Option<Revision>) -> BTreeMap<AgentName, Goal> {
    let goal = |agent: &AgentPlan| {
        if agent.wanted.is_some() {
            return Some((agent.name.clone(), Goal::AsFile(revision)));
        }
        let steps = plan.steps.iter().filter(|step| step.agent == agent.name);
        let mut waits = agent.waits_for.iter().chain(steps.flat_map(|step| &step.waits_for));
        (!waits.any(needs_person)).then(|| (agent.name.clone(), Goal::Gone))
    };
    plan.agents.iter().filter_map(goal).collect()
}

/// How far an agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// It is as wanted.
    Ready,
    /// It is gone, as wanted; and why, where that is against the file.
    Gone(Option<String>),
    /// Something goes on.
    Waiting(String),
    /// Waiting may bring nothing: a person, a window or room on the host is needed.
    Stuck(String),
}

impl Standing {
    fn is_reached(&self) -> bool {
        matches!(self, Self::Ready | Self::Gone(_))
    }

    fn is_waiting(&self) -> bool {
        matches!(self, Self::Waiting(_))
    }
}

type Standings = BTreeMap<AgentName, Standing>;

/// Waits until every goal is reached.
pub(crate) async fn settle(
    ui: &mut Ui,
    client: &Client,
    goals: &BTreeMap<AgentName, Goal>,
    limit: Span,
) -> Result<(), CommandError> {
    // Opened before the first look: what changes after that look is heard.
    let mut events = client.stream("/events?follow=true&limit=1").await?;
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let began = Instant::now();
    let mut limit_reached = std::pin::pin!(tokio::time::sleep(limit.get()));
    let mut told = Standings::new();
    loop {
        let agents = client.get::<List<AgentView>>("/agents").await?.content.items;
        let standings = standings(goals, &agents);
        show(ui, &standings, &told, began.elapsed())?;
        if !standings.values().any(Standing::is_waiting) {
            return outcome(&standings);
        }
        told = standings;
        tokio::select! {
            _ = &mut interrupt => return Err(detached()),
            () = &mut limit_reached => return Err(too_late(&told, limit)),
            event = events.next() => {
                event?.ok_or_else(|| CommandError::new(Exit::UNREACHABLE, "the controller went away meanwhile"))?;
                tokio::time::sleep(GATHER).await;
                events.drain().for_each(drop);
            }
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

fn standings(goals: &BTreeMap<AgentName, Goal>, agents: &[AgentView]) -> Standings {
    let seen: BTreeMap<&AgentName, &AgentView> = agents.iter().map(|agent| (&agent.name, agent)).collect();
    let one = |(name, goal): (&AgentName, &Goal)| (name.clone(), standing(*goal, seen.get(name).copied()));
    let mut standings: Standings = goals.iter().map(one).collect();
    // Who waits for somebody stuck is stuck as well, and so on down the line.
    loop {
        let stuck = |name: &AgentName| matches!(standings.get(name), Some(Standing::Stuck(_)));
        let next = standings.iter().find_map(|(name, standing)| {
            let waits = &seen.get(name).filter(|_| standing.is_waiting())?.waits_for;
            let on = waits.iter().find(|it| matches!(it, WaitsFor::Dependency { agent, .. } if stuck(agent)))?;
            Some((name.clone(), Standing::Stuck(format!("waits for {on}"))))
        });
        match next {
            Some((name, standing)) => standings.insert(name, standing),
            None => return standings,
        };
    }
}

/// How far one agent is on the way to its goal.
fn standing(goal: Goal, agent: Option<&AgentView>) -> Standing {
    let Some(agent) = agent else {
        return match goal {
            Goal::Gone => Standing::Gone(None),
            Goal::AsFile(_) | Goal::Power(_) => Standing::Waiting("not looked at yet".to_owned()),
        };
    };
    let reached = match goal {
        Goal::AsFile(revision) if agent.observed_generation < revision => {
            return Standing::Waiting("the new file has not been looked at yet".to_owned());
        }
        // What rests is as its file says, and comes up again for work or for a person.
        Goal::AsFile(_) if agent.rests.is_some() => agent.sync == Sync::Synced,
        Goal::AsFile(_) => match agent.power {
            Some(power) => is_at(agent, power),
            None => agent.instance.is_none(),
        },
        Goal::Power(power) => agent.power == Some(power) && is_at(agent, power),
        Goal::Gone => agent.power.is_none() && agent.instance.is_none(),
    };
    if reached {
        return if agent.power.is_none() { Standing::Gone(dismissal(agent)) } else { Standing::Ready };
    }
    match agent.waits_for.iter().find(|it| needs_person(it)) {
        Some(reason) => Standing::Stuck(format!("waits for {reason}")),
        None => Standing::Waiting(describe(agent)),
    }
}

/// Who wants an agent gone that the file wants, and how it comes back.
fn dismissal(agent: &AgentView) -> Option<String> {
    let is_absence = |it: &&Override| matches!(it.change, Change::Presence(Presence::Absent));
    let said = agent.overrides.iter().find(is_absence)?;
    Some(format!("destroyed by {}; `vm-agent create {}` brings it back", said.author, agent.name))
}

fn is_at(agent: &AgentView, power: PowerState) -> bool {
    let health = match power {
        PowerState::Running => Health::Healthy,
        PowerState::Stopped => Health::Stopped,
    };
    agent.sync == Sync::Synced && agent.health == health
}

/// Whether waiting longer may bring nothing: a person has to end this, or nobody knows when it ends.
fn needs_person(reason: &WaitsFor) -> bool {
    match reason {
        WaitsFor::Approval { .. }
        | WaitsFor::Paused { .. }
        | WaitsFor::NoDriver
        | WaitsFor::DriverMissing { .. }
        | WaitsFor::Protected
        | WaitsFor::PruneNever
        | WaitsFor::ForeignInstance { .. }
        | WaitsFor::Tombstone { .. }
        | WaitsFor::RestartPolicy
        | WaitsFor::Capacity { .. }
        | WaitsFor::Window { .. }
        | WaitsFor::Unsupported { .. }
        | WaitsFor::Problem { .. }
        | WaitsFor::TaskFailed { .. } => true,
        WaitsFor::EarlierStep
        | WaitsFor::Drain { .. }
        | WaitsFor::Operation { .. }
        | WaitsFor::Dependency { .. }
        | WaitsFor::Snapshot { .. }
        | WaitsFor::Clone { .. }
        | WaitsFor::Lane { .. }
        | WaitsFor::Backoff { .. }
        | WaitsFor::Fuse
        | WaitsFor::Driver { .. }
        | WaitsFor::Proof
        | WaitsFor::Transition { .. }
        | WaitsFor::UnknownState
        | WaitsFor::Runtime
        | WaitsFor::TaskRunning { .. } => false,
    }
}

fn describe(agent: &AgentView) -> String {
    let mut text = format!("{}, {}", agent.sync, agent.health);
    if let Some(reason) = agent.waits_for.first() {
        let _ = write!(text, "; waits for {reason}");
    }
    text
}

/// Draws what is not ready over the block before it; where nothing can be drawn over, tells only what
/// has changed.
fn show(ui: &mut Ui, now: &Standings, before: &Standings, elapsed: Duration) -> Result<(), CommandError> {
    if ui.is_live() {
        let ready = now.values().filter(|standing| standing.is_reached()).count();
        let seconds = elapsed.as_secs();
        let head = format!("{ready} of {} ready, {seconds} s", count(now.len(), "agent"));
        let open = now.iter().filter(|(_, standing)| standing.is_waiting());
        let lines: Vec<String> = std::iter::once(head).chain(open.map(|(name, it)| line(name, it))).collect();
        return if lines.len() > 1 { ui.draw(&lines) } else { ui.status(&lines[0]) };
    }
    for (name, standing) in now {
        if before.get(name) != Some(standing) {
            ui.status(line(name, standing))?;
        }
    }
    Ok(())
}

fn line(name: &AgentName, standing: &Standing) -> String {
    match standing {
        Standing::Ready => format!("{STRONG}{name}{STRONG:#}: {GOOD}ready{GOOD:#}"),
        Standing::Gone(None) => format!("{STRONG}{name}{STRONG:#}: {GOOD}gone{GOOD:#}"),
        Standing::Gone(Some(why)) => format!("{STRONG}{name}{STRONG:#}: {GOOD}gone{GOOD:#}, {}", printable(why)),
        Standing::Waiting(text) => format!("{STRONG}{name}{STRONG:#}: {}", printable(text)),
        Standing::Stuck(text) => format!("{STRONG}{name}{STRONG:#}: {BAD}{}{BAD:#}", printable(text)),
    }
}

fn outcome(standings: &Standings) -> Result<(), CommandError> {
    let stuck: Vec<(&AgentName, &str)> = open(standings).collect();
    if stuck.is_empty() {
        return Ok(());
    }
    let text = format!("{} blocked{}", are(stuck.len()), listed(&stuck));
    Err(CommandError::new(Exit::BLOCKED, text)
        .hint("`vm-agent why NAME` says what an agent waits for and what would help"))
}

fn are(agents: usize) -> String {
    format!("{} {}", count(agents, "agent"), if agents == 1 { "is" } else { "are" })
}

fn too_late(standings: &Standings, limit: Span) -> CommandError {
    let open: Vec<(&AgentName, &str)> = open(standings).collect();
    let text = format!("{} not ready after {limit}{}", count(open.len(), "agent"), listed(&open));
    CommandError::new(Exit::TIMED_OUT, text)
        .hint("the controller goes on with it; look with `vm-agent list` and `vm-agent why NAME`")
}

fn open(standings: &Standings) -> impl Iterator<Item = (&AgentName, &str)> {
    standings.iter().filter_map(|(name, standing)| match standing {
        Standing::Ready | Standing::Gone(_) => None,
        Standing::Waiting(text) | Standing::Stuck(text) => Some((name, text.as_str())),
    })
}

fn listed(agents: &[(&AgentName, &str)]) -> String {
    agents.iter().map(|(name, text)| format!("\n  {name}: {}", printable(text))).collect()
}

/// What Ctrl-C means while something is waited for.
pub(crate) fn detached() -> CommandError {
    CommandError::new(Exit::INTERRUPTED, "detached; the controller goes on with it")
        .hint("`vm-agent list` shows how far it is; `vm-agent down` stops the fleet")
}

#[cfg(test)]
mod tests {
    use vm_agent_schemas::fleet::Until;
    use vm_agent_schemas::plan::Rest;

    use super::*;
    use crate::client::tests::{Peer, http};
    use crate::render::samples::{self, blocked, healthy, name, overridden};
    use crate::ui::Color;
    use tokio::io::AsyncWriteExt as _;

    fn goals(goals: &[(&str, Goal)]) -> BTreeMap<AgentName, Goal> {
        goals.iter().map(|(agent, goal)| (name(agent), *goal)).collect()
    }

    fn is_ready(goal: Goal, agent: &AgentView) -> bool {
        standing(goal, Some(agent)).is_reached()
    }

    #[test]
    fn a_healthy_agent_is_ready_once_the_new_file_was_looked_at() {
        let agent = healthy("web");
        assert!(is_ready(Goal::AsFile(Some(Revision(1))), &agent));
        assert!(!is_ready(Goal::AsFile(Some(Revision(2))), &agent));
        assert!(!is_ready(Goal::AsFile(Some(Revision(1))), &AgentView { health: Health::Starting, ..agent }));
    }

    #[test]
    fn an_old_answer_does_not_pass_for_the_end_of_a_stop() {
        assert!(!is_ready(Goal::Power(PowerState::Stopped), &healthy("web")));
        let stopped = AgentView { sync: Sync::Synced, ..overridden("web") };
        assert!(is_ready(Goal::Power(PowerState::Stopped), &stopped));
        assert!(is_ready(Goal::AsFile(None), &stopped));
    }

    #[test]
    fn an_agent_that_rests_is_as_its_file_says_and_not_yet_started() {
        let idle = AgentView { rests: Some(Rest::Idle), health: Health::Suspended, ..healthy("web") };
        assert!(is_ready(Goal::AsFile(None), &idle));
        assert!(!is_ready(Goal::Power(PowerState::Running), &idle));
    }

    #[test]
    fn an_agent_is_gone_when_it_is_not_listed_or_has_no_instance() {
        assert_eq!(standing(Goal::Gone, None), Standing::Gone(None));
        let mut destroyed = AgentView { instance: None, power: None, ..overridden("web") };
        destroyed.overrides[0].change = Change::Presence(Presence::Absent);
        let why = "destroyed by ana; `vm-agent create web` brings it back".to_owned();
        assert_eq!(standing(Goal::Gone, Some(&destroyed)), Standing::Gone(Some(why)));
        assert!(!is_ready(Goal::Gone, &healthy("web")));
        assert!(is_ready(Goal::Gone, &AgentView { instance: None, power: None, ..healthy("web") }));
    }

    #[test]
    fn an_agent_that_should_go_is_waited_for_unless_a_person_has_to_say_so() {
        let mut plan = samples::plan();
        let names = |plan: &Plan| {
            let goals = goals_of(plan, Some(Revision(2)));
            goals.into_iter().map(|(name, goal)| (name.to_string(), goal)).collect::<Vec<_>>()
        };
        let file = Goal::AsFile(Some(Revision(2)));
        assert_eq!(names(&plan), [("db".to_owned(), file), ("web".to_owned(), file)]);
        plan.steps.clear();
        plan.agents.iter_mut().for_each(|agent| agent.waits_for.clear());
        assert_eq!(names(&plan)[1], ("old".to_owned(), Goal::Gone));
    }

    #[test]
    fn who_depends_on_somebody_stuck_is_stuck_as_well() {
        let waits = |agent: &str, on: &str| AgentView {
            sync: Sync::Blocked,
            waits_for: vec![WaitsFor::Dependency { agent: name(on), until: Until::Healthy }],
            ..healthy(agent)
        };
        let agents = [waits("a", "b"), waits("b", "old"), blocked("old"), waits("z", "busy")];
        let goal = Goal::AsFile(None);
        let found = standings(&goals(&[("a", goal), ("b", goal), ("old", goal), ("z", goal)]), &agents);
        let stuck: Vec<&str> =
            found.iter().filter(|(_, it)| matches!(it, Standing::Stuck(_))).map(|(name, _)| name.as_str()).collect();
        assert_eq!(stuck, ["a", "b", "old"]);
        let error = outcome(&found.into_iter().filter(|(_, it)| !it.is_waiting()).collect()).unwrap_err();
        assert_eq!(error.exit, Exit::BLOCKED);
        assert!(error.to_string().starts_with("3 agents are blocked\n  a: waits for"));
    }

    #[test]
    fn a_timeout_names_who_is_not_ready_and_why() {
        let late = AgentView { health: Health::Offline, waits_for: vec![WaitsFor::Runtime], ..healthy("web") };
        let found =
            standings(&goals(&[("web", Goal::AsFile(None)), ("db", Goal::AsFile(None))]), &[late, healthy("db")]);
        let error = too_late(&found, Span::from_secs(600));
        assert_eq!(error.exit, Exit::TIMED_OUT);
        assert_eq!(
            error.to_string(),
            "1 agent not ready after 10m\n  web: Synced, Offline; waits for the runtime to connect"
        );
    }

    fn listing(agents: &[AgentView]) -> String {
        http("200 OK", &serde_json::json!({ "items": agents }).to_string())
    }

    const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";

    #[tokio::test]
    async fn an_event_is_the_time_to_look_again() {
        let peer = Peer::new();
        let mut ui = Ui::new(Color::Never, true);
        let goals = goals(&[("web", Goal::AsFile(None))]);
        let server = async {
            let (asked, mut events) = peer.begin_answer(STREAM).await;
            assert!(asked.starts_with("GET /events?follow=true"), "{asked}");
            peer.answer(&listing(&[AgentView { health: Health::Starting, ..healthy("web") }])).await;
            events.write_all(b"data: {}\n\n").await.unwrap();
            peer.answer(&listing(&[healthy("web")])).await;
        };
        let (settled, ()) = tokio::join!(settle(&mut ui, &peer.client, &goals, Span::from_secs(60)), server);
        settled.unwrap();
    }

    #[tokio::test]
    async fn waiting_ends_with_its_limit_and_with_the_controller() {
        let peer = Peer::new();
        let mut ui = Ui::new(Color::Never, true);
        let goals = goals(&[("web", Goal::Gone)]);
        for (limit, hold, exit) in [(0, true, Exit::TIMED_OUT), (60, false, Exit::UNREACHABLE)] {
            let server = async {
                let (_, events) = peer.begin_answer(STREAM).await;
                let held = hold.then_some(events);
                peer.answer(&listing(&[healthy("web")])).await;
                held
            };
            let (settled, _held) = tokio::join!(settle(&mut ui, &peer.client, &goals, Span::from_secs(limit)), server);
            assert_eq!(settled.unwrap_err().exit, exit);
        }
    }
}
