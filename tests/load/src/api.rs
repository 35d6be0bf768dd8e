//! The controller's HTTP API, over its unix socket.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::Failure;

/// Where a controller answers.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    socket: PathBuf,
}

impl Api {
    pub(crate) fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// A connection of its own: one request at a time.
    pub(crate) async fn connect(&self) -> Result<Connection, Failure> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the sender; what fails fails the request as well.
        tokio::spawn(connection);
        Ok(Connection { sender })
    }

    /// What happens from now on.
    pub(crate) async fn events(&self) -> Result<Events, Failure> {
        let answer = self.connect().await?.send("GET", "/events?follow=true&limit=1", None).await?;
        Ok(Events { body: answer.into_body(), buffer: Vec::new(), first: true })
    }

    /// A stream into an agent.
    pub(crate) async fn exec(&self, agent: &str) -> Result<WebSocketStream<UnixStream>, Failure> {
        let stream = UnixStream::connect(&self.socket).await?;
        Ok(client_async(format!("ws://localhost/agents/{agent}/exec"), stream).await?.0)
    }
}

/// A connection to the API.
pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Asks, and gives the answer's document.
    pub(crate) async fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let answer = self.send(method, path, body).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if status.is_success() {
            Ok(serde_json::from_slice(&body)?)
        } else {
            Err(format!("{method} {path}: {status}: {}", String::from_utf8_lossy(&body)).into())
        }
    }

    async fn send(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Response<Incoming>, Failure> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(body.map(|body| body.to_string().into()).unwrap_or_default()))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            return Err("the controller is going down".into());
        }
        Ok(answer)
    }
}

/// A stream of server-sent events.
pub(crate) struct Events {
    body: Incoming,
    buffer: Vec<u8>,
    /// Whether the page of what was there before is still to come.
    first: bool,
}

impl Events {
    /// The next event.
    pub(crate) async fn next(&mut self) -> Result<Value, Failure> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let block = String::from_utf8(block)?;
                let Some(data) = block.lines().find_map(|line| line.strip_prefix("data: ")) else { continue };
                if !std::mem::take(&mut self.first) {
                    return Ok(serde_json::from_str(data)?);
                }
                continue;
            }
            let frame = self.body.frame().await.ok_or("the stream of events ended")??;
            if let Some(data) = frame.data_ref() {
                self.buffer.extend_from_slice(data);
            }
        }
    }
}
