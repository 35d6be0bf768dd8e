//! Addresses that a controller listens on.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where runtimes connect, unless the file says otherwise.
pub const HUB_PORT: u16 = 9090;
/// Where the HTTP API listens, unless the file says otherwise.
pub const API_PORT: u16 = 9091;
/// Where the dashboard listens, unless the file says otherwise.
pub const DASHBOARD_PORT: u16 = 9092;

/// An address to listen on: `auto`, or an IP address with a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(inline, with = "String")]
pub enum Listen {
    /// Loopback with the usual port, and for the hub each driver's own network beside it.
    #[default]
    Auto,
    /// Exactly here. Port 0 takes a free port.
    At(SocketAddr),
}

/// Why a text is no address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an address to listen on: write `auto`, or an IP address and a port such as 127.0.0.1:9090")]
pub struct InvalidListen {
    text: String,
}

impl Listen {
    /// The address on this machine's loopback that this comes to.
    #[must_use]
    pub fn address(self, usual_port: u16) -> SocketAddr {
        match self {
            Self::Auto => SocketAddr::from((Ipv4Addr::LOCALHOST, usual_port)),
            Self::At(address) => address,
        }
    }
}

impl FromStr for Listen {
    type Err = InvalidListen;
    fn from_str(text: &str) -> Result<Self, InvalidListen> {
        match text {
            "auto" => Ok(Self::Auto),
            other => other.parse().map(Self::At).map_err(|_| InvalidListen { text: text.to_owned() }),
        }
    }
}

impl TryFrom<String> for Listen {
    type Error = InvalidListen;
    fn try_from(text: String) -> Result<Self, InvalidListen> {
        text.parse()
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.to_string()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::At(address) => address.fmt(f),
        }
    }
}

/// An address that somebody else is told: a host, by name or by IP address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(inline, with = "String")]
pub struct HostPort {
    /// As it stands in a URL: an IPv6 address in brackets.
    host: String,
    port: u16,
}

/// Why a text is no host and port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a host and a port: write them such as 192.0.2.7:9090, [2001:db8::7]:9090 or hub.example:9090")]
pub struct InvalidHostPort {
    text: String,
}

impl HostPort {
    /// Whether what is sent there does not leave the machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>().map_or(bare == "localhost", |ip| ip.is_loopback())
    }
}

impl FromStr for HostPort {
    type Err = InvalidHostPort;
    fn from_str(text: &str) -> Result<Self, InvalidHostPort> {
        let invalid = || InvalidHostPort { text: text.to_owned() };
        // With a port that nobody can connect to, it is no place to be found at.
        if let Ok(address) = text.parse::<SocketAddr>() {
            let port = Some(address.port()).filter(|port| *port != 0).ok_or_else(invalid)?;
            let host = text.rsplit_once(':').map_or(text, |(host, _)| host).to_owned();
            return Ok(Self { host, port });
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let is_label = |label: &str| {
            let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
            !label.is_empty() && label.chars().all(inner) && !label.starts_with('-') && !label.ends_with('-')
        };
        // What consists of numbers is meant as an IP address, and is none.
        let is_name = host.split('.').all(is_label) && host.contains(|c: char| c.is_ascii_alphabetic());
        let port = port.parse().ok().filter(|port| *port != 0 && is_name).ok_or_else(invalid)?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl TryFrom<String> for HostPort {
    type Error = InvalidHostPort;
    fn try_from(text: String) -> Result<Self, InvalidHostPort> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(address: HostPort) -> Self {
        address.to_string()
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_by_name_or_address_with_its_port() {
        for (text, loopback) in [
            ("127.0.0.1:9090", true),
            ("localhost:1", true),
            ("[::1]:9090", true),
            ("192.0.2.7:9090", false),
            ("[2001:db8::7]:9090", false),
            ("hub.example:9090", false),
        ] {
            let address: HostPort = text.parse().unwrap();
            assert_eq!((address.to_string().as_str(), address.is_loopback()), (text, loopback));
        }
        for text in
            ["", "hub", "hub:", ":9090", "hub:0", "127.0.0.1:0", "1.2.3:80", "a b:80", "a/b:80", "u@h:80", "::1:80"]
        {
            let error = text.parse::<HostPort>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("`{text}` is not a host and a port")), "{error}");
        }
    }
}
