//! All that comes of a process: found again wherever it went, measured, and ended to the last one.
//!
//! What belongs to a tree is the group of its first process, everything that carries the tree's mark in its
//! environment, everything that descends from either, and everything that was once seen to belong. So a
//! process that leaves its group and its session is found by its mark, and one that also gave up its
//! environment is found as long as its parents live, or if it lived long enough to be seen. Where there is no
//! `/proc` only the group is known; there the service manager has to end what has left it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};
use tokio::time::{Instant, sleep};

use super::table::{Entry, carries, entries, entry_of};

/// How often a tree that is to end is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long ending a tree is tried. A process can be caught in the kernel, by a disk that does not answer, and
/// then no signal reaches it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often members are looked for that came while others were frozen. Each round freezes a whole generation,
/// and what is frozen makes no further one.
const ROUNDS: usize = 50;

/// An environment variable that tells what belongs to a tree.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    /// Its name.
    pub(crate) variable: &'static str,
    /// Its value.
    pub(crate) value: String,
}

/// How often a process without an environment is looked at again, and the pause before. To begin another program
/// takes much less, even on a busy machine; one that never has an environment delays the end of a task by this.
const SECOND_LOOKS: (u32, Duration) = (25, Duration::from_millis(10));
/// How often there are second looks at all: where others begin programs all the time, there is always one.
const LOOKS: u32 = 200;

/// A process and all that came of it.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The group that its first process leads.
    group: Option<Pid>,
    mark: Mark,
    /// When its first process started: nothing of the tree is older.
    since: u64,
    /// What was seen to belong to it: ids, and when these processes started.
    known: BTreeMap<u32, u64>,
}

/// What a tree uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Processor time of those that live and of those that they have waited for.
    pub(crate) cpu: Duration,
    /// The memory that they hold, in bytes. What several of them share counts for each.
    pub(crate) memory: u64,
}

impl Tree {
    /// The tree of the process that leads this group.
    pub(crate) fn new(group: Option<Pid>, mark: Mark) -> Self {
        let first = group.and_then(|group| entry_of(raw(group)));
        Self { group, mark, since: first.map_or(0, |first| first.start), known: BTreeMap::new() }
    }

    /// What the tree uses, as this table says; nothing when nothing of it is there. Marks are not looked at,
    /// for that costs a read of each process.
    pub(crate) fn sample(&mut self, table: &[Entry]) -> Option<Sample> {
        let members = self.members(table, |_| Some(false)).0;
        if members.is_empty() {
            return None;
        }
        let ticks: u64 = members.iter().map(|it| it.ticks).sum();
        let pages: u64 = members.iter().filter(|it| !it.ended).map(|it| it.pages).sum();
        let millis = ticks * 1000 / rustix::param::clock_ticks_per_second().max(1);
        Some(Sample { cpu: Duration::from_millis(millis), memory: pages * rustix::param::page_size() as u64 })
    }

    /// Ends the tree: asks all of it, and kills what is left once `grace` is over.
    pub(crate) async fn end(&mut self, grace: impl Future<Output = ()>) {
        self.signal(Signal::TERM);
        let gone = async {
            while self.lives() {
                sleep(POLL).await;
            }
        };
        tokio::select! {
            biased;
            () = gone => {}
            () = grace => self.kill().await,
        }
    }

    /// Kills what there is of the tree.
    pub(crate) async fn kill(&mut self) {
        let began = Instant::now();
        let (most, pause) = SECOND_LOOKS;
        // How often each process was looked at that has no environment.
        let mut doubts: BTreeMap<u32, u32> = BTreeMap::new();
        let (mut looks, mut quiet) = (0, false);
        loop {
            let (living, doubtful) = self.living();
            if living.is_empty() {
                doubts = doubtful.iter().map(|id| (*id, doubts.get(id).copied().unwrap_or_default() + 1)).collect();
                let is_clear = doubts.values().all(|looks| *looks > most);
                // One look is not enough: while it goes from one process to the next, one that it has not come to
                // can start another behind its back, and end.
                if looks >= LOOKS || (quiet && is_clear) {
                    return;
                }
                quiet = is_clear;
                if !is_clear {
                    looks += 1;
                    sleep(pause).await;
                }
                continue;
            }
            quiet = false;
            self.strike();
            if began.elapsed() > PATIENCE {
                let members = self.known.len();
                tracing::error!("some of {members} processes could not be killed; they are left to the system");
                return;
            }
            sleep(POLL).await;
        }
    }

