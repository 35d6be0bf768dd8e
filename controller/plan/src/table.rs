//! The heart: what to do about one agent's instance, as a total function over four small enums.
//!
//! Every cell is decided here and printed in `tests/table.txt`, which a test compares. A new state
//! does not compile until somebody decides about it in every row.

use vm_agent_schemas::fleet::RestartPolicy;
use vm_agent_schemas::observe::{Action, InstanceState, Standing};

/// What is wanted of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// It should run.
    Running,
    /// It should exist and not run.
    Stopped,
    /// It should not run; whether it exists does not matter.
    Idle,
    /// It should not exist.
    Absent,
}

/// What is seen of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    /// A healthy listing does not have it.
    Absent,
    /// An instance with its name is not ours.
    Foreign,
    /// Ours, coming up.
    Starting,
    /// Ours, running.
    Running,
    /// Ours, going down.
    Stopping,
    /// Ours, down because we stopped it.
    Stopped,
    /// Ours, down because it was shut down from inside or behind our back.
    ShutDown,
    /// Ours, down because it crashed.
    Failed,
    /// Ours, its memory saved.
    Suspended,
    /// Ours, deleted behind our back, and still holding its name.
    Deleted,
    /// Nothing is known: the driver does not answer, or does not know itself.
    Unknown,
}

/// Whether the instance's runtime is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// It is.
    Live,
    /// It is not, and need not be yet.
    Awaited,
    /// It is not, and should be.
    Lost,
    /// It never was, and can't be any more: its join token no longer works.
    Unjoined,
}

/// Whether a step is under way on the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Under {
    /// No.
    Nothing,
    /// Yes.
    Way,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    /// Nothing: it is as it should be.
    Nothing,
    /// Act on the instance.
    Act(Action),
    /// Stop it, and start it with a new seed.
    Restart,
    /// Drop the claim: the instance is gone and should be.
    Forget,
    /// Wait until the step under way is over.
    AwaitOperation,
    /// Wait until the instance is what it is on its way to.
    AwaitTransition,
    /// Wait until something is known.
    AwaitKnowledge,
    /// Wait until the runtime connects: the machine is as it should be.
    AwaitRuntime,
    /// A person has to move a foreign instance out of the way.
    BlockedByForeign,
    /// A person has to recover or purge a deleted instance.
    BlockedByTombstone,
    /// A person has to start it: the restart policy says so.
    BlockedByPolicy,
}

/// What to do about an instance.
///
/// The rows are read from the top: a step under way is waited for, ignorance acts on nothing, and
/// only then does it matter what is wanted.
#[must_use]
pub const fn decide(want: Want, seen: Seen, link: Link, under: Under, restart: RestartPolicy) -> Decision {
    use Decision as D;
    match (under, want, seen) {
        (Under::Way, _, _) => D::AwaitOperation,
        (Under::Nothing, _, Seen::Unknown) => D::AwaitKnowledge,

        (Under::Nothing, Want::Running | Want::Stopped, Seen::Absent) => D::Act(Action::Create),
        (Under::Nothing, Want::Running | Want::Stopped, Seen::Foreign) => D::BlockedByForeign,
        (Under::Nothing, Want::Running | Want::Stopped, Seen::Deleted) => D::BlockedByTombstone,
        (Under::Nothing, Want::Running | Want::Stopped | Want::Idle, Seen::Starting | Seen::Stopping) => {
            D::AwaitTransition
        }

        (Under::Nothing, Want::Running, Seen::Running) => match link {
            Link::Live => D::Nothing,
            Link::Awaited | Link::Lost => D::AwaitRuntime,
            Link::Unjoined => D::Restart,
        },
        (Under::Nothing, Want::Running, Seen::Stopped | Seen::Suspended) => D::Act(Action::Start),
        (Under::Nothing, Want::Running, Seen::ShutDown) => match restart {
            RestartPolicy::Always => D::Act(Action::Start),
            RestartPolicy::OnFailure | RestartPolicy::Never => D::BlockedByPolicy,
        },
        (Under::Nothing, Want::Running, Seen::Failed) => match restart {
            RestartPolicy::Always | RestartPolicy::OnFailure => D::Act(Action::Start),
            RestartPolicy::Never => D::BlockedByPolicy,
        },

        (Under::Nothing, Want::Stopped | Want::Idle, Seen::Running) => D::Act(Action::Stop),
        (
            Under::Nothing,
            Want::Stopped | Want::Idle,
            Seen::Stopped | Seen::ShutDown | Seen::Failed | Seen::Suspended,
        ) => D::Nothing,
        (Under::Nothing, Want::Idle, Seen::Absent | Seen::Foreign | Seen::Deleted) => D::Nothing,

        // The foreign one has our instance's name, so ours is gone.
        (Under::Nothing, Want::Absent, Seen::Absent | Seen::Foreign) => D::Forget,
        (
            Under::Nothing,
            Want::Absent,
            Seen::Starting
            | Seen::Running
            | Seen::Stopping
            | Seen::Stopped
            | Seen::ShutDown
            | Seen::Failed
            | Seen::Suspended
            | Seen::Deleted,
        ) => D::Act(Action::Destroy),
    }
}

