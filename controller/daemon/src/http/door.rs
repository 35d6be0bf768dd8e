//! The doors of the API and their locks: who may pass, how long a request may take, and the audit.

use std::net::IpAddr;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use vm_agent_schemas::api::{Problem, ProblemCode};
use vm_agent_schemas::credential::Role;
use vm_agent_schemas::ids::Secret;

use super::answer::Refusal;
use super::extract::bearer;
use super::roles::required;
use super::serve::Seat;
use super::stream::Pass;
use crate::controller::{Actor, Controller};

/// How long a request may take until its answer begins. Nothing that the API does waits for a
/// machine, so this only bounds what is broken; it lies above every deadline of the store.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// How long the answer to a wrong token is kept back.
const GUESS_PAUSE: Duration = Duration::from_millis(200);

/// How many of these answers are on their way at a time: 80 guesses a second in all. Tokens have 256 random
/// bits, so this only keeps guessing from being load.
static GUESSES: Semaphore = Semaphore::const_new(16);

/// Where requests come in, which decides what they must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// The unix socket. File permissions have decided who may use it.
    Socket {
        /// The name of the user that it belongs to.
        user: String,
    },
    /// A TCP port. Every request needs a token.
    Tcp,
}

/// A door in front of a controller.
#[derive(Clone)]
pub(super) struct Guard {
    /// The controller, which knows the tokens.
    pub controller: Controller,
    /// The door.
    pub door: Door,
}

impl Guard {
    /// Who asks, and by which token.
    async fn admit(&self, uri: &Uri, headers: &HeaderMap) -> Result<(Actor, Option<Pass>), Refusal> {
        if let Door::Socket { user } = &self.door {
            return Ok((Actor { name: user.clone(), role: Role::Admin }, None));
        }
        same_site(uri, headers)?;
        let unauthorized = |reason: &str| {
            let problem = Problem::new(ProblemCode::Unauthorized, reason);
            problem.remedy("Send `Authorization: Bearer <token>`; `vm-agent token create` makes a token.")
        };
        let token = bearer(headers).ok_or_else(|| unauthorized("the request carries no token"))?;
        if let Some(actor) = self.controller.authenticate(token).await? {
            let pass = Pass::new(self.controller.clone(), &Secret::from_text(token));
            return Ok((actor, Some(pass)));
        }
        // Who knows a token is never held up by those who guess.
        let _turn = GUESSES.acquire().await;
        tokio::time::sleep(GUESS_PAUSE).await;
        Err(unauthorized("the token is unknown, revoked or expired").into())
    }
}

/// Admits a request or refuses it, carries it out within its time, and audits what changes anything.
///
/// A request runs as a task of its own. One that changes something is carried through and audited even
/// when its client goes away meanwhile; one that only reads ends with its client.
pub(super) async fn guard(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let (actor, pass) = match guard.admit(request.uri(), request.headers()).await {
        Ok(admitted) => admitted,
        Err(refusal) => {
            guard.controller.turned_away();
            return refusal.into_response();
        }
    };
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let changes = changes_something(&method, &path);
    if let Err(refusal) = permit(&actor, &method, &path) {
        // Requests without a token that works are counted and not audited: whoever has none could push all
        // others out of the audit.
        if changes {
            guard.controller.audit(&actor, method.as_str(), &path, refusal.0.status, Timestamp::now()).await;
        }
        return refusal.into_response();
    }
    if let Some(seat) = request.extensions().get::<Seat>() {
        seat.keep();
    }
    request.extensions_mut().insert(actor.clone());
    if let Some(pass) = pass {
        request.extensions_mut().insert(pass);
    }
    let work = tokio::spawn(async move {
        let response = next.run(request).await;
        if changes {
            let status = response.status().as_u16();
            guard.controller.audit(&actor, method.as_str(), &path, status, Timestamp::now()).await;
        }
        response
    });
    let answer = if changes {
        timeout(REQUEST_LIMIT, work).await
    } else {
        timeout(REQUEST_LIMIT, AbortOnDropHandle::new(work)).await
    };
    match answer {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            tracing::error!(%error, "a request handler failed");
            Refusal(Problem::new(ProblemCode::Internal, "the controller could not answer")).into_response()
        }
        Err(_) => {
            let reason = format!("the request was not answered within {} s", REQUEST_LIMIT.as_secs());
            let problem = Problem::new(ProblemCode::Unavailable, reason);
            Refusal::with_status(StatusCode::GATEWAY_TIMEOUT, problem).into_response()
        }
    }
}

