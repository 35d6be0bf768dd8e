//! How long a saved fleet file takes to act: from the moment at which the editor puts it in its place until
//! its plan is told, and until an agent that is new in it is Healthy. Everything is real: the program, its
//! controller, the file, and a runtime of driver `local`.

#![expect(clippy::print_stdout, reason = "its figures are for people")]

use std::time::Duration;

use jiff::Timestamp;
use vm_agent_schemas::event::EventKind;
use vm_agent_schemas::plan::ConditionStatus;
use vm_agent_tests::e2e::Fleet;

/// How often the file is saved.
const SAVES: usize = 20;

fn main() {
    let fleet = Fleet::new(&file(0));
    fleet.up();
    let (mut planned, mut healthy): (Vec<_>, Vec<_>) = (1..=SAVES).map(|count| save(&fleet, count)).unzip();
    println!("watch, {SAVES} saves with one more agent each:");
    print("to the plan", &mut planned);
    print("to Healthy", &mut healthy);
    fleet.finish();
}

/// A file with so many agents beside the first one.
fn file(count: usize) -> String {
    let agents: String = (0..=count).map(|number| format!("  a-{number}: {{}}\n")).collect();
    format!("defaults: {{driver: local}}\nagents:\n{agents}")
}

/// Saves the file with one more agent, and gives how long it took until the plan was told and until the agent
/// was Healthy. Both ends are read from the clock of this machine: the controller notes when it sees them.
fn save(fleet: &Fleet, count: usize) -> (Duration, Duration) {
    let (name, last) = (format!("a-{count}"), fleet.last_event());
    let saved = Timestamp::now();
    fleet.save(&file(count));
    let planned = fleet.wait_for_event(last, EventKind::FleetApplied, None).at;
    let ready = fleet.wait_for(&format!("{name} to be ready"), || {
        let conditions = fleet.agents().remove(&name)?.conditions;
        conditions.into_iter().find(|it| it.kind == "Ready" && it.status == ConditionStatus::True)
    });
    (since(saved, planned), since(saved, ready.last_transition_time))
}

fn since(begin: Timestamp, end: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(begin)).expect("the clock was not set back meanwhile")
}

fn print(what: &str, times: &mut [Duration]) {
    times.sort();
    let millis = |time: &Duration| time.as_secs_f64() * 1e3;
    let (median, longest) = (millis(&times[times.len() / 2]), millis(&times[times.len() - 1]));
    println!("  {what}: median {median:.0} ms, longest {longest:.0} ms");
}
