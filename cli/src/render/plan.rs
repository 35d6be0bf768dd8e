//! A plan: each step with its reason and cost, what waits for what, and what a person has to say yes
//! to.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use vm_agent_schemas::fleet::Field;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::plan::{AgentPlan, Cost, DriftClass, Fuse, Plan, Step, StepAction};

use super::value;
use crate::ui::{BAD, BUSY, FAINT, GOOD, STRONG};

/// A plan as text. `wide` adds the layer that each wanted value comes from.
pub(crate) fn plan(plan: &Plan, wide: bool) -> String {
    let mut text = String::new();
    let mut shown: BTreeSet<&AgentName> = BTreeSet::new();
    for step in &plan.steps {
        write_step(&mut text, step);
        if shown.insert(&step.agent)
            && let Some(agent) = plan.agent(&step.agent)
        {
            write_drift(&mut text, agent, wide);
        }
    }
    for agent in plan.agents.iter().filter(|agent| !shown.contains(&agent.name)) {
        write_idle(&mut text, agent, wide);
    }
    if let Fuse::Blown { failed, of, .. } = plan.fuse {
        let _ =
            writeln!(text, "\n{BAD}!{BAD:#} The fuse is blown: {failed} of {of} agents failed at once, so the host");
        let _ = writeln!(text, "  or a driver may be sick. One agent at a time is tried until one goes well.");
    }
    text.push_str(&approvals(plan));
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&footer(plan));
    text
}

fn write_step(text: &mut String, step: &Step) {
    let style = match step.action {
        StepAction::Create | StepAction::Start => GOOD,
        StepAction::Destroy | StepAction::Forget => BAD,
        StepAction::Stop | StepAction::Resize { .. } | StepAction::Configure | StepAction::Task { .. } => BUSY,
    };
    let Step { agent, action, reason, cost, .. } = step;
    let symbol = action.symbol();
    let _ = writeln!(text, "{style}{symbol}{style:#} {action} {STRONG}{agent}{STRONG:#}: {reason} ({cost})");
    for waits in &step.waits_for {
        let _ = writeln!(text, "    {FAINT}waits for {waits}{FAINT:#}");
    }
}

fn write_drift(text: &mut String, agent: &AgentPlan, wide: bool) {
    for drift in &agent.drift {
        // That a machine is missing or too many is what its step says already.
        if matches!(drift.class, DriftClass::Missing | DriftClass::Unexpected) {
            continue;
        }
        let (path, seen, wanted) =
            (&drift.path, value(&drift.path, &drift.observed), value(&drift.path, &drift.wanted));
        let origin = if wide { origin(agent, path) } else { None };
        let origin = origin.map_or_else(String::new, |origin| format!(" ({origin})"));
        let cost = if drift.cost == Cost::Live { String::new() } else { format!(" ({})", drift.cost) };
        let _ = writeln!(text, "    {path}: {seen} -> {wanted}{FAINT}{origin}{cost}{FAINT:#}");
    }
}

/// The layer that the value at a path comes from, by the path's first key.
fn origin(agent: &AgentPlan, path: &str) -> Option<String> {
    let first = path.split('.').next()?;
    let field = Field::ALL.into_iter().find(|field| field.key() == first)?;
    Some(agent.wanted.as_ref()?.origins.get(&field)?.to_string())
}

/// An agent that nothing is done about, though something is waited for or differs.
fn write_idle(text: &mut String, agent: &AgentPlan, wide: bool) {
    if agent.waits_for.is_empty() && agent.drift.is_empty() {
        return;
    }
    let (name, sync) = (&agent.name, agent.sync);
    let _ = writeln!(text, "{BAD}!{BAD:#} {STRONG}{name}{STRONG:#}: {sync}, and nothing can be done now");
    for waits in &agent.waits_for {
        let _ = writeln!(text, "    {FAINT}waits for {waits}{FAINT:#}");
    }
    write_drift(text, agent, wide);
}

/// What waits for a person's yes, and how to say it; empty when nothing does.
fn approvals(plan: &Plan) -> String {
    let mut text = String::new();
    if plan.approvals.is_empty() {
        return text;
    }
    let _ = writeln!(text, "\n{STRONG}Waiting for a yes:{STRONG:#}");
    for approval in &plan.approvals {
        let _ = writeln!(text, "  {}  {}", approval.id.short(), approval.what);
    }
    let _ = writeln!(text, "`vm-agent apply --yes` says yes to all of these.");
    text
}

fn footer(plan: &Plan) -> String {
    if plan.is_empty() {
        let waiting = plan.agents.iter().any(|agent| !agent.waits_for.is_empty() || !agent.drift.is_empty());
        return if waiting {
            "Plan: nothing to do now; something has to happen first, as told above.\n".to_owned()
        } else {
            "No changes. The fleet is as the file says.\n".to_owned()
        };
    }
    let summary = plan.summary();
    let waiting = if summary.waiting == 0 { String::new() } else { format!(" ({} waiting)", summary.waiting) };
    let (create, change, destroy) = (summary.create, summary.change, summary.destroy);
    format!("Plan: {create} to create, {change} to change, {destroy} to destroy.{waiting}\n")
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    fn shown(document: &Plan, wide: bool) -> String {
        anstream::adapter::strip_str(&plan(document, wide)).to_string()
    }

    #[test]
    fn a_plan_tells_steps_reasons_costs_and_what_waits() {
        insta::assert_snapshot!(shown(&samples::plan(), false), @"
        * resize db: memory differs (in place)
            memory: 1G -> 8G (needs a stop)
        + create web: it does not exist (makes a machine)
            waits for agent `db`, which is not Healthy yet
        - destroy old: it is not in the file (deletes the machine and its data)
            waits for an approval (c1d7b17c9b7a)

        Waiting for a yes:
          c1d7b17c9b7a  delete its machine
        `vm-agent apply --yes` says yes to all of these.

        Plan: 1 to create, 1 to change, 1 to destroy. (2 waiting)
        ");
    }

    #[test]
    fn the_wide_plan_tells_where_values_come_from() {
        insta::assert_snapshot!(shown(&samples::plan(), true), @"
        * resize db: memory differs (in place)
            memory: 1G -> 8G (override) (needs a stop)
        + create web: it does not exist (makes a machine)
            waits for agent `db`, which is not Healthy yet
        - destroy old: it is not in the file (deletes the machine and its data)
            waits for an approval (c1d7b17c9b7a)

        Waiting for a yes:
          c1d7b17c9b7a  delete its machine
        `vm-agent apply --yes` says yes to all of these.

        Plan: 1 to create, 1 to change, 1 to destroy. (2 waiting)
        ");
    }

    #[test]
    fn a_plan_without_steps_says_that_all_is_well() {
        insta::assert_snapshot!(shown(&samples::empty_plan(), false), @"No changes. The fleet is as the file says.");
    }

    #[test]
    fn a_blocked_agent_is_told_even_without_a_step() {
        insta::assert_snapshot!(shown(&samples::blocked_plan(), false), @"
        ! web: Blocked, and nothing can be done now
            waits for a driver: multipass and qemu are not installed; install one, or write `driver: local` for processes without isolation

        Plan: nothing to do now; something has to happen first, as told above.
        ");
    }
}
