//! What a warm start is made for, and whether it still is that. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use vm_agent_schemas::fleet::Provision;
use vm_agent_schemas::guest::{Mac, MachineId};
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::observe::Sizes;

use super::super::machine::Machine;
use crate::images::ImageInfo;

/// How old a warm start becomes before it is made anew. What is in it was the latest when it was made, packages above
/// all.
const AGE_LIMIT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// How long after its last use one is still made anew: nobody needs what was forgotten.
const USE_LIMIT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a warm start is made for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Recipe {
    /// The image, as it was asked for.
    pub(super) image: String,
    /// The sizes.
    pub(super) sizes: Sizes,
    /// What it has besides the runtime.
    pub(super) provision: Provision,
}

/// What becomes of a warm start that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It stays.
    Keep,
    /// It is made anew.
    Renew,
    /// Another takes its place, as what it is made of has changed.
    Replace,
}

impl Recipe {
    /// A machine that stands for all that are made by the recipe, whoever they are.
    pub(super) fn stand_in(&self, image: &Digest) -> Machine {
        let name: InstanceName = "warm".parse().expect("it is a name");
        let machine_id: MachineId = "00000000000000000000000000000001".parse().expect("it is the id of a machine");
        let machine = Machine::of_nobody(&name, self.sizes, image.clone());
        Machine { mac: Mac::of_qemu([0; 3]), machine_id, provision: self.provision.clone(), ..machine }
    }

    /// What it is kept under: the digest of all that counts. `volume` is that of what brings the runtime in, and
    /// `arguments` those of the stand-in's QEMU.
    pub(super) fn key(&self, image: &ImageInfo, volume: &Digest, qemu: &str, arguments: &[String]) -> Digest {
        // An image that was made again is another one, by whatever it was made from: a disk over the old one is
        // not one over the new one.
        Digest::of_json(&(&image.digest, image.made_at, self.sizes, &self.provision, volume, qemu, arguments))
    }
}

/// What becomes of a warm start of this age, last used so long ago, that would be made under the same key or not.
pub(super) fn verdict(age: SignedDuration, unused: Duration, is_same: bool) -> Verdict {
    match (is_same, unused > USE_LIMIT) {
        (_, true) => Verdict::Keep,
        (false, false) => Verdict::Replace,
        (true, false) if age > AGE_LIMIT => Verdict::Renew,
        (true, false) => Verdict::Keep,
    }
}

/// How old something is that was made then.
pub(super) fn age(made_at: Timestamp, now: Timestamp) -> SignedDuration {
    now.duration_since(made_at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use vm_agent_schemas::units::ByteSize;

    fn recipe() -> Recipe {
        let sizes = Sizes { cpus: 1, memory: ByteSize::from_gib(1), disk: ByteSize::from_gib(5) };
        Recipe { image: "debian".to_owned(), sizes, provision: Provision::default() }
    }

    fn image() -> ImageInfo {
        let made_at = "2026-01-01T00:00:00Z".parse().unwrap();
        ImageInfo { digest: Digest::of(b"image"), source: "debian".into(), made_at, disk_size: 1, bytes: 1 }
    }

    #[test]
    fn the_key_is_another_when_anything_that_counts_is() {
        let (volume, arguments) = (Digest::of(b"volume"), ["-cpu".to_owned(), "max".to_owned()]);
        let key = |recipe: &Recipe, image: &ImageInfo| recipe.key(image, &volume, "7.2.0", &arguments);
        let own = key(&recipe(), &image());
        assert_eq!(own, key(&recipe(), &image()));
        assert_eq!(own, key(&Recipe { image: "the same by another name".into(), ..recipe() }, &image()));
        let larger = Sizes { memory: ByteSize::from_gib(2), ..recipe().sizes };
        let with_git = serde_json::from_value(serde_json::json!({"packages": ["git"]})).unwrap();
        let all: BTreeSet<_> = [
            own,
            key(&Recipe { sizes: larger, ..recipe() }, &image()),
            key(&Recipe { provision: with_git, ..recipe() }, &image()),
            key(&recipe(), &ImageInfo { digest: Digest::of(b"other"), ..image() }),
            key(&recipe(), &ImageInfo { made_at: "2026-01-02T00:00:00Z".parse().unwrap(), ..image() }),
            recipe().key(&image(), &Digest::of(b"another runtime"), "7.2.0", &arguments),
            recipe().key(&image(), &volume, "8.0.0", &arguments),
            recipe().key(&image(), &volume, "7.2.0", &arguments[..1]),
        ]
        .into();
        assert_eq!(all.len(), 8);
    }

    #[test]
    fn the_stand_in_is_always_the_same_but_for_its_nonce() {
        let stand_in = |name: &[u8]| recipe().stand_in(&Digest::of(name));
        let (one, other) = (stand_in(b"image"), stand_in(b"image"));
        assert_eq!(Machine { nonce: one.nonce.clone(), ..other }, one);
    }

    #[test]
    fn what_is_old_or_would_be_another_is_made_anew_unless_nobody_needs_it() {
        let (day, days) = (SignedDuration::from_hours(24), |days: u64| Duration::from_secs(days * 24 * 3600));
        assert_eq!(verdict(day, days(0), true), Verdict::Keep);
        assert_eq!(verdict(day * 8, days(1), true), Verdict::Renew);
        assert_eq!(verdict(day, days(1), false), Verdict::Replace);
        assert_eq!(verdict(day * 8, days(8), true), Verdict::Keep);
        assert_eq!(verdict(day * 8, days(8), false), Verdict::Keep);
        // A clock that was set back makes nothing old.
        assert_eq!(verdict(-day, days(0), true), Verdict::Keep);
    }
}
