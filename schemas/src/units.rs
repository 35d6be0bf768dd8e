//! Quantities with units: sizes in bytes and lengths of time.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A size in bytes, written as Multipass writes sizes: a whole number of bytes, or a whole or
/// decimal number and `K`, `M` or `G` (factor 1024), optionally followed by `B` or `iB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a size: write a number with K, M or G, such as 512M, 8G or 1.5G")]
pub struct InvalidSize {
    text: String,
}

impl ByteSize {
    /// One KiB.
    pub const KIB: u64 = 1 << 10;
    /// One MiB.
    pub const MIB: u64 = 1 << 20;
    /// One GiB.
    pub const GIB: u64 = 1 << 30;

    /// A size of that many bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size of that many MiB.
    #[must_use]
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib * Self::MIB)
    }

    /// A size of that many GiB.
    #[must_use]
    pub const fn from_gib(gib: u64) -> Self {
        Self(gib * Self::GIB)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The size in the largest unit that it fills, with one decimal where it is not whole: for
    /// sentences, where the last byte does not matter.
    #[must_use]
    pub fn rounded(self) -> String {
        let units = [(Self::GIB, "G"), (Self::MIB, "M"), (Self::KIB, "K")];
        match units.iter().find(|(unit, _)| self.0 >= *unit) {
            Some((unit, letter)) if self.0.is_multiple_of(*unit) => format!("{}{letter}", self.0 / unit),
            Some((unit, letter)) => format!("{:.1}{letter}", self.0 as f64 / *unit as f64),
            None => self.0.to_string(),
        }
    }
}

impl FromStr for ByteSize {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let error = || InvalidSize { text: text.to_owned() };
        let lower = text.to_ascii_lowercase();
        let trimmed = lower.strip_suffix("ib").filter(|t| t.ends_with(['k', 'm', 'g']));
        let trimmed = trimmed.or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
        let (number, unit) = match trimmed.as_bytes().last() {
            Some(b'k') => (&trimmed[..trimmed.len() - 1], Self::KIB),
            Some(b'm') => (&trimmed[..trimmed.len() - 1], Self::MIB),
            Some(b'g') => (&trimmed[..trimmed.len() - 1], Self::GIB),
            _ => (trimmed, 1),
        };
        let (whole, fraction) = match number.split_once('.') {
            Some((whole, fraction)) if unit > 1 && !fraction.is_empty() => (whole, fraction),
            Some(_) => return Err(error()),
            None => (number, "0"),
        };
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
            return Err(error());
        }
        let whole: u64 = whole.parse().map_err(|_| error())?;
        let parts: u128 = fraction.parse().map_err(|_| error())?;
        let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| error())?);
        let extra = u64::try_from(parts * u128::from(unit) / scale).map_err(|_| error())?;
        let bytes = whole.checked_mul(unit).and_then(|b| b.checked_add(extra));
        bytes.map(Self).ok_or_else(error)
    }
}

impl fmt::Display for ByteSize {
    /// The shortest exact spelling: `8G`, `1536M`, `1000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = [(Self::GIB, "G"), (Self::MIB, "M"), (Self::KIB, "K")];
        match exact.iter().find(|(unit, _)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((unit, letter)) => f.pad(&format!("{}{letter}", self.0 / unit)),
            None => f.pad(&self.0.to_string()),
        }
    }
}

impl Serialize for ByteSize {
    /// Whole bytes: machines read JSON, and people read tables.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 512M or 8G")
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl JsonSchema for ByteSize {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteSize".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                {"type": "string", "pattern": r"^([0-9]+[bB]?|[0-9]+(\.[0-9]{1,9})?[kKmMgG]([iI]?[bB])?)$"},
                {"type": "integer", "minimum": 0, "description": "bytes"},
            ],
        })
    }
}

/// A length of time, written `90s`, `5m`, `1h30m`, `24h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(Duration);

/// Why a text is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a length of time: write it like 250ms, 90s, 5m, 1h30m or 24h")]
pub struct InvalidSpan {
    text: String,
}

impl Span {
    /// A length of that many seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The length as the standard library's type.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl FromStr for Span {
    type Err = InvalidSpan;

    fn from_str(text: &str) -> Result<Self, InvalidSpan> {
        let parsed = text.parse::<jiff::SignedDuration>().ok();
        let positive = parsed.and_then(|d| Duration::try_from(d).ok());
        positive.map(Self).ok_or_else(|| InvalidSpan { text: text.to_owned() })
    }
}

impl TryFrom<String> for Span {
    type Error = InvalidSpan;
    fn try_from(text: String) -> Result<Self, InvalidSpan> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signed = jiff::SignedDuration::try_from(self.0).unwrap_or(jiff::SignedDuration::MAX);
        f.pad(&format!("{signed:#}").replace(' ', ""))
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "examples": ["90s", "5m", "24h"]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_multipass_reads_them() {
        let cases = [
            ("1G", ByteSize::GIB),
            ("1.5GiB", 3 * ByteSize::GIB / 2),
            ("512m", 512 * ByteSize::MIB),
            ("1073741824", ByteSize::GIB),
            ("10B", 10),
            ("4KB", 4096),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
        for bad in ["1T", "1.5", "-1G", "", "G", "1.G", ".5G", "1 G", "5iB", "99999999999G", "1é"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_read_and_print() {
        assert_eq!("90s".parse::<Span>().unwrap().get(), Duration::from_secs(90));
        assert_eq!("1h30m".parse::<Span>().unwrap(), "90m".parse().unwrap());
        assert_eq!(Span::from_secs(5400).to_string(), "1h30m");
        for bad in ["", "5", "-5s", "soon"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_size_printed_reads_back_the_same(bytes: u64) {
            let size = ByteSize::from_bytes(bytes);
            prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }

        #[test]
        fn reading_a_size_never_panics(text in ".*") {
            let _ = text.parse::<ByteSize>();
        }

        #[test]
        fn a_span_printed_reads_back_the_same(seconds in 0u64..10_000_000_000) {
            let span = Span::from_secs(seconds);
            prop_assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
        }
    }
}
