//! The ports that programs in an agent listen on.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::short::list_or_map;
use crate::names::PortName;

/// The ports that programs in an agent listen on, by name. Nothing opens them: they are there to be
/// named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(with = "PortsForms")]
pub struct Ports(pub BTreeMap<PortName, NonZeroU16>);

impl Ports {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The forms in which ports are written.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum PortsForms {
    /// Ports that get names such as `port-8080`.
    Numbers(Vec<NonZeroU16>),
    /// Ports by name.
    Names(BTreeMap<PortName, NonZeroU16>),
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let named = |ports: Vec<NonZeroU16>| ports.into_iter().map(|port| (PortName::of(port), port)).collect();
        list_or_map(deserializer, "a map of names and ports, or a list of ports", named).map(Self)
    }
}
