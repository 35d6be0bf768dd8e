//! What the command `multipass` answers, read leniently: keys may come and go, and other programs may have written
//! something before or behind. What can't be made sense of is an error and never an empty answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde_json::Value;
use vm_agent_schemas::names::SnapshotName;
use vm_agent_schemas::observe::Sizes;
use vm_agent_schemas::units::ByteSize;

/// An answer says nothing that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`multipass {verb}` answered something else than {expected}: {}", shown(.said))]
pub(super) struct Unreadable {
    verb: &'static str,
    expected: &'static str,
    said: String,
}

/// The beginning of an answer, for a sentence.
fn shown(said: &str) -> String {
    const SHOWN: usize = 80;
    let line = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        _ if line.is_empty() => "nothing".to_owned(),
        Some((end, _)) => format!("`{}…`", &line[..end]),
        None => format!("`{line}`"),
    }
}

/// What an instance is doing, in Multipass's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    Running,
    Stopped,
    Deleted,
    /// Also while it reboots by itself.
    Starting,
    /// It runs and will be stopped.
    DelayedShutdown,
    Suspending,
    Suspended,
    /// It lives, and its daemon can't speak to it.
    Unknown,
    /// A word of a version to come.
    Other,
}

impl State {
    fn of(word: &str) -> Self {
        match word {
            "Running" => Self::Running,
            "Stopped" => Self::Stopped,
            "Deleted" => Self::Deleted,
            "Starting" | "Restarting" => Self::Starting,
            "Delayed Shutdown" => Self::DelayedShutdown,
            "Suspending" => Self::Suspending,
            "Suspended" => Self::Suspended,
            "Unknown" => Self::Unknown,
            _ => Self::Other,
        }
    }
}

/// Reads `list --format json`: the instances by their names.
pub(super) fn list(said: &[u8]) -> Result<BTreeMap<String, State>, Unreadable> {
    let error = || unreadable("list", "a list of instances", said);
    let answer = document(said, "list").ok_or_else(error)?;
    let entries = answer["list"].as_array().ok_or_else(error)?;
    let entry = |entry: &Value| {
        // One that has no name could be anybody: then nothing is known.
        let name = entry["name"].as_str().ok_or_else(error)?;
        Ok((name.to_owned(), State::of(entry["state"].as_str().unwrap_or_default())))
    };
    entries.iter().map(entry).collect()
}

/// Reads `list --snapshots --format json`: the snapshots of each instance that has any. One whose name is none of
/// ours is not ours either.
pub(super) fn snapshots(said: &[u8]) -> Result<BTreeMap<String, BTreeSet<SnapshotName>>, Unreadable> {
    let error = || unreadable("list --snapshots", "a list of snapshots", said);
    let answer = document(said, "info").ok_or_else(error)?;
    let instances = answer["info"].as_object().ok_or_else(error)?;
    let names = |snapshots: &Value| {
        snapshots.as_object().into_iter().flatten().filter_map(|(name, _)| name.parse().ok()).collect()
    };
    Ok(instances.iter().map(|(instance, snapshots)| (instance.clone(), names(snapshots))).collect())
}

/// Reads `info NAME --format json`: the folders of the host that are mounted in the instance, by their place in it.
pub(super) fn mounts(said: &[u8], instance: &str) -> Result<BTreeMap<String, PathBuf>, Unreadable> {
    let error = || unreadable("info", "what the instance is", said);
    let answer = document(said, "info").ok_or_else(error)?;
    let mounts = answer["info"].get(instance).ok_or_else(error)?["mounts"].as_object();
    let mount =
        |(place, mount): (&String, &Value)| Some((place.clone(), PathBuf::from(mount["source_path"].as_str()?)));
    Ok(mounts.into_iter().flatten().filter_map(mount).collect())
}

/// Reads of the same what the instance was made from, as far as Multipass still knows.
pub(super) fn image(said: &[u8], instance: &str) -> Option<String> {
    let answer = document(said, "info")?;
    let release = answer["info"].get(instance)?["image_release"].as_str()?;
    // `24.04 LTS` is the image `24.04`.
    release.split_whitespace().next().map(str::to_owned)
}

/// Reads `version --format json`.
pub(super) fn versions(said: &[u8]) -> Result<Versions, Unreadable> {
    let answer = document(said, "multipass").ok_or_else(|| unreadable("version", "its version", said))?;
    let version = |key: &str| answer[key].as_str().and_then(|text| text.parse().ok());
    let client = version("multipass").ok_or_else(|| unreadable("version", "its version", said))?;
    Ok(Versions { client, daemon: version("multipassd") })
}

