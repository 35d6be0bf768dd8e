//! Webhooks: whom the controller tells what has happened.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::keys::SecretSource;
use crate::event::EventKind;

/// An address that is told of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Webhook {
    /// Where to: `https`, or `http` on this host's loopback. Each event is a POST request.
    #[schemars(extend("x-cost" = "live", "examples" = ["https://example.com/hooks/fleet"]))]
    pub url: WebhookUrl,

    /// The kinds of events that it is told of. Without this key all.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(extend("default" = [], "x-cost" = "live", "examples" = [["TaskEnded", "StepFailed"]]))]
    pub events: BTreeSet<EventKind>,

    /// Where the secret comes from that requests are signed with. Without this key they are not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = null, "x-cost" = "live", "examples" = [{"env": "HOOK_SECRET"}]))]
    pub secret: Option<SecretSource>,
}

/// Where a webhook leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(inline, with = "String")]
pub struct WebhookUrl(Url);

/// Why a text is nowhere for a webhook to lead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWebhookUrl {
    /// It is no URL.
    #[error("`{0}` is no address of a webhook: write one such as https://example.com/hooks/fleet")]
    NoUrl(String),
    /// Whoever is on the way could read along.
    #[error("http can be read along the way: write https, which only this host's loopback does without")]
    Open,
    /// It would be seen by everybody who sees the file.
    #[error("everybody sees a user or a password that is in an address: write `secret`, which signs the requests")]
    Password,
}

impl WebhookUrl {
    /// The address.
    #[must_use]
    pub const fn url(&self) -> &Url {
        &self.0
    }
}

impl FromStr for WebhookUrl {
    type Err = InvalidWebhookUrl;

    fn from_str(text: &str) -> Result<Self, InvalidWebhookUrl> {
        let url = text.parse::<Url>().map_err(|_| InvalidWebhookUrl::NoUrl(text.to_owned()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidWebhookUrl::Password);
        }
        match (url.scheme(), url.host()) {
            ("https", Some(_)) => Ok(Self(url)),
            ("http", Some(host)) if is_loopback(&host) => Ok(Self(url)),
            ("http", Some(_)) => Err(InvalidWebhookUrl::Open),
            _ => Err(InvalidWebhookUrl::NoUrl(text.to_owned())),
        }
    }
}

fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => *name == "localhost",
        Host::Ipv4(address) => IpAddr::V4(*address).is_loopback(),
        Host::Ipv6(address) => IpAddr::V6(*address).is_loopback(),
    }
}

impl TryFrom<String> for WebhookUrl {
    type Error = InvalidWebhookUrl;
    fn try_from(text: String) -> Result<Self, InvalidWebhookUrl> {
        text.parse()
    }
}

impl From<WebhookUrl> for String {
    fn from(url: WebhookUrl) -> Self {
        url.0.into()
    }
}

impl fmt::Display for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_goes_over_https_or_stays_on_this_host() {
        for good in [
            "https://example.com/x",
            "http://localhost:8080/",
            "http://127.0.0.1/",
            "http://[::1]:1/",
            "https://10.0.0.1/",
        ] {
            assert!(good.parse::<WebhookUrl>().is_ok(), "{good}");
        }
        for open in
            ["http://example.com/", "http://10.0.0.1/", "http://localhost.example.com/", "HTTP://[2001:db8::1]/"]
        {
            assert_eq!(open.parse::<WebhookUrl>(), Err(InvalidWebhookUrl::Open), "{open}");
        }
        for bad in ["", "example.com", "ftp://example.com/", "file:///etc/passwd", "unix:/run/x", "https://"] {
            assert!(matches!(bad.parse::<WebhookUrl>(), Err(InvalidWebhookUrl::NoUrl(_))), "{bad}");
        }
    }

    #[test]
    fn nobody_writes_a_password_into_an_address() {
        for bad in ["https://me:hunter2@example.com/", "https://token@example.com/"] {
            let error = bad.parse::<WebhookUrl>().unwrap_err();
            assert_eq!(error, InvalidWebhookUrl::Password);
            assert!(!error.to_string().contains("hunter2"));
        }
    }
}
