use proptest::prelude::*;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn keep(last: u32, hourly: u32, daily: u32, weekly: u32) -> Keep {
    let [last, hourly, daily, weekly] = [last, hourly, daily, weekly].map(NonZeroU32::new);
    Keep { last, hourly, daily, weekly }
}

/// The moments of those that stay, earliest first.
fn stay(keep: Keep, zone: &TimeZone, moments: &[&str]) -> Vec<String> {
    let taken: Vec<(SnapshotName, Timestamp)> =
        moments.iter().enumerate().map(|(index, moment)| (format!("s-{index}").parse().unwrap(), at(moment))).collect();
    let keepers = keep.keepers(zone, taken.iter().map(|(name, moment)| (name, *moment)));
    let mut stay: Vec<Timestamp> = taken.iter().filter(|(name, _)| !keepers[name].is_empty()).map(|it| it.1).collect();
    stay.sort();
    stay.iter().map(ToString::to_string).collect()
}

#[test]
fn the_latest_ones_stay() {
    let moments = ["2026-07-01T03:00:00Z", "2026-07-02T03:00:00Z", "2026-07-03T03:00:00Z"];
    assert_eq!(stay(keep(2, 0, 0, 0), &TimeZone::UTC, &moments), moments[1..]);
}

#[test]
fn a_day_without_a_snapshot_takes_none_of_the_count() {
    let moments = ["2026-07-01T03:00:00Z", "2026-07-20T03:00:00Z", "2026-07-20T15:00:00Z"];
    assert_eq!(
        stay(keep(0, 0, 2, 0), &TimeZone::UTC, &moments),
        ["2026-07-01T03:00:00Z", "2026-07-20T15:00:00Z"],
        "the host slept for nineteen days, and the snapshot before them is the second day's"
    );
}

#[test]
fn a_week_begins_on_monday() {
    // The 5th of July 2026 is a Sunday.
    let moments = ["2026-07-05T03:00:00Z", "2026-07-06T03:00:00Z", "2026-07-12T03:00:00Z", "2026-07-13T03:00:00Z"];
    assert_eq!(
        stay(keep(0, 0, 0, 3), &TimeZone::UTC, &moments),
        ["2026-07-05T03:00:00Z", "2026-07-12T03:00:00Z", "2026-07-13T03:00:00Z"]
    );
}

#[test]
fn a_day_is_that_of_the_schedules_zone_and_an_hour_that_the_clock_repeats_is_two() {
    let berlin = TimeZone::get("Europe/Berlin").unwrap();
    let around_midnight = ["2026-07-01T21:30:00Z", "2026-07-01T22:30:00Z"];
    assert_eq!(stay(keep(0, 0, 2, 0), &berlin, &around_midnight), around_midnight);
    assert_eq!(stay(keep(0, 0, 2, 0), &TimeZone::UTC, &around_midnight), around_midnight[1..]);
    let set_back = ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"];
    assert_eq!(stay(keep(0, 2, 0, 0), &berlin, &set_back), set_back);
}

#[test]
fn each_rule_says_what_it_keeps_and_the_latest_is_among_the_last_without_a_rule() {
    let taken: Vec<(SnapshotName, Timestamp)> =
        ["2026-07-01T03:00:00Z", "2026-07-20T03:00:00Z", "2026-07-20T15:00:00Z"]
            .iter()
            .zip(["a", "b", "c"])
            .map(|(moment, name)| (name.parse().unwrap(), at(moment)))
            .collect();
    let told = |keep: Keep| {
        let keepers = keep.keepers(&TimeZone::UTC, taken.iter().map(|(name, moment)| (name, *moment)));
        let told = |keepers: &BTreeSet<Keeper>| keepers.iter().map(ToString::to_string).collect::<Vec<_>>().join("+");
        keepers.values().map(told).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(told(keep(2, 0, 2, 0)), "daily last last+daily");
    assert_eq!(told(keep(0, 0, 0, 0)), "  last");
}

#[test]
fn a_record_from_before_it_told_of_suspended_machines_is_read_as_it_was() {
    let written = serde_json::json!({
        "name": "one", "agent": "web", "claim": ClaimId::generate(), "cause": {"kind": "person", "by": "ann"},
        "protect": false, "takenAt": "2026-07-01T03:00:00Z", "running": true,
    });
    let read: Snapshot = serde_json::from_value(written.clone()).unwrap();
    assert!(read.has_memory());
    assert_eq!(serde_json::to_value(&read).unwrap(), written);
    let down = Snapshot { running: false, ..read };
    assert!(!down.has_memory());
    assert!(Snapshot { suspended: true, ..down }.has_memory());
    let asked: Ask = serde_json::from_value(serde_json::json!({"kind": "delete", "name": "one"})).unwrap();
    assert!(!asked.asks_itself(), "a person asked for what was open before");
}

proptest! {
    #[test]
    fn the_latest_stays_and_no_rule_keeps_more_than_it_says(
        hours in proptest::collection::btree_set(0_i64..5000, 1..60),
        last in 0_u32..5, hourly in 0_u32..5, daily in 0_u32..5, weekly in 0_u32..5,
    ) {
        let taken: Vec<(SnapshotName, Timestamp)> = hours.iter().map(|hour| {
            (format!("s-{hour}").parse().unwrap(), at("2026-01-01T00:00:00Z") + hour.hours())
        }).collect();
        let keep = keep(last, hourly, daily, weekly);
        let keepers = keep.keepers(&TimeZone::UTC, taken.iter().map(|(name, moment)| (name, *moment)));
        let stay = keepers.values().filter(|keepers| !keepers.is_empty()).count();
        prop_assert_eq!(keepers.len(), taken.len(), "each is told of");
        prop_assert!(!keepers[&taken.last().unwrap().0].is_empty());
        prop_assert!(stay <= ((last + hourly + daily + weekly) as usize).max(1));
        prop_assert!(stay >= (last as usize).min(taken.len()));
        // What is left is left again: retention comes to rest.
        let rest: Vec<_> = taken.iter().filter(|(name, _)| !keepers[name].is_empty()).collect();
        let again = keep.keepers(&TimeZone::UTC, rest.iter().map(|(name, moment)| (name, *moment)));
        prop_assert!(again.values().all(|keepers| !keepers.is_empty()), "{again:?}");
    }
}
