//! The first messages of a connection: hello, challenge, proof, welcome.

use futures::{SinkExt, StreamExt};
use ring::signature::Ed25519KeyPair;
use tokio_tungstenite::tungstenite::{self, Message};
use vm_agent_schemas::wire::{Envelope, FromHub, FromRuntime, HANDSHAKE_LIMIT, Hello, Refused, Seed, Welcome};

use crate::connection::{ConnectError, Socket, connect};
use crate::identity::prove;
use crate::outgoing::text;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("no connection")]
    Connect(#[from] ConnectError),
    #[error("the connection failed during the handshake")]
    WebSocket(#[source] Box<tungstenite::Error>),
    #[error("the hub closed the connection during the handshake")]
    Closed,
    #[error("the hub sent something else than {0}")]
    Unexpected(&'static str),
    #[error("the handshake took longer than {HANDSHAKE_LIMIT}")]
    TooLong,
    #[error("the hub refused the session ({}): {}", .0.code, .0.message)]
    Refused(Refused),
}

impl From<tungstenite::Error> for OpenError {
    fn from(error: tungstenite::Error) -> Self {
        Self::WebSocket(Box::new(error))
    }
}

/// Connects to the hub and shakes hands.
pub(crate) async fn open(key: &Ed25519KeyPair, seed: &Seed, hello: Hello) -> Result<(Socket, Welcome), OpenError> {
    let attempt = async {
        let mut socket = connect(&seed.hub, seed.hub_pin.as_ref()).await?;
        let welcome = shake(&mut socket, key, hello).await?;
        Ok((socket, welcome))
    };
    tokio::time::timeout(HANDSHAKE_LIMIT.get(), attempt).await.unwrap_or(Err(OpenError::TooLong))
}

async fn shake(socket: &mut Socket, key: &Ed25519KeyPair, hello: Hello) -> Result<Welcome, OpenError> {
    say(socket, &hello, FromRuntime::Hello(hello.clone())).await?;
    let challenge = match hear(socket, "a challenge").await? {
        FromHub::Challenge(challenge) => challenge,
        other => return Err(refusal_or(other, "a challenge")),
    };
    let proof = prove(key, &challenge, &hello);
    say(socket, &hello, FromRuntime::Proof(proof)).await?;
    match hear(socket, "a welcome").await? {
        FromHub::Welcome(welcome) => Ok(welcome),
        other => Err(refusal_or(other, "a welcome")),
    }
}

fn refusal_or(message: FromHub, expected: &'static str) -> OpenError {
    match message {
        FromHub::Refused(refused) => OpenError::Refused(refused),
        _ => OpenError::Unexpected(expected),
    }
}

async fn say(socket: &mut Socket, hello: &Hello, body: FromRuntime) -> Result<(), OpenError> {
    Ok(socket.send(Message::Text(text(hello.agent.clone(), body))).await?)
}

async fn hear(socket: &mut Socket, expected: &'static str) -> Result<FromHub, OpenError> {
    while let Some(message) = socket.next().await {
        match message? {
            Message::Text(text) => {
                let envelope: Envelope<FromHub> =
                    serde_json::from_str(&text).map_err(|_| OpenError::Unexpected(expected))?;
                return Ok(envelope.body);
            }
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return Err(OpenError::Closed),
            Message::Binary(_) | Message::Frame(_) => return Err(OpenError::Unexpected(expected)),
        }
    }
    Err(OpenError::Closed)
}
