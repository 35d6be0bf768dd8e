//! A whole controller, as people run it but for its driver, whose machines are only pretended: each seed
//! goes to stdout, for the load generator to be that machine's runtime. It ends when stdin does.
//!
//! The first line on stdout says where the controller listens; every further line is a seed, or the answer
//! to a line on stdin: how many bytes are on the heap. What the system counts as this process's memory would
//! say less: what was taken once is seldom given back.

#![expect(clippy::print_stdout, reason = "stdout is its interface")]

use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use clap::Parser;
use peak_alloc::PeakAlloc;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use vm_agent_daemon::{Config, Running};
use vm_agent_drivers::Driver;
use vm_agent_drivers::fake::Fake;
use vm_agent_schemas::fleet::{DriverName, HubSettings};
use vm_agent_schemas::net::Listen;
use vm_agent_schemas::observe::Capabilities;
use vm_agent_schemas::units::Span;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Runs a controller for the load generator
#[derive(Parser)]
struct Args {
    /// The state folder
    #[arg(long)]
    state_dir: PathBuf,
    /// How often a runtime is to send health
    #[arg(long, default_value = "30s")]
    heartbeat: Span,
}

/// How many machines are made at a time, in place of what a real driver bears: bringing the fleet up is
/// not what is measured.
const LANES: u32 = 10_000;

/// How long a machine may take to be made and to be heard of: join tokens have to last until the generator
/// uses them.
const PATIENCE: Span = Span::from_secs(3600);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    tracing_subscriber::fmt().with_env_filter("error").with_writer(std::io::stderr).init();
    raise_open_files();
    let lines = printer();
    let fake = Fake::new(DriverName::Qemu, capabilities());
    let seeds = lines.clone();
    // Whoever does not listen any more has closed stdin as well, which ends this program.
    fake.on_up(Arc::new(move |seed| drop(seeds.send(json!(seed)))));
    let free = Some(Listen::At(([127, 0, 0, 1], 0).into()));
    let hub = HubSettings {
        listen: free,
        api_listen: free,
        dashboard_listen: free,
        heartbeat: Some(args.heartbeat),
        advertise: None,
    };
    let config =
        Config { state_dir: args.state_dir, hub, fleet: None, up: true, expects_file: false, watch: false, host: None };
    let state_dir = config.state_dir.clone();
    let running = Running::start(config, vec![Arc::new(fake) as Arc<dyn Driver>]).await?;
    lines.send(serde_json::from_slice(&std::fs::read(state_dir.join("controller.json"))?)?)?;
    let mut asked = BufReader::new(tokio::io::stdin()).lines();
    let answering = async {
        while let Ok(Some(_)) = asked.next_line().await {
            drop(lines.send(json!({"heap": HEAP.current_usage()})));
        }
    };
    tokio::select! {
        () = answering => {}
        () = running.stopped() => {}
    }
    running.shut_down().await;
    Ok(())
}

/// Prints lines on a thread of its own: a pipe that is full must not keep the controller waiting.
fn printer() -> mpsc::Sender<Value> {
    let (lines, queue) = mpsc::channel::<Value>();
    std::thread::spawn(move || {
        for line in queue {
            println!("{line}");
        }
    });
    lines
}

fn capabilities() -> Capabilities {
    let mut capabilities = Fake::capabilities_default();
    capabilities.lanes = LANES;
    capabilities.deadlines.create = PATIENCE;
    capabilities.deadlines.start = PATIENCE;
    capabilities.deadlines.connect = PATIENCE;
    capabilities
}

/// Each session takes a file descriptor, and systems begin with few.
fn raise_open_files() {
    let resource = rustix::process::Resource::Nofile;
    let mut limit = rustix::process::getrlimit(resource);
    limit.current = limit.maximum;
    // What is left at fewer shows itself soon enough.
    let _ = rustix::process::setrlimit(resource, limit);
}
