//! What a controller costs that has nothing to do: 100 agents, the usual heartbeat, half a minute.
//! Their runtimes live in a process of their own, so that only the controller is counted.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its figures are for people")]

use std::io::{BufRead as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::Seed;
use vm_agent_tests::fleet_of_fakes::Runtimes;
use vm_agent_tests::in_process::{apply, is_well, qemu, start_with, until};

const AGENTS: usize = 100;
const IDLE: Duration = Duration::from_secs(30);
const RUNTIMES: &str = "runtimes-for-the-idle-benchmark";

fn main() {
    let runtime = Runtime::new().expect("threads can be had");
    if std::env::args().any(|arg| arg == RUNTIMES) {
        runtimes(&runtime);
    } else if cfg!(target_os = "linux") {
        runtime.block_on(controller());
    } else {
        eprintln!("the cost is read from /proc, which this system does not have");
    }
}

/// Brings up a runtime for each seed that comes in, until nothing more does.
fn runtimes(runtime: &Runtime) {
    let (_here, runtimes) = (runtime.enter(), Runtimes::default());
    for line in std::io::stdin().lock().lines() {
        let seed: Seed = serde_json::from_str(&line.expect("the pipe can be read")).expect("it is a seed");
        runtimes.up(&seed);
    }
}

async fn controller() {
    let program = std::env::current_exe().expect("this program has a path");
    let mut child = Command::new(program).arg(RUNTIMES).stdin(Stdio::piped()).spawn().expect("it starts");
    let pipe = Arc::new(Mutex::new(child.stdin.take().expect("it was asked for")));
    let fake = qemu(Span::from_secs(60));
    fake.on_up(Arc::new(move |seed| {
        let line = serde_json::to_string(seed).expect("a seed is JSON");
        writeln!(pipe.lock().expect("nobody panicked"), "{line}").expect("the runtimes are there");
    }));
    let folder = tempfile::tempdir().expect("there is room");
    let running = start_with(&folder.path().join("state"), &[&fake], None).await;
    apply(running.controller(), &format!("defaults: {{driver: qemu}}\nagents: {{a: {{replicas: {AGENTS}}}}}\n")).await;
    let all_well = async || {
        let agents = running.controller().agents().await.ok()?;
        (agents.len() == AGENTS && agents.iter().all(is_well)).then_some(())
    };
    until("all agents are well", all_well).await;

    let passes = running.controller().stats().await.expect("counting does not fail").passes;
    let (before, begun) = (Usage::now(), Instant::now());
    tokio::time::sleep(IDLE).await;
    let (after, seconds) = (Usage::now(), begun.elapsed().as_secs_f64());
    let passes = running.controller().stats().await.expect("counting does not fail").passes - passes;
    println!("idle, {AGENTS} agents, {seconds:.1} s:");
    println!("  CPU: {:.4} s, {:.3} % of one core", after.cpu - before.cpu, (after.cpu - before.cpu) / seconds * 100.0);
    println!("  context switches: {:.1} per second", (after.switches - before.switches) / seconds);
    println!("  passes: {passes}");
    running.shut_down().await;
    child.kill().expect("it is ours");
    child.wait().expect("it ends");
}

/// What this process has used so far.
struct Usage {
    /// Seconds on a CPU, in user and system mode.
    cpu: f64,
    /// Voluntary and involuntary switches, of all threads.
    switches: f64,
}

impl Usage {
    fn now() -> Self {
        let mut usage = Self { cpu: 0.0, switches: 0.0 };
        for thread in std::fs::read_dir("/proc/self/task").expect("this is Linux") {
            let thread = thread.expect("threads can be listed").path();
            let read = |name: &str| std::fs::read_to_string(thread.join(name)).unwrap_or_default();
            // The first number is the time on a CPU in nanoseconds.
            let nanoseconds = read("schedstat").split(' ').next().and_then(|number| number.parse().ok());
            usage.cpu += nanoseconds.unwrap_or(0.0) / 1e9;
            let status = read("status");
            let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
            let counts = counts.filter_map(|line| line.split_whitespace().last()?.parse::<f64>().ok());
            usage.switches += counts.sum::<f64>();
        }
        usage
    }
}
