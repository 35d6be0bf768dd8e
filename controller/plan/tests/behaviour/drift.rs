use vm_agent_schemas::fleet::{DriftPolicy, PowerState};
use vm_agent_schemas::intent::Change;
use vm_agent_schemas::observe::{InstanceState, MountSupport, Standing};
use vm_agent_schemas::plan::{Cost, DriftClass, Sync, WaitsFor};

use crate::{agent, say, settled, steps, words, world};

#[test]
fn what_is_only_warned_of_is_shown_and_left_as_it_is() {
    let mut inputs = settled("agents: {web: {cpus: 1, memory: 1G}}");
    world::edit(&mut inputs, "agents: {web: {cpus: 2, memory: 2G, drift: {cpus: warn, memory: warn}}}");
    let web = agent(&inputs, "web");
    assert_eq!(web.sync, Sync::Synced);
    assert!(web.drift.iter().all(|drift| drift.policy == DriftPolicy::Warn));
    assert_eq!(web.drift.len(), 2);
    assert_eq!(words(&steps(&inputs, "web")), "");
}

#[test]
fn what_is_ignored_is_not_there() {
    let mut inputs = settled("agents: {web: {image: a}}");
    world::edit(&mut inputs, "agents: {web: {image: b, drift: {image: ignore}}}");
    assert!(agent(&inputs, "web").drift.is_empty());
    assert!(vm_agent_plan::plan(&inputs).approvals.is_empty());
}

#[test]
fn what_a_machine_got_at_its_birth_only_a_new_one_has_otherwise_and_that_waits_for_a_yes() {
    let mut inputs = settled("agents: {web: {driver: qemu, packages: [git]}}");
    world::edit(&mut inputs, "agents: {web: {driver: qemu, packages: [git, jq], user: dev}}");
    let web = agent(&inputs, "web");
    let seen: Vec<_> = web.drift.iter().map(|drift| (drift.class, drift.path.as_str(), drift.cost)).collect();
    let one = |path| (DriftClass::Provisioning, path, Cost::Replace);
    assert_eq!(seen, [one("user"), one("packages")]);
    assert_eq!(vm_agent_plan::plan(&inputs).approvals.len(), 1);
    world::edit(&mut inputs, "agents: {web: {driver: qemu, packages: [jq], drift: {provisioning: ignore}}}");
    assert!(agent(&inputs, "web").drift.is_empty());
}

#[test]
fn a_resize_leaves_the_sizes_that_are_not_to_be_corrected() {
    let mut inputs = settled("agents: {web: {cpus: 1, memory: 1G}}");
    world::edit(&mut inputs, "agents: {web: {cpus: 2, memory: 2G, drift: {memory: warn}}}");
    world::converge(&mut inputs);
    let sizes = inputs.claims[&world::name("web")].birth.sizes;
    assert_eq!((sizes.cpus, sizes.memory.rounded()), (2, "1G".to_owned()));
}

#[test]
fn power_that_others_changed_is_left_where_the_file_says_so_but_a_person_is_heard() {
    for policy in ["warn", "ignore"] {
        let mut inputs = settled(&format!("agents: {{web: {{drift: {{power: {policy}}}}}}}"));
        let web = world::name("web");
        world::observe(&mut inputs, &web, InstanceState::Failed);
        world::converge(&mut inputs);
        assert_eq!(inputs.claims[&web].standing, Standing::Fell, "the crash is noted");
        assert_eq!(words(&steps(&inputs, "web")), "", "{policy}");
        assert_eq!(agent(&inputs, "web").sync, Sync::Synced);
        assert!(agent(&inputs, "web").waits_for.is_empty());
        inputs.backoffs.clear();
        say(&mut inputs, "web", Change::Power { wanted: PowerState::Running, covers: PowerState::Running });
        assert_eq!(words(&steps(&inputs, "web")), "start");
    }
}

