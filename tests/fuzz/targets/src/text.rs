//! Texts that are read into values.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use vm_agent_schemas::names::{AgentName, FleetName, ServiceName, TaskName};
use vm_agent_schemas::selector::Selector;
use vm_agent_schemas::units::{ByteSize, Span};
use vm_agent_schemas::wire::Address;

/// A selector prints as it is read, and what it prints matches the same labels.
pub(crate) fn selector(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(selector) = text.parse::<Selector>() else { return };
    let printed: Selector = selector.to_string().parse().expect("a selector prints as one");
    assert_eq!(printed, selector);
    let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    for labels in [labels(&[]), labels(&[("team", "build"), ("arch", "")])] {
        assert_eq!(printed.matches(&labels), selector.matches(&labels));
    }
}

/// Names, sizes and durations print as they are read.
pub(crate) fn units(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    prints_back::<ByteSize>(text);
    prints_back::<Span>(text);
    prints_back::<AgentName>(text);
    prints_back::<FleetName>(text);
    prints_back::<ServiceName>(text);
    prints_back::<TaskName>(text);
    if let Ok(address) = Address::try_from(text.to_owned()) {
        assert_eq!(address.to_string(), text);
    }
}

fn prints_back<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let printed = value.to_string();
        let again = printed.parse::<T>().ok();
        assert_eq!(again.as_ref(), Some(&value), "`{text}` prints as `{printed}`");
    }
}

/// What JSON is read into is the same once written and read again.
pub(crate) fn reads_back<T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else { return };
    let written = serde_json::to_vec(&value).expect("what was JSON is JSON");
    let again = serde_json::from_slice::<T>(&written);
    assert_eq!(again.as_ref().ok(), Some(&value), "{}: {again:?}", String::from_utf8_lossy(&written));
}
