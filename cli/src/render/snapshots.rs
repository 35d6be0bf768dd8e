//! Snapshots, and why they were taken.

use std::collections::BTreeSet;

use jiff::Timestamp;
use vm_agent_schemas::api::SnapshotView;
use vm_agent_schemas::snapshot::{Cause, Keeper};
use vm_agent_schemas::units::ByteSize;

use super::ago;
use crate::table::{Cell, Table};
use crate::ui::{FAINT, PLAIN};

/// Snapshots, in the order in which they are given.
pub(crate) fn snapshot_table(snapshots: &[SnapshotView], now: Timestamp, wide: bool) -> String {
    let mut heads = vec!["AGENT", "SNAPSHOT", "AGE", "SIZE", "MEMORY", "KEPT", "CAUSE"];
    heads.extend(wide.then_some("TAKEN"));
    heads.push("COMMENT");
    let mut table = Table::new(&heads);
    for SnapshotView { snapshot: it, memory, size, kept } in snapshots {
        let (memory, style) = if *memory { ("yes", PLAIN) } else { ("no", FAINT) };
        let mut row = vec![
            it.agent.as_str().into(),
            it.name.as_str().into(),
            ago(now, it.taken_at).into(),
            size.map(ByteSize::rounded).unwrap_or_default().as_str().into(),
            Cell::new(&memory, style),
            words(kept).as_str().into(),
            cause(&it.cause).as_str().into(),
        ];
        row.extend(wide.then(|| Cell::from(it.taken_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string().as_str())));
        row.push(it.comment.as_deref().unwrap_or_default().into());
        table.row(row);
    }
    table.render()
}

/// What keeps it.
fn words(kept: &BTreeSet<Keeper>) -> String {
    kept.iter().map(Keeper::to_string).collect::<Vec<_>>().join(", ")
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
    use vm_agent_schemas::snapshot::Snapshot;

    #[test]
    fn a_row_says_whose_it_is_how_old_and_why_it_is_there() {
        let snapshot = |name: &str, cause, running, size: Option<u64>, kept: &[Keeper]| SnapshotView {
            snapshot: Snapshot {
                name: name.parse().unwrap(),
                agent: "web".parse().unwrap(),
                claim: vm_agent_schemas::ids::ClaimId::generate(),
                cause,
                comment: kept.contains(&Keeper::Protected).then(|| "keep this".to_owned()),
                protect: kept.contains(&Keeper::Protected),
                taken_at: samples::now() - jiff::SignedDuration::from_hours(3),
                running,
                suspended: false,
            },
            memory: running,
            size: size.map(ByteSize::from_bytes),
            kept: kept.iter().copied().collect(),
        };
        let schedule = Cause::Schedule { schedule: "nightly".parse().unwrap(), due: samples::now() };
        let by_ann = Cause::Person { by: "ann".into() };
        let restore = Cause::Restore { to: "one".parse().unwrap() };
        let clone = Cause::Clone { to: "twin".parse().unwrap() };
        let all = [
            snapshot("one", by_ann, true, Some(1_300_000_000), &[Keeper::Protected, Keeper::Manual]),
            snapshot("nightly-20260701-030000", schedule, false, Some(200_704), &[Keeper::Last, Keeper::Daily]),
            snapshot("before-restore-1", restore, true, None, &[Keeper::BeforeRestore]),
            snapshot("clone-1", clone, true, None, &[]),
        ];
        for wide in [false, true] {
            let text = anstream::adapter::strip_str(&snapshot_table(&all, samples::now(), wide)).to_string();
            insta::assert_snapshot!(format!("snapshots_{wide}"), text);
        }
    }
}
