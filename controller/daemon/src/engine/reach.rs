//! Host reach: what a fleet lets guests do to the host, and what another fleet would let them do beyond
//! that.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use vm_agent_schemas::fleet::{
    AgentEntry, AgentSpec, CommandLine, DriverName, Fleet, Mount, Network, SecretSource, Webhook, WebhookUrl,
    resolve_entry,
};
use vm_agent_schemas::names::{AgentName, ProfileName};
use vm_agent_schemas::net::Listen;

/// Whom a fleet lets do something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guest {
    /// An agent of the file.
    Agent(AgentName),
    /// Each agent made by hand, under which the file's defaults lie.
    ByHand,
    /// Each agent made by hand that takes this profile.
    From(ProfileName),
}

/// One thing that a fleet lets guests do to the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// A folder of the host is in an agent.
    Mount { agent: Guest, target: String, source: PathBuf, writable: bool },
    /// A secret of the host is in an agent.
    Secret { agent: Guest, variable: String, source: String },
    /// An agent's machine is in a network of the host.
    Network { agent: Guest, network: Network },
    /// An agent runs on the host itself.
    Local { agent: Guest },
    /// A door can be reached from beyond the host.
    Listener { door: &'static str, address: SocketAddr },
    /// The controller tells somebody what happens.
    Webhook { url: WebhookUrl, secret: Option<String> },
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = |agent: &Guest| match agent {
            Guest::Agent(agent) => format!("agent `{agent}`"),
            Guest::ByHand => "each agent made by hand".to_owned(),
            Guest::From(profile) => format!("each agent made by hand from profile `{profile}`"),
        };
        let sentence = match self {
            Self::Mount { agent, target, source, writable } => {
                let verb = if *writable { "write to" } else { "read" };
                format!("{} may {verb} {}, mounted at {target}", who(agent), source.display())
            }
            Self::Secret { agent, variable, source } => {
                format!("{} gets the secret {variable} from {source}", who(agent))
            }
            Self::Network { agent, network } => format!("{} is in the host's network {network}", who(agent)),
            Self::Local { agent } => {
                format!("{} runs on the host itself: driver local isolates nothing", who(agent))
            }
            Self::Listener { door, address } => format!("{door} listens on {address}, beyond loopback"),
            Self::Webhook { url, secret: None } => format!("events are told to {url}"),
            Self::Webhook { url, secret: Some(source) } => {
                format!("events are told to {url}, signed with the secret from {source}")
            }
        };
        // Who is asked for a yes must see all of it, whatever a name does to a terminal.
        f.write_str(&sentence.replace(char::is_control, "\u{fffd}"))
    }
}

/// Everything that a fleet lets guests do to the host. Of several agents on the host itself only the
/// first counts: the others can do nothing that it can't.
#[must_use]
pub fn reach(fleet: &Fleet) -> BTreeSet<Reach> {
    let mut all = BTreeSet::new();
    let by_hand = by_hand(fleet);
    let declared = fleet.agents.iter().map(|(name, agent)| (Guest::Agent(name.clone()), &agent.spec));
    let guests: Vec<(Guest, &AgentSpec)> =
        declared.chain(by_hand.iter().map(|(guest, spec)| (guest.clone(), spec))).collect();
    for (guest, spec) in &guests {
        let mount = |(target, mount): (&String, &Mount)| Reach::Mount {
            agent: guest.clone(),
            target: target.clone(),
            source: mount.source.clone(),
            writable: mount.writable,
        };
        let secret = |(variable, source): (&String, &SecretSource)| Reach::Secret {
            agent: guest.clone(),
            variable: variable.clone(),
            source: origin(source),
        };
        let network = |network: &Network| Reach::Network { agent: guest.clone(), network: network.clone() };
        all.extend(spec.mounts.iter().map(mount));
        all.extend(spec.networks.iter().map(network));
        all.extend(spec.secrets.iter().map(secret));
    }
    let local = guests.iter().find(|(_, spec)| spec.driver == Some(DriverName::Local));
    all.extend(local.map(|(guest, _)| Reach::Local { agent: guest.clone() }));
    let hub = &fleet.hub;
    let doors = [("the hub", hub.listen), ("the API", hub.api_listen), ("the dashboard", hub.dashboard_listen)];
    all.extend(doors.into_iter().filter_map(|(door, listen)| match listen {
        Some(Listen::At(address)) if !address.ip().is_loopback() => Some(Reach::Listener { door, address }),
        Some(Listen::At(_) | Listen::Auto) | None => None,
    }));
    let webhook =
        |webhook: &Webhook| Reach::Webhook { url: webhook.url.clone(), secret: webhook.secret.as_ref().map(origin) };
    all.extend(fleet.webhooks.iter().map(webhook));
    all
}