/// Refuses what the actor's role does not cover.
fn permit(actor: &Actor, method: &Method, path: &str) -> Result<(), Refusal> {
    let required = required(method, path);
    if actor.role >= required {
        return Ok(());
    }
    let reason =
        format!("`{}` may not do this: it has the role `{}`, and `{required}` is needed", actor.name, actor.role);
    let problem = Problem::new(ProblemCode::Forbidden, reason);
    Err(problem.remedy(format!("`vm-agent token create NAME --role {required}` makes a token that may.")).into())
}

/// Whether a request is one for the audit. `exec` is a GET, as every WebSocket, and runs a command.
fn changes_something(method: &Method, path: &str) -> bool {
    !method.is_safe() || path.ends_with("/exec")
}

/// Refuses what another web site's page sends through a browser: a request to a name that its owner
/// made to resolve to this machine, or one that says to come from another origin.
pub(super) fn same_site(uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let forbidden = |status, reason: String| Refusal::with_status(status, Problem::new(ProblemCode::Invalid, reason));
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?"));
    let Some(host) = uri.authority().map(Authority::as_str).or_else(|| text(header::HOST)) else {
        return Err(forbidden(StatusCode::BAD_REQUEST, "the request has no `Host`".to_owned()));
    };
    if !is_literal(host) {
        let reason = format!("`Host` is `{host}`; only an IP address or `localhost` is served");
        return Err(forbidden(StatusCode::MISDIRECTED_REQUEST, reason));
    }
    match text(header::ORIGIN) {
        Some(origin) if !origin.eq_ignore_ascii_case(&format!("http://{host}")) => {
            Err(forbidden(StatusCode::FORBIDDEN, format!("pages of `{origin}` may not use this API")))
        }
        _ => Ok(()),
    }
}

/// Whether a host, with or without a port, is an address or `localhost`: nothing that the owner of a
/// domain decides about.
fn is_literal(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// Headers that every answer carries: nothing of it is kept by caches, and nothing is taken for what
/// it does not say to be.
pub(super) async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host: &str, origin: Option<&str>) -> Option<u16> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        same_site(&Uri::from_static("/agents"), &headers).err().map(|refusal| refusal.0.status)
    }

    #[test]
    fn only_addresses_and_localhost_are_served() {
        for host in ["127.0.0.1:9091", "127.0.0.1", "[::1]:9091", "[::1]", "localhost:9091", "LOCALHOST", "10.0.2.2:1"]
        {
            assert_eq!(asked(host, None), None, "{host}");
        }
        for host in ["evil.example", "evil.example:9091", "127.0.0.1.evil.example", "localhost.evil.example", "", "a b"]
        {
            assert_eq!(asked(host, None), Some(421), "{host}");
        }
        assert_eq!(same_site(&Uri::from_static("/"), &HeaderMap::new()).unwrap_err().0.status, 400);
    }

    #[test]
    fn the_target_of_a_proxy_request_counts_as_its_host() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("127.0.0.1:9091"));
        let refused = same_site(&Uri::from_static("http://evil.example/agents"), &headers).unwrap_err();
        assert_eq!(refused.0.status, 421);
    }

    #[test]
    fn only_the_page_of_the_same_host_and_port_may_ask() {
        assert_eq!(asked("127.0.0.1:9092", Some("http://127.0.0.1:9092")), None);
        for origin in ["http://127.0.0.1:9091", "http://localhost:9092", "https://evil.example", "null", "file://"] {
            assert_eq!(asked("127.0.0.1:9092", Some(origin)), Some(403), "{origin}");
        }
    }

    #[test]
    fn commands_run_by_exec_are_audited_like_changes() {
        assert!(changes_something(&Method::GET, "/agents/web/exec"));
        assert!(changes_something(&Method::DELETE, "/agents/web"));
        assert!(!changes_something(&Method::GET, "/agents/web"));
    }
}
