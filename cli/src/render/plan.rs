//! A plan: each step with its reason and what it takes, the values that it changes and where they come
//! from, what waits for what, and what a person has to say yes to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anstyle::Style;
use jiff::Timestamp;
use vm_agent_schemas::fleet::{DeclaredAgent, DriftPolicy, Field, Origin};
use vm_agent_schemas::intent::{Override, OverridePath};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::plan::{AgentPlan, Cost, Drift, DriftClass, Fuse, Plan, Step, StepAction, WaitsFor};

use super::{change, count, time_left, value};
use crate::table::printable;
use crate::ui::{BAD, BUSY, FAINT, GOOD, STRONG};

/// A plan, and what is told with it.
pub(crate) struct Planned<'a> {
    /// The plan.
    pub(crate) plan: &'a Plan,
    /// The overrides in force.
    pub(crate) overrides: &'a [Override],
    /// What the file would newly let guests do to the host.
    pub(crate) reach: &'a [String],
    /// The command that says yes to all that waits for it, where nobody has said so already.
    pub(crate) yes: Option<&'a str>,
    /// Whether steps that only wait for the one before them say so too.
    pub(crate) wide: bool,
    /// The time that remaining time is counted from.
    pub(crate) now: Timestamp,
}

/// A plan as text.
pub(crate) fn plan(planned: &Planned<'_>) -> String {
    let Planned { plan, .. } = planned;
    let mut text = String::new();
    let mut shown: BTreeSet<&AgentName> = BTreeSet::new();
    for line in lines(plan) {
        planned.write_line(&mut text, &line);
        if shown.insert(&line.step.agent)
            && let Some(agent) = plan.agent(&line.step.agent)
        {
            planned.write_values(&mut text, agent);
        }
    }
    for agent in plan.agents.iter().filter(|agent| !shown.contains(&agent.name)) {
        planned.write_idle(&mut text, agent);
    }
    if let Fuse::Blown { failed, of, .. } = plan.fuse {
        begin(&mut text);
        let _ = writeln!(text, "{BAD}!{BAD:#} The fuse is blown: {failed} of {of} agents failed at once, so the host");
        let _ = writeln!(text, "  or a driver may be sick. One agent at a time is tried until one goes well.");
    }
    planned.write_overrides(&mut text);
    planned.write_reach(&mut text);
    planned.write_approvals(&mut text);
    begin(&mut text);
    text.push_str(&planned.footer());
    text
}

/// Steps as people read them: a deletion and the creation in its place are one.
struct Line<'a> {
    step: &'a Step,
    /// The creation that follows a deletion.
    then: Option<&'a Step>,
}

fn lines(plan: &Plan) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for step in &plan.steps {
        let replaced = lines.iter_mut().find(|line| {
            line.step.agent == step.agent && line.step.action == StepAction::Destroy && line.then.is_none()
        });
        match replaced.filter(|_| step.action == StepAction::Create) {
            Some(line) => line.then = Some(step),
            None => lines.push(Line { step, then: None }),
        }
    }
    lines
}

impl Line<'_> {
    fn head(&self) -> (Style, &'static str, String) {
        if self.then.is_some() {
            return (BAD, "-/+", "replace".to_owned());
        }
        let style = match self.step.action {
            StepAction::Create | StepAction::Start | StepAction::Snapshot { .. } => GOOD,
            StepAction::Destroy | StepAction::DropSnapshot { .. } | StepAction::Forget => BAD,
            StepAction::Stop
            | StepAction::Suspend
            | StepAction::Restore { .. }
            | StepAction::Resize { .. }
            | StepAction::Configure
            | StepAction::Upgrade
            | StepAction::Task { .. } => BUSY,
        };
        (style, self.step.action.symbol(), self.step.action.to_string())
    }

    /// What is waited for, without what goes without saying.
    fn waits_for(&self, wide: bool) -> impl Iterator<Item = &WaitsFor> {
        let all = self.step.waits_for.iter().chain(self.then.iter().flat_map(|step| &step.waits_for));
        let mut seen = BTreeSet::new();
        all.filter(move |waits| (wide || **waits != WaitsFor::EarlierStep) && seen.insert(*waits))
    }
}

