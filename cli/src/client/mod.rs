//! The controller's HTTP API: HTTP/1 over its unix socket, or over TCP with a token. Each request has
//! a connection of its own; a command makes a handful of them.

mod exec;
mod sse;

pub(crate) use exec::{Console, Control, Exec};
pub(crate) use sse::SseStream;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use vm_agent_schemas::api::{Problem, ProblemCode};
use vm_agent_schemas::ids::Secret;

use crate::exit::{CommandError, Exit};

/// How long a controller may take to answer. Plans of the largest fleets take a few seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How long a connection may take to open.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// What an answer may be: a document, a stream of server-sent events, or bytes.
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
const ANYTHING: &str = "*/*";

/// A connection, of whichever kind.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Where a controller listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// The socket in its state folder.
    Unix(PathBuf),
    /// A host and a port.
    Tcp(String),
}

impl Address {
    pub(crate) fn parse(url: &str) -> Result<Self, CommandError> {
        let authority = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        authority
            .filter(|rest| rest.contains(':') && !rest.contains(['/', '@']))
            .map(|rest| Self::Tcp(rest.to_owned()))
            .ok_or_else(|| {
                CommandError::new(Exit::USAGE, format!("`{url}` is no address of a controller"))
                    .hint("write it like http://127.0.0.1:9091; to reach another machine, tunnel the port")
            })
    }

    fn host(&self) -> &str {
        match self {
            Self::Unix(_) => "localhost",
            Self::Tcp(authority) => authority,
        }
    }

    async fn connect(&self) -> io::Result<Box<dyn Connection>> {
        let connect = async {
            Ok(match self {
                Self::Unix(path) => Box::new(UnixStream::connect(path).await?) as Box<dyn Connection>,
                Self::Tcp(authority) => Box::new(TcpStream::connect(authority).await?),
            })
        };
        tokio::time::timeout(CONNECT_LIMIT, connect).await?
    }
}

/// A document, as it came and as it was understood.
#[derive(Debug)]
pub(crate) struct Fetched<T> {
    pub(crate) raw: Value,
    pub(crate) content: T,
}

/// A client of one controller.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    address: Address,
    token: Option<Secret>,
}

impl Client {
    pub(crate) fn new(address: Address, token: Option<Secret>) -> Self {
        Self { address, token }
    }

    /// Finds out whether anybody listens.
    pub(crate) async fn knock(&self) -> io::Result<()> {
        self.address.connect().await.map(drop)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Fetched<T>, CommandError> {
        read_document(self.send(Method::GET, path, JSON, Bytes::new()).await?).await
    }

    /// Sends a document and reads the one that answers.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        document: &impl Serialize,
    ) -> Result<Fetched<T>, CommandError> {
        let body = serde_json::to_vec(document).expect("our own documents can be written as JSON");
        read_document(self.send(method, path, JSON, body.into()).await?).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        document: &impl Serialize,
    ) -> Result<Fetched<T>, CommandError> {
        self.call(Method::POST, path, document).await
    }

