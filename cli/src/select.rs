//! Which agents a command is about: by name, or by their labels.

use std::collections::BTreeMap;

use clap::Args;
use vm_agent_schemas::api::{AgentView, List};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::selector::Selector;

use crate::client::Client;
use crate::exit::{CommandError, Exit};

/// Most replicas that are named to somebody who left their number out.
const REPLICAS_SHOWN: usize = 3;

/// The agents that a selector means. One that should not exist has no labels any more.
pub(crate) fn select(selector: &Selector, agents: &[AgentView]) -> Result<Vec<AgentName>, CommandError> {
    let none = BTreeMap::new();
    let is_meant =
        |agent: &&AgentView| selector.matches(agent.wanted.as_ref().map_or(&none, |wanted| &wanted.spec.labels));
    let names: Vec<AgentName> = agents.iter().filter(is_meant).map(|agent| agent.name.clone()).collect();
    if names.is_empty() {
        let sentence = format!("no agent has labels as `{selector}` says");
        return Err(CommandError::new(Exit::NOT_FOUND, sentence).hint("see their labels: vm-agent list -o wide"));
    }
    Ok(names)
}

/// Agents by name or by label.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Targets {
    /// The agents
    #[arg(value_name = "NAME")]
    names: Vec<AgentName>,
    /// The agents with these labels: KEY=VALUE, KEY!=VALUE, KEY, !KEY, separated by commas
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<Selector>,
}

/// Agents by name or by label, or all of them.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct AnyTargets {
    /// The agents [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<AgentName>,
    /// The agents with these labels: KEY=VALUE, KEY!=VALUE, KEY, !KEY, separated by commas
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<Selector>,
}

impl Targets {
    /// The agents that are meant, each once.
    pub(crate) async fn resolve(&self, client: &Client) -> Result<Vec<AgentName>, CommandError> {
        chosen(&self.names, self.selector.as_ref(), client).await
    }
}

impl AnyTargets {
    /// The agents that are meant, each once; nothing when none are chosen.
    pub(crate) async fn resolve(&self, client: &Client) -> Result<Option<Vec<AgentName>>, CommandError> {
        if self.names.is_empty() && self.selector.is_none() {
            return Ok(None);
        }
        chosen(&self.names, self.selector.as_ref(), client).await.map(Some)
    }
}

async fn chosen(
    names: &[AgentName],
    selector: Option<&Selector>,
    client: &Client,
) -> Result<Vec<AgentName>, CommandError> {
    let Some(selector) = selector else {
        let mut once: Vec<AgentName> = Vec::new();
        for name in names {
            if !once.contains(name) {
                once.push(name.clone());
            }
        }
        return Ok(once);
    };
    select(selector, &client.get::<List<AgentView>>("/agents").await?.content.items)
}

/// That there are all of these agents.
pub(crate) async fn known(client: &Client, names: &[AgentName]) -> Result<(), CommandError> {
    if names.is_empty() {
        return Ok(());
    }
    let agents = client.get::<List<AgentView>>("/agents").await?.content.items;
    let known: Vec<&AgentName> = agents.iter().map(|agent| &agent.name).collect();
    names.iter().find(|name| !known.contains(name)).map_or(Ok(()), |unknown| Err(no_such_agent(unknown, &known)))
}

/// What was said of an agent, with the nearest name where there is no such agent.
pub(crate) async fn about<T>(
    client: &Client,
    name: &AgentName,
    said: Result<T, CommandError>,
) -> Result<T, CommandError> {
    let error = match said {
        Err(error) if error.exit == Exit::NOT_FOUND => error,
        said => return said,
    };
    let Ok(agents) = client.get::<List<AgentView>>("/agents").await else { return Err(error) };
    let known: Vec<&AgentName> = agents.content.items.iter().map(|agent| &agent.name).collect();
    Err(if known.contains(&name) { error } else { no_such_agent(name, &known) })
}