/// What a step takes, and what it ends.
pub(crate) fn toll(step: &Step) -> String {
    let loses = step.loses.map(|loss| format!("; {loss}")).unwrap_or_default();
    let Some(disturbed) = step.disturbs else { return format!("{}{loses}", step.cost) };
    let tasks = (disturbed.tasks > 0).then(|| count(disturbed.tasks as usize, "task"));
    let sessions = (disturbed.sessions > 0).then(|| count(disturbed.sessions as usize, "session"));
    let (drained, cut) = if disturbed.drains { (tasks, None) } else { (None, tasks) };
    let drains = drained.map(|tasks| format!("; {tasks} {}", if disturbed.tasks == 1 { "drains" } else { "drain" }));
    let ended: Vec<String> = cut.into_iter().chain(sessions).collect();
    let ends = (!ended.is_empty()).then(|| format!("; ends {}", ended.join(" and ")));
    format!("{}{}{}{loses}", step.cost, drains.unwrap_or_default(), ends.unwrap_or_default())
}

/// The snapshots that go with machines, as the end of a question.
pub(crate) fn lost<'a>(steps: impl IntoIterator<Item = &'a Step>) -> String {
    let losses = steps.into_iter().filter_map(|step| step.loses);
    let (all, protected) =
        losses.fold((0, 0), |(all, protected), loss| (all + loss.snapshots, protected + loss.protected));
    let kept = if protected > 0 { format!(", {protected} of them protected") } else { String::new() };
    if all > 0 { format!(", with {}{kept}", count(all as usize, "snapshot")) } else { String::new() }
}

impl Planned<'_> {
    fn write_line(&self, text: &mut String, line: &Line<'_>) {
        let (style, symbol, action) = line.head();
        let Step { agent, reason, .. } = line.step;
        // That it is to be replaced is said already.
        let reason = if line.then.is_some() { reason.trim_start_matches("to replace it: ") } else { reason };
        let (action, reason) = (printable(&action), printable(reason));
        let _ = writeln!(
            text,
            "{style}{symbol}{style:#} {action} {STRONG}{agent}{STRONG:#}: {reason} {FAINT}({}){FAINT:#}",
            toll(line.step)
        );
        write_waits(text, line.waits_for(self.wide));
    }

    fn write_values(&self, text: &mut String, agent: &AgentPlan) {
        for drift in &agent.drift {
            // That a machine is missing or too many is what its step says already.
            if matches!(drift.class, DriftClass::Missing | DriftClass::Unexpected) {
                continue;
            }
            let origin = self.origin(agent, drift).map_or_else(String::new, |origin| format!(" ({origin})"));
            let (values, origin) = (printable(&transition(drift, " ")), printable(&origin));
            let _ = writeln!(text, "    {values}{FAINT}{origin}{}{FAINT:#}", policy(drift));
        }
    }

    fn origin(&self, agent: &AgentPlan, drift: &Drift) -> Option<String> {
        origin_of(drift, agent.wanted.as_deref()?, self.overrides, &agent.name, self.now)
    }

    /// An agent that nothing is done about, though something is waited for or differs.
    fn write_idle(&self, text: &mut String, agent: &AgentPlan) {
        let corrected = agent.drift.iter().any(|drift| drift.policy == DriftPolicy::Correct);
        let name = &agent.name;
        if !agent.waits_for.is_empty() || corrected {
            let _ =
                writeln!(text, "{BAD}!{BAD:#} {STRONG}{name}{STRONG:#}: {}, and nothing can be done now", agent.sync);
        } else if !agent.drift.is_empty() {
            let _ = writeln!(text, "{BUSY}!{BUSY:#} {STRONG}{name}{STRONG:#}: differs, and is left as it is");
        } else if let Some(rest) = agent.rests {
            let _ = writeln!(text, "  {STRONG}{name}{STRONG:#} rests: {rest}");
        }
        write_waits(text, agent.waits_for.iter());
        self.write_values(text, agent);
    }

    /// The overrides that no value above has told of.
    fn write_overrides(&self, text: &mut String) {
        let untold = |it: &&Override| {
            let path = it.change.path().as_str();
            self.plan.agent(&it.agent).is_none_or(|agent| agent.drift.iter().all(|drift| drift.path != path))
        };
        let line = |it: &Override| {
            let said = format!("{} ({})", change(&it.change), said(it, self.now));
            format!("{}  {}", it.agent, printable(&said))
        };
        section(text, "Overridden:", self.overrides.iter().filter(untold).map(line).collect());
    }

    /// What the file lets guests do to the host that they may not do now: whoever applies it says yes.
    fn write_reach(&self, text: &mut String) {
        let line = |line: &String| format!("{BUSY}!{BUSY:#} {}", printable(line));
        section(text, "Newly allowed by this file:", self.reach.iter().map(line).collect());
    }

    /// What waits for a person's yes, and how to say it.
    fn write_approvals(&self, text: &mut String) {
        let lines: Vec<String> =
            self.plan.approvals.iter().map(|it| format!("{}  {}", it.id.short(), printable(&it.what))).collect();
        if !lines.is_empty() {
            section(text, "Waiting for a yes:", lines);
            if let Some(yes) = self.yes {
                let _ = writeln!(text, "`{yes}` says yes to all of these.");
            }
        }
    }

    fn footer(&self) -> String {
        let plan = self.plan;
        if plan.is_empty() {
            let open = |agent: &AgentPlan| {
                !agent.waits_for.is_empty() || agent.drift.iter().any(|drift| drift.policy == DriftPolicy::Correct)
            };
            return match (plan.agents.iter().any(open), self.overrides.is_empty()) {
                (true, _) => "Plan: nothing to do now; something has to happen first, as told above.\n".to_owned(),
                (false, true) => "No changes. The fleet is as the file says.\n".to_owned(),
                (false, false) => "No changes. The fleet is as the file and the overrides say.\n".to_owned(),
            };
        }
        let Tally { add, change, destroy, wait } = tally(plan);
        let wait = match wait {
            0 => String::new(),
            1 => "; 1 waits".to_owned(),
            more => format!("; {more} wait"),
        };
        format!("Plan: {add} to add, {change} to change, {destroy} to destroy{wait}.\n")
    }
}

