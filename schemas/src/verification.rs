//! Whether the runtime that speaks for an agent runs in that agent's machine: what can come of asking, in types
//! and in sentences.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fleet::DriverName;
use crate::ids::Epoch;
use crate::names::AgentName;
use crate::units::Span;

/// What came of asking an agent's runtime where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// The agent.
    pub agent: AgentName,
    /// The session that was asked; nothing where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// When it was decided.
    pub at: Timestamp,
    /// What it came to.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The same as a sentence.
    pub message: String,
    /// What helps; nothing where nothing has to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remediation: Option<String>,
}

impl Verification {
    /// A verdict with its words.
    #[must_use]
    pub fn new(agent: AgentName, epoch: Option<Epoch>, verdict: Verdict, at: Timestamp) -> Self {
        let (message, remediation) = (verdict.to_string(), verdict.remedy(&agent));
        Self { agent, epoch, at, verdict, message, remediation }
    }
}

/// What the answers of a machine and of a runtime come to, side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// The runtime runs in the machine, and the machine is one.
    Verified {
        /// The hypervisor that the machine sees, in systemd's words, such as `kvm` or `qemu`.
        hypervisor: String,
    },
    /// The runtime runs elsewhere: somebody has what only the machine should have.
    NotInMachine {
        /// What tells.
        why: Contradiction,
    },
    /// It can't be told.
    Unable {
        /// What is in the way.
        obstacle: Obstacle,
    },
}

/// What tells that a runtime does not run in the machine that it speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Contradiction {
    /// It has not found the challenge that lay in the machine.
    NoChallenge,
    /// It has made its answer of another challenge, or for another session.
    WrongAnswer,
    /// It runs on another machine id.
    OtherMachine,
    /// It runs in another boot.
    OtherBoot,
    /// The machine holds the seed of another life.
    OtherLife,
    /// It can answer, was asked again and again and heard all the time, and does not answer.
    Silence,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NoChallenge => "it can't read what was laid into the machine for it",
            Self::WrongAnswer => "its answer is not made of what was laid into the machine",
            Self::OtherMachine => "it runs under another machine id than the machine",
            Self::OtherBoot => "it runs in another boot than that of the machine",
            Self::OtherLife => "the machine holds the seed of another life",
            Self::Silence => "it is heard, and does not say where it runs however often it is asked",
        })
    }
}

/// What keeps it from being told where a runtime runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "obstacle", rename_all = "kebab-case")]
pub enum Obstacle {
    /// The driver makes no machines: there is nothing to be isolated in.
    NoIsolation {
        /// The driver.
        driver: DriverName,
    },
    /// The driver has no way into its machines but their runtimes.
    NoWayIn {
        /// The driver.
        driver: DriverName,
    },
    /// The machine could not be asked.
    NoWitness {
        /// Why, in the driver's words.
        reason: String,
    },
    /// The machine was asked, and sees no hypervisor: it may be none.
    NoHypervisor,
    /// The runtime is not connected, or was not any more.
    NoSession,
    /// The runtime is of a version that does not know the question.
    TooOld {
        /// Which one.
        version: String,
    },
    /// The runtime did not answer in time.
    NoAnswer {
        /// How long it was waited for.
        within: Span,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIsolation { driver } => {
                write!(f, "driver {driver} isolates nothing: its agents are processes of this host")
            }
            Self::NoWayIn { driver } => write!(f, "driver {driver} has no way into its machines but their runtimes"),
            Self::NoWitness { reason } => write!(f, "its machine could not be asked: {reason}"),
            Self::NoHypervisor => f.write_str("its runtime runs in the machine, which sees no hypervisor around it"),
            Self::NoSession => f.write_str("its runtime is not connected"),
            Self::TooOld { version } => write!(f, "its runtime, version {version}, does not know the question"),
            Self::NoAnswer { within } => write!(f, "its runtime did not answer within {within}"),
        }
    }
}

impl Verdict {
    /// Whether the runtime is where it should be.
    #[must_use]
    pub const fn is_verified(&self) -> bool {
        matches!(self, Self::Verified { .. })
    }

    /// The verdict in one word, as conditions have their reasons.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Verified { .. } => "Verified",
            Self::NotInMachine { .. } => "NotInMachine",
            Self::Unable { obstacle } => match obstacle {
                Obstacle::NoIsolation { .. } => "NoIsolation",
                Obstacle::NoWayIn { .. } => "NoWayIn",
                Obstacle::NoWitness { .. } => "NoWitness",
                Obstacle::NoHypervisor => "NoHypervisor",
                Obstacle::NoSession => "NoSession",
                Obstacle::TooOld { .. } => "RuntimeTooOld",
                Obstacle::NoAnswer { .. } => "NoAnswer",
            },
        }
    }

    /// What helps; nothing where nothing has to.
    #[must_use]
    pub fn remedy(&self, agent: &AgentName) -> Option<String> {
        Some(match self {
            Self::Verified { .. } => return None,
            Self::NotInMachine { .. } => format!(
                "find out who has read the files of {agent}'s machine; the machine itself gets a new seed: vm-agent why \
                 {agent}"
            ),
            Self::Unable { obstacle } => match obstacle {
                Obstacle::NoIsolation { .. } => {
                    "give the agent a driver that makes machines, such as `driver: qemu`".to_owned()
                }
                Obstacle::NoWayIn { .. } => return None,
                Obstacle::NoWitness { .. } | Obstacle::NoSession => format!("see how it is: vm-agent why {agent}"),
                Obstacle::NoHypervisor => {
                    format!("see what it runs on: vm-agent exec {agent} -- systemd-detect-virt")
                }
                Obstacle::TooOld { .. } => format!(
                    "a runtime is upgraded by itself as soon as it has nothing to do; see what it waits for: vm-agent \
                     why {agent}"
                ),
                Obstacle::NoAnswer { .. } => format!("see whether it is well, and ask again: vm-agent why {agent}"),
            },
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verified { hypervisor } => write!(f, "its runtime runs in its machine, under {hypervisor}"),
            Self::NotInMachine { why } => {
                write!(f, "what spoke as its runtime does not run in its machine, and was refused: {why}")
            }
            Self::Unable { obstacle } => obstacle.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_verification_reads_as_one_flat_document() {
        let of = |verdict| Verification::new("web".parse().unwrap(), Some(Epoch(3)), verdict, Timestamp::UNIX_EPOCH);
        let verified = serde_json::to_value(of(Verdict::Verified { hypervisor: "kvm".to_owned() })).unwrap();
        assert_eq!(
            verified,
            json!({
                "agent": "web", "epoch": 3, "at": "1970-01-01T00:00:00Z", "verdict": "verified", "hypervisor": "kvm",
                "message": "its runtime runs in its machine, under kvm",
            })
        );
        let stolen = of(Verdict::NotInMachine { why: Contradiction::NoChallenge });
        let told = serde_json::to_value(&stolen).unwrap();
        assert_eq!((&told["verdict"], &told["why"]), (&json!("not-in-machine"), &json!("no-challenge")));
        assert!(told["remediation"].as_str().unwrap().contains("new seed"));
        let local = of(Verdict::Unable { obstacle: Obstacle::NoIsolation { driver: DriverName::Local } });
        let told = serde_json::to_value(&local).unwrap();
        assert_eq!(
            (&told["obstacle"]["obstacle"], &told["obstacle"]["driver"]),
            (&json!("no-isolation"), &json!("local"))
        );
        for verification in [stolen, local] {
            let back = serde_json::from_value::<Verification>(serde_json::to_value(&verification).unwrap()).unwrap();
            assert_eq!(back, verification);
        }
    }
}
