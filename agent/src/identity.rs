//! Who this runtime is: its key, its machine, and the count of its starts.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::Ed25519KeyPair;
use vm_agent_schemas::ids::{Boot, Digest, Nonce};
use vm_agent_schemas::wire::{Challenge, ChallengeProof, Hello, PROTOCOL, Seed, VERIFY};

use crate::folder::{Folder, FolderError, failed};
use crate::rotation::{Keys, public};

/// What tells this start of this runtime from all others.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The key, and the next one, if there is one.
    pub(crate) keys: Keys,
    machine_id: Digest,
    boot: Boot,
}

impl Identity {
    /// Reads the identity from the folder, completes it at the first start, and counts this start.
    pub(crate) fn load(folder: &Folder) -> Result<Self, FolderError> {
        Ok(Self { keys: Keys::load(folder)?, machine_id: machine_id(folder)?, boot: folder.next_boot()? })
    }

    /// The first message of a connection. The join token goes along only while the key is not bound.
    pub(crate) fn hello(&self, seed: &Seed, joined: bool) -> Hello {
        Hello {
            protocol: (PROTOCOL, PROTOCOL),
            fleet: seed.fleet.clone(),
            agent: seed.agent.clone(),
            incarnation: seed.incarnation,
            nonce: seed.nonce.clone(),
            machine_id: self.machine_id.clone(),
            boot: self.boot,
            public_key: public(self.keys.current()),
            join_token: (!joined).then(|| seed.join_token.clone()),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            abilities: [VERIFY.to_owned()].into(),
        }
    }
}

/// The answer to a challenge.
pub(crate) fn prove(key: &Ed25519KeyPair, challenge: &Challenge, hello: &Hello) -> ChallengeProof {
    ChallengeProof { signature: URL_SAFE_NO_PAD.encode(key.sign(&challenge.signed_bytes(hello))) }
}

/// A digest of what tells this machine from its copies: the operating system's machine id, which a
/// proper clone of a machine renews; and the folder's path and inode, because with driver `local` the
/// folder is the machine, and a copy of it has another path, or another inode at the same path. The
/// device's number is left out: it may differ after a restart of the same machine.
fn machine_id(folder: &Folder) -> Result<Digest, FolderError> {
    let system = match fs::read(Path::new("/etc/machine-id")) {
        Ok(id) if !id.trim_ascii().is_empty() => id.trim_ascii().to_vec(),
        _ => folder.machine(|| Nonce::generate().as_str().as_bytes().to_vec())?,
    };
    let inode = fs::metadata(folder.path()).map_err(failed("read", folder.path()))?.ino();
    let parts = [system.as_slice(), folder.path().as_os_str().as_bytes(), &inode.to_be_bytes()];
    Ok(Digest::of(&parts.join(&0)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ring::signature::{ED25519, UnparsedPublicKey};
    use vm_agent_schemas::ids::{Incarnation, Secret};

    pub(crate) fn seed() -> Seed {
        Seed {
            fleet: "default".parse().unwrap(),
            agent: "web".parse().unwrap(),
            incarnation: Incarnation(1),
            nonce: Nonce::generate(),
            hub: "ws://127.0.0.1:1/v1/runtime".to_owned(),
            hub_pin: None,
            join_token: Secret::generate(),
        }
    }

    #[test]
    fn the_proof_verifies_with_the_key_of_the_hello() {
        let place = tempfile::tempdir().unwrap();
        let identity = Identity::load(&Folder::open(place.path()).unwrap()).unwrap();
        let hello = identity.hello(&seed(), false);
        let challenge = Challenge { challenge: Nonce::generate() };
        let signature = URL_SAFE_NO_PAD.decode(prove(identity.keys.current(), &challenge, &hello).signature).unwrap();
        let key = URL_SAFE_NO_PAD.decode(&hello.public_key).unwrap();
        let key = UnparsedPublicKey::new(&ED25519, key);
        assert!(key.verify(&challenge.signed_bytes(&hello), &signature).is_ok());
    }

    #[test]
    fn a_restart_keeps_key_and_machine_and_counts() {
        let place = tempfile::tempdir().unwrap();
        let hello = || Identity::load(&Folder::open(place.path()).unwrap()).unwrap().hello(&seed(), true);
        let (first, second) = (hello(), hello());
        assert_eq!(first.public_key, second.public_key);
        assert_eq!(first.machine_id, second.machine_id);
        assert_eq!(first.boot.next(), second.boot);
        assert_eq!(first.join_token, None);
    }

    #[test]
    fn a_copied_folder_is_another_machine_even_at_the_same_path() {
        let place = tempfile::tempdir().unwrap();
        let (here, there) = (place.path().join("a"), place.path().join("b"));
        let of = |path: &Path| machine_id(&Folder::open(path).unwrap()).unwrap();
        let original = of(&here);
        let copy = of(&there);
        assert_ne!(original, copy);
        fs::rename(&here, place.path().join("c")).unwrap();
        fs::rename(&there, &here).unwrap();
        assert_ne!(of(&here), original);
    }
}
