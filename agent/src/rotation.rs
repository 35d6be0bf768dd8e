//! The runtime's key, and how another takes its place.
//!
//! The files say how far that is, and each step is one file written or renamed; so wherever a crash comes,
//! there is a key that the hub knows:
//!
//! | files | which key the next hello uses |
//! |---|---|
//! | `key` | that one |
//! | `key`, `key.next` | the old one: the hub may or may not know the other |
//! | `key`, `key.acked` | the new one: the hub has stored it. Until it got a welcome the old one is kept |
//!
//! Should the hub refuse one of two keys all the same (its state came from a copy), the other is tried.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use vm_agent_schemas::ids::Incarnation;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::{Challenge, Rotated, rotation_bytes};

use crate::folder::{Folder, FolderError, failed, read_if_there, remove, sync_dir, write};

/// The private key, PKCS#8.
pub(crate) const KEY_FILE: &str = "key";
/// The next one, of which it is not known whether the hub knows it.
pub(crate) const NEXT_FILE: &str = "key.next";
/// The next one, once the hub has stored it.
pub(crate) const ACKED_FILE: &str = "key.acked";

/// The runtime's keys.
#[derive(Debug)]
pub(crate) struct Keys {
    folder: PathBuf,
    key: Arc<Ed25519KeyPair>,
    next: Option<Next>,
    /// Whether the hub has refused the key whose turn it was.
    refused: bool,
}

/// A key that is to take the place of the other.
#[derive(Debug)]
struct Next {
    key: Arc<Ed25519KeyPair>,
    acked: bool,
}

impl Keys {
    /// Reads the keys; makes the first one at the first start.
    pub(crate) fn load(folder: &Folder) -> Result<Self, FolderError> {
        let key = parse(&folder.key(generate)?, folder, KEY_FILE)?;
        let mut next = None;
        for (name, acked) in [(NEXT_FILE, false), (ACKED_FILE, true)] {
            if let Some(document) = read_if_there(&folder.path().join(name))? {
                next = Some(Next { key: parse(&document, folder, name)?, acked });
            }
        }
        Ok(Self { folder: folder.path().to_owned(), key, next, refused: false })
    }

    /// The key whose turn it is.
    pub(crate) fn current(&self) -> &Arc<Ed25519KeyPair> {
        match &self.next {
            Some(next) if next.acked != self.refused => &next.key,
            _ => &self.key,
        }
    }

    /// Answers a challenge with another key. One that was made before and never used will do.
    pub(crate) fn rotate(
        &mut self,
        challenge: &Challenge,
        agent: &AgentName,
        incarnation: Incarnation,
    ) -> Result<Rotated, FolderError> {
        let next = match self.next.take() {
            Some(next) => next,
            None => {
                let document = generate();
                write(&self.folder.join(NEXT_FILE), &document)?;
                let key = Ed25519KeyPair::from_pkcs8(&document).expect("it was made just now");
                Next { key: Arc::new(key), acked: false }
            }
        };
        let public_key = public(&next.key);
        let signature = next.key.sign(&rotation_bytes(challenge, agent, incarnation, &public_key));
        self.next = Some(next);
        Ok(Rotated { public_key, signature: URL_SAFE_NO_PAD.encode(signature) })
    }

    /// The hub has stored a key: from the next hello on it is used.
    pub(crate) fn acknowledged(&mut self, public_key: &str) -> Result<(), FolderError> {
        match &mut self.next {
            Some(next) if !next.acked && public(&next.key) == public_key => {
                next.acked = true;
                self.refused = false;
                self.rename(NEXT_FILE, ACKED_FILE)
            }
            _ => Ok(()),
        }
    }

    /// The hub has welcomed the key whose turn it was.
    pub(crate) fn welcomed(&mut self) -> Result<(), FolderError> {
        let Some(next) = self.next.take() else { return Ok(()) };
        let from = if next.acked { ACKED_FILE } else { NEXT_FILE };
        if next.acked != self.refused {
            self.key = next.key;
            self.refused = false;
            return self.rename(from, KEY_FILE);
        }
        // It was the old one. The other may be asked for again.
        self.next = Some(Next { acked: false, ..next });
        self.refused = false;
        if from == ACKED_FILE { self.rename(ACKED_FILE, NEXT_FILE) } else { Ok(()) }
    }

    /// Makes another key at once, in the place of all that there are: the hub knows none of them any more.
    pub(crate) fn renew(&mut self) -> Result<(), FolderError> {
        let document = generate();
        let key = Ed25519KeyPair::from_pkcs8(&document).expect("it was made just now");
        // Those that were to come go first: after a crash there is the old one, and it is renewed again.
        for name in [NEXT_FILE, ACKED_FILE] {
            remove(&self.folder.join(name))?;
        }
        write(&self.folder.join(KEY_FILE), &document)?;
        (self.key, self.next, self.refused) = (Arc::new(key), None, false);
        Ok(())
    }

    /// The hub has refused the key whose turn it was. Answers whether there is another one to try.
    pub(crate) const fn refused(&mut self) -> bool {
        self.refused = self.next.is_some() && !self.refused;
        self.refused
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), FolderError> {
        let to = self.folder.join(to);
        fs::rename(self.folder.join(from), &to).and_then(|()| sync_dir(&self.folder)).map_err(failed("write", &to))
    }
}