/// What lies under agents made by hand; of layers that make no agent nothing can come. What every one of them may do is
/// told once, and not again for each profile.
fn by_hand(fleet: &Fleet) -> Vec<(Guest, AgentSpec)> {
    let of = |profile: Option<&ProfileName>| {
        let entry = AgentEntry { profile: profile.cloned(), ..AgentEntry::default() };
        resolve_entry(fleet, &entry).ok().map(|agent| agent.spec)
    };
    let plain = of(None);
    let mut guests: Vec<(Guest, AgentSpec)> = plain.clone().map(|spec| (Guest::ByHand, spec)).into_iter().collect();
    for profile in fleet.profiles.keys() {
        let Some(mut spec) = of(Some(profile)) else { continue };
        if let Some(plain) = &plain {
            spec.mounts.retain(|target, mount| plain.mounts.get(target) != Some(mount));
            spec.networks.retain(|network| !plain.networks.contains(network));
            spec.secrets.retain(|variable, source| plain.secrets.get(variable) != Some(source));
        }
        guests.push((Guest::From(profile.clone()), spec));
    }
    guests
}

/// What a fleet lets guests do that they may not do now.
#[must_use]
pub fn widened(before: &Fleet, after: &Fleet) -> BTreeSet<Reach> {
    let held = reach(before);
    let is_local = held.iter().any(|known| matches!(known, Reach::Local { .. }));
    let is_new = |wanted: &Reach| match wanted {
        Reach::Local { .. } => !is_local,
        // Who may write may read.
        Reach::Mount { agent, target, source, writable: false } => {
            let mount = |writable| Reach::Mount {
                agent: agent.clone(),
                target: target.clone(),
                source: source.clone(),
                writable,
            };
            !held.contains(&mount(false)) && !held.contains(&mount(true))
        }
        _ => !held.contains(wanted),
    };
    reach(after).into_iter().filter(is_new).collect()
}

