use vm_agent_schemas::intent::{Change, Presence};
use vm_agent_schemas::plan::{Health, Sync};

use crate::{agent, say, settled, steps, world};

#[test]
fn an_agent_that_a_person_let_go_is_told_of_while_the_file_declares_it() {
    let mut inputs = settled("agents: {web: {}}");
    say(&mut inputs, "web", Change::Presence(Presence::Absent));
    world::converge(&mut inputs);
    let gone = agent(&inputs, "web");
    assert_eq!((gone.wanted, gone.sync, gone.health), (None, Sync::Synced, Health::Stopped));
    assert_eq!(steps(&inputs, "web"), []);
}