impl Seen {
    /// What an instance of ours is seen as, in the light of what it was last brought to.
    #[must_use]
    pub const fn ours(state: InstanceState, standing: Standing) -> Self {
        match (state, standing) {
            (InstanceState::Stopped | InstanceState::Failed, Standing::Down) => Self::Stopped,
            (InstanceState::Stopped, Standing::Up | Standing::Fell) => Self::ShutDown,
            (InstanceState::Failed, Standing::Up | Standing::Fell) => Self::Failed,
            (InstanceState::Starting, _) => Self::Starting,
            (InstanceState::Running, _) => Self::Running,
            (InstanceState::Stopping, _) => Self::Stopping,
            (InstanceState::Suspended, _) => Self::Suspended,
            (InstanceState::Deleted, _) => Self::Deleted,
            (InstanceState::Unknown, _) => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    const WANTS: [Want; 4] = [Want::Running, Want::Stopped, Want::Idle, Want::Absent];
    const SEENS: [Seen; 11] = [
        Seen::Absent,
        Seen::Foreign,
        Seen::Starting,
        Seen::Running,
        Seen::Stopping,
        Seen::Stopped,
        Seen::ShutDown,
        Seen::Failed,
        Seen::Suspended,
        Seen::Deleted,
        Seen::Unknown,
    ];
    const LINKS: [Link; 4] = [Link::Live, Link::Awaited, Link::Lost, Link::Unjoined];
    const UNDERS: [Under; 2] = [Under::Nothing, Under::Way];
    const POLICIES: [RestartPolicy; 3] = [RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never];

    fn cells() -> impl Iterator<Item = (Want, Seen, Link, Under, RestartPolicy, Decision)> {
        WANTS.into_iter().flat_map(|want| {
            SEENS.into_iter().flat_map(move |seen| {
                LINKS.into_iter().flat_map(move |link| {
                    UNDERS.into_iter().flat_map(move |under| {
                        POLICIES.into_iter().map(move |policy| {
                            (want, seen, link, under, policy, decide(want, seen, link, under, policy))
                        })
                    })
                })
            })
        })
    }

    #[test]
    fn every_cell_is_as_the_printed_table_says() {
        let mut text = String::new();
        for (want, seen, link, under, policy, decision) in cells() {
            let row = format!("{want:?} {seen:?} {link:?} {under:?} {policy}");
            writeln!(text, "{row:<48} {decision:?}").unwrap();
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/table.txt");
        if std::env::var_os("UPDATE_TABLE").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let printed = std::fs::read_to_string(path).unwrap();
        assert_eq!(
            text, printed,
            "a cell changed: if that is meant, run the test with UPDATE_TABLE=1 and read the diff"
        );
    }

    #[test]
    fn no_cell_acts_while_a_step_is_under_way_or_nothing_is_known() {
        for (_, seen, _, under, _, decision) in cells() {
            if under == Under::Way || seen == Seen::Unknown {
                assert!(!matches!(decision, Decision::Act(_) | Decision::Forget), "{seen:?} {under:?}");
            }
        }
    }

    #[test]
    fn only_what_should_not_exist_is_destroyed_and_only_what_does_not_exist_is_created() {
        for (want, seen, .., decision) in cells() {
            if decision == Decision::Act(Action::Destroy) {
                assert_eq!(want, Want::Absent);
                assert!(!matches!(seen, Seen::Foreign | Seen::Absent | Seen::Unknown));
            }
            if decision == Decision::Act(Action::Create) {
                assert_eq!(seen, Seen::Absent);
                assert!(matches!(want, Want::Running | Want::Stopped));
            }
        }
    }

    #[test]
    fn a_lost_runtime_alone_never_makes_the_machine_act() {
        for (want, seen, _, under, policy, decision) in cells() {
            let acts = |link| match decide(want, seen, link, under, policy) {
                Decision::Act(action) => Some(action),
                _ => None,
            };
            assert_eq!(acts(Link::Live), acts(Link::Lost), "{want:?} {seen:?} {decision:?}");
        }
    }
}
