//! How long an agent takes from `apply` until it is Healthy and until its first task has ended, where its machine
//! starts warm: alone, and many at once. With real machines, the real program and its command line.
//!
//! `VM_AGENT_WARM_AGENTS` says how many at once (20; 2 where the benchmark is only tried, as by `cargo test`),
//! `VM_AGENT_RUNTIME` and `VM_AGENT_TEST_IMAGES` where the runtime for machines and their images are.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "its figures are for people")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use vm_agent_drivers::qemu::{Host, Programs};
use vm_agent_schemas::event::{Event, EventKind};
use vm_agent_tests::e2e::Fleet;

/// What tells a machine from its copies, a line each: as its programs see it.
const MARKS: [(&str, &str); 6] = [
    ("machine id", "cat /etc/machine-id"),
    ("host name", "hostname"),
    ("network address", "cat /sys/class/net/e*/address"),
    ("random numbers", "head -c 16 /dev/urandom | od -An -tx1"),
    ("key", "sha256sum </var/lib/vm-agent/key"),
    ("nonce", "tr , '\\n' </var/lib/vm-agent/seed.json | grep nonce"),
];

fn main() {
    // What cargo says to a benchmark that is to be measured, and not merely tried.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let (alone_count, usual) = if measured { (5, 20) } else { (1, 2) };
    let many = std::env::var("VM_AGENT_WARM_AGENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let named = |variable: &str, usual: PathBuf| std::env::var_os(variable).map_or(usual, PathBuf::from);
    let runtime = named("VM_AGENT_RUNTIME", target.join("../dist/x86_64-unknown-linux-gnu/vm-agent-runtime"));
    let images = named("VM_AGENT_TEST_IMAGES", target.join("images"));
    if !runtime.is_file() || Programs::find().is_err() {
        return println!("left out: it takes QEMU and the runtime for machines, which `cargo xtask dist` builds");
    }
    println!("{}", machine());
    let fleet = Fleet::of_machines(&file(&[]), &images, &runtime);
    fleet.up();

    let mut agents = vec![(0, 1)];
    let first = arrivals(&fleet, &agents);
    println!("the first of its kind, with what the others begin as: Healthy after {:.2} s", first[0].healthy);
    let mut alone = Vec::new();
    for group in 1..=alone_count {
        agents.push((group, 1));
        alone.extend(arrivals(&fleet, &agents));
    }
    agents.push((alone_count + 1, many));
    let together = arrivals(&fleet, &agents);
    table(&[("one at a time", &alone), ("all at once", &together)]);
    differ(&fleet);
    fleet.ok(&["down", "--destroy", "--yes"]);
}

/// A fleet of groups of agents, each that is alike but for who it is.
fn file(groups: &[(usize, usize)]) -> String {
    let mut text =
        "defaults: {driver: qemu, memory: 256M, disk: 2G, warm: true, tasks: {first: {exec: 'true'}}}\n".to_owned();
    text.push_str(if groups.is_empty() { "agents: {}\n" } else { "agents:\n" });
    for (group, count) in groups {
        text.push_str(&format!("  g{group}: {{replicas: {count}}}\n"));
    }
    text
}

/// How it went with an agent, in seconds since the fleet file was applied, in MiB and in seconds of the processor.
struct Arrival {
    healthy: f64,
    task: f64,
    processor: f64,
    memory: f64,
    own_memory: f64,
    disk: f64,
}

/// Applies a file whose last group is new, and waits until all of that have come and done their first task.
fn arrivals(fleet: &Fleet, groups: &[(usize, usize)]) -> Vec<Arrival> {
    let (last, count) = *groups.last().unwrap();
    fleet.write(&file(groups));
    let since = fleet.last_event();
    let begun = Timestamp::now();
    fleet.ok(&["apply", "--yes"]);
    let prefix = format!("g{last}-");
    let came = |kind: EventKind, events: &[Event]| -> BTreeMap<String, f64> {
        let of_kind = events.iter().filter(|event| event.kind == kind);
        let named = of_kind.filter_map(|event| Some((event.agent.as_ref()?.to_string(), event.at)));
        let named = named.filter(|(name, _)| name.starts_with(&prefix));
        named.map(|(name, at)| (name, at.duration_since(begun).as_secs_f64())).collect()
    };
    let (mut healthy, mut tasks) = (BTreeMap::new(), BTreeMap::new());
    while healthy.len() < count || tasks.len() < count {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let events = fleet.events_since(since);
        // It is Healthy when its machine is there and its runtime is connected, whichever comes last.
        let there = came(EventKind::StepSucceeded, &events);
        healthy = came(EventKind::RuntimeConnected, &events);
        healthy.retain(|name, _| there.contains_key(name));
        for (name, at) in &mut healthy {
            *at = at.max(there[name]);
        }
        tasks = came(EventKind::TaskEnded, &events);
    }
    fleet.wait_until_well();
    let arrival = |(name, healthy): (String, f64)| {
        let folder = fleet.machine(&name);
        let pid = fs::read_to_string(folder.join("qemu.pid")).unwrap().trim().to_owned();
        let [memory, own_memory] = resident(&pid);
        let (processor, disk) = (processor_time(&pid), own_disk(&folder));
        Arrival { healthy, task: tasks[&name], processor, memory, own_memory, disk }
    };
    healthy.into_iter().map(arrival).collect()
}

/// What a process has of the memory, its share of what others have too counted, and what it alone has, in MiB.
fn resident(pid: &str) -> [f64; 2] {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let sum = |names: &[&str]| {
        let lines = text.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum::<f64>() / 1024.0
    };
    [sum(&["Pss:"]), sum(&["Private_Dirty:", "Private_Clean:"])]
}

/// The seconds of the processor that a process has taken.
fn processor_time(pid: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    fields.map(|field| field.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// What the files of a folder take on the disk that no other folder has too, in MiB.
fn own_disk(folder: &Path) -> f64 {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    let blocks: u64 = files.filter(|file| file.is_file() && file.nlink() == 1).map(|file| file.blocks()).sum();
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let bytes = (blocks * 512) as f64;
    bytes / (1024.0 * 1024.0)
}

/// Says of what every machine has its own, and fails where two have the same.
fn differ(fleet: &Fleet) {
    let line = MARKS.map(|(_, command)| command).join("; ");
    let names = fleet.agents();
    let all: Vec<Vec<String>> =
        names.keys().map(|name| fleet.exec(name, &line).lines().map(str::to_owned).collect()).collect();
    for (at, (what, _)) in MARKS.iter().enumerate() {
        let different: BTreeSet<_> = all.iter().map(|marks| &marks[at]).collect();
        assert_eq!(different.len(), all.len(), "each machine has a {what} of its own");
    }
    println!("{} machines, each with its own {}", all.len(), MARKS.map(|(what, _)| what).join(", "));
}

fn table(rows: &[(&str, &[Arrival])]) {
    type Figure = (&'static str, fn(&Arrival) -> f64);
    let figures: [Figure; 6] = [
        ("apply to Healthy, s", |it| it.healthy),
        ("apply to the end of its first task, s", |it| it.task),
        ("processor of its machine, s", |it| it.processor),
        ("memory with its share of what is common, MiB", |it| it.memory),
        ("memory of its own, MiB", |it| it.own_memory),
        ("disk of its own, MiB", |it| it.disk),
    ];
    println!("{:48}{:>10}{:>10}{:>10}", "", "agents", "p50", "max");
    for (what, arrivals) in rows {
        println!("{what}");
        for (name, figure) in &figures {
            let mut values: Vec<f64> = arrivals.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            let (median, most) = (values[values.len() / 2], values[values.len() - 1]);
            println!("  {name:46}{:>10}{median:>10.2}{most:>10.2}", values.len());
        }
    }
}

/// What this is measured on.
fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let host = runtime.block_on(Host::look(&Programs::find().unwrap()));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (model, by) = (model.unwrap_or("unknown processor"), host.acceleration.as_str());
    format!("{cores} cores of {model}, Linux {}, QEMU {} by {by}", kernel.trim(), host.version)
}
