//! One fleet from several files.

use std::collections::BTreeMap;

use super::file::FleetFile;

/// A key, an agent or a profile that is in two files.
#[derive(Debug)]
pub(super) struct Repeat {
    pub(super) path: Vec<String>,
    /// The file that has it first, by its index.
    pub(super) first: usize,
    /// The file that has it too.
    pub(super) second: usize,
}

/// The files as one, and what is in two of them. `keys` are those at the top of each file.
pub(super) fn unite(files: Vec<(FleetFile, Vec<&str>)>) -> (FleetFile, Vec<Repeat>) {
    let mut united = FleetFile::default();
    let mut repeats = Vec::new();
    let (mut agents, mut profiles, mut others) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (index, (mut file, keys)) in files.into_iter().enumerate() {
        let mut repeat = |path: &[&str], first: usize| {
            let path = path.iter().map(|&part| part.to_owned()).collect();
            repeats.push(Repeat { path, first, second: index });
        };
        for (name, entry) in std::mem::take(&mut file.agents) {
            match agents.insert(name.clone(), index) {
                Some(first) => repeat(&["agents", name.as_str()], first),
                None => drop(united.agents.insert(name, entry)),
            }
        }
        for (name, entry) in std::mem::take(&mut file.profiles) {
            match profiles.insert(name.clone(), index) {
                Some(first) => repeat(&["profiles", name.as_str()], first),
                None => drop(united.profiles.insert(name, entry)),
            }
        }
        let mut own: Vec<&str> = keys.into_iter().filter(|key| !matches!(*key, "agents" | "profiles")).collect();
        own.retain(|&key| match others.get(key) {
            Some(first) => {
                repeat(&[key], *first);
                false
            }
            None => others.insert(key.to_owned(), index).is_none(),
        });
        take(&mut united, file, &own);
    }
    (united, repeats)
}

/// Takes the keys that a file has. A key of [`FleetFile`] that is missing here does not compile.
fn take(united: &mut FleetFile, file: FleetFile, keys: &[&str]) {
    let FleetFile { name, agents: _, defaults, profiles: _, limits, prune, hub, windows, messages, webhooks } = file;
    let has = |key: &str| keys.contains(&key);
    if has("name") {
        united.name = name;
    }
    if has("defaults") {
        united.defaults = defaults;
    }
    if has("limits") {
        united.limits = limits;
    }
    if has("prune") {
        united.prune = prune;
    }
    if has("hub") {
        united.hub = hub;
    }
    if has("windows") {
        united.windows = windows;
    }
    if has("messages") {
        united.messages = messages;
    }
    if has("webhooks") {
        united.webhooks = webhooks;
    }
}