/// That there is no such agent, and which may have been meant.
pub(crate) fn no_such_agent(name: &AgentName, known: &[&AgentName]) -> CommandError {
    let error = CommandError::new(Exit::NOT_FOUND, format!("there is no agent `{name}`"));
    let replicas: Vec<&str> =
        known.iter().map(|known| known.as_str()).filter(|known| is_replica(known, name)).collect();
    if let [first, rest @ ..] = replicas.as_slice() {
        let shown: Vec<&str> = replicas.iter().take(REPLICAS_SHOWN).copied().collect();
        let more = if replicas.len() > shown.len() { " …" } else { "" };
        let verb = if rest.is_empty() { "is a replica" } else { "are replicas" };
        return error.hint(format!("{}{more} {verb} of `{name}`; name one, such as {first}", shown.join(", ")));
    }
    match nearest(name.as_str(), known.iter().map(|known| known.as_str())) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint("see which there are: vm-agent list"),
    }
}

fn is_replica(known: &str, of: &AgentName) -> bool {
    let number = known.strip_prefix(of.as_str()).and_then(|rest| rest.strip_prefix('-'));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The known word nearest to a mistyped one, if any is near.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = |known: &'a str| {
        let distance = strsim::damerau_levenshtein(word, known);
        // Nothing is like a word of which no letter is left.
        (distance < known.len().max(word.len()) && distance <= 1 + known.len() / 4).then_some((distance, known))
    };
    known.filter_map(near).min().map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::{Peer, http};
    use crate::render::samples::{blocked, healthy, name};

    fn labelled(agent: &str, labels: &[(&str, &str)]) -> AgentView {
        let mut agent = healthy(agent);
        let spec = &mut agent.wanted.as_mut().unwrap().spec;
        spec.labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        agent
    }

    fn selected(selector: &str) -> String {
        let agents = [
            labelled("a", &[("team", "web"), ("tier", "1")]),
            labelled("b", &[("team", "db")]),
            labelled("c", &[]),
            blocked("gone"),
        ];
        let names = select(&selector.parse().unwrap(), &agents);
        names.map_or_else(
            |error| format!("{:?}", error.exit),
            |names| names.iter().map(AgentName::as_str).collect::<Vec<_>>().join(" "),
        )
    }

    #[test]
    fn a_selector_means_the_agents_whose_labels_match() {
        assert_eq!(selected("team=web"), "a");
        assert_eq!(selected("team, !tier"), "b");
        assert_eq!(selected("!team"), "c gone");
        assert_eq!(selected("team=nobody"), format!("{:?}", Exit::NOT_FOUND));
    }

    #[test]
    fn an_unknown_name_gets_the_nearest_or_its_replicas() {
        let known: Vec<AgentName> = ["builder", "web-1", "web-2", "web-3", "web-4"].map(name).to_vec();
        let hint = |asked: &str| no_such_agent(&name(asked), &known.iter().collect::<Vec<_>>()).hints()[0].clone();
        assert_eq!(hint("bulider"), "did you mean `builder`?");
        assert_eq!(hint("web"), "web-1, web-2, web-3 … are replicas of `web`; name one, such as web-1");
        assert_eq!(hint("zebra"), "see which there are: vm-agent list");
    }

    #[tokio::test]
    async fn an_agent_that_there_is_keeps_its_error() {
        let peer = Peer::new();
        let agents = http("200 OK", &serde_json::json!({ "items": [healthy("web")] }).to_string());
        for (asked, hints) in [("web", 0), ("wob", 1)] {
            let agent = name(asked);
            let said: Result<(), _> = Err(CommandError::new(Exit::NOT_FOUND, "it has no such task"));
            let (said, _) = tokio::join!(about(&peer.client, &agent, said), peer.answer(&agents));
            assert_eq!(said.unwrap_err().hints().len(), hints);
        }
    }
}
