//! Flow control of a stream, as plain arithmetic: each channel's producer may be [`WINDOW`] bytes ahead
//! of what its consumer has taken.

use vm_agent_schemas::wire::WINDOW;

/// How much a producer may send now that has sent `sent` bytes of which `taken` were taken. A peer that
/// claims to have taken more than was sent gains nothing by it.
pub(crate) fn room(sent: u64, taken: u64) -> u64 {
    WINDOW - (sent - taken.min(sent)).min(WINDOW)
}

/// The receiving end of one channel.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    received: u64,
}

/// What a producer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FlowError {
    /// Data is missing or comes twice.
    #[error("stream data continues at {got} instead of {expected}")]
    Gap {
        /// Where the data had to begin.
        expected: u64,
        /// Where it began.
        got: u64,
    },
    /// More than the window allows.
    #[error("stream data runs {ahead} bytes ahead of what was taken; at most {WINDOW} are allowed")]
    Overrun {
        /// How far.
        ahead: u64,
    },
}

impl Intake {
    /// Counts data of `len` bytes at `offset`, `taken` bytes having been taken so far.
    pub(crate) fn accept(&mut self, offset: u64, len: usize, taken: u64) -> Result<(), FlowError> {
        if offset != self.received {
            return Err(FlowError::Gap { expected: self.received, got: offset });
        }
        let received = self.received + len as u64;
        let ahead = received.saturating_sub(taken);
        if ahead > WINDOW {
            return Err(FlowError::Overrun { ahead });
        }
        self.received = received;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_room_shrinks_with_what_is_sent_and_grows_with_what_is_taken() {
        assert_eq!(room(0, 0), WINDOW);
        assert_eq!(room(WINDOW, 0), 0);
        assert_eq!(room(WINDOW, 10), 10);
        assert_eq!(room(10, 1000), WINDOW);
    }

    proptest! {
        #[test]
        fn room_never_exceeds_the_window(sent: u64, taken: u64) {
            prop_assert!(room(sent, taken) <= WINDOW);
        }
    }

    #[test]
    fn data_must_continue_where_it_stopped_and_stay_within_the_window() {
        let mut intake = Intake::default();
        assert_eq!(intake.accept(0, 5, 0), Ok(()));
        assert_eq!(intake.accept(0, 5, 0), Err(FlowError::Gap { expected: 5, got: 0 }));
        assert_eq!(intake.accept(9, 1, 0), Err(FlowError::Gap { expected: 5, got: 9 }));
        let rest = usize::try_from(WINDOW).unwrap() - 5;
        assert_eq!(intake.accept(5, rest, 0), Ok(()));
        assert_eq!(intake.accept(WINDOW, 1, 0), Err(FlowError::Overrun { ahead: WINDOW + 1 }));
        assert_eq!(intake.accept(WINDOW, 1, 1), Ok(()));
    }
}
