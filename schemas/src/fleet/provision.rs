//! What a machine gets at its birth besides its runtime, and has for as long as it lives.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::file::DriverName;
use super::resolve::AgentSpec;

/// The user of a machine that everything in an agent runs as, where nobody says otherwise.
pub const RUNTIME_USER: &str = "vm-agent";

/// The word for the image that a driver takes by itself.
pub const DEFAULT_IMAGE: &str = "default";

/// The image that driver `qemu` builds out of Debian's packages.
pub const DEBIAN_IMAGE: &str = "debian";

/// The same with cloud-init in it.
pub const DEBIAN_CLOUD_IMAGE: &str = "debian+cloud-init";

/// What a machine gets at its birth.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Provision {
    /// The user that everything in it runs as; nothing means [`RUNTIME_USER`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserName>,
    /// Whether that user may become root.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sudo: bool,
    /// Packages of its distribution.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub packages: BTreeSet<Package>,
    /// What its cloud-init is told besides.
    #[serde(skip_serializing_if = "CloudInit::is_empty")]
    pub cloud_init: CloudInit,
    /// Networks of the host that it is in, besides its driver's own.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub networks: BTreeSet<Network>,
}

impl Provision {
    /// The keys of the fleet file that say something of it, in the order in which people read them.
    pub const KEYS: [&str; 5] = ["user", "sudo", "packages", "cloudInit", "networks"];

    /// What a spec says of it.
    #[must_use]
    pub fn of(spec: &AgentSpec) -> Self {
        Self {
            user: spec.user.clone(),
            sudo: spec.sudo,
            packages: spec.packages.clone(),
            cloud_init: spec.cloud_init.clone(),
            networks: spec.networks.clone(),
        }
    }

    /// The first key that says something of this.
    fn first_key(&self) -> Option<&'static str> {
        let said = [
            self.user.is_some(),
            self.sudo,
            !self.packages.is_empty(),
            !self.cloud_init.is_empty(),
            !self.networks.is_empty(),
        ];
        Self::KEYS.into_iter().zip(said).find_map(|(key, is_said)| is_said.then_some(key))
    }

    /// The user that everything in the machine runs as.
    #[must_use]
    pub fn user(&self) -> &str {
        self.user.as_ref().map_or(RUNTIME_USER, UserName::as_str)
    }

    /// Whether the machine has work to do before its runtime may start. Not every image has a sudo.
    #[must_use]
    pub fn takes_time(&self) -> bool {
        self.sudo || !self.packages.is_empty() || !self.cloud_init.is_empty()
    }

    /// What of it can't be had on a driver with an image, as far as that is known before a machine is made:
    /// the key, and a sentence.
    #[must_use]
    pub fn obstacle(&self, driver: Option<DriverName>, image: &str) -> Option<(&'static str, String)> {
        match driver {
            Some(DriverName::Local) => {
                let key = self.first_key()?;
                Some((key, format!("driver `local` makes no machine, and `{key}` would change this host")))
            }
            Some(DriverName::Qemu) if !self.networks.is_empty() => {
                let message =
                    "machines of driver `qemu` are in no network of the host; `vm-agent forward` reaches their ports";
                Some(("networks", message.to_owned()))
            }
            Some(DriverName::Qemu) if !self.cloud_init.is_empty() && [DEFAULT_IMAGE, DEBIAN_IMAGE].contains(&image) => {
                let message = format!(
                    "there is no cloud-init in the image `{image}` of driver `qemu`; write `image: {DEBIAN_CLOUD_IMAGE}`, \
                     or another that has it"
                );
                Some(("cloudInit", message))
            }
            _ => None,
        }
    }
}

