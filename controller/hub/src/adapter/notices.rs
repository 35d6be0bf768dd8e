//! Notices for a controller that may be slow.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::state::Notice;

/// Notices on their way. What the controller has no room for waits here if it must not be lost, and is
/// dropped if it may.
pub(super) struct Notices {
    sender: mpsc::Sender<Notice>,
    waiting: VecDeque<Notice>,
}

impl Notices {
    pub(super) const fn new(sender: mpsc::Sender<Notice>) -> Self {
        Self { sender, waiting: VecDeque::new() }
    }

    pub(super) fn push(&mut self, notice: Notice) {
        let refused =
            if self.waiting.is_empty() { self.sender.try_send(notice) } else { Err(TrySendError::Full(notice)) };
        if let Err(TrySendError::Full(notice)) = refused
            && !notice.may_be_dropped()
            && !(notice.is_wakeup() && self.waiting.contains(&notice))
        {
            self.waiting.push_back(notice);
        }
    }

    /// Passes one waiting notice on as soon as there is room; never, while none waits. Safe to cancel.
    pub(super) async fn pass_on(&mut self) {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        match self.sender.reserve().await {
            Ok(permit) => {
                if let Some(notice) = self.waiting.pop_front() {
                    permit.send(notice);
                }
            }
            // Nobody listens any more.
            Err(_) => self.waiting.clear(),
        }
    }

    /// Passes everything on that waits.
    pub(super) async fn finish(&mut self) {
        while !self.waiting.is_empty() {
            self.pass_on().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(agent: &str) -> Notice {
        Notice::Activity { agent: agent.parse().unwrap() }
    }

    #[tokio::test]
    async fn of_wakeups_that_wait_one_for_each_agent_is_kept() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut notices = Notices::new(sender);
        let heard = Notice::SessionHeard { agent: "web".parse().unwrap() };
        notices.push(heard.clone());
        for _ in 0..3 {
            notices.push(activity("web"));
            notices.push(activity("db"));
            notices.push(heard.clone());
        }
        let mut told = Vec::new();
        let passing_on = notices.finish();
        let receiving = async {
            while told.len() < 6 {
                told.extend(receiver.recv().await);
            }
        };
        tokio::join!(passing_on, receiving);
        let waited = [activity("web"), activity("db"), heard.clone(), heard.clone(), heard.clone()];
        assert_eq!(told, [vec![heard], waited.to_vec()].concat());
    }
}
