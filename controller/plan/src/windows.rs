//! When the controller may disturb what runs in order to remove drift.

use jiff::Timestamp;
use vm_agent_schemas::fleet::{PowerState, Window};
use vm_agent_schemas::plan::{Cost, StepAction, WaitsFor};

use crate::calendar::{moment_within, turns};
use crate::moves::Move;
use crate::situation::Situation;
use crate::table::Want;

/// The windows of the fleet, as they are at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Windows {
    /// What runs may be disturbed.
    Open,
    /// It may not, until one opens.
    Closed {
        /// When that is; nothing when none opens any more.
        opens: Option<Timestamp>,
    },
}

impl Windows {
    /// The windows at that time. A fleet without any may always be disturbed.
    pub(crate) fn at(windows: &[Window], now: Timestamp) -> Self {
        let is_open = |window: &Window| moment_within(&window.cron, window.lasts.get(), now).is_some();
        if windows.is_empty() || windows.iter().any(is_open) {
            return Self::Open;
        }
        Self::Closed { opens: windows.iter().filter_map(|window| window.cron.next_after(now)).min() }
    }

    /// What a step waits for that would disturb what runs in the machine.
    pub(crate) fn hold(self, situation: &Situation<'_>) -> Option<WaitsFor> {
        match self {
            Self::Closed { opens } if situation.runs() => Some(WaitsFor::Window { opens }),
            Self::Closed { .. } | Self::Open => None,
        }
    }
}

/// When the windows may open or close next.
pub(crate) fn changes(windows: &[Window], now: Timestamp) -> impl Iterator<Item = Timestamp> {
    windows.iter().flat_map(move |window| turns(&window.cron, window.lasts.get(), now))
}

/// Whether a step takes a machine down in order to remove drift of the file. What a person says now,
/// and what the file says of idleness and age, waits for no window.
pub(crate) fn is_disruptive(situation: &Situation<'_>, step: &Move) -> bool {
    match (&step.action, step.cost) {
        _ if step.asked => false,
        (StepAction::Stop, Cost::Restart) | (StepAction::Destroy, Cost::Replace) => true,
        (StepAction::Stop, _) => {
            let told = situation.told == Some(PowerState::Stopped);
            situation.want == Want::Stopped && situation.rests.is_none() && !told
        }
        (StepAction::Destroy, _) => !situation.dismissed,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn nights() -> Vec<Window> {
        vec![Window { cron: "0 22 * * *".parse().unwrap(), lasts: "8h".parse().unwrap() }]
    }

    #[test]
    fn a_fleet_without_windows_may_always_be_disturbed() {
        assert_eq!(Windows::at(&[], at("2026-07-01T12:00:00Z")), Windows::Open);
    }

    #[test]
    fn a_window_is_open_from_its_moment_until_its_time_is_over() {
        let is_open = |now: &str| Windows::at(&nights(), at(now)) == Windows::Open;
        assert!(!is_open("2026-07-01T21:59:59Z"));
        assert!(is_open("2026-07-01T22:00:00Z"));
        assert!(is_open("2026-07-02T05:59:59Z"));
        assert!(!is_open("2026-07-02T06:00:00Z"));
    }

    #[test]
    fn a_closed_window_tells_when_the_next_opens() {
        let opens = Some(at("2026-07-01T22:00:00Z"));
        assert_eq!(Windows::at(&nights(), at("2026-07-01T12:00:00Z")), Windows::Closed { opens });
    }

    #[test]
    fn a_window_that_outlasts_time_is_open() {
        let ever = Window { cron: "0 22 * * *".parse().unwrap(), lasts: "90000000h".parse().unwrap() };
        assert_eq!(Windows::at(&[ever], at("2026-07-01T12:00:00Z")), Windows::Open);
    }

    #[test]
    fn the_next_change_is_an_opening_or_a_closing() {
        let next = |now: &str| changes(&nights(), at(now)).min().unwrap();
        assert_eq!(next("2026-07-01T12:00:00Z"), at("2026-07-01T22:00:00Z"));
        assert_eq!(next("2026-07-01T23:00:00Z"), at("2026-07-02T06:00:00Z"));
    }
}