/// Why a text or a map can't stand where it does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProvision {
    /// It names no user.
    #[error(
        "`{0}` is no name of a user: a small letter or `_`, then small letters, digits, `-` and `_`, at most 32 in all"
    )]
    User(String),
    /// It is the superuser.
    #[error("nothing runs as `root` from its beginning; write `sudo: true` where the agent has to become root")]
    Root,
    /// It names no package.
    #[error("`{0}` is no name of a package: letters, digits, `.`, `+`, `-`, `_`, and a version behind a `=`")]
    Package(String),
    /// It names no network.
    #[error(
        "`{0}` is no name of a network: no `,`, no `=` and nothing that can't be seen, and no `-` at its beginning"
    )]
    Network(String),
    /// What ours is needed for.
    #[error("`{key}` can't be set in `cloudInit`: {reason}")]
    Reserved {
        /// The key of cloud-init.
        key: String,
        /// Why.
        reason: &'static str,
    },
}

/// The name of a user in a machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

impl UserName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserName {
    type Err = InvalidProvision;
    fn from_str(text: &str) -> Result<Self, InvalidProvision> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
        let rest = text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'));
        match text {
            "root" => Err(InvalidProvision::Root),
            _ if first && rest && text.len() <= 32 => Ok(Self(text.to_owned())),
            _ => Err(InvalidProvision::User(text.to_owned())),
        }
    }
}

/// A package of a machine's distribution, by its name; a version may stand behind a `=`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Package(String);

impl Package {
    /// The name, with its version where it has one.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Package {
    type Err = InvalidProvision;
    fn from_str(text: &str) -> Result<Self, InvalidProvision> {
        // Nothing that a package manager or a shell would take for anything else, and no option.
        let part = |part: &str, more: &[u8]| {
            part.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
        };
        let is_package = match text.split_once('=') {
            Some((name, version)) => part(name, b".+-_:") && part(version, b".+-_:~"),
            None => part(text, b".+-_:"),
        };
        if is_package && text.len() <= 256 {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidProvision::Package(text.to_owned()))
        }
    }
}

/// A network of the host, by the name that its driver has for it, such as `en0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(String);

impl Network {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Network {
    type Err = InvalidProvision;
    fn from_str(text: &str) -> Result<Self, InvalidProvision> {
        let is_name = !text.is_empty()
            && text.len() <= 64
            && !text.starts_with('-')
            && text.trim() == text
            && text.chars().all(|c| !c.is_control() && !matches!(c, ',' | '='));
        if is_name { Ok(Self(text.to_owned())) } else { Err(InvalidProvision::Network(text.to_owned())) }
    }
}

macro_rules! text {
    ($type:ident, $pattern:literal, $example:literal) => {
        impl TryFrom<String> for $type {
            type Error = InvalidProvision;
            fn try_from(text: String) -> Result<Self, InvalidProvision> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from($type(text): $type) -> Self {
                text
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "pattern": $pattern, "examples": [$example]})
            }
        }
    };
}

text!(UserName, "^[a-z_][a-z0-9_-]{0,31}$", "dev");
text!(Network, "^[^-,=\\s]([^,=]*[^,=\\s])?$", "en0");
text!(Package, "^[A-Za-z0-9][A-Za-z0-9.+_:-]*(=[A-Za-z0-9][A-Za-z0-9.+_:~-]*)?$", "git");

/// What cloud-init is told besides what brings the runtime: its modules' keys with their values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, Value>", into = "BTreeMap<String, Value>")]
pub struct CloudInit(BTreeMap<String, Value>);

/// What can't be set, with the reason.
const RESERVED: [(&str, &str); 7] = [
    ("hostname", "the host name is that of the instance"),
    ("fqdn", "the host name is that of the instance"),
    ("prefer_fqdn_over_hostname", "the host name is that of the instance"),
    ("preserve_hostname", "the host name is that of the instance"),
    ("cloud_init_modules", "the runtime is installed by one of them"),
    ("datasource_list", "the configuration comes from the seed disk"),
    ("power_state", "a machine that goes down by itself counts as crashed"),
];

/// What others add to as well.
const LISTS: [&str; 2] = ["bootcmd", "packages"];

impl CloudInit {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its keys with their values.
    #[must_use]
    pub const fn keys(&self) -> &BTreeMap<String, Value> {
        &self.0
    }

    /// Lays another over it, key by key.
    pub(super) fn lay(&mut self, above: &Self) -> bool {
        self.0.extend(above.0.clone());
        !above.0.is_empty()
    }
}