    /// Asks for something that needs no words.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<Fetched<T>, CommandError> {
        read_document(self.send(Method::POST, path, JSON, Bytes::new()).await?).await
    }

    /// Asks for something that needs no words; the answer has nothing to say either.
    pub(crate) async fn post_quiet(&self, path: &str) -> Result<(), CommandError> {
        self.send(Method::POST, path, JSON, Bytes::new()).await.map(drop)
    }

    /// Copies what is no document, byte by byte.
    pub(crate) async fn copy(&self, path: &str, mut to: impl AsyncWrite + Unpin) -> Result<(), CommandError> {
        let mut body = self.send(Method::GET, path, ANYTHING, Bytes::new()).await?.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken(&error))?;
            if let Some(data) = frame.data_ref() {
                to.write_all(data).await?;
            }
        }
        to.flush().await?;
        Ok(())
    }

    /// Deletes something; the answer has nothing to say.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), CommandError> {
        self.send(Method::DELETE, path, JSON, Bytes::new()).await.map(drop)
    }

    /// Opens a stream of server-sent events.
    pub(crate) async fn stream(&self, path: &str) -> Result<SseStream, CommandError> {
        let response = self.send(Method::GET, path, EVENTS, Bytes::new()).await?;
        Ok(SseStream::new(response.into_body()))
    }

    /// Opens a session with a process in an agent.
    pub(crate) async fn exec(&self, agent: &str) -> Result<Exec, CommandError> {
        let connection = self.address.connect().await.map_err(|error| self.unreachable(&error))?;
        let url = format!("ws://{}/agents/{agent}/exec", self.address.host());
        let opened = tokio::time::timeout(ANSWER_LIMIT, Exec::open(connection, &url, self.authorization()));
        opened.await.map_err(|_| self.silent())?
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        body: Bytes,
    ) -> Result<Response<Incoming>, CommandError> {
        let connection = self.address.connect().await.map_err(|error| self.unreachable(&error))?;
        let request = self.request(method, path, accept, body);
        let answer = tokio::time::timeout(ANSWER_LIMIT, exchange(connection, request)).await;
        let response = answer.map_err(|_| self.silent())?.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = read_body(response).await?;
        Err(problem(status, &body).into())
    }

    fn request(&self, method: Method, path: &str, accept: &'static str, body: Bytes) -> Request<Full<Bytes>> {
        let mut request =
            Request::builder().method(method).uri(path).header(HOST, self.address.host()).header(ACCEPT, accept);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(value) = self.authorization() {
            request = request.header(AUTHORIZATION, value);
        }
        request.body(Full::new(body)).expect("paths are made of names and numbers, which need no quoting")
    }

    fn authorization(&self) -> Option<HeaderValue> {
        let token = self.token.as_ref()?;
        // A token that no header can carry is a wrong one, and the controller says so.
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    fn unreachable(&self, error: &dyn std::fmt::Display) -> CommandError {
        let error = CommandError::new(Exit::UNREACHABLE, format!("the controller at {self} does not answer: {error}"));
        match self.address {
            Address::Unix(_) => error,
            Address::Tcp(_) => error.hint("`vm-agent status` on the controller's machine names the address of its API"),
        }
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> CommandError {
        CommandError::new(Exit::UNREACHABLE, format!("the answer of {self} broke off: {error}"))
    }

    fn silent(&self) -> CommandError {
        self.unreachable(&format_args!("it said nothing for {} s", ANSWER_LIMIT.as_secs()))
    }
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.address {
            Address::Unix(path) => path.display().fmt(f),
            Address::Tcp(authority) => f.write_str(authority),
        }
    }
}

async fn exchange(
    connection: Box<dyn Connection>,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, hyper::Error> {
    let (mut sender, driver) = http1::handshake(TokioIo::new(connection)).await?;
    // What goes wrong with the connection is seen by whoever reads from it.
    tokio::spawn(driver);
    sender.send_request(request).await
}

async fn read_body(response: Response<Incoming>) -> Result<Bytes, CommandError> {
    let body = tokio::time::timeout(ANSWER_LIMIT, response.into_body().collect()).await;
    let broken = |reason: String| CommandError::new(Exit::UNREACHABLE, format!("the answer broke off: {reason}"));
    let body = body.map_err(|error| broken(error.to_string()))?.map_err(|error| broken(error.to_string()))?;
    Ok(body.to_bytes())
}

async fn read_document<T: DeserializeOwned>(response: Response<Incoming>) -> Result<Fetched<T>, CommandError> {
    let body = read_body(response).await?;
    let odd = |error: serde_json::Error| {
        CommandError::new(Exit::FAILURE, format!("the controller's answer is not understood: {error}"))
            .hint("controller and command line may be of different versions; compare them with `vm-agent version`")
    };
    let raw: Value = serde_json::from_slice(&body).map_err(odd)?;
    let content = serde_json::from_slice(&body).map_err(odd)?;
    Ok(Fetched { raw, content })
}

/// A path with its query: those of these fields that have a value.
pub(crate) fn query(path: &str, fields: &[(&str, Option<String>)]) -> String {
    let given = fields.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(given).finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// The problem that an answer tells of, or one that stands for an answer without.
fn problem(status: u16, body: &[u8]) -> Problem {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let code = match status {
            401 | 403 => ProblemCode::Unauthorized,
            404 => ProblemCode::NotFound,
            400..500 => ProblemCode::Invalid,
            503 => ProblemCode::Unavailable,
            _ => ProblemCode::Internal,
        };
        Problem { status, ..Problem::new(code, format!("the controller answered with status {status} and no reason")) }
    })
}

#[cfg(test)]
pub(crate) mod tests;