/// The first JSON object with this key that begins a line. Something may stand before it, or be cut off behind.
fn document(said: &[u8], key: &str) -> Option<Value> {
    let text = String::from_utf8_lossy(said);
    let starts = text.match_indices('{').map(|(at, _)| at);
    let begins =
        starts.filter(|&at| text[..at].chars().next_back().is_none_or(|before| before.is_control() || before == 'E'));
    begins
        .filter_map(|at| serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>().next()?.ok())
        .find(|value| value.get(key).is_some())
}

fn unreadable(verb: &'static str, expected: &'static str, said: &[u8]) -> Unreadable {
    Unreadable { verb, expected, said: String::from_utf8_lossy(said).into_owned() }
}

/// The versions of the command and of its daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The command's.
    pub client: Version,
    /// The daemon's; nothing where it does not answer.
    pub daemon: Option<Version>,
}

impl Versions {
    /// What both of them can do is what the older can do.
    #[must_use]
    pub fn common(&self) -> Version {
        self.daemon.map_or(self.client, |daemon| daemon.min(self.client))
    }
}

/// A version of Multipass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// The version of these numbers.
    #[must_use]
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Whether it takes snapshots.
    #[must_use]
    pub fn has_snapshots(self) -> bool {
        self >= Self::new(1, 13, 0)
    }

    /// Whether it can stop what does not listen.
    #[must_use]
    pub fn has_forced_stop(self) -> bool {
        self >= Self::new(1, 14, 0)
    }

    /// Whether it copies machines.
    #[must_use]
    pub fn has_clones(self) -> bool {
        self >= Self::new(1, 15, 0)
    }

    /// What it lacks that later ones have, each as a sentence's part.
    #[must_use]
    pub fn lacks(self) -> Vec<&'static str> {
        let features = [
            (self.has_snapshots(), "snapshots (1.13)"),
            (self.has_forced_stop(), "a forced stop, so a machine that hangs stays up (1.14)"),
            (self.has_clones(), "clones (1.15)"),
            (self >= Self::new(1, 16, 2), "state files that outlive a loss of power (1.16.2)"),
        ];
        features.into_iter().filter_map(|(has, what)| (!has).then_some(what)).collect()
    }
}

impl FromStr for Version {
    type Err = ();

