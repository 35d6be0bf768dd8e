use jiff::SignedDuration;
use vm_agent_plan::{Inputs, after_failure, plan};
use vm_agent_schemas::ids::OperationId;
use vm_agent_schemas::intent::{Change, Presence};
use vm_agent_schemas::observe::{Action, Operation};
use vm_agent_schemas::plan::{Fuse, Health, Sync};

use crate::{agent, say, settled, steps, words, world};

#[test]
fn an_agent_that_a_person_let_go_is_told_of_while_the_file_declares_it() {
    let mut inputs = settled("agents: {web: {}}");
    say(&mut inputs, "web", Change::Presence(Presence::Absent));
    world::converge(&mut inputs);
    let gone = agent(&inputs, "web");
    assert_eq!((gone.wanted, gone.sync, gone.health), (None, Sync::Synced, Health::Stopped));
    assert_eq!(steps(&inputs, "web"), []);
}

/// A step is under way on `web`.
fn under_way(inputs: &mut Inputs, action: Action) -> OperationId {
    inputs.drivers.values_mut().for_each(|view| view.capabilities.calls_outlive_controller = false);
    let (id, agent) = (OperationId::generate(), world::name("web"));
    let operation = Operation {
        id,
        agent: agent.clone(),
        driver: world::DRIVER,
        action,
        snapshot: None,
        started_at: inputs.now,
        deadline: inputs.now + SignedDuration::from_mins(10),
        life: inputs.life,
    };
    inputs.operations.insert(agent, operation);
    id
}

#[test]
fn what_brings_up_a_machine_that_is_to_be_deleted_is_given_up() {
    let mut inputs = settled("agents: {web: {}}");
    let create = under_way(&mut inputs, Action::Create);
    assert_eq!(agent(&inputs, "web").moot, None, "it is wanted");
    say(&mut inputs, "web", Change::Presence(Presence::Absent));
    assert_eq!(agent(&inputs, "web").moot, Some(create));

    inputs.claims.get_mut("web").unwrap().protect = true;
    assert_eq!(agent(&inputs, "web").moot, None, "it is protected, and stays");
    inputs.claims.get_mut("web").unwrap().protect = false;
    under_way(&mut inputs, Action::Destroy);
    assert_eq!(agent(&inputs, "web").moot, None, "this is what is wanted");
}

#[test]
fn what_a_person_has_not_said_yes_to_is_not_given_up_for() {
    let mut inputs = settled("agents: {web: {}, db: {}}");
    let start = under_way(&mut inputs, Action::Start);
    world::edit(&mut inputs, "agents: {db: {}}");
    assert_eq!(agent(&inputs, "web").moot, None);
    let asked = plan(&inputs).approvals;
    let [request] = &asked[..] else { panic!("{asked:?}") };
    inputs.approvals.insert(request.id.clone(), request.agent.clone());
    assert_eq!(agent(&inputs, "web").moot, Some(start));
}

#[test]
fn what_went_wrong_with_a_machine_does_not_keep_it_from_being_deleted() {
    let mut inputs = settled("agents: {web: {}}");
    let web = world::name("web");
    say(&mut inputs, "web", Change::Presence(Presence::Absent));
    let mut after = |step| {
        inputs.backoffs.insert(web.clone(), after_failure(&web, None, Some(step), "it failed".into(), 0.5, inputs.now));
        words(&steps(&inputs, "web"))
    };
    assert_eq!(after(Action::Create), "destroy");
    assert_eq!(after(Action::Destroy), "(destroy)");
    inputs.backoffs.clear();
    inputs.fuse = Fuse::Blown { since: inputs.now, failed: 3, of: 3 };
    assert_eq!(words(&steps(&inputs, "web")), "destroy");
}
