//! The processor time that services take: that of all their processes, read from `/proc`. Where there is none
//! it is not known, and given as zero.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use vm_agent_schemas::names::ServiceName;

use crate::process::{Entry, entries};

/// The shortest time over which a share is measured: the clock behind it ticks a hundred times a second.
const SPAN_MIN: Duration = Duration::from_secs(1);

/// Measures shares of processor time from one report to the next.
#[derive(Debug, Default)]
pub(super) struct Meter {
    measured: Option<Instant>,
    shares: BTreeMap<ServiceName, Share>,
}

#[derive(Debug)]
struct Share {
    leader: u32,
    ticks: u64,
    percent: f32,
}

impl Meter {
    /// The share of one processor that each service took since the last measurement, in percent, given the
    /// processes that lead them.
    pub(super) fn measure(&mut self, leaders: &BTreeMap<ServiceName, u32>) -> BTreeMap<ServiceName, f32> {
        let now = Instant::now();
        let span = self.measured.map(|measured| now - measured);
        self.shares.retain(|name, share| leaders.get(name) == Some(&share.leader));
        if span.is_none_or(|span| span >= SPAN_MIN) {
            let processes = if leaders.is_empty() { Vec::new() } else { entries() };
            self.measured = Some(now);
            self.update(leaders, &processes, span, rustix::param::clock_ticks_per_second());
        }
        self.shares.iter().map(|(name, share)| (name.clone(), share.percent)).collect()
    }

    fn update(
        &mut self,
        leaders: &BTreeMap<ServiceName, u32>,
        processes: &[Entry],
        span: Option<Duration>,
        ticks_per_second: u64,
    ) {
        for (name, &leader) in leaders {
            let ticks = ticks_of(leader, processes);
            // One that is new here took all of its time since.
            let before = self.shares.get(name).map_or(0, |share| share.ticks);
            let percent = span.map_or(0.0, |span| percent(ticks.saturating_sub(before), ticks_per_second, span));
            self.shares.insert(name.clone(), Share { leader, ticks, percent });
        }
    }
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a share need not be exact")]
fn percent(ticks: u64, ticks_per_second: u64, span: Duration) -> f32 {
    let seconds = ticks as f64 / ticks_per_second.max(1) as f64;
    (100.0 * seconds / span.as_secs_f64()) as f32
}

/// The time that a process took together with its group, and with all that descend from either.
fn ticks_of(leader: u32, processes: &[Entry]) -> u64 {
    let mut tree = BTreeSet::from([leader]);
    loop {
        let size = tree.len();
        let belongs = |it: &&Entry| it.group == leader || tree.contains(&it.parent);
        let found: Vec<u32> = processes.iter().filter(belongs).map(|it| it.id).collect();
        tree.extend(found);
        if tree.len() == size {
            return processes.iter().filter(|it| tree.contains(&it.id)).map(|it| it.ticks).sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn process(id: u32, parent: u32, group: u32, ticks: u64) -> Entry {
        Entry { id, parent, group, ended: false, ticks, start: 0, pages: 0 }
    }

    #[test]
    fn a_tree_is_the_group_and_all_that_descends_from_it() {
        let processes = [
            process(1, 0, 1, 1000),
            process(10, 1, 10, 1),
            process(11, 10, 10, 2),
            // It left the group, and has a child.
            process(13, 12, 13, 8),
            process(12, 11, 12, 4),
            // Its parent ended, and it stayed in the group.
            process(14, 1, 10, 16),
            process(20, 1, 20, 1000),
        ];
        assert_eq!(ticks_of(10, &processes), 31);
        assert_eq!(ticks_of(99, &processes), 0);
    }

    #[test]
    fn shares_are_measured_from_one_report_to_the_next() {
        let name: ServiceName = "web".parse().unwrap();
        let (leaders, mut meter) = (BTreeMap::from([(name.clone(), 10)]), Meter::default());
        let mut measure = |leaders: &BTreeMap<_, _>, ticks, span: Option<u64>| {
            let leader = leaders[&name];
            meter.shares.retain(|name, share| leaders.get(name) == Some(&share.leader));
            meter.update(leaders, &[process(leader, 1, leader, ticks)], span.map(Duration::from_secs), 100);
            meter.shares[&name].percent
        };
        assert_eq!(measure(&leaders, 500, None), 0.0, "since when is not known");
        assert_eq!(measure(&leaders, 600, Some(10)), 10.0);
        assert_eq!(measure(&leaders, 600, Some(10)), 0.0);
        let restarted = BTreeMap::from([(name.clone(), 20)]);
        assert_eq!(measure(&restarted, 300, Some(2)), 150.0, "all of its time is new");
    }
}
