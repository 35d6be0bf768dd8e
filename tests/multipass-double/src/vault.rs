//! The order in which the daemon goes through what instances were made from. It matters: to find out how large an image
//! is that is a file, it looks at the disk of the first instance that was made from such a one, which may run
//! (`DefaultVMImageVault::minimum_image_size_for` of 1.16.3).
//!
//! That is the order of a `std::unordered_map<std::string, VaultRecord>` of libstdc++: one list of all, in which those
//! of a bucket stand together. A new one goes before those of its bucket, and to the front of all if there are none.

use serde::{Deserialize, Serialize};

/// How many buckets there may be; there are more than instances.
const BUCKETS: [u64; 8] = [13, 29, 59, 127, 257, 541, 1109, 2357];

/// What instances were made from, those too that are still being prepared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Vault {
    /// Instances and the digests of their images, in order.
    records: Vec<(String, String)>,
    /// Which of the numbers of buckets it has come to. It never has fewer again.
    grown: usize,
}

impl Vault {
    /// Notes what an instance was made from. Of one that is there already nothing changes.
    pub(crate) fn insert(&mut self, name: &str, digest: &str) {
        if self.records.iter().any(|(other, _)| other == name) {
            return;
        }
        while self.records.len() >= usize::try_from(self.buckets()).unwrap_or(usize::MAX) {
            self.grown += 1;
            for (name, digest) in std::mem::take(&mut self.records) {
                self.put(name, digest);
            }
        }
        self.put(name.to_owned(), digest.to_owned());
    }

    /// Forgets an instance.
    pub(crate) fn remove(&mut self, name: &str) {
        self.records.retain(|(other, _)| other != name);
    }

    /// The first instance with this digest.
    pub(crate) fn first(&self, digest: &str) -> Option<&str> {
        self.records.iter().find(|(_, other)| other == digest).map(|(name, _)| name.as_str())
    }

    /// The same as another daemon reads it: it is written down by the names.
    pub(crate) fn read_anew(&self) -> Self {
        let mut records = self.records.clone();
        records.sort();
        let mut anew = Self::default();
        records.iter().for_each(|(name, digest)| anew.insert(name, digest));
        anew
    }

    fn put(&mut self, name: String, digest: String) {
        let bucket = hash(&name) % self.buckets();
        let place = self.records.iter().position(|(other, _)| hash(other) % self.buckets() == bucket);
        self.records.insert(place.unwrap_or(0), (name, digest));
    }

    fn buckets(&self) -> u64 {
        BUCKETS[self.grown.min(BUCKETS.len() - 1)]
    }
}

/// `std::hash<std::string>` of libstdc++ for 64 bits.
fn hash(text: &str) -> u64 {
    const SEED: u64 = 0xc70f_6907;
    const FACTOR: u64 = 0xc6a4_a793_5bd1_e995;
    let mix = |value: u64| value ^ (value >> 47);
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |word, byte| (word << 8) | u64::from(*byte));
    let mut hash = SEED ^ (text.len() as u64).wrapping_mul(FACTOR);
    let whole = text.as_bytes().chunks_exact(8);
    let rest = whole.remainder();
    for bytes in whole {
        hash ^= mix(word(bytes).wrapping_mul(FACTOR)).wrapping_mul(FACTOR);
        hash = hash.wrapping_mul(FACTOR);
    }
    if !rest.is_empty() {
        hash = (hash ^ word(rest)).wrapping_mul(FACTOR);
    }
    mix(mix(hash).wrapping_mul(FACTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(vault: &Vault) -> Vec<&str> {
        vault.records.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// What a program of C++ told of `std::unordered_map`, compiled by GCC.
    #[test]
    fn the_order_is_that_of_the_table_of_the_real_one() {
        let mut vault = Vault::default();
        let mut insert = |names: &[&str]| {
            names.iter().for_each(|name| vault.insert(&format!("storm1-{name}"), "image"));
            let order: Vec<_> = self::names(&vault).iter().map(|name| name.replace("storm1-", "")).collect();
            order.join(" ")
        };
        let few = ["stranger-1", "stranger-2", "stranger-3", "stranger-4", "a01", "a02", "a03", "a04"];
        assert_eq!(insert(&few), "a04 a02 a01 stranger-4 a03 stranger-3 stranger-2 stranger-1");
        let more: Vec<_> = (5..=20).map(|number| format!("a{number:02}")).collect();
        let order = insert(&more.iter().map(String::as_str).collect::<Vec<_>>());
        let expected = "a19 a17 a16 a15 a14 a12 a20 stranger-1 stranger-2 stranger-3 a03 a08 a13 stranger-4 a11 a07 \
                        a01 a18 a02 a04 a05 a06 a10 a09";
        assert_eq!(order, expected);
    }

    #[test]
    fn the_first_of_an_image_is_mostly_the_last_that_came() {
        let mut vault = Vault::default();
        for name in ["storm1-stranger-3", "storm1-a01", "storm1-a02"] {
            vault.insert(name, "image");
            assert_eq!(vault.first("image"), Some(name));
        }
        vault.insert("storm1-a03", "image");
        assert_eq!(vault.first("image"), Some("storm1-a02"), "it shares a bucket with the first");
        vault.insert("storm1-a03", "another");
        assert_eq!(vault.first("another"), None, "it is there already");
        vault.remove("storm1-a03");
        vault.insert("storm1-a03", "another");
        assert_eq!(vault.first("another"), Some("storm1-a03"));
        assert_eq!(vault.read_anew().first("image"), Some("storm1-stranger-3"));
        assert_eq!(vault.first("none"), None);
    }
}
