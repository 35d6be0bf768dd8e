//! How long a controller with 1,000 claimed agents takes from its start until it sees them all.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use vm_agent_daemon::Running;
use vm_agent_drivers::fake::Fake;
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::observe::{Capabilities, InstanceState};
use vm_agent_tests::in_process::{apply, start, until};

const AGENTS: usize = 1000;

/// Whether the driver is listed, every agent is seen, and the loop has acted on the file.
async fn sees_all(running: &Running) -> Option<()> {
    let controller = running.controller();
    if controller.stats().await.ok()?.passes == 0 {
        return None;
    }
    let agents = controller.agents().await.ok()?;
    let seen = agents.iter().filter(|agent| agent.instance == Some(InstanceState::Running)).count();
    (seen == AGENTS).then_some(())
}

/// A state folder whose controller has made all agents, and went down.
async fn prepare(state: &Path, fake: &Fake) {
    let running = start(state, &[fake]).await;
    apply(running.controller(), &format!("defaults: {{driver: qemu}}\nagents: {{a: {{replicas: {AGENTS}}}}}\n")).await;
    until("all agents are made", async || sees_all(&running).await).await;
    let done = async || {
        let sync = running.controller().status().await.ok()?.sync;
        (!sync.contains_key("Drifted")).then_some(())
    };
    until("nothing is left to begin", done).await;
    running.shut_down().await;
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("the folder is new");
    for entry in fs::read_dir(from).expect("the folder is there") {
        let entry = entry.expect("the folder can be read");
        if entry.file_type().expect("it has a type").is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("there is room");
        }
    }
}

async fn restart(prepared: &Path, fake: &Fake) -> Duration {
    let folder = tempfile::tempdir().expect("there is room");
    let state = folder.path().join("state");
    copy(prepared, &state);
    let begun = Instant::now();
    let running = start(&state, &[fake]).await;
    until("the agents are seen", async || sees_all(&running).await).await;
    let took = begun.elapsed();
    running.shut_down().await;
    took
}

fn bench(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("threads can be had");
    let folder = tempfile::tempdir().expect("there is room");
    let prepared = folder.path().join("state");
    let lanes = u32::try_from(AGENTS).expect("it is a small number");
    let fake = Fake::new(DriverName::Qemu, Capabilities { lanes, ..Fake::capabilities_default() });
    runtime.block_on(prepare(&prepared, &fake));
    criterion.bench_function("restart/1000", |bencher| {
        bencher.iter_custom(|count| {
            runtime.block_on(async {
                let mut total = Duration::ZERO;
                for _ in 0..count {
                    total += restart(&prepared, &fake).await;
                }
                total
            })
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(10));
    targets = bench
}
criterion_main!(benches);
