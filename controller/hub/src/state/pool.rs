//! The fleet's pool: tasks that any one of some agents may do, and the agents that have nothing to do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::selector::Selector;

/// How long an agent that took a task from the pool may be without a session before the task, if it may be
/// repeated, goes on elsewhere: longer than a controller or a runtime takes to start again.
pub(super) const LEASE: Duration = Duration::from_secs(60);

/// A task's place in the order in which tasks were accepted.
pub(super) type Place = (u64, TaskId);

/// The tasks of the pool that wait for an agent, and the agents that wait for one.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// Tasks that could begin, by whom they are for. Fleets have many tasks and few selectors.
    waiting: BTreeMap<Selector, BTreeSet<Place>>,
    /// Agents that found nothing to do when they last looked. Not all of them are still free.
    free: BTreeSet<AgentName>,
}

impl Pool {
    /// A task waits.
    pub(super) fn wait(&mut self, selector: &Selector, place: Place) {
        match self.waiting.get_mut(selector) {
            Some(places) => drop(places.insert(place)),
            None => drop(self.waiting.insert(selector.clone(), [place].into())),
        }
    }

    /// How many tasks wait for agents like this.
    pub(super) fn waiting(&self, selector: &Selector) -> usize {
        self.waiting.get(selector).map_or(0, BTreeSet::len)
    }

    /// A task waits no more.
    pub(super) fn leave(&mut self, selector: &Selector, place: Place) {
        if let Some(places) = self.waiting.get_mut(selector) {
            places.remove(&place);
            if places.is_empty() {
                self.waiting.remove(selector);
            }
        }
    }

    /// The oldest task that waits for an agent like this.
    pub(super) fn oldest(&self, matches: impl Fn(&Selector) -> bool) -> Option<TaskId> {
        let of_each = self.waiting.iter().filter(|(selector, _)| matches(selector));
        of_each.filter_map(|(_, places)| places.first()).min().map(|(_, task)| *task)
    }

    /// The agent has nothing to do.
    pub(super) fn rest(&mut self, agent: &AgentName) {
        if !self.free.contains(agent) {
            self.free.insert(agent.clone());
        }
    }

    /// The agent is not to be asked any more.
    pub(super) fn wake(&mut self, agent: &AgentName) {
        self.free.remove(agent);
    }

    /// The agents that wait.
    pub(super) fn free(&self) -> impl Iterator<Item = &AgentName> {
        self.free.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_task_that_fits_goes_first_whatever_its_selector() {
        let mut pool = Pool::default();
        let [build, any]: [Selector; 2] = ["team=build", "!spare"].map(|text| text.parse().unwrap());
        let places: Vec<Place> = (1..4).map(|number| (number, TaskId::generate())).collect();
        pool.wait(&build, places[1]);
        pool.wait(&build, places[2]);
        pool.wait(&any, places[0]);
        assert_eq!((pool.waiting(&build), pool.waiting(&any)), (2, 1));
        assert_eq!(pool.oldest(|_| true), Some(places[0].1));
        assert_eq!(pool.oldest(|selector| *selector == build), Some(places[1].1));
        pool.leave(&any, places[0]);
        pool.leave(&build, places[1]);
        assert_eq!(pool.oldest(|_| true), Some(places[2].1));
        pool.leave(&build, places[2]);
        assert_eq!(pool.oldest(|_| true), None);
        assert_eq!(pool.waiting(&build), 0);
    }
}
