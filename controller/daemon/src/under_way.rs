//! Steps under way, so that one can be given up.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use vm_agent_schemas::ids::OperationId;

/// The steps that are being carried out.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    steps: Mutex<BTreeMap<OperationId, CancellationToken>>,
}

impl UnderWay {
    /// A step begins. What is answered is cancelled when it is given up.
    pub(crate) fn begin(&self, step: OperationId) -> CancellationToken {
        self.lock().entry(step).or_default().clone()
    }

    /// A step has ended.
    pub(crate) fn end(&self, step: OperationId) {
        self.lock().remove(&step);
    }

    /// Gives a step up. It may have ended already, or may have been one of an earlier life.
    pub(crate) fn give_up(&self, step: OperationId) {
        if let Some(given_up) = self.lock().get(&step) {
            given_up.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<OperationId, CancellationToken>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_given_up_as_long_as_it_is_under_way_and_no_other_with_it() {
        let (steps, one, other) = (UnderWay::default(), OperationId::generate(), OperationId::generate());
        steps.give_up(one);
        let (first, second) = (steps.begin(one), steps.begin(other));
        assert!(!first.is_cancelled(), "it had not begun");
        steps.give_up(one);
        assert!(first.is_cancelled() && !second.is_cancelled());
        steps.end(other);
        steps.give_up(other);
        assert!(!second.is_cancelled());
    }
}
