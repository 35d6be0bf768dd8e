//! Moments in a calendar, as cron writes them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use cronexpr::{Crontab, FallbackTimezoneOption, ParseOptions, parse_crontab_with};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Moments in a calendar: minute, hour, day of month, month, day of week and a time zone, such as
/// `0 3 * * * Europe/Berlin`. Without a zone UTC is meant: the file says the same on every machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cron {
    text: Arc<str>,
    crontab: Arc<Crontab>,
}

/// Why a text is not a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a schedule: {wrong}; write minute, hour, day of month, month and day of week, and a time zone if \
     it is not UTC, such as `0 3 * * mon-fri Europe/Berlin`"
)]
pub struct InvalidCron {
    text: String,
    /// What of it is wrong.
    wrong: String,
}

/// The fields of a schedule, in order, with what each may say.
const FIELDS: [(&str, &str); 5] = [
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of month", "1 to 31"),
    ("month", "1 to 12, or jan to dec"),
    ("day of week", "0 to 7, or sun to sat"),
];

impl InvalidCron {
    /// Finds the field that is wrong: the first that is refused where all others say nothing in particular.
    fn of(text: &str) -> Self {
        let words: Vec<&str> = text.split_whitespace().collect();
        let wrong = match words.len() {
            0 => "it says nothing".to_owned(),
            5 | 6 => Self::field(&words).unwrap_or_else(|| "its fields contradict each other".to_owned()),
            1 => "it has 1 field".to_owned(),
            count => format!("it has {count} fields"),
        };
        Self { text: text.to_owned(), wrong }
    }

    fn field(words: &[&str]) -> Option<String> {
        for (index, (name, range)) in FIELDS.into_iter().enumerate() {
            let mut alone = ["*"; FIELDS.len()];
            alone[index] = words[index];
            if read(&alone.join(" ")).is_none() {
                return Some(format!("`{}` is no {name} ({range})", words[index]));
            }
        }
        let zone = words.get(FIELDS.len())?;
        read(&format!("* * * * * {zone}")).is_none().then(|| format!("`{zone}` is no time zone"))
    }
}

fn read(text: &str) -> Option<Crontab> {
    let mut options = ParseOptions::default();
    options.fallback_timezone_option = FallbackTimezoneOption::UTC;
    parse_crontab_with(text, options).ok()
}

impl Cron {
    /// The first moment after that time; nothing when there is none any more.
    #[must_use]
    pub fn next_after(&self, at: Timestamp) -> Option<Timestamp> {
        self.crontab.find_next(at).ok().map(|zoned| zoned.timestamp())
    }

    /// The time zone of its clock; nothing for one without any moment.
    #[must_use]
    pub fn zone(&self) -> Option<TimeZone> {
        self.crontab.find_next(Timestamp::UNIX_EPOCH).ok().map(|zoned| zoned.time_zone().clone())
    }

    /// The schedule as it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Cron {
    type Err = InvalidCron;

    fn from_str(text: &str) -> Result<Self, InvalidCron> {
        let crontab = read(text).ok_or_else(|| InvalidCron::of(text))?;
        Ok(Self { text: Arc::from(text), crontab: Arc::new(crontab) })
    }
}

impl TryFrom<String> for Cron {
    type Error = InvalidCron;
    fn try_from(text: String) -> Result<Self, InvalidCron> {
        text.parse()
    }
}

impl From<Cron> for String {
    fn from(cron: Cron) -> Self {
        cron.text.as_ref().to_owned()
    }
}

impl PartialEq for Cron {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Cron {}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl JsonSchema for Cron {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cron".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Minute, hour, day of month, month, day of week, and a time zone where it is not UTC.",
            "type": "string",
            "examples": ["0 3 * * *", "30 22 * * mon-fri Europe/Berlin"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(cron: &str, after: &str) -> String {
        cron.parse::<Cron>().unwrap().next_after(at(after)).unwrap().to_string()
    }

    #[test]
    fn a_schedule_without_a_zone_is_in_utc() {
        assert_eq!(next("0 3 * * *", "2026-07-01T02:59:59Z"), "2026-07-01T03:00:00Z");
        assert_eq!(next("0 3 * * *", "2026-07-01T03:00:00Z"), "2026-07-02T03:00:00Z");
    }

    #[test]
    fn a_schedule_with_a_zone_follows_its_clock_changes() {
        assert_eq!(next("0 3 * * * Europe/Berlin", "2026-07-01T00:00:00Z"), "2026-07-01T01:00:00Z");
        assert_eq!(next("0 3 * * * Europe/Berlin", "2026-12-01T00:00:00Z"), "2026-12-01T02:00:00Z");
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_an_example() {
        for (bad, wrong) in [
            ("", "it says nothing"),
            ("daily", "it has 1 field"),
            ("* * * *", "it has 4 fields"),
            ("61 * * * *", "`61` is no minute (0 to 59)"),
            ("0 24 * * *", "`24` is no hour (0 to 23)"),
            ("0 3 0 * *", "`0` is no day of month (1 to 31)"),
            ("0 3 * 13 *", "`13` is no month (1 to 12, or jan to dec)"),
            ("0 3 * * moon", "`moon` is no day of week (0 to 7, or sun to sat)"),
            ("0 3 * * * Mars/Olympus", "`Mars/Olympus` is no time zone"),
        ] {
            let error = bad.parse::<Cron>().unwrap_err().to_string();
            let begin = format!("`{bad}` is not a schedule: {wrong}; write minute, hour, ");
            assert!(error.starts_with(&begin) && error.ends_with("`0 3 * * mon-fri Europe/Berlin`"), "{error}");
        }
    }
}
