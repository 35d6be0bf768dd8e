//! Snapshots, and why they were taken.

use jiff::Timestamp;
use vm_agent_schemas::snapshot::{Cause, Snapshot};

use super::ago;
use crate::table::{Cell, Table};
use crate::ui::{FAINT, PLAIN};

/// Snapshots, in the order in which they are given.
pub(crate) fn snapshot_table(snapshots: &[Snapshot], now: Timestamp, wide: bool) -> String {
    let mut heads = vec!["AGENT", "SNAPSHOT", "AGE", "MEMORY", "KEPT", "CAUSE"];
    heads.extend(wide.then_some("TAKEN"));
    heads.push("COMMENT");
    let mut table = Table::new(&heads);
    for it in snapshots {
        let (memory, style) = if it.running { ("yes", PLAIN) } else { ("no", FAINT) };
        let mut row = vec![
            it.agent.as_str().into(),
            it.name.as_str().into(),
            ago(now, it.taken_at).into(),
            Cell::new(&memory, style),
            kept(it).into(),
            cause(&it.cause).as_str().into(),
        ];
        row.extend(wide.then(|| Cell::from(it.taken_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string().as_str())));
        row.push(it.comment.as_deref().unwrap_or_default().into());
        table.row(row);
    }
    table.render()
}

/// For how long it stays.
const fn kept(it: &Snapshot) -> &'static str {
    match it.cause {
        _ if it.protect => "protected",
        Cause::Schedule { .. } => "by schedule",
        _ => "",
    }
}

fn cause(cause: &Cause) -> String {
    match cause {
        Cause::Person { by } => by.clone(),
        Cause::Schedule { schedule, .. } => format!("schedule {schedule}"),
        Cause::Point { point } => format!("point {point}"),
        Cause::Restore { to } => format!("restore of {to}"),
        Cause::Clone { to } => format!("clone {to}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn a_row_says_whose_it_is_how_old_and_why_it_is_there() {
        let snapshot = |name: &str, cause, running, protect: bool| Snapshot {
            name: name.parse().unwrap(),
            agent: "web".parse().unwrap(),
            claim: vm_agent_schemas::ids::ClaimId::generate(),
            cause,
            comment: protect.then(|| "keep this".to_owned()),
            protect,
            taken_at: samples::now() - jiff::SignedDuration::from_hours(3),
            running,
        };
        let schedule = Cause::Schedule { schedule: "nightly".parse().unwrap(), due: samples::now() };
        let all = [
            snapshot("one", Cause::Person { by: "ann".into() }, true, true),
            snapshot("nightly-20260701-030000", schedule, false, false),
            snapshot("before-restore-1", Cause::Restore { to: "one".parse().unwrap() }, true, false),
        ];
        for wide in [false, true] {
            let text = anstream::adapter::strip_str(&snapshot_table(&all, samples::now(), wide)).to_string();
            insta::assert_snapshot!(format!("snapshots_{wide}"), text);
        }
    }
}