/// What happens to how many agents.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    add: usize,
    change: usize,
    destroy: usize,
    wait: usize,
}

/// Counts agents, not steps. One that is replaced is added and destroyed.
fn tally(plan: &Plan) -> Tally {
    let mut fates: BTreeMap<&AgentName, [bool; 3]> = BTreeMap::new();
    let mut waiting: BTreeSet<&AgentName> = BTreeSet::new();
    for step in &plan.steps {
        let [add, change, destroy] = fates.entry(&step.agent).or_default();
        match step.action {
            StepAction::Create => *add = true,
            StepAction::Destroy | StepAction::Forget => *destroy = true,
            _ => *change = true,
        }
        if step.waits_for.iter().any(|waits| *waits != WaitsFor::EarlierStep) {
            waiting.insert(&step.agent);
        }
    }
    let count = |of: fn(&[bool; 3]) -> bool| fates.values().filter(|fate| of(fate)).count();
    Tally {
        add: count(|[add, ..]| *add),
        change: count(|[add, change, destroy]| *change && !add && !destroy),
        destroy: count(|[.., destroy]| *destroy),
        wait: waiting.len(),
    }
}

/// Leaves a line blank, but not the first.
fn begin(text: &mut String) {
    if !text.is_empty() {
        text.push('\n');
    }
}

fn section(text: &mut String, heading: &str, lines: Vec<String>) {
    if lines.is_empty() {
        return;
    }
    begin(text);
    let _ = writeln!(text, "{STRONG}{heading}{STRONG:#}");
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
}

fn write_waits<'a>(text: &mut String, waits: impl Iterator<Item = &'a WaitsFor>) {
    for waits in waits {
        let _ = writeln!(text, "    {BUSY}!{BUSY:#} waits for {}", printable(&waits.to_string()));
    }
}

/// One difference: what, and from which value to which. `after` stands behind what.
pub(crate) fn transition(drift: &Drift, after: &str) -> String {
    let what = if is_configuration(drift) { "configuration" } else { &drift.path };
    let (observed, wanted) = transition_values(drift);
    format!("{what}{after}{observed} -> {wanted}")
}

/// The value seen and the value wanted.
pub(crate) fn transition_values(drift: &Drift) -> (String, String) {
    if is_configuration(drift) {
        let observed = if drift.observed.is_null() { "nothing" } else { "an earlier one" };
        return (observed.to_owned(), "the one wanted".to_owned());
    }
    (value(&drift.path, &drift.observed), value(&drift.path, &drift.wanted))
}

/// Whether a difference is that of all that a runtime is told, which is known by its marks only: they
/// tell people nothing.
fn is_configuration(drift: &Drift) -> bool {
    drift.class == DriftClass::Provisioning && drift.path == "env"
}

/// What is done about a difference that is not removed.
pub(crate) fn policy(drift: &Drift) -> &'static str {
    match (drift.policy, drift.cost) {
        (DriftPolicy::Warn, _) => " (left: `drift` says warn)",
        (_, Cost::Replace) => " (needs a new machine)",
        _ => "",
    }
}

/// The field that a path belongs to, by its first key.
pub(crate) fn field(path: &str) -> Option<Field> {
    let first = path.split('.').next()?;
    Field::ALL.into_iter().find(|field| field.key() == first)
}

/// The override that a value at a path comes from: the one of that path, or the one that made the agent.
pub(crate) fn covering<'a>(overrides: &'a [Override], agent: &AgentName, path: &str) -> Option<&'a Override> {
    let of_agent = || overrides.iter().filter(|it| it.agent == *agent);
    let at = |path: &str| of_agent().find(|it| it.change.path().as_str() == path);
    at(path).or_else(|| at(OverridePath::Presence.as_str()))
}