#[test]
fn a_machine_that_we_took_down_to_resize_it_comes_up_again_whatever_its_policy_of_power() {
    let mut inputs = settled("agents: {web: {cpus: 1, drift: {power: ignore}}}");
    world::edit(&mut inputs, "agents: {web: {cpus: 2, drift: {power: ignore}}}");
    assert_eq!(words(&world::converge(&mut inputs)), "stop resize start");
    assert_eq!(agent(&inputs, "web").observed, Some(InstanceState::Running));
}

#[test]
fn other_mounts_need_a_restart_where_it_runs_and_nothing_more_than_its_next_start_where_not() {
    let (before, after) = ("agents: {web: {mounts: {src: /a}}}", "agents: {web: {mounts: {src: /b}}}");
    let mut running = settled(before);
    world::edit(&mut running, after);
    assert_eq!(words(&steps(&running, "web")), "stop (start)");
    world::converge(&mut running);
    assert!(agent(&running, "web").drift.is_empty());

    let mut down = settled("agents: {web: {power: stopped, mounts: {src: /a}}}");
    world::edit(&mut down, "agents: {web: {power: stopped, mounts: {src: /b}}}");
    assert_eq!(agent(&down, "web").sync, Sync::Synced);
    world::edit(&mut down, after);
    assert_eq!(words(&steps(&down, "web")), "start");
}

#[test]
fn a_warm_start_is_asked_of_a_driver_that_can_and_is_no_concern_of_a_machine_that_is_there() {
    let mut inputs = world::inputs_of("agents: {web: {warm: true}}");
    assert_eq!(words(&steps(&inputs, "web")), "(create)");
    let what = WaitsFor::Unsupported { what: "start machines warm".into() };
    assert_eq!(agent(&inputs, "web").waits_for, [what]);
    inputs.drivers.get_mut(&world::DRIVER).unwrap().capabilities.warm = true;
    assert_eq!(words(&steps(&inputs, "web")), "create");

    let mut running = settled("agents: {web: {}}");
    world::edit(&mut running, "agents: {web: {warm: true}}");
    let web = agent(&running, "web");
    assert_eq!((web.sync, &web.drift[..], &web.waits_for[..]), (Sync::Synced, &[][..], &[][..]));
}

#[test]
fn a_mount_that_is_to_be_read_only_is_told_where_machines_write_to_all_that_they_have() {
    let mut inputs = world::inputs_of("agents: {web: {mounts: {src: /a}}}");
    inputs.drivers.get_mut(&world::DRIVER).unwrap().capabilities.mounts = MountSupport::Writable;
    assert_eq!(words(&steps(&inputs, "web")), "(create)");
    assert!(agent(&inputs, "web").waits_for[0].to_string().contains("`writable: true`"));
    world::edit(&mut inputs, "agents: {web: {mounts: {src: {source: /a, writable: true}}}}");
    assert_eq!(words(&steps(&inputs, "web")), "create");
}

#[test]
fn mounts_on_a_driver_that_has_none_are_told_and_keep_the_machine_down() {
    let mut inputs = world::inputs_of("agents: {web: {mounts: {src: /a}}}");
    inputs.drivers.get_mut(&world::DRIVER).unwrap().capabilities.mounts = MountSupport::None;
    let what = WaitsFor::Unsupported { what: "mount folders of the host".into() };
    assert_eq!(words(&steps(&inputs, "web")), "(create)");
    let web = agent(&inputs, "web");
    assert_eq!((web.sync, web.waits_for), (Sync::Blocked, vec![what.clone()]));

    let mut running = settled("agents: {web: {}}");
    running.drivers.get_mut(&world::DRIVER).unwrap().capabilities.mounts = MountSupport::None;
    world::edit(&mut running, "agents: {web: {mounts: {src: /a}}}");
    let web = agent(&running, "web");
    assert_eq!((web.sync, web.waits_for), (Sync::Blocked, vec![what]));
    assert!(web.drift.iter().any(|drift| drift.class == DriftClass::Mounts));
    assert_eq!(words(&steps(&running, "web")), "", "what runs goes on running");
}
