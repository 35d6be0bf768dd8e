//! How much of a runtime's log is passed on. A runtime that keeps to the protocol loses nothing here.

use jiff::{SignedDuration, Timestamp};
use vm_agent_schemas::wire::LogLines;

use super::meter::Meter;

/// Most lines in one message.
const LINES_MAX: usize = 64;

/// Longest line, in bytes.
const LINE_MAX: usize = 1024;

/// What one message costs: ten a second are passed on in the long run.
const COST: SignedDuration = SignedDuration::from_millis(100);

/// How much may come at once: what was on its way for two seconds comes together.
const BURST: SignedDuration = SignedDuration::from_secs(2);

/// What is left out of one session's log.
#[derive(Debug, Default)]
pub(super) struct LogMeter {
    passed: Meter,
    left_out: u64,
}

impl LogMeter {
    /// What is passed on of a message, with the number of lines left out before it.
    pub(super) fn pass(&mut self, log: LogLines, now: Timestamp) -> Option<LogLines> {
        let LogLines { mut lines, dropped } = log;
        let said = lines.len() as u64;
        if !self.spend(now) {
            self.left_out = self.left_out.saturating_add(said).saturating_add(dropped);
            return None;
        }
        let dropped = std::mem::take(&mut self.left_out).saturating_add(dropped);
        lines.truncate(LINES_MAX);
        self.left_out = said - lines.len() as u64;
        for line in &mut lines {
            line.truncate(line.floor_char_boundary(LINE_MAX));
        }
        Some(LogLines { lines, dropped })
    }

    /// How many lines were left out that nothing has told of yet, for once; nothing when it is none, or too soon.
    pub(super) fn untold(&mut self, now: Timestamp) -> Option<u64> {
        let due = self.left_out > 0 && self.spend(now);
        due.then(|| std::mem::take(&mut self.left_out))
    }

    /// How many lines were left out that nothing has told of, at the end of the session.
    pub(super) fn rest(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.left_out)).filter(|left_out| *left_out > 0)
    }

    fn spend(&mut self, now: Timestamp) -> bool {
        self.passed.spend(COST, BURST, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: usize, dropped: u64) -> LogLines {
        LogLines { lines: vec!["line".to_owned(); lines], dropped }
    }

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(milliseconds).unwrap()
    }

    #[test]
    fn twenty_messages_come_at_once_and_then_ten_a_second() {
        let mut meter = LogMeter::default();
        let passed = |meter: &mut LogMeter, now| (0..100).filter(|_| meter.pass(log(1, 0), at(now)).is_some()).count();
        assert_eq!(passed(&mut meter, 0), 20);
        assert_eq!(passed(&mut meter, 1000), 10);
        assert_eq!(passed(&mut meter, 1050), 0);
        assert_eq!(passed(&mut meter, 60_000), 20);
        assert_eq!(passed(&mut meter, 1000), 0, "a clock that was set back lets nothing more through");
        assert_eq!(passed(&mut meter, 3000), 20, "and holds nothing back for ever");
    }

    #[test]
    fn each_line_that_is_left_out_is_told_once() {
        let mut meter = LogMeter::default();
        (0..20).for_each(|_| assert_eq!(meter.pass(log(2, 0), at(0)), Some(log(2, 0))));
        assert_eq!(meter.pass(log(3, 4), at(0)), None);
        assert_eq!(meter.untold(at(0)), None, "that is a message too");
        assert_eq!(meter.pass(log(1, 1), at(100)), Some(log(1, 8)));
        assert_eq!(meter.pass(log(5, 0), at(100)), None);
        assert_eq!(meter.untold(at(200)), Some(5));
        assert_eq!((meter.untold(at(9000)), meter.rest()), (None, None));
        assert_eq!(meter.pass(log(LINES_MAX + 6, 0), at(9000)), Some(log(LINES_MAX, 0)));
        assert_eq!(meter.rest(), Some(6));
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_between_two_characters() {
        let mut meter = LogMeter::default();
        let long = LogLines { lines: vec![format!("x{}", "é".repeat(LINE_MAX))], dropped: 0 };
        assert_eq!(meter.pass(long, at(0)).unwrap().lines[0].len(), LINE_MAX - 1);
    }
}
