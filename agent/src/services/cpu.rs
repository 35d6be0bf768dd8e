//! The processor time that services take: that of all their processes, read from `/proc`. Where there is none
//! it is not known, and given as zero.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use vm_agent_schemas::names::ServiceName;

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

/// A line of `/proc/*/stat`, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    id: u32,
    parent: u32,
    group: u32,
    /// Its own time and that of its children which have ended, in ticks.
    ticks: u64,
}

impl Meter {
    /// The share of one processor that each service took since the last measurement, in percent, given the
    /// processes that lead them.
    pub(super) fn measure(&mut self, leaders: &BTreeMap<ServiceName, u32>) -> BTreeMap<ServiceName, f32> {
        let now = Instant::now();
        let span = self.measured.map(|measured| now - measured);
        self.shares.retain(|name, share| leaders.get(name) == Some(&share.leader));
        if span.is_none_or(|span| span >= SPAN_MIN) {
            let processes = if leaders.is_empty() { Vec::new() } else { read() };
            self.measured = Some(now);
            self.update(leaders, &processes, span, rustix::param::clock_ticks_per_second());
        }
        self.shares.iter().map(|(name, share)| (name.clone(), share.percent)).collect()
    }

    fn update(
        &mut self,
        leaders: &BTreeMap<ServiceName, u32>,
        processes: &[Process],
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
fn ticks_of(leader: u32, processes: &[Process]) -> u64 {
    let mut tree = BTreeSet::from([leader]);
    loop {
        let size = tree.len();
        let belongs = |it: &&Process| it.group == leader || tree.contains(&it.parent);
        let found: Vec<u32> = processes.iter().filter(belongs).map(|it| it.id).collect();
        tree.extend(found);
        if tree.len() == size {
            return processes.iter().filter(|it| tree.contains(&it.id)).map(|it| it.ticks).sum();
        }
    }
}

/// All processes that can be read.
fn read() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter_map(|id: u32| parse(&std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?)).collect()
}

/// Reads a line of `/proc/*/stat`. The program's name stands in brackets and can hold anything.
fn parse(line: &str) -> Option<Process> {
    let (id, _) = line.split_once(' ')?;
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // In the manual's counting state is field 3, and the four times are fields 14 to 17.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let id_at = |field: usize| u32::try_from(number(field)?).ok();
    let ticks = (14..=17).map(number).sum::<Option<u64>>()?;
    Some(Process { id: id.parse().ok()?, parent: id_at(4)?, group: id_at(5)?, ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn process(id: u32, parent: u32, group: u32, ticks: u64) -> Process {
        Process { id, parent, group, ticks }
    }

    #[test]
    fn a_line_of_proc_is_read_whatever_the_program_is_called() {
        let line = "42 (a) R 1 (b) S 7 40 40 0 -1 4194304 100 0 0 0 11 22 33 44 20 0 1 0 5 0 0";
        assert_eq!(parse(line), Some(process(42, 7, 40, 110)));
        assert_eq!(parse("42 (torn"), None);
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

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_seen() {
        let own = std::process::id();
        assert!(read().iter().any(|process| process.id == own));
    }
}