fn origin(source: &SecretSource) -> String {
    match source {
        SecretSource::Env(name) => format!("the controller's variable {name}"),
        SecretSource::File(path) => format!("the file {}", path.display()),
        SecretSource::Command(CommandLine::Shell(line)) => format!("the command `{line}`"),
        SecretSource::Command(CommandLine::Argv(argv)) => format!("the command {argv:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_schemas::fleet::parse;

    /// What the second file lets guests do beyond the first, in sentences.
    fn beyond(before: &str, after: &str) -> Vec<String> {
        let read = |text: &str| parse("fleet.yaml", text).unwrap_or_else(|problems| panic!("{problems:?}"));
        widened(&read(before), &read(after)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_network_of_the_host_is_told_for_each_agent_that_comes_into_it() {
        let (none, one) = ("agents: {web: {}}", "agents: {web: {networks: [en0]}}");
        assert_eq!(beyond(none, one), ["agent `web` is in the host's network en0"]);
        assert_eq!(beyond(one, none), [""; 0]);
    }

    #[test]
    fn a_new_mount_another_source_and_the_right_to_write_are_each_new() {
        let mounted = |mount: &str| format!("agents: {{web: {{mounts: {{/src: {mount}}}}}}}");
        assert_eq!(beyond("agents: {web: {}}", &mounted("/")), ["agent `web` may read /, mounted at /src"]);
        assert_eq!(beyond(&mounted("/a"), &mounted("/b")), ["agent `web` may read /b, mounted at /src"]);
        let writable = mounted("{source: /a, writable: true}");
        assert_eq!(beyond(&mounted("/a"), &writable), ["agent `web` may write to /a, mounted at /src"]);
        for less in [mounted("/a"), "agents: {web: {}}".to_owned(), "agents: {}".to_owned()] {
            assert_eq!(beyond(&writable, &less), [""; 0], "{less}");
        }
    }

    #[test]
    fn a_secret_is_new_with_its_agent_its_variable_and_its_source() {
        let with = |secrets: &str| format!("agents: {{web: {{secrets: {{{secrets}}}}}}}");
        let before = with("KEY: {env: A}");
        assert_eq!(beyond(&before, &before), [""; 0]);
        assert_eq!(
            beyond(&before, &with("KEY: {env: B}")),
            ["agent `web` gets the secret KEY from the controller's variable B"]
        );
        assert_eq!(
            beyond(&before, &with("KEY: {env: A}, PIN: {file: /etc/pin}")),
            ["agent `web` gets the secret PIN from the file /etc/pin"]
        );
        assert_eq!(
            beyond(&before, &with("KEY: {env: A}, PIN: {command: pass show pin}")),
            ["agent `web` gets the secret PIN from the command `pass show pin`"]
        );
        assert_eq!(beyond(&before, "agents: {db: {secrets: {KEY: {env: A}}}}").len(), 1);
    }

    #[test]
    fn only_the_first_agent_on_the_host_itself_is_new() {
        let one = "agents: {b: {driver: local}}";
        let two = "agents: {a: {driver: local}, b: {driver: local}}";
        assert_eq!(beyond("agents: {b: {}}", two).len(), 1);
        assert_eq!(beyond(one, two), [""; 0]);
        assert_eq!(beyond(one, "agents: {c: {driver: local}}"), [""; 0]);
        assert_eq!(beyond("agents: {b: {}}", "agents: {b: {driver: qemu}}"), [""; 0]);
    }

    #[test]
    fn a_listener_is_new_when_it_is_beyond_loopback() {
        let hub = |keys: &str| format!("hub: {{{keys}}}\nagents: {{}}");
        let open = hub("apiListen: '0.0.0.0:9091'");
        assert_eq!(beyond("agents: {}", &open), ["the API listens on 0.0.0.0:9091, beyond loopback"]);
        assert_eq!(beyond(&open, &open), [""; 0]);
        assert_eq!(beyond("agents: {}", &hub("listen: auto, dashboardListen: '[::1]:0'")), [""; 0]);
    }

    #[test]
    fn a_webhook_is_new_with_its_address_and_its_secret() {
        let hook = |keys: &str| format!("webhooks: [{{url: 'https://example.com/x', {keys}}}]\nagents: {{}}");
        let plain = hook("");
        assert_eq!(beyond("agents: {}", &plain), ["events are told to https://example.com/x"]);
        assert_eq!(
            beyond(&plain, &hook("secret: {env: KEY}")),
            ["events are told to https://example.com/x, signed with the secret from the controller's variable KEY"]
        );
        assert_eq!(beyond(&plain, &hook("events: [TaskEnded]")), [""; 0]);
        assert_eq!(beyond(&plain, "agents: {}"), [""; 0]);
    }

    #[test]
    fn what_a_profile_gives_counts_for_each_of_its_agents() {
        let text = "profiles: {p: {mounts: {/src: /}}}\nagents: {a: {profile: p}, b: {profile: p}}";
        let of = ["agent `a`", "agent `b`", "each agent made by hand from profile `p`"];
        let expected = of.map(|who| format!("{who} may read /, mounted at /src"));
        assert_eq!(beyond("agents: {a: {}, b: {}}", text), expected);
        let under = "defaults: {mounts: {/src: /}}\nprofiles: {p: {cpus: 2}}\nagents: {}";
        assert_eq!(beyond("agents: {}", under), ["each agent made by hand may read /, mounted at /src"]);
    }

    #[test]
    fn defaults_count_for_the_agents_that_are_made_by_hand() {
        let mounted = "defaults: {mounts: {/src: /}}\nagents: {}";
        assert_eq!(beyond("agents: {}", mounted), ["each agent made by hand may read /, mounted at /src"]);
        let local = "defaults: {driver: local}\nagents: {}";
        assert_eq!(beyond("agents: {}", local).len(), 1);
        assert_eq!(beyond("agents: {a: {driver: local}}", local), [""; 0]);
    }
}