    /// Reads `1.16.3` and what builds put behind it: `+mac`, `-rc1`, `-dev.12+gabcdef`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let numbers = text.trim().trim_start_matches('v').split(['+', '-']).next().unwrap_or_default();
        let mut numbers = numbers.split('.').map(|number| number.parse::<u32>().map_err(|_| ()));
        let mut next = || numbers.next().unwrap_or(Ok(0));
        let (major, minor, patch) = (next()?, next()?, next()?);
        Ok(Self { major, minor, patch })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Reads a number of processors, as `get` tells it.
pub(super) fn cpus(said: &[u8]) -> Option<u32> {
    String::from_utf8_lossy(said).trim().parse().ok()
}

/// Reads a size, as `get` tells it: rounded to one decimal.
pub(super) fn size(said: &[u8]) -> Option<ByteSize> {
    String::from_utf8_lossy(said).trim().parse().ok()
}

/// The sizes of an instance by what it was given and by what `get` tells of it now: what was given, as long as that
/// could be told so.
pub(super) fn corrected(given: Sizes, told: Sizes) -> Sizes {
    let exact = |given: ByteSize, told: ByteSize| if is_rounded(given, told) { given } else { told };
    Sizes { cpus: told.cpus, memory: exact(given.memory, told.memory), disk: exact(given.disk, told.disk) }
}

/// Whether a size may have been told as this one.
fn is_rounded(exact: ByteSize, told: ByteSize) -> bool {
    let units = [ByteSize::GIB, ByteSize::MIB, ByteSize::KIB, 1];
    let unit = units.into_iter().find(|unit| exact.bytes() >= *unit).unwrap_or(1);
    // Half of a tenth, and as much again because the unit next to it may have been taken.
    exact.bytes().abs_diff(told.bytes()) <= unit / 10
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = include_bytes!("fixtures/list.json");

    #[test]
    fn a_list_is_read_whatever_stands_around_it() {
        let expected = [("ONE", State::DelayedShutdown), ("clkill", State::Running), ("one", State::Stopped)];
        let expected: BTreeMap<_, _> = expected.map(|(name, state)| (name.to_owned(), state)).into();
        assert_eq!(list(LIST).unwrap(), expected);
        let banner = b"A new release is out {see the site}.\n{\"update\": 1}\n";
        assert_eq!(list(&[banner, LIST, b"bye\n"].concat()).unwrap(), expected);
        assert_eq!(list(&[b"\x1b[2K\x1b[0A\x1b[0E", LIST].concat()).unwrap(), expected);
        assert_eq!(list(b"{\"list\": [\n    ]\n}\n").unwrap(), BTreeMap::new());
        let main = br#"{"list":[{"name":"a","state":"Unavailable","zone":{"name":"zone1"}},{"name":"b"}]}"#;
        let expected = [("a", State::Other), ("b", State::Other)].map(|(name, state)| (name.to_owned(), state));
        assert_eq!(list(main).unwrap(), expected.into());
    }

    #[test]
    fn what_is_no_list_is_an_error_and_never_an_empty_one() {
        let cut = &LIST[..LIST.len() / 2];
        for said in
            [b"".as_slice(), cut, b"{}", b"{\"list\": {}}", b"{\"list\": [{\"state\": \"Running\"}]}", b"Name State"]
        {
            assert!(list(said).is_err(), "{}", String::from_utf8_lossy(said));
        }
        assert_eq!(
            list(b" ").unwrap_err().to_string(),
            "`multipass list` answered something else than a list of instances: nothing"
        );
        assert!(list(&[b'x'; 1000]).unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn snapshots_and_mounts_are_read() {
        let found = snapshots(include_bytes!("fixtures/snapshots.json")).unwrap();
        let names: Vec<_> = found["one"].iter().map(SnapshotName::as_str).collect();
        assert_eq!(names, ["base", "snapshot1"]);
        assert!(snapshots(b"{\"errors\": [], \"info\": {\n}}").unwrap().is_empty());
        assert!(snapshots(b"No snapshots found.").is_err());
        let info = include_bytes!("fixtures/info.json");
        assert_eq!(mounts(info, "one").unwrap(), BTreeMap::from([("/mnt/m".to_owned(), "/srv/mp/t/mnt".into())]));
        assert!(mounts(info, "two").is_err());
        assert_eq!((image(info, "one").as_deref(), image(info, "two")), (Some("24.04"), None));
    }

    #[test]
    fn versions_are_told_apart() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        let both = versions(b"{\n    \"multipass\": \"1.16.3+mac\",\n    \"multipassd\": \"1.13.1\"\n}\n").unwrap();
        assert_eq!((both.client, both.daemon), (version("1.16.3"), Some(Version::new(1, 13, 1))));
        assert_eq!(both.common(), Version::new(1, 13, 1));
        assert_eq!(versions(b"{\"multipass\": \"1.17.0-dev.12+gabcdef0\"}").unwrap().daemon, None);
        assert!(versions(b"{\"multipassd\": \"1.16.3\"}").is_err());
        assert!("soon".parse::<Version>().is_err());
        assert!(!version("1.12.2").has_snapshots() && version("1.13").has_snapshots());
        assert!(!version("1.13.1").has_forced_stop() && version("1.14.0").has_forced_stop());
        assert!(!version("1.14.1").has_clones() && version("1.15.0").has_clones());
        assert_eq!(version("1.13.0").lacks().len(), 3);
        assert!(version("1.16.3").lacks().is_empty());
        assert_eq!(version("1.16.3+mac").to_string(), "1.16.3");
    }

    #[test]
    fn sizes_that_were_told_rounded_are_those_that_were_given() {
        let sizes = |cpus, memory: &str, disk: &str| Sizes {
            cpus,
            memory: size(memory.as_bytes()).unwrap(),
            disk: size(disk.as_bytes()).unwrap(),
        };
        let given = sizes(1, "537000000", "5G");
        assert_eq!(corrected(given, sizes(1, "512.1MiB\n", "5.0GiB\n")), given);
        assert_eq!(corrected(given, sizes(2, "600.0MiB", "5.0GiB")), Sizes { cpus: 2, ..sizes(2, "600M", "5G") });
        assert_eq!(cpus(b"2\n"), Some(2));
        assert_eq!(cpus(b"<empty>\n"), None);
    }
}