/// A public key as it stands on the wire.
pub(crate) fn public(key: &Ed25519KeyPair) -> String {
    URL_SAFE_NO_PAD.encode(key.public_key())
}

fn generate() -> Vec<u8> {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
    document.expect("the operating system gives random bytes, or no key can be made").as_ref().to_vec()
}

fn parse(document: &[u8], folder: &Folder, name: &str) -> Result<Arc<Ed25519KeyPair>, FolderError> {
    let damaged = |_| FolderError::Damaged { path: folder.path().join(name), expected: "Ed25519 key" };
    Ed25519KeyPair::from_pkcs8(document).map(Arc::new).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{ED25519, UnparsedPublicKey};
    use vm_agent_schemas::ids::Nonce;

    struct Scene {
        place: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            Self { place: tempfile::tempdir().unwrap() }
        }

        /// The keys as a start finds them.
        fn keys(&self) -> Keys {
            Keys::load(&Folder::open(self.place.path()).unwrap()).unwrap()
        }

        fn files(&self) -> Vec<&'static str> {
            [KEY_FILE, NEXT_FILE, ACKED_FILE].into_iter().filter(|name| self.place.path().join(name).exists()).collect()
        }
    }

    fn rotate(keys: &mut Keys) -> String {
        let challenge = Challenge { challenge: Nonce::generate() };
        let (agent, incarnation) = ("web".parse().unwrap(), Incarnation(3));
        let Rotated { public_key, signature } = keys.rotate(&challenge, &agent, incarnation).unwrap();
        let key = UnparsedPublicKey::new(&ED25519, URL_SAFE_NO_PAD.decode(&public_key).unwrap());
        let signed = rotation_bytes(&challenge, &agent, incarnation, &public_key);
        assert!(key.verify(&signed, &URL_SAFE_NO_PAD.decode(signature).unwrap()).is_ok());
        public_key
    }

    #[test]
    fn a_new_key_is_used_once_it_is_acknowledged_and_alone_once_it_is_welcome() {
        let scene = Scene::new();
        let mut keys = scene.keys();
        let old = public(keys.current());
        let new = rotate(&mut keys);
        assert_ne!(old, new);
        // At each step the runtime goes on, or is started anew.
        assert_eq!((public(keys.current()), public(scene.keys().current())), (old.clone(), old.clone()));
        assert_eq!(rotate(&mut scene.keys()), new, "the key that is there already will do");
        keys.acknowledged(&new).unwrap();
        assert_eq!((public(keys.current()), public(scene.keys().current())), (new.clone(), new.clone()));
        assert_eq!(scene.files(), [KEY_FILE, ACKED_FILE], "the old one is kept");
        keys.welcomed().unwrap();
        assert_eq!((public(keys.current()), public(scene.keys().current())), (new.clone(), new));
        assert_eq!(scene.files(), [KEY_FILE]);
    }

    #[test]
    fn when_the_hub_does_not_know_the_new_key_the_old_one_still_holds() {
        let scene = Scene::new();
        let mut keys = scene.keys();
        let old = public(keys.current());
        let new = rotate(&mut keys);
        keys.acknowledged(&new).unwrap();
        assert!(keys.refused());
        assert_eq!(public(keys.current()), old);
        assert!(!keys.refused(), "both were tried");
        assert_eq!(public(keys.current()), new);
        assert!(keys.refused());
        keys.welcomed().unwrap();
        assert_eq!((public(keys.current()), scene.files()), (old, vec![KEY_FILE, NEXT_FILE]));
        assert_eq!(rotate(&mut keys), new);
    }

    #[test]
    fn when_the_hub_knows_the_new_key_only_it_is_found_out() {
        let scene = Scene::new();
        let mut keys = scene.keys();
        let new = rotate(&mut keys);
        assert!(keys.refused());
        assert_eq!(public(keys.current()), new);
        keys.welcomed().unwrap();
        assert_eq!((public(scene.keys().current()), scene.files()), (new, vec![KEY_FILE]));
    }

    #[test]
    fn a_key_that_the_hub_knows_no_more_is_renewed_with_all_that_were_to_come() {
        let scene = Scene::new();
        let mut keys = scene.keys();
        let old = [public(keys.current()), rotate(&mut keys)];
        keys.acknowledged(&old[1]).unwrap();
        keys.renew().unwrap();
        let new = public(keys.current());
        assert!(!old.contains(&new));
        assert_eq!((public(scene.keys().current()), scene.files()), (new, vec![KEY_FILE]));
    }

    #[test]
    fn without_another_key_a_refusal_is_final_and_another_keys_acknowledgement_means_nothing() {
        let scene = Scene::new();
        let mut keys = scene.keys();
        assert!(!keys.refused());
        let old = public(keys.current());
        rotate(&mut keys);
        keys.acknowledged(&old).unwrap();
        assert_eq!((public(keys.current()), scene.files()), (old, vec![KEY_FILE, NEXT_FILE]));
    }
}