/// Where the value that a difference is to get comes from.
pub(crate) fn origin_of(
    drift: &Drift,
    wanted: &DeclaredAgent,
    overrides: &[Override],
    agent: &AgentName,
    now: Timestamp,
) -> Option<String> {
    let layer = wanted.origins.get(&field(&drift.path)?).filter(|_| !is_configuration(drift))?;
    Some(origin(layer, covering(overrides, agent, &drift.path), now))
}

/// The layer that a value comes from, with who said it where that is a person.
pub(crate) fn origin(origin: &Origin, by: Option<&Override>, now: Timestamp) -> String {
    match (origin, by) {
        (Origin::Override, Some(by)) => format!("override: {}", said(by, now)),
        (origin, _) => origin.to_string(),
    }
}

/// Who said something, how long it still holds, and why.
pub(crate) fn said(it: &Override, now: Timestamp) -> String {
    let reason = it.reason.as_ref().map_or_else(String::new, |reason| format!(", {reason:?}"));
    format!("{}, {}{reason}", it.author, time_left(now, it))
}

#[cfg(test)]
mod tests {
    use vm_agent_schemas::plan::SnapshotLoss;

    use super::super::samples;
    use super::*;

    fn shown_with(document: &Plan, overrides: &[Override], wide: bool) -> String {
        let yes = Some("vm-agent apply --yes");
        let planned = Planned { plan: document, overrides, reach: &[], yes, wide, now: samples::now() };
        anstream::adapter::strip_str(&plan(&planned)).to_string()
    }

    fn shown(document: &Plan) -> String {
        shown_with(document, &[], false)
    }

    #[test]
    fn a_plan_tells_steps_reasons_costs_and_what_waits() {
        insta::assert_snapshot!(shown(&samples::plan()));
    }

    #[test]
    fn a_restart_and_a_replacement_tell_what_they_end() {
        insta::assert_snapshot!(shown(&samples::disruptive_plan()));
        insta::assert_snapshot!(shown_with(&samples::disruptive_plan(), &[], true));
    }

    #[test]
    fn a_deletion_tells_of_the_snapshots_that_go_with_the_machine() {
        let with = |loses| {
            let mut plan = samples::plan();
            plan.steps[2].loses = loses;
            let line = shown(&plan).lines().find(|line| line.contains("destroy old")).unwrap().to_owned();
            (line, lost(&plan.steps))
        };
        let (line, question) = with(None);
        assert!(line.ends_with("(deletes the machine and its data)"), "{line}");
        assert_eq!(question, "");
        let (line, question) = with(Some(SnapshotLoss { snapshots: 3, protected: 1 }));
        let told = "(deletes the machine and its data; 3 snapshots go with it, 1 of them protected)";
        assert!(line.ends_with(told), "{line}");
        assert_eq!(question, ", with 3 snapshots, 1 of them protected");
        let (line, question) = with(Some(SnapshotLoss { snapshots: 1, protected: 0 }));
        assert!(line.ends_with("; its snapshot goes with it)"), "{line}");
        assert_eq!(question, ", with 1 snapshot");
    }

    #[test]
    fn a_value_that_a_person_overrode_tells_who_and_why() {
        insta::assert_snapshot!(shown_with(&samples::overridden_plan(), &samples::overridden("db").overrides, false));
    }

    #[test]
    fn an_override_that_changes_nothing_now_is_told_all_the_same() {
        insta::assert_snapshot!(shown_with(&samples::empty_plan(), &samples::overridden("web").overrides, false));
    }

    #[test]
    fn what_a_file_newly_allows_is_told() {
        let reach = ["agents may read /srv".to_owned()];
        let (now, document) = (samples::now(), samples::empty_plan());
        let planned = Planned { plan: &document, overrides: &[], reach: &reach, yes: None, wide: false, now };
        insta::assert_snapshot!(anstream::adapter::strip_str(&plan(&planned)).to_string());
    }

    #[test]
    fn a_plan_without_steps_says_that_all_is_well() {
        insta::assert_snapshot!(shown(&samples::empty_plan()), @"No changes. The fleet is as the file says.");
    }

    #[test]
    fn what_is_left_as_it_is_and_what_rests_is_told_without_a_step() {
        insta::assert_snapshot!(shown(&samples::quiet_plan()));
    }

    #[test]
    fn a_blocked_agent_is_told_even_without_a_step() {
        insta::assert_snapshot!(shown(&samples::blocked_plan()));
    }
}
