//! What a seed asks of a machine. Pure: everything that counts is handed in.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use vm_agent_schemas::guest::{Identity, Mac, MachineId};
use vm_agent_schemas::names::InstanceName;

use super::life::Life;

/// How far the clock may be behind: less is left to whatever keeps the time inside, and setting a clock is seen by
/// every program that reads it.
const BEHIND_TOLERANCE: SignedDuration = SignedDuration::from_secs(2);

/// How far the clock may be ahead. What is told was the time when it was said, and it may have waited until the
/// machine was up: a clock that is ahead of it by as much as that may well be right.
const AHEAD_TOLERANCE: SignedDuration = SignedDuration::from_mins(10);

/// What a seed is to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// One that has been overtaken.
    Stale,
    /// The one that it has.
    Same,
    /// The life that it leads, with another address or join token: the runtime reads those by itself.
    Renew,
    /// Another life.
    Begin,
}

/// Compares a seed with what is known of the last one.
pub(super) fn judge(known: Option<&Life>, new: &Life) -> Verdict {
    let Some(known) = known else { return Verdict::Begin };
    let same_agent = (&known.fleet, &known.agent) == (&new.fleet, &new.agent);
    if known.seed == new.seed {
        Verdict::Same
    } else if same_agent && new.incarnation < known.incarnation {
        Verdict::Stale
    } else if same_agent && (new.incarnation, &new.nonce) == (known.incarnation, &known.nonce) {
        Verdict::Renew
    } else {
        Verdict::Begin
    }
}

/// A machine's identity as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Present {
    /// The host name that the kernel has; nothing where it can't be read.
    pub(super) hostname: Option<String>,
    /// The one that the next boot would have.
    pub(super) kept_hostname: Option<String>,
    /// Which addresses names have, as the machine's own list of hosts says; empty where there is none.
    pub(super) hosts: String,
    /// The machine id.
    pub(super) machine_id: Option<MachineId>,
    /// The cards that reach outside, with their addresses, in order of their names.
    pub(super) cards: Vec<(String, Option<Mac>)>,
    /// The time.
    pub(super) now: Timestamp,
}

/// A difference that is to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// The host name is to be this one.
    Hostname(InstanceName),
    /// The list of hosts is to be this one.
    Hosts(String),
    /// The machine id is to be this one.
    MachineId(MachineId),
    /// The clock is to show this time.
    Clock(Timestamp),
    /// The card is to have this address.
    Mac(String, Mac),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hostname(name) => write!(f, "the host name becomes {name}"),
            Self::Hosts(_) => f.write_str("the machine's own names get addresses"),
            Self::MachineId(id) => write!(f, "the machine id becomes {id}"),
            Self::Clock(time) => write!(f, "the clock is set to {time}"),
            Self::Mac(card, mac) => write!(f, "the address of {card} becomes {mac}"),
        }
    }
}

/// What has to change for a machine to have an identity, the clock first.
pub(super) fn changes(identity: &Identity, present: &Present) -> Vec<Change> {
    let mut changes = Vec::new();
    let behind = identity.time.duration_since(present.now);
    if behind > BEHIND_TOLERANCE || -behind > AHEAD_TOLERANCE {
        changes.push(Change::Clock(identity.time));
    }
    let wanted = Some(identity.hostname.as_str());
    if present.hostname.as_deref() != wanted || present.kept_hostname.as_deref() != wanted {
        changes.push(Change::Hostname(identity.hostname.clone()));
    }
    let hosts = hosts(&present.hosts, &identity.hostname);
    if present.hosts != hosts {
        changes.push(Change::Hosts(hosts));
    }
    if present.machine_id.as_ref() != Some(&identity.machine_id) {
        changes.push(Change::MachineId(identity.machine_id.clone()));
    }
    if let Some(mac) = &identity.mac
        && let Some((first, _)) = present.cards.first()
        && !present.cards.iter().any(|(_, has)| has.as_ref() == Some(mac))
    {
        changes.push(Change::Mac(first.clone(), mac.clone()));
    }
    changes
}

/// Where a machine says by itself which address its own name has, so that it does not take a name server to find it.
/// Debian's installer uses this one for a machine that has no steady address.
const OWN_ADDRESS: &str = "127.0.1.1";