    /// Kills what there is of the tree. All are frozen before the first is killed: processes that start others
    /// faster than they can be killed are all caught that way.
    fn strike(&mut self) {
        self.signal_group(Signal::STOP);
        let mut frozen = BTreeSet::new();
        for _ in 0..ROUNDS {
            let fresh: Vec<Entry> = self.living().0.into_iter().filter(|it| !frozen.contains(&it.id)).collect();
            if fresh.is_empty() {
                break;
            }
            fresh.iter().for_each(|it| send(it, Signal::STOP));
            frozen.extend(fresh.iter().map(|it| it.id));
        }
        self.signal_group(Signal::KILL);
        self.living().0.iter().for_each(|it| send(it, Signal::KILL));
    }

    /// Sends a signal to the group, and to each that has left it.
    fn signal(&mut self, signal: Signal) {
        self.signal_group(signal);
        let group = self.group.map(raw);
        self.living().0.iter().filter(|it| Some(it.group) != group).for_each(|it| send(it, signal));
    }

    fn signal_group(&self, signal: Signal) {
        if let Some(group) = self.group {
            // A group that is gone needs no signal.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Whether anything of the tree is alive.
    fn lives(&mut self) -> bool {
        if cfg!(target_os = "linux") {
            !self.living().0.is_empty()
        } else {
            self.group.is_some_and(|group| test_kill_process_group(group).is_ok())
        }
    }

    /// What lives of the tree, and the processes of which that can't be told yet.
    fn living(&mut self) -> (Vec<Entry>, BTreeSet<u32>) {
        let Mark { variable, value } = self.mark.clone();
        let (mut members, doubtful) = self.members(&entries(), |id| carries(id, variable, |it| it == value));
        members.retain(|it| !it.ended);
        (members, doubtful)
    }

    /// What of a table belongs to the tree, remembered from now on; and the processes of which that can't be told
    /// yet.
    fn members(&mut self, table: &[Entry], marked: impl Fn(u32) -> Option<bool>) -> (Vec<Entry>, BTreeSet<u32>) {
        let group = self.group.map(raw);
        let own = std::process::id();
        let mut doubtful = BTreeSet::new();
        let mut first = |it: &&Entry| {
            let old = it.id == own || it.start < self.since;
            if !old && (Some(it.group) == group || self.known.get(&it.id) == Some(&it.start)) {
                return true;
            }
            // What has ended has no environment, nor has what belongs to the kernel.
            let tells = !old && !it.ended && it.pages > 0;
            let marked = if tells { marked(it.id) } else { Some(false) };
            if marked.is_none() {
                doubtful.insert(it.id);
            }
            marked.unwrap_or(false)
        };
        let mut tree: BTreeSet<u32> = table.iter().filter(&mut first).map(|it| it.id).collect();
        loop {
            let size = tree.len();
            tree.extend(table.iter().filter(|it| tree.contains(&it.parent)).map(|it| it.id).collect::<Vec<_>>());
            if tree.len() == size {
                break;
            }
        }
        let members: Vec<Entry> = table.iter().filter(|it| tree.contains(&it.id)).copied().collect();
        self.known = members.iter().map(|it| (it.id, it.start)).collect();
        (members, doubtful)
    }
}

/// Kills all processes that carry an environment variable with such a value, and all that descend from these, for a
/// program can start others without it. What they do can't be followed any more, so they are not asked. Where there is no `/proc` nothing is found: there the service
/// manager has to end what a killed runtime leaves.
pub(crate) fn kill_marked(variable: &str, such: impl Fn(&str) -> bool) {
    for _ in 0..ROUNDS {
        let all = entries();
        let marked = |it: &&Entry| !it.ended && carries(it.id, variable, &such) == Some(true);
        let marked: Vec<u32> = all.iter().filter(marked).map(|it| it.id).collect();
        let found = with_descendants(&all, marked);
        if found.is_empty() {
            return;
        }
        found.iter().for_each(|it| send(it, Signal::STOP));
        found.iter().for_each(|it| send(it, Signal::KILL));
    }
}

/// The processes with these ids and all that descend from them, but for this one, and for those that have ended.
fn with_descendants(all: &[Entry], ids: Vec<u32>) -> Vec<Entry> {
    let mut ids: std::collections::BTreeSet<u32> = ids.into_iter().collect();
    loop {
        let before = ids.len();
        let children = all.iter().filter(|it| ids.contains(&it.parent)).map(|it| it.id);
        ids.extend(children.collect::<Vec<_>>());
        if ids.len() == before {
            break;
        }
    }
    let own = std::process::id();
    all.iter().filter(|it| ids.contains(&it.id) && !it.ended && it.id != own).copied().collect()
}

const fn raw(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

fn send(process: &Entry, signal: Signal) {
    if let Some(pid) = process.pid() {
        // One that has ended meanwhile needs no signal.
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn process(id: u32, parent: u32, group: u32) -> Entry {
        Entry { id, parent, group, ended: false, ticks: 1, start: 0, pages: 1 }
    }

    #[test]
    fn what_descends_from_a_marked_process_is_found_without_a_mark() {
        let all = [process(9, 8, 8), process(8, 7, 8), process(7, 1, 7), process(5, 1, 5), process(1, 0, 1)];
        let ids = |found: Vec<Entry>| found.iter().map(|it| it.id).collect::<Vec<_>>();
        assert_eq!(ids(with_descendants(&all, vec![7])), [9, 8, 7]);
        assert_eq!(ids(with_descendants(&all, vec![])), [0; 0]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_program_without_the_mark_does_not_survive_the_one_that_started_it() {
        use std::io::BufRead as _;
        let mark = format!("kill-{}", std::process::id());
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "env -i sleep 1000 & echo $!; wait"])
            .env("VM_AGENT_TEST_MARK", &mark)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let sleep: u32 = line.trim().parse().unwrap();
        kill_marked("VM_AGENT_TEST_MARK", |value| value == mark);
        shell.wait().unwrap();
        let since = std::time::Instant::now();
        while super::super::table::entry_of(sleep).is_some_and(|it| !it.ended) {
            assert!(since.elapsed().as_secs() < 30, "it lives on");
            std::thread::yield_now();
        }
    }

    fn tree() -> Tree {
        let mark = Mark { variable: "MARK", value: "x".to_owned() };
        Tree { group: Pid::from_raw(10), mark, since: 0, known: BTreeMap::new() }
    }

    fn ids(tree: &mut Tree, table: &[Entry], marked: u32) -> Vec<u32> {
        tree.members(table, |id| Some(id == marked)).0.iter().map(|it| it.id).collect()
    }

    #[test]
    fn a_tree_is_the_group_what_is_marked_and_all_that_descends_from_them() {
        let table = [
            process(1, 0, 1),
            process(10, 1, 10),
            process(11, 10, 10),
            // It left the group, and has a child.
            process(12, 11, 12),
            process(13, 12, 13),
            // It left everything but its environment, and has a child.
            process(14, 1, 14),
            process(15, 14, 15),
            process(20, 1, 20),
        ];
        assert_eq!(ids(&mut tree(), &table, 14), [10, 11, 12, 13, 14, 15]);
        assert_eq!(ids(&mut tree(), &table[7..], 0), [0; 0]);
        assert!(!tree().members(&table, |_| None).1.is_empty(), "what has no environment is to be looked at again");
        let mut later = Tree { since: 1, ..tree() };
        assert!(later.members(&table, |_| None).1.is_empty(), "but for what is older than the tree");
    }

    #[test]
    fn what_belonged_to_a_tree_belongs_to_it_as_long_as_it_is_the_same() {
        let mut tree = tree();
        ids(&mut tree, &[process(10, 1, 10), process(12, 10, 12)], 0);
        let orphan = process(12, 1, 12);
        assert_eq!(ids(&mut tree, &[orphan], 0), [12]);
        assert_eq!(ids(&mut tree, &[Entry { start: 7, ..orphan }], 0), [0; 0], "its id is another's now");
    }

    #[test]
    fn a_sample_counts_the_time_of_what_has_ended_and_the_memory_of_what_lives() {
        let mut zombie = process(10, 1, 10);
        (zombie.ended, zombie.ticks, zombie.pages) = (true, 300, 50);
        let per_second = rustix::param::clock_ticks_per_second();
        let child = Entry { ticks: 2 * per_second, pages: 3, ..process(11, 10, 10) };
        let sample = tree().sample(&[Entry { ticks: per_second, ..zombie }, child]).unwrap();
        let memory = 3 * rustix::param::page_size() as u64;
        assert_eq!(sample, Sample { cpu: Duration::from_secs(3), memory });
        assert_eq!(tree().sample(&[]), None);
    }
}
