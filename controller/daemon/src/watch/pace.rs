//! When to look at a file that something happened to. Plain values: the clock is the caller's.

use std::time::Duration;

use tokio::time::Instant;
use vm_agent_schemas::ids::Digest;

/// How long a file must have been let alone: editors write in several goes, some milliseconds apart.
const SETTLES: Duration = Duration::from_millis(50);

/// Longest wait for a file to be let alone.
const SETTLES_MAX: Duration = Duration::from_millis(500);

/// After how long trouble is looked at again before it is believed.
const SECOND_LOOK: Duration = Duration::from_millis(200);

/// When the next look is due.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The first and the last thing that happened since the latest look.
    touched: Option<(Instant, Instant)>,
    /// A look that is due anyway.
    again: Option<Instant>,
}

impl Pace {
    /// Something happened.
    pub(super) fn touched(&mut self, now: Instant) {
        let first = self.touched.map_or(now, |(first, _)| first);
        self.touched = Some((first, now));
    }

    /// A look is wanted then.
    pub(super) fn again(&mut self, at: Instant) {
        self.again = Some(self.again.map_or(at, |known| known.min(at)));
    }

    /// When the next look is due; nothing while there is nothing to look at.
    pub(super) fn due(&self) -> Option<Instant> {
        let settled = self.touched.map(|(first, last)| (last + SETTLES).min(first + SETTLES_MAX));
        settled.into_iter().chain(self.again).min()
    }

    /// A look begins: what happened before is seen by it.
    pub(super) fn looked(&mut self) {
        *self = Self::default();
    }
}

/// What is not believed until it has been so for a while.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    seen: Option<(Digest, Instant)>,
}

impl Doubt {
    /// Takes what a look saw, where that is doubtful.
    ///
    /// # Errors
    /// When to look again, while it is not to be believed.
    pub(super) fn weigh(&mut self, seen: Option<Digest>, now: Instant) -> Result<(), Instant> {
        let since = self.seen.take().filter(|(known, _)| seen.as_ref() == Some(known)).map_or(now, |(_, since)| since);
        self.seen = seen.map(|seen| (seen, since));
        if self.seen.is_none() || now >= since + SECOND_LOOK { Ok(()) } else { Err(since + SECOND_LOOK) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_look_is_due_once_the_file_is_let_alone() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.due(), None);
        pace.touched(start);
        assert_eq!(pace.due(), Some(start + ms(50)));
        pace.touched(start + ms(30));
        assert_eq!(pace.due(), Some(start + ms(80)));
        pace.looked();
        assert_eq!(pace.due(), None);
    }

    #[test]
    fn a_file_that_is_never_let_alone_is_looked_at_all_the_same() {
        let start = Instant::now();
        let mut pace = Pace::default();
        for at in (0..100).map(|index| start + ms(index * 20)) {
            if pace.due().is_some_and(|due| due <= at) {
                assert_eq!(at, start + ms(500));
                return;
            }
            pace.touched(at);
        }
        panic!("no look was due");
    }

    #[test]
    fn the_earliest_wish_for_a_look_counts() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.again(start + ms(200));
        pace.again(start + ms(300));
        assert_eq!(pace.due(), Some(start + ms(200)));
        pace.touched(start);
        assert_eq!(pace.due(), Some(start + ms(50)));
    }

    #[test]
    fn trouble_is_believed_when_a_second_look_sees_the_same() {
        let start = Instant::now();
        let (empty, half) = (Digest::of(b"empty"), Digest::of(b"half"));
        let mut doubt = Doubt::default();
        assert_eq!(doubt.weigh(Some(empty.clone()), start), Err(start + ms(200)));
        assert_eq!(doubt.weigh(Some(empty.clone()), start + ms(100)), Err(start + ms(200)));
        assert_eq!(doubt.weigh(Some(half.clone()), start + ms(150)), Err(start + ms(350)));
        assert_eq!(doubt.weigh(Some(half.clone()), start + ms(350)), Ok(()));
        assert_eq!(doubt.weigh(Some(half), start + ms(400)), Ok(()));
        assert_eq!(doubt.weigh(None, start + ms(500)), Ok(()));
        assert_eq!(doubt.weigh(Some(empty), start + ms(600)), Err(start + ms(800)));
    }
}
