//! Addresses that a controller listens on.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
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
