use vm_agent_plan::Inputs;
use vm_agent_schemas::observe::{Host, InstanceState};
use vm_agent_schemas::plan::{Resource, WaitsFor};
use vm_agent_schemas::units::ByteSize;

use crate::{settled, steps, words, world};

const G: u64 = ByteSize::GIB;

fn memory(needs: u64, free: u64) -> WaitsFor {
    WaitsFor::Capacity { resource: Resource::Memory, needs, free }
}

fn on_host_of(gib: u64, text: &str) -> Inputs {
    let host = Some(Host { cpus: 4, memory: ByteSize::from_gib(gib) });
    Inputs { host, ..world::inputs_of(text) }
}

#[test]
fn the_first_that_does_not_fit_waits_and_a_smaller_one_goes_ahead() {
    let text = "limits: {memory: 8G}\nagents: {a: {memory: 6G}, b: {memory: 4G}, c: {memory: 2G}}";
    let inputs = world::inputs_of(text);
    assert_eq!(words(&steps(&inputs, "a")), "create");
    assert_eq!(steps(&inputs, "b")[0].waits_for, [memory(4 * G, 2 * G)]);
    assert_eq!(words(&steps(&inputs, "c")), "create");
}

#[test]
fn room_comes_free_when_a_machine_stops() {
    let mut inputs = settled("limits: {memory: 6G}\nagents: {a: {memory: 6G}, b: {memory: 4G}}");
    assert_eq!(words(&steps(&inputs, "b")), "(create)");
    world::edit(&mut inputs, "limits: {memory: 6G}\nagents: {a: {memory: 6G, power: stopped}, b: {memory: 4G}}");
    assert_eq!(words(&world::converge(&mut inputs)), "stop create");
}

#[test]
fn without_a_limit_a_tenth_of_the_host_is_its_own() {
    let inputs = on_host_of(10, "agents: {a: {memory: 10G}, b: {memory: 9G}}");
    assert_eq!(steps(&inputs, "a")[0].waits_for, [memory(10 * G, 9 * G)], "bigger than all there is");
    assert_eq!(words(&steps(&inputs, "b")), "create");
    let inputs = on_host_of(10, "limits: {reserve: {memory: 4G}}\nagents: {a: {memory: 7G}, b: {memory: 6G}}");
    assert_eq!(words(&steps(&inputs, "a")), "(create)");
    assert_eq!(words(&steps(&inputs, "b")), "create");
}

#[test]
fn processors_and_disk_count_where_the_file_limits_them() {
    let inputs = world::inputs_of("limits: {cpus: 3}\nagents: {a: {cpus: 2}, b: {cpus: 2}}");
    let needs = WaitsFor::Capacity { resource: Resource::Cpus, needs: 2, free: 1 };
    assert_eq!(steps(&inputs, "b")[0].waits_for, [needs]);
    let mut inputs = settled("limits: {disk: 12G}\nagents: {a: {disk: 8G, power: stopped}}");
    world::edit(&mut inputs, "limits: {disk: 12G}\nagents: {a: {disk: 8G, power: stopped}, b: {disk: 5G}}");
    let needs = WaitsFor::Capacity { resource: Resource::Disk, needs: 5 * G, free: 4 * G };
    assert_eq!(steps(&inputs, "b")[0].waits_for, [needs], "a disk takes its room also while its machine is down");
}

#[test]
fn a_machine_is_not_taken_down_to_grow_beyond_what_there_is() {
    let mut inputs = settled("limits: {memory: 4G}\nagents: {a: {memory: 2G}, b: {memory: 2G}}");
    world::edit(&mut inputs, "limits: {memory: 4G}\nagents: {a: {memory: 3G}, b: {memory: 2G}}");
    assert_eq!(steps(&inputs, "a")[0].waits_for, [memory(3 * G, 2 * G)]);
    world::edit(&mut inputs, "limits: {memory: 3G}\nagents: {a: {memory: 2G, cpus: 2}, b: {memory: 2G}}");
    assert_eq!(steps(&inputs, "a")[0].waits_for, [memory(2 * G, G)], "it could not come up again");
}

#[test]
fn machines_of_others_and_those_that_cannot_be_seen_take_their_room() {
    let mut inputs = settled("agents: {a: {memory: 3G}}");
    world::edit(&mut inputs, "limits: {memory: 4G}\nagents: {b: {memory: 2G}}");
    inputs.claims.clear();
    assert_eq!(steps(&inputs, "b")[0].waits_for, [memory(2 * G, G)], "another's");
    let mut inputs = settled("agents: {a: {memory: 3G}}");
    world::edit(&mut inputs, "limits: {memory: 4G}\nagents: {a: {memory: 3G}, b: {memory: 2G}}");
    world::observe(&mut inputs, &world::name("a"), InstanceState::Unknown);
    assert_eq!(steps(&inputs, "b")[0].waits_for, [memory(2 * G, G)], "one that was brought up");
}

#[test]
fn drivers_that_take_nothing_of_the_host_have_no_budget() {
    let mut inputs = world::inputs_of("limits: {memory: 1G}\nagents: {a: {memory: 6G}}");
    inputs.drivers.get_mut(&world::DRIVER).unwrap().capabilities.uses_host = false;
    assert_eq!(words(&steps(&inputs, "a")), "create");
}

#[test]
fn a_machine_that_exists_has_its_disk_and_starts_though_there_is_less_now() {
    let mut inputs = settled("agents: {a: {disk: 8G, power: stopped}}");
    world::edit(&mut inputs, "limits: {disk: 4G}\nagents: {a: {disk: 8G}}");
    assert_eq!(words(&steps(&inputs, "a")), "start");
}
