use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

/// A key that is decided on but that nothing acts on yet. It takes no value: reading one fails with
/// a sentence that says so, because a key that is silently ignored is a promise silently broken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Planned;

impl<'de> Deserialize<'de> for Planned {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom("this key is planned: nothing acts on it yet, so it is refused rather than ignored"))
    }
}
