//! How long forty machines of Multipass take to be there, beside how long they would take were nothing lost between
//! them. The engine is the real one, and so are the lanes and the deadlines of driver `multipass`; only the daemon and
//! its machines are made up. All of it runs on tokio's paused clock, which the simulated one follows.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "this is a test")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep, sleep_until};
use vm_agent_drivers::Driver as _;
use vm_agent_drivers::multipass::{Lanes, Multipass, Program};
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::observe::Capabilities;
use vm_agent_schemas::plan::Health;
use vm_agent_simulation::clock::Millis;
use vm_agent_simulation::driver::{Asked, Begun, Driver, Sight};
use vm_agent_simulation::world::World;

const AGENTS: u32 = 40;
const DRIVER: DriverName = DriverName::Multipass;

/// How long `multipass launch` takes.
const LAUNCH: Duration = Duration::from_secs(80);
/// How long its instance is in no listing.
const HIDDEN: Duration = Duration::from_secs(3);
/// How long the runtime takes to get into a machine that is up: a file and four programs.
const ENTER: Duration = Duration::from_secs(15);
/// The same where packages are installed before the machine has its place back.
const ENTER_WITH_PACKAGES: Duration = Duration::from_secs(120);
/// What may be lost between the launches, and until the last runtime is heard, as a part of all that they take.
const LOSS: f64 = 0.1;

/// What became of a fleet.
struct Rollout {
    took: Duration,
    /// The most machines that came up at a time.
    widest: u32,
    launches: u32,
    lines: Vec<String>,
}

/// How many machines are coming up, and the most there ever were.
#[derive(Default)]
struct Gauge {
    now: AtomicU32,
    most: AtomicU32,
}

/// A create, as driver `multipass` has its daemon carry it out.
async fn create(
    lanes: Arc<Lanes>,
    gauge: Arc<Gauge>,
    enter: Duration,
    begun: Begun,
    tell: UnboundedSender<(Begun, bool)>,
) {
    let launch = async {
        gauge.most.fetch_max(gauge.now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        sleep(HIDDEN).await;
        let _ = tell.send((begun.clone(), false));
        sleep(LAUNCH - HIDDEN).await;
        gauge.now.fetch_sub(1, Ordering::Relaxed);
    };
    lanes.coming_up(launch).await;
    sleep(enter).await;
    let _ = tell.send((begun, true));
}

/// What driver `multipass` can do and bear with these lanes.
fn capabilities(lanes: &Lanes) -> Capabilities {
    let kit = Arc::new(|_: &_| Ok(Vec::new()));
    let driver = Multipass::new(PathBuf::from("/nowhere"), Program::new(PathBuf::from("/nowhere/multipass")), kit);
    Capabilities { lanes: lanes.steps(), ..driver.capabilities() }
}

/// The fleet file.
fn file() -> String {
    let agents: String = (1..=AGENTS).map(|number| format!("  a{number}: {{driver: multipass}}\n")).collect();
    format!("agents:\n{agents}")
}

fn all_well(world: &mut World) -> bool {
    let (_, plan) = world.present().expect("the controller lives");
    plan.agents.len() == AGENTS as usize && plan.agents.iter().all(|agent| agent.health == Health::Healthy)
}

/// Has the fleet made by a controller on a host with so many processors.
async fn roll_out(cpus: usize, enter: Duration) -> Rollout {
    let (lanes, gauge) = (Lanes::new(cpus), Arc::<Gauge>::default());
    let mut driver = Driver::new(DRIVER, capabilities(&lanes), Sight::Listed, true);
    driver.begun = Some(Vec::new());
    let mut world = World::still([(DRIVER, driver)].into());
    world.run_until(0).unwrap();
    world.applies(&file());
    let (tell, mut told) = unbounded_channel();
    let (start, mut launches, mut looked) = (Instant::now(), 0, Duration::ZERO);
    let elapsed = || Millis::try_from(start.elapsed().as_millis()).expect("no test takes for ever");
    loop {
        for begun in world.begun(DRIVER) {
            assert!(matches!(begun.asked, Asked::Create(..)), "nothing but launches is needed: {:?}", begun.asked);
            launches += 1;
            tokio::spawn(create(Arc::clone(&lanes), Arc::clone(&gauge), enter, begun, tell.clone()));
        }
        let next = start + Duration::from_millis(world.next_at().expect("the hub looks at the time again and again"));
        let done = tokio::select! {
            biased;
            done = told.recv() => done,
            () = sleep_until(next) => None,
        };
        world.run_until(elapsed()).unwrap_or_else(|broken| panic!("{broken}\n{}", world.lines().join("\n")));
        if let Some((begun, whole)) = done {
            world.carried_out(DRIVER, &begun, whole);
        }
        if start.elapsed() >= looked + Duration::from_secs(1) {
            looked = start.elapsed();
            if all_well(&mut world) {
                let (took, widest) = (looked, gauge.most.load(Ordering::Relaxed));
                return Rollout { took, widest, launches, lines: world.lines().to_vec() };
            }
            assert!(looked < 5 * LAUNCH * AGENTS, "they never are well\n{}", world.lines().join("\n"));
        }
    }
}

/// How long they take where nothing is lost: each launch follows the one before it at once, as far as there are places
/// for machines that are up and have no runtime yet.
fn best(lanes: &Lanes, enter: Duration) -> Duration {
    let by_launches = LAUNCH * AGENTS.div_ceil(lanes.width()) + enter;
    let by_places = (LAUNCH + enter) * AGENTS.div_ceil(lanes.steps());
    by_launches.max(by_places)
}

async fn come_up_in_time(enter: Duration) {
    for cpus in [1, 2, 4] {
        let (lanes, Rollout { took, widest, launches, lines }) = (Lanes::new(cpus), roll_out(cpus, enter).await);
        let (width, best) = (lanes.width(), best(&lanes, enter));
        let loss = took.as_secs_f64() / best.as_secs_f64() - 1.0;
        println!(
            "{AGENTS} agents, {width} at a time, then {} s each: {} s; at best {} s; {:+.1} %",
            enter.as_secs(),
            took.as_secs(),
            best.as_secs(),
            100.0 * loss
        );
        let wrong = lines.iter().filter(|line| line.contains("timed out") || line.contains("failed"));
        assert_eq!(wrong.count(), 0, "nothing goes wrong:\n{}", lines.join("\n"));
        assert_eq!((widest, launches), (width, AGENTS), "each is launched once, and the lane is used");
        assert!(loss < LOSS, "between launches {:.0} % of the time are lost", 100.0 * loss);
    }
}

#[tokio::test(start_paused = true)]
async fn forty_machines_come_up_as_fast_as_their_lane_is_wide() {
    come_up_in_time(ENTER).await;
}

#[tokio::test(start_paused = true)]
async fn what_machines_get_besides_the_runtime_holds_up_launches_no_more_than_there_are_places() {
    come_up_in_time(ENTER_WITH_PACKAGES).await;
}