/// A list of hosts in which a machine finds itself. What others have written stays, also where it says so otherwise.
fn hosts(present: &str, name: &InstanceName) -> String {
    let name = name.as_str();
    let names = |line: &str, name: &str| {
        let content = line.split('#').next().unwrap_or_default();
        content.split_whitespace().skip(1).any(|named| named == name)
    };
    let mut lines: Vec<String> = present
        .lines()
        .filter(|line| line.split_whitespace().next() != Some(OWN_ADDRESS) || names(line, name))
        .map(str::to_owned)
        .collect();
    if !lines.iter().any(|line| names(line, "localhost")) {
        lines.insert(0, "127.0.0.1 localhost".to_owned());
        lines.insert(1, "::1 localhost ip6-localhost ip6-loopback".to_owned());
    }
    if !lines.iter().any(|line| names(line, name)) {
        lines.push(format!("{OWN_ADDRESS} {name}"));
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_schemas::guest::Entropy;
    use vm_agent_schemas::ids::{Incarnation, Nonce};

    fn life() -> Life {
        Life::of(&crate::identity::tests::seed(), None, &identity().machine_id)
    }

    #[test]
    fn a_seed_is_judged_by_the_life_that_it_is_of() {
        let known = Life { incarnation: Incarnation(4), ..life() };
        let other = |change: fn(&mut Life)| {
            let mut new = Life { seed: life().seed, ..known.clone() };
            change(&mut new);
            judge(Some(&known), &new)
        };
        assert_eq!(judge(None, &known), Verdict::Begin);
        assert_eq!(judge(Some(&known), &known), Verdict::Same);
        assert_eq!(other(|_| ()), Verdict::Renew);
        assert_eq!(other(|new| new.incarnation = Incarnation(5)), Verdict::Begin);
        assert_eq!(other(|new| new.incarnation = Incarnation(3)), Verdict::Stale);
        assert_eq!(other(|new| new.nonce = Nonce::generate()), Verdict::Begin);
    }

    #[test]
    fn a_copy_that_becomes_another_agent_begins_whatever_its_number() {
        let known = Life { incarnation: Incarnation(4), ..life() };
        let clone = Life { agent: "other".parse().unwrap(), incarnation: Incarnation(1), ..life() };
        assert_eq!(judge(Some(&known), &clone), Verdict::Begin);
    }

    fn identity() -> Identity {
        Identity {
            hostname: "web".parse().unwrap(),
            machine_id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            mac: Some(Mac::of_qemu([1, 2, 3])),
            time: "2026-01-02T03:04:05Z".parse().unwrap(),
            entropy: Entropy::generate(),
        }
    }

    /// A machine that is what the identity says.
    fn settled() -> Present {
        let identity = identity();
        Present {
            hostname: Some("web".to_owned()),
            kept_hostname: Some("web".to_owned()),
            hosts: "127.0.0.1 localhost\n127.0.1.1 web\n".to_owned(),
            machine_id: Some(identity.machine_id),
            cards: vec![("ens3".to_owned(), None), ("ens4".to_owned(), identity.mac)],
            now: identity.time,
        }
    }

    #[test]
    fn nothing_changes_where_nothing_differs() {
        assert_eq!(changes(&identity(), &settled()), []);
        let two_seconds = SignedDuration::from_secs(2);
        let minutes = SignedDuration::from_mins(10);
        for now in [identity().time + two_seconds, identity().time + minutes, identity().time - two_seconds] {
            assert_eq!(changes(&identity(), &Present { now, ..settled() }), []);
        }
    }

    #[test]
    fn each_difference_is_removed_alone() {
        let wanted = identity();
        let only = |change: fn(&mut Present)| {
            let mut present = settled();
            change(&mut present);
            changes(&wanted, &present)
        };
        let hostname = [Change::Hostname(wanted.hostname.clone())];
        assert_eq!(only(|present| present.hostname = Some("localhost".to_owned())), hostname);
        assert_eq!(only(|present| present.kept_hostname = None), hostname);
        let machine_id = Change::MachineId(wanted.machine_id.clone());
        assert_eq!(only(|present| present.machine_id = None), [machine_id]);
        let clock = [Change::Clock(wanted.time)];
        assert_eq!(only(|present| present.now -= SignedDuration::from_millis(2001)), clock);
        assert_eq!(only(|present| present.now += SignedDuration::from_secs(601)), clock);
        let hosts = Change::Hosts("127.0.0.1 localhost\n127.0.1.1 web\n".to_owned());
        assert_eq!(only(|present| present.hosts = "127.0.0.1 localhost\n127.0.1.1 former\n".to_owned()), [hosts]);
        let mac = Change::Mac("ens3".to_owned(), wanted.mac.clone().unwrap());
        assert_eq!(only(|present| present.cards[1].1 = None), [mac]);
    }

    #[test]
    fn a_machine_finds_itself_and_what_others_wrote_stays() {
        let name = "web".parse().unwrap();
        let fresh = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 web\n";
        assert_eq!(hosts("", &name), fresh);
        assert_eq!(hosts(fresh, &name), fresh);
        let cloud = "# by cloud-init\n127.0.1.1 web.local web\n127.0.0.1 localhost\n";
        assert_eq!(hosts(cloud, &name), cloud);
        let own = "127.0.0.1 localhost # not web\n10.0.0.5 db\n";
        assert_eq!(hosts(own, &name), format!("{own}127.0.1.1 web\n"));
        let elsewhere = "127.0.0.1 localhost\n10.0.0.7 web\n";
        assert_eq!(hosts(elsewhere, &name), elsewhere);
    }

    #[test]
    fn a_machine_without_a_card_and_an_identity_without_an_address_change_none() {
        assert_eq!(changes(&identity(), &Present { cards: Vec::new(), ..settled() }), []);
        let present = Present { cards: vec![("ens3".to_owned(), None)], ..settled() };
        assert_eq!(changes(&Identity { mac: None, ..identity() }, &present), []);
    }
}
