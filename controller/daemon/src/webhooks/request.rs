//! What a webhook is sent, and what its answers mean. Pure.
//!
//! Body, id, time and signature follow [Standard Webhooks](https://www.standardwebhooks.com), so receivers can
//! check them with any of its libraries.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::hmac;
use serde_json::json;
use vm_agent_schemas::event::Event;
use vm_agent_schemas::ids::Secret;
use vm_agent_schemas::names::FleetName;

/// How old an event may be while it is still tried. A receiver that was down for a night misses nothing.
pub(super) const GIVEN_UP_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The pause after the first failure.
const PAUSE_FIRST: Duration = Duration::from_secs(1);

/// The longest pause.
const PAUSE_LONGEST: Duration = Duration::from_secs(300);

/// How Standard Webhooks mark a secret that is written in base64.
const SECRET_PREFIX: &str = "whsec_";

/// A request, whole.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Taken,
    /// Nobody is there any more.
    Gone,
    /// To be tried again.
    Failed(u16),
}

impl Answer {
    pub(super) const fn of(status: u16) -> Self {
        match status {
            200..300 => Self::Taken,
            410 => Self::Gone,
            other => Self::Failed(other),
        }
    }
}

/// The request that tells of an event.
pub(super) fn request(fleet: &FleetName, event: &Event, secret: Option<&Secret>, now: Timestamp) -> Request {
    let body = json!({"type": event.kind, "timestamp": event.at, "data": event}).to_string();
    // The same in each attempt: by it a receiver knows what it has taken already.
    let id = format!("evt_{fleet}_{}", event.seq);
    let timestamp = now.as_second().to_string();
    let mut headers = vec![("content-type", "application/json".to_owned())];
    if let Some(secret) = secret {
        headers.push(("webhook-signature", signature(secret, &id, &timestamp, &body)));
    }
    headers.extend([("webhook-id", id), ("webhook-timestamp", timestamp)]);
    Request { headers, body }
}

fn signature(secret: &Secret, id: &str, timestamp: &str, body: &str) -> String {
    let text = secret.expose();
    let decoded = text.strip_prefix(SECRET_PREFIX).and_then(|encoded| STANDARD.decode(encoded).ok());
    let key = hmac::Key::new(hmac::HMAC_SHA256, &decoded.unwrap_or_else(|| text.as_bytes().to_vec()));
    let tag = hmac::sign(&key, format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(tag))
}

/// The pause after so many failures in a row.
pub(super) fn pause(failures: u32) -> Duration {
    PAUSE_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that the specification of Standard Webhooks prints for its libraries.
    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let secret = Secret::from_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let body = r#"{"test": 2432232314}"#;
        let signed = signature(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_that_is_no_base64_is_taken_as_it_is() {
        let signed = |text: &str| signature(&Secret::from_text(text), "a", "1", "{}");
        assert_ne!(signed("plain"), signed("other"));
        assert_ne!(signed("whsec_!"), signed("!"));
    }

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let seconds: Vec<u64> = [1, 2, 3, 9, 10, 1000].map(|failures| pause(failures).as_secs()).to_vec();
        assert_eq!(seconds, [1, 2, 4, 256, 300, 300]);
    }

    #[test]
    fn only_success_is_taken_and_only_410_is_for_good() {
        let of = [200, 204, 301, 400, 410, 500].map(Answer::of);
        let failed = Answer::Failed;
        assert_eq!(of, [Answer::Taken, Answer::Taken, failed(301), failed(400), Answer::Gone, failed(500)]);
    }
}