impl TryFrom<BTreeMap<String, Value>> for CloudInit {
    type Error = InvalidProvision;
    fn try_from(keys: BTreeMap<String, Value>) -> Result<Self, InvalidProvision> {
        let reserved = |key: &str, reason| InvalidProvision::Reserved { key: key.to_owned(), reason };
        for (key, reason) in RESERVED {
            if keys.contains_key(key) {
                return Err(reserved(key, reason));
            }
        }
        for key in LISTS {
            if keys.get(key).is_some_and(|value| !value.is_array()) {
                return Err(reserved(
                    key,
                    "there are others in it already, and yours has to be a list to stand behind them",
                ));
            }
        }
        Ok(Self(keys))
    }
}

impl From<CloudInit> for BTreeMap<String, Value> {
    fn from(CloudInit(keys): CloudInit) -> Self {
        keys
    }
}

impl JsonSchema for CloudInit {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CloudInit".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "object", "additionalProperties": true})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn users_and_packages_are_names_and_never_options_or_words_for_a_shell() {
        for name in ["dev", "_apt", "build-bot_2"] {
            assert_eq!(name.parse::<UserName>().unwrap().as_str(), name);
        }
        for name in ["", "Dev", "1st", "-x", "a b", "a;b", "é", &"a".repeat(33)] {
            assert_eq!(name.parse::<UserName>(), Err(InvalidProvision::User(name.to_owned())));
        }
        assert!("root".parse::<UserName>().unwrap_err().to_string().contains("`sudo: true`"));
        for name in [
            "git",
            "g++",
            "libstdc++6",
            "python3.11",
            "gcc:arm64",
            "ripgrep=13.0.0-4+b2",
            "a=1:2~rc1",
            "NetworkManager",
        ] {
            assert_eq!(name.parse::<Package>().unwrap().as_str(), name);
        }
        for name in ["", "-y", "--reinstall", "a b", "a;b", "a=", "=1", "a=-1", "../x", "$(id)", "a/b", "a\n"] {
            assert_eq!(name.parse::<Package>(), Err(InvalidProvision::Package(name.to_owned())));
        }
    }

    #[test]
    fn what_ours_is_needed_for_can_not_be_told_to_cloud_init() {
        let read = |value: Value| serde_json::from_value::<CloudInit>(value).map_err(|error| error.to_string());
        for (key, reason) in RESERVED {
            let error = read(json!({ key: true })).unwrap_err();
            assert!(error.contains(key) && error.contains(reason), "{error}");
        }
        assert!(read(json!({"bootcmd": "echo early"})).unwrap_err().contains("a list"));
        assert!(read(json!({"bootcmd": ["echo early"], "write_files": [{"path": "/etc/motd"}]})).is_ok());
    }

    #[test]
    fn what_a_driver_can_not_give_is_known_before_a_machine_is_made() {
        let cloud_init = serde_json::from_value(json!({"runcmd": ["true"]})).unwrap();
        let provision = Provision { cloud_init, user: Some("dev".parse().unwrap()), ..Provision::default() };
        let key = |driver, image| provision.obstacle(driver, image).map(|(key, _)| key);
        assert_eq!(key(Some(DriverName::Local), DEFAULT_IMAGE), Some("user"));
        assert_eq!(key(Some(DriverName::Qemu), DEFAULT_IMAGE), Some("cloudInit"));
        assert_eq!(key(Some(DriverName::Qemu), DEBIAN_IMAGE), Some("cloudInit"));
        assert_eq!(key(Some(DriverName::Qemu), DEBIAN_CLOUD_IMAGE), None);
        assert_eq!(key(Some(DriverName::Qemu), "/disks/cloud.qcow2"), None);
        assert_eq!(key(Some(DriverName::Multipass), DEFAULT_IMAGE), None);
        assert_eq!(key(None, DEFAULT_IMAGE), None);
        assert_eq!(Provision::default().obstacle(Some(DriverName::Local), DEFAULT_IMAGE), None);
    }
}
