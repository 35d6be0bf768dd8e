//! Which layer of an agent a contradiction was written in.

use std::collections::BTreeSet;

use super::diagnostic::Finding;
use super::file::FleetFile;

/// Moves a finding about a field of an agent to the profile or the defaults that say it, when the agent
/// itself does not. `reach` says how much of a path was written.
pub(super) fn where_written(file: &FleetFile, finding: Finding, reach: impl Fn(&[String]) -> Option<usize>) -> Finding {
    let [top, _, rest @ ..] = finding.path.as_slice() else { return finding };
    if top != "agents" || rest.is_empty() {
        return finding;
    }
    let at = |layer: &[String]| -> Vec<String> { layer.iter().chain(rest).cloned().collect() };
    let layers = layers(file, &finding.path[..2]);
    // The first that says all of it, else the first that says the key.
    let says = |layer: &&Vec<String>, length: usize| reach(&at(layer)) >= Some(layer.len() + length);
    let layer =
        layers.iter().find(|layer| says(layer, rest.len())).or_else(|| layers.iter().find(|layer| says(layer, 1)));
    match layer.map(|layer| at(layer)) {
        Some(path) => Finding { path, ..finding },
        None => finding,
    }
}

/// The paths of an agent's layers, highest first.
fn layers(file: &FleetFile, agent: &[String]) -> Vec<Vec<String>> {
    let entry = agent.last().and_then(|name| file.agents.get(name.as_str()));
    let defaults = file.defaults.as_ref();
    let mut layers = vec![agent.to_vec()];
    let mut seen = BTreeSet::new();
    let mut wanted = entry.and_then(|entry| entry.profile.as_ref()).or_else(|| defaults?.profile.as_ref());
    while let Some(name) = wanted.filter(|name| seen.insert(name.as_str())) {
        layers.push(vec!["profiles".to_owned(), name.to_string()]);
        wanted = file.profiles.get(name).and_then(|profile| profile.profile.as_ref());
    }
    layers.push(vec!["defaults".to_owned()]);
    layers
}
