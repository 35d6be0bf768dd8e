//! Which webhooks can't be told of events at present, and why.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_agent_schemas::fleet::Webhook;

use crate::conditions::Fact;

/// The webhooks that can't be told, by their addresses.
#[derive(Debug, Default)]
pub(crate) struct Outages {
    problems: Mutex<BTreeMap<String, String>>,
}

impl Outages {
    /// One can't be told. Answers whether that is news.
    pub(super) fn begin(&self, webhook: &Webhook, problem: &str) -> bool {
        self.lock().insert(webhook.url.to_string(), problem.to_owned()).is_none()
    }

    /// One was told.
    pub(super) fn end(&self, webhook: &Webhook) {
        self.lock().remove(&webhook.url.to_string());
    }

    /// What can be said of these webhooks; nothing where there are none.
    pub(crate) fn fact(&self, webhooks: &[Webhook]) -> Option<Fact> {
        let problems = self.lock();
        let failing = webhooks.iter().filter_map(|webhook| {
            let url = webhook.url.to_string();
            problems.get(&url).map(|problem| format!("{url}: {problem}"))
        });
        let failing: Vec<String> = failing.collect();
        let fact = |holds, reason, message| Fact::new("WebhooksTold", holds, reason, message);
        match (webhooks, failing.as_slice()) {
            ([], _) => None,
            (_, []) => Some(fact(true, "Told", "every webhook takes its events".to_owned())),
            (_, failing) => Some(fact(false, "Failing", failing.join("; "))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use vm_agent_schemas::plan::ConditionStatus;

    use super::*;

    fn webhook(url: &str) -> Webhook {
        Webhook { url: url.parse().unwrap(), events: Default::default(), secret: None }
    }

    #[test]
    fn a_webhook_that_fails_is_told_of_once_and_until_it_takes_an_event_or_is_gone() {
        let (outages, hook, other) = (Outages::default(), webhook("https://a.example/"), webhook("https://b.example/"));
        let status = |webhooks: &[Webhook]| outages.fact(webhooks).map(|fact| fact.status);
        assert_eq!(status(&[]), None);
        assert!(outages.begin(&hook, "its secret is not set"));
        assert!(!outages.begin(&hook, "the receiver answered 500"));
        let fact = outages.fact(&[hook.clone(), other.clone()]).unwrap();
        assert_eq!(fact.status, ConditionStatus::False);
        assert_eq!(fact.message, "https://a.example/: the receiver answered 500");
        assert_eq!(status(std::slice::from_ref(&other)), Some(ConditionStatus::True));
        outages.end(&hook);
        assert_eq!(status(&[hook, other]), Some(ConditionStatus::True));
    }
}
