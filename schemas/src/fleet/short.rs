//! Values that may be written short, as a text, a number or a list, or long, as a map of keys.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Reads a `T` from its long form, or through `short` from a text. What is wrong inside the long form
/// is told as it is, which an untagged enum would not do.
pub(crate) fn text_or_map<'de, D, T>(
    deserializer: D,
    expecting: &'static str,
    short: fn(&str) -> Result<T, String>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_any(TextOrMap { expecting, short, _value: PhantomData })
}

struct TextOrMap<T> {
    expecting: &'static str,
    short: fn(&str) -> Result<T, String>,
    _value: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for TextOrMap<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.short)(text).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// Reads a `T` from a list of `I`, through `short`, or from its long form, a map.
pub(super) fn list_or_map<'de, D, I, T>(
    deserializer: D,
    expecting: &'static str,
    short: fn(Vec<I>) -> T,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    I: Deserialize<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_any(ListOrMap { expecting, short, _value: PhantomData })
}

struct ListOrMap<I, T> {
    expecting: &'static str,
    short: fn(Vec<I>) -> T,
    _value: PhantomData<T>,
}

impl<'de, I: Deserialize<'de>, T: Deserialize<'de>> Visitor<'de> for ListOrMap<I, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<T, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(seq)).map(self.short)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// Reads a `T` from its long form, or through `short` from a whole number.
pub(super) fn number_or_map<'de, D, T>(
    deserializer: D,
    expecting: &'static str,
    short: fn(u64) -> Result<T, String>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_any(NumberOrMap { expecting, short, _value: PhantomData })
}

struct NumberOrMap<T> {
    expecting: &'static str,
    short: fn(u64) -> Result<T, String>,
    _value: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for NumberOrMap<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        (self.short)(number).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}
