//! Identities: numbers and random values that tell one life, one step or one secret from another.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        #[schemars(inline)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id; later ids sort after earlier ones.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id of the given value: for tests and for storage.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The id as a UUID.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    };
}

uuid_type! {
    /// The id of a claim.
    ClaimId
}
uuid_type! {
    /// The id of an operation.
    OperationId
}
uuid_type! {
    /// The id of a task.
    TaskId
}
uuid_type! {
    /// The id of a session: one runtime's connection to the hub.
    SessionId
}
uuid_type! {
    /// The id of a request to a guest.
    RequestId
}
uuid_type! {
    /// The id that a guest's kernel gave to its present boot. A machine that went on from a saved memory has
    /// that of the machine which was saved.
    BootId
}
uuid_type! {
    /// The id of an API token. The token itself is a secret and is not this.
    TokenId
}
uuid_type! {
    /// The id of an override.
    OverrideId
}
uuid_type! {
    /// The id of something that is to be done with an agent's snapshots.
    ErrandId
}
uuid_type! {
    /// What the tasks that one request made for several agents have in common.
    GroupId
}
uuid_type! {
    /// The id of a terminal that outlives its stream.
    TerminalId
}
uuid_type! {
    /// The id of a message on the wire.
    MessageId
}

macro_rules! counter_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
        )]
        #[serde(transparent)]
        #[schemars(inline)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter_type! {
    /// Which life of an agent's instance: grows at create, restore and clone.
    Incarnation
}
counter_type! {
    /// Which session of an agent: grows with each accepted hello, and fences all before it.
    Epoch
}
counter_type! {
    /// Which run of the runtime in its incarnation: the runtime counts its own starts.
    Boot
}
counter_type! {
    /// Which accepted fleet file.
    Revision
}
counter_type! {
    /// Which life of the controller on its state folder.
    Life
}

/// A random value that ties an instance to its claim. Not a secret: it proves identity to the
/// controller, and grants nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Nonce(String);

impl Nonce {
    /// A new nonce of 128 random bits.
    #[must_use]
    pub fn generate() -> Self {
        Self(random_text::<16>())
    }

    /// The nonce with this text: for tests, and for what a driver read back.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The nonce as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that must not be seen: printing it in any way shows that it is secret, and nothing of it.
/// It is written out only by serialisation, into the one document that is meant to carry it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Secret(String);

impl Secret {
    /// A new secret of 256 random bits.
    #[must_use]
    pub fn generate() -> Self {
        Self(random_text::<32>())
    }

    /// Marks a text as secret.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Each caller is a place where the secret leaves its wrapping.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is stored in the secret's stead, and compared with.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A SHA-256 digest, written in lower-case hexadecimal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Digest(String);

impl Digest {
    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_sha256(&ring::digest::digest(&ring::digest::SHA256, bytes))
    }

    /// The digest that was computed piece by piece.
    #[must_use]
    pub fn of_sha256(digest: &ring::digest::Digest) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let halves = digest.as_ref().iter().flat_map(|byte| [byte >> 4, byte & 15]);
        Self(halves.map(|half| char::from(DIGITS[usize::from(half)])).collect())
    }

    /// The digest of a value's JSON.
    pub fn of_json<T: Serialize + ?Sized>(value: &T) -> Self {
        // Our own types serialise to JSON without fail: no maps with keys that are not texts.
        Self::of(&serde_json::to_vec(value).unwrap_or_default())
    }

    /// All 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits: enough for a person to tell two apart.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.short())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Digest {
    fn from(hex: String) -> Self {
        Self(hex)
    }
}

fn random_text<const BYTES: usize>() -> String {
    let mut bytes = [0u8; BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the operating system gives random bytes, or nothing here is safe to go on with");
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints_itself() {
        let secret = Secret::from_text("hunter2");
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn the_digest_is_sha256() {
        assert_eq!(Digest::of(b"abc").as_str(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn generated_values_differ() {
        assert_ne!(Nonce::generate(), Nonce::generate());
        assert_ne!(Secret::generate(), Secret::generate());
    }
}
