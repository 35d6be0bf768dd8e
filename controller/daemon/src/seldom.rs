//! What peers can say as often as they like is told seldom: else it would push everything else out of the
//! events, and out of the log of the controller.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use vm_agent_schemas::names::AgentName;

/// What is told in the long run: once in that time of each agent, and of those that are none.
const EVERY: SignedDuration = SignedDuration::from_secs(10);

/// How often it may be told at once.
const AT_ONCE: i32 = 50;

/// How often something was told of each agent.
#[derive(Debug, Default)]
pub(crate) struct Seldom(BTreeMap<Option<AgentName>, Told>);

#[derive(Debug, Default)]
struct Told {
    /// When nothing is owed any more for what was told.
    paid: Timestamp,
    /// How often it was not told since.
    untold: u64,
}

impl Seldom {
    /// Whether something may be told of this agent now: then how often it was not told before that. The caller
    /// names only agents that there are.
    pub(crate) fn may_tell(&mut self, agent: Option<&AgentName>, now: Timestamp) -> Option<u64> {
        let told = self.0.entry(agent.cloned()).or_default();
        let latest = now.saturating_add(EVERY * AT_ONCE).unwrap_or(now);
        let paid = told.paid.clamp(now, latest).saturating_add(EVERY).unwrap_or(latest);
        if paid > latest {
            told.untold += 1;
            return None;
        }
        told.paid = paid;
        Some(std::mem::take(&mut told.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_at_once_is_told_and_then_little_and_each_agent_has_its_own() {
        let (mut seldom, web) = (Seldom::default(), "web".parse().unwrap());
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        let told = |seldom: &mut Seldom, now| (0..1000).filter_map(|_| seldom.may_tell(None, now)).collect::<Vec<_>>();
        assert_eq!(told(&mut seldom, at(0)), [0; 50]);
        assert_eq!(seldom.may_tell(Some(&web), at(0)), Some(0));
        assert_eq!(told(&mut seldom, at(25)), [950, 0]);
        assert_eq!(seldom.may_tell(None, at(30)), Some(998));
        assert_eq!(seldom.may_tell(None, at(31)), None);
    }
}
