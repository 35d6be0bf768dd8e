//! Names, parsed once. A value of one of these types is valid by construction and can't be
//! mistaken for a name of another kind.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Longest name. A name becomes the guest's hostname, and RFC 1123 ends a label at 63 octets.
pub const NAME_MAX: usize = 63;

/// What a name looks like, for JSON Schemas. The length is in the pattern, because that is all that
/// holds for the keys of a map.
const NAME_PATTERN: &str = "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$";

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a name: a name starts with a letter, goes on with lower-case letters, digits \
     and hyphens, ends with a letter or digit, and has at most {NAME_MAX} characters"
)]
pub struct InvalidName {
    text: String,
}

fn parse_name(text: &str) -> Result<Arc<str>, InvalidName> {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let valid = bytes.len() <= NAME_MAX
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && bytes.iter().all(inner);
    if valid { Ok(Arc::from(text)) } else { Err(InvalidName { text: text.to_owned() }) }
}

macro_rules! name_type {
    ($(#[doc = $doc:literal])+ $name:ident) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                parse_name(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        // By hand, because a type that is read through a text has the schema of any text.
        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "description": concat!($($doc),+).trim(),
                    "type": "string",
                    "maxLength": NAME_MAX,
                    "pattern": NAME_PATTERN,
                })
            }
        }
    };
}

name_type! {
    /// The name of an agent, unique in its fleet.
    AgentName
}
name_type! {
    /// The name of a fleet.
    FleetName
}
name_type! {
    /// The name of a profile: a named template for agents.
    ProfileName
}
name_type! {
    /// The name of a task in the fleet file, unique in its agent.
    TaskName
}
name_type! {
    /// The name of a service in the fleet file, unique in its agent.
    ServiceName
}
name_type! {
    /// The name of a port of an agent, unique in its agent.
    PortName
}
name_type! {
    /// The name of an instance, as its driver knows it.
    InstanceName
}
name_type! {
    /// The name of a snapshot, unique among those of its instance.
    SnapshotName
}
name_type! {
    /// The name of a schedule of snapshots in the fleet file, unique in its agent.
    ScheduleName
}

impl FleetName {
    /// The name that a fleet has when its file gives none.
    pub const DEFAULT: &'static str = "default";

    /// The name of an agent's instance: the agent's own in fleet `default`, else
    /// `<fleet>-<agent>`.
    ///
    /// # Errors
    /// When the joined name is longer than [`NAME_MAX`].
    pub fn instance_of(&self, agent: &AgentName) -> Result<InstanceName, InvalidName> {
        if self.as_str() == Self::DEFAULT { agent.as_str().parse() } else { format!("{self}-{agent}").parse() }
    }
}

impl PortName {
    /// The name of a port that was given none: `port-8080`.
    #[must_use]
    pub fn of(port: NonZeroU16) -> Self {
        Self(Arc::from(format!("port-{port}")))
    }
}

impl Default for FleetName {
    fn default() -> Self {
        Self(Arc::from(Self::DEFAULT))
    }
}

impl AgentName {
    /// The name of the `index`-th replica (from 1) of a set with this name.
    ///
    /// # Errors
    /// When the joined name is longer than [`NAME_MAX`].
    pub fn replica(&self, index: u32) -> Result<Self, InvalidName> {
        format!("{self}-{index}").parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "builder", "b-1", "a0", &"x".repeat(63)] {
            assert!(good.parse::<AgentName>().is_ok(), "{good}");
        }
        for bad in ["", "1a", "-a", "a-", "A", "a_b", "a.b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<AgentName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn instances_carry_the_fleet_unless_it_is_the_default() {
        let agent: AgentName = "web".parse().unwrap();
        let fleet: FleetName = "lab".parse().unwrap();
        assert_eq!(fleet.instance_of(&agent).unwrap().as_str(), "lab-web");
        assert_eq!(FleetName::default().instance_of(&agent).unwrap().as_str(), "web");
    }

    proptest! {
        #[test]
        fn what_the_pattern_of_the_schema_allows_is_a_name(text in NAME_PATTERN.trim_matches(['^', '$'])) {
            prop_assert!(text.parse::<AgentName>().is_ok());
        }

        #[test]
        fn parsing_never_panics_and_keeps_the_text(text in ".*") {
            if let Ok(name) = text.parse::<AgentName>() {
                prop_assert_eq!(name.as_str(), text);
            }
        }
    }
}
