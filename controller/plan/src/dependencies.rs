//! Which agents come first, and whether they are as far as those after them need.

use std::collections::HashMap;

use vm_agent_schemas::fleet::Until;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::plan::{Health, Rest};

use crate::situation::Situation;
use crate::standing::is_completed;
use crate::table::Seen;

/// Whether an agent is as far as another needs it. One that sleeps for want of work has been Healthy, and
/// will be when there is some.
pub(crate) fn is_ready(situation: &Situation<'_>, health: Health, until: Until) -> bool {
    match until {
        Until::Started => situation.seen == Seen::Running || situation.rests == Some(Rest::Idle),
        Until::Healthy => health == Health::Healthy || situation.rests == Some(Rest::Idle),
        Until::Completed => (health == Health::Healthy || situation.rests.is_some()) && is_completed(situation),
    }
}

/// The order in which agents come up: each after all that it depends on, else by name. Gives the
/// indices of `situations`.
pub(crate) fn order(situations: &[Situation<'_>]) -> Vec<usize> {
    let depends = |s: &Situation<'_>| s.wanted.is_some_and(|agent| !agent.spec.depends_on.0.is_empty());
    let mut indices: Vec<usize> = (0..situations.len()).collect();
    if situations.iter().any(depends) {
        let by_name: HashMap<&AgentName, usize> = situations.iter().enumerate().map(|(i, s)| (s.name, i)).collect();
        let mut depths = vec![None; situations.len()];
        for index in 0..situations.len() {
            depth(index, situations, &by_name, &mut depths);
        }
        indices.sort_by_key(|index| depths[*index]);
    }
    indices
}

/// How many agents come before one. The fleet file has no cycles; an agent made by hand has no
/// dependencies of its own.
fn depth(
    index: usize,
    situations: &[Situation<'_>],
    by_name: &HashMap<&AgentName, usize>,
    depths: &mut [Option<usize>],
) -> usize {
    if let Some(depth) = depths[index] {
        return depth;
    }
    depths[index] = Some(0);
    let wanted = situations[index].wanted.into_iter().flat_map(|agent| agent.spec.depends_on.0.keys());
    let deepest =
        wanted.filter_map(|name| by_name.get(name)).map(|at| 1 + depth(*at, situations, by_name, depths)).max();
    depths[index] = deepest.or(Some(0));
    deepest.unwrap_or(0)
}
