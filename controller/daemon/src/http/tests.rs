//! The API as a client sees it, on the routers themselves and on real sockets.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use vm_agent_schemas::api::{Problem, ProblemCode, TokenRequest};
use vm_agent_schemas::credential::Role;

mod credentials;
mod tasks;

use super::serve::Limits;
use super::*;
use crate::controller::Actor;

/// How long a test waits for something that should happen at once.
const SOON: Duration = Duration::from_secs(10);

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The problem that the reply must be.
    #[track_caller]
    fn problem(&self) -> Problem {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text);
        let problem: Problem = serde_json::from_str(&self.text).unwrap();
        assert_eq!(problem.status, self.status.as_u16());
        assert!(!problem.reason.is_empty());
        problem
    }
}

fn request(method: &str, path: &str) -> axum::http::request::Builder {
    Request::builder().method(method).uri(path).header(header::HOST, "127.0.0.1:9091")
}

async fn send(router: &Router, request: Request<Body>) -> Reply {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap();
    Reply { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

async fn ask(router: &Router, method: &str, path: &str) -> Reply {
    send(router, request(method, path).body(Body::empty()).unwrap()).await
}

async fn socket() -> Router {
    router(Controller::for_tests().await, Door::Socket { user: "ann".to_owned() })
}

async fn token_of(controller: &Controller) -> String {
    let actor = Actor { name: "ann".to_owned(), role: Role::Admin };
    let token = controller
        .create_token(TokenRequest { name: "test".to_owned(), role: Role::Admin, lasting: None }, &actor)
        .await
        .unwrap();
    format!("Bearer {}", token.secret.expose())
}

/// Every method and path that the OpenAPI document describes, its parameters filled in, and the
/// document itself.
fn described_routes() -> Vec<(String, String)> {
    let document = openapi();
    let paths = document["paths"].as_object().unwrap().iter();
    let routes = paths.flat_map(|(path, item)| {
        let path = path.replace("{name}", "web").replace("{revision}", "1");
        let path = path.replace("{id}", "0190c5a8-0000-7000-8000-000000000000");
        item.as_object().unwrap().keys().map(move |method| (method.to_uppercase(), path.clone()))
    });
    routes.chain([("GET".to_owned(), "/openapi.json".to_owned())]).collect()
}

#[tokio::test]
async fn no_route_over_tcp_answers_without_a_token() {
    let controller = Controller::for_tests().await;
    let doors = [router(controller.clone(), Door::Tcp), dashboard(controller)];
    let mut routes = described_routes();
    assert!(routes.len() > 25, "the document describes the whole API");
    routes.push(("GET".to_owned(), "/nothing/here".to_owned()));
    // Side by side: each answer to a wrong token is kept back for a moment.
    let mut asked = Vec::new();
    for door in &doors {
        for (method, path) in &routes {
            for wrong in [None, Some("Bearer wrong"), Some("Bearer "), Some("Basic d3Jvbmc="), Some("wrong")] {
                asked.push(async move {
                    let mut request = request(method, path);
                    if let Some(wrong) = wrong {
                        request = request.header(header::AUTHORIZATION, wrong);
                    }
                    let reply = send(door, request.body(Body::empty()).unwrap()).await;
                    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{method} {path} with {wrong:?}");
                    assert_eq!(reply.header("www-authenticate"), "Bearer");
                    assert_eq!(reply.problem().code, ProblemCode::Unauthorized);
                });
            }
        }
    }
    assert_eq!(asked.len(), 2 * 5 * routes.len());
    futures::future::join_all(asked).await;
}

#[tokio::test]
async fn a_token_opens_the_tcp_door_and_is_refused_from_another_site() {
    let controller = Controller::for_tests().await;
    let token = token_of(&controller).await;
    let tcp = router(controller, Door::Tcp);
    let with = |host: &str, origin: Option<&str>| {
        let mut request = Request::builder().uri("/version").header(header::HOST, host);
        request = request.header(header::AUTHORIZATION, &token);
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        send(&tcp, request.body(Body::empty()).unwrap())
    };
    let reply = with("127.0.0.1:9091", None).await;
    assert_eq!(reply.status, StatusCode::OK);
    let document: Value = serde_json::from_str(&reply.text).unwrap();
    assert_eq!((&document["apiVersion"], &document["kind"]), (&"vm-agent/v1".into(), &"Version".into()));
    assert_eq!(with("evil.example", None).await.problem().status, 421);
    assert_eq!(with("127.0.0.1:9091", Some("http://evil.example")).await.problem().status, 403);
}

#[tokio::test]
async fn a_revoked_token_opens_nothing() {
    let controller = Controller::for_tests().await;
    let token = token_of(&controller).await;
    let id = controller.tokens().await.unwrap()[0].id;
    let tcp = router(controller, Door::Tcp);
    let asked = |method, path: String| {
        let request = request(method, &path).header(header::AUTHORIZATION, &token);
        send(&tcp, request.body(Body::empty()).unwrap())
    };
    assert_eq!(asked("DELETE", format!("/tokens/{id}")).await.status, StatusCode::NO_CONTENT);
    assert_eq!(asked("GET", "/health".to_owned()).await.problem().code, ProblemCode::Unauthorized);
}

#[tokio::test]
async fn a_token_is_shown_once_and_its_digest_never() {
    let socket = socket().await;
    let made =
        send(&socket, request("POST", "/tokens").body(Body::from(r#"{"name":"laptop","role":"read"}"#)).unwrap()).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let made: Value = serde_json::from_str(&made.text).unwrap();
    let secret = made["secret"].as_str().unwrap();
    let listed = ask(&socket, "GET", "/tokens").await.text;
    assert!(listed.contains("laptop") && !listed.contains(secret) && !listed.contains("digest"), "{listed}");
}

#[tokio::test]
async fn the_socket_needs_no_token() {
    let reply = ask(&socket().await, "GET", "/health").await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.header("cache-control"), "no-store");
    let document: Value = serde_json::from_str(&reply.text).unwrap();
    assert_eq!((&document["kind"], &document["status"]), (&"Alive".into(), &"ok".into()));
}

#[tokio::test]
async fn every_error_is_a_problem() {
    let socket = socket().await;
    let cases = [
        ("GET", "/nothing", "", 404),
        ("GET", "/agents/", "", 404),
        ("GET", "/agents/nobody", "", 404),
        ("GET", "/agents/Not_A_Name", "", 400),
        ("GET", "/agents/%FF", "", 400),
        ("GET", "/tasks/7", "", 400),
        ("DELETE", "/tokens/secret", "", 400),
        ("GET", "/fleet/revisions/first", "", 400),
        ("GET", "/fleet/revisions/7", "", 404),
        ("POST", "/fleet/rollback", r#"{"revision": 7}"#, 404),
        ("PATCH", "/agents", "", 405),
        ("POST", "/health", "", 405),
        ("POST", "/apply", "", 400),
        ("POST", "/apply", "{", 400),
        ("POST", "/apply", r#"{"source": 7}"#, 400),
        ("POST", "/apply", r#"{"source": {"text": ""}} and more"#, 400),
        ("POST", "/agents/web/stop", r#"{"lasting": "soon"}"#, 400),
        ("GET", "/events?limit=many", "", 400),
        ("GET", "/events?limit=1001", "", 400),
        ("GET", "/events?sinze=1", "", 400),
        ("GET", "/agents/web/logs?tail=5000", "", 400),
        ("GET", "/agents/web/exec", "", 400),
    ];
    for (method, path, body, status) in cases {
        let reply = send(&socket, request(method, path).body(Body::from(body)).unwrap()).await;
        assert_eq!(reply.status.as_u16(), status, "{method} {path} {body}: {}", reply.text);
        reply.problem();
    }
}

#[tokio::test]
async fn a_wrong_method_names_the_right_ones() {
    let reply = ask(&socket().await, "PATCH", "/tokens").await;
    assert_eq!(reply.header("allow"), "GET,HEAD,POST");
}

#[tokio::test]
async fn what_is_wrong_in_a_body_is_named_by_its_place() {
    let bad = request("POST", "/agents/web/task")
        .body(Body::from(r#"{"job": {"work": {"type": "exec", "argv": ["ls"]}, "artifacts": 7}}"#))
        .unwrap();
    let problem = send(&socket().await, bad).await.problem();
    assert!(problem.reason.contains("job.artifacts"), "{}", problem.reason);
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let huge = request("POST", "/apply").body(Body::from(vec![b' '; extract::BODY_MAX + 1])).unwrap();
    let reply = send(&socket().await, huge).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(reply.problem().code, ProblemCode::Invalid);
}

#[tokio::test]
async fn the_page_runs_nothing_but_its_own_script() {
    let page = dashboard(Controller::for_tests().await);
    let assets = [
        ("/", "text/html; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
    ];
    for (path, media_type) in assets {
        let reply = ask(&page, "GET", path).await;
        assert_eq!((reply.status, reply.header("content-type")), (StatusCode::OK, media_type));
        assert!(!reply.text.is_empty());
        let policy = reply.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        assert_eq!(reply.header("referrer-policy"), "no-referrer");
    }
    let html = ask(&page, "GET", "/").await.text;
    assert!(!html.contains("<style") && !html.contains("style=") && !html.contains("onclick"));
    assert_eq!(html.matches("<script").count(), html.matches("<script src=").count());
    assert!(!html.contains("http://") && !html.contains("https://"));
}

#[test]
fn the_page_has_a_sentence_for_everything_that_an_agent_may_wait_for() {
    let script = include_str!("../../../../dashboard/app.js");
    let document = openapi();
    let reasons = document["components"]["schemas"]["WaitsFor"]["oneOf"].as_array().unwrap();
    assert!(reasons.len() > 20);
    for reason in reasons {
        let on = reason["properties"]["on"]["const"].as_str().unwrap();
        assert!(script.contains(&format!("\n  {on}: (")), "app.js has no sentence for `{on}`");
    }
}

#[tokio::test]
async fn the_dashboard_serves_the_page_and_the_api_and_nothing_else() {
    let controller = Controller::for_tests().await;
    let token = token_of(&controller).await;
    let page = dashboard(controller);
    let known = request("GET", "/agents").header(header::AUTHORIZATION, &token).body(Body::empty()).unwrap();
    assert_eq!(send(&page, known).await.status, StatusCode::OK);
    for path in ["/index.html", "/agents.html", "/../Cargo.toml", "/favicon.ico"] {
        let unknown = request("GET", path).header(header::AUTHORIZATION, &token).body(Body::empty()).unwrap();
        assert_eq!(send(&page, unknown).await.problem().status, 404, "{path}");
    }
    assert_eq!(ask(&page, "POST", "/").await.problem().status, 405);
    let foreign = Request::builder().uri("/").header(header::HOST, "evil.example").body(Body::empty()).unwrap();
    assert_eq!(send(&page, foreign).await.problem().status, 421);
}

async fn connected(path: &Path) -> UnixStream {
    tokio::time::timeout(SOON, async {
        loop {
            match UnixStream::connect(path).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await
    .expect("the socket is served")
}

#[tokio::test]
async fn the_socket_is_private_and_ends_its_streams_at_shutdown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let shutdown = CancellationToken::new();
    let server = {
        let (path, router, shutdown) = (path.clone(), socket().await, shutdown.clone());
        tokio::spawn(async move { serve_unix(&path, router, shutdown).await })
    };
    let mut stream = connected(&path).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    stream.write_all(b"GET /events?follow=true HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    shutdown.cancel();
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the stream ends").unwrap();
    assert!(rest.ends_with(b"0\r\n\r\n"), "the stream ends in order");
    server.await.unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_shutdown_of_a_port() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve_tcp(listener, socket().await, shutdown.clone()));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    shutdown.cancel();
    tokio::time::timeout(SOON, server).await.expect("the server ends").unwrap().unwrap();
}

/// A door that serves with these limits.
async fn served_within(limits: Limits) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let controller = Controller::for_tests().await;
    tokio::spawn(serve::serve_within(limits, listener, router(controller, Door::Tcp), CancellationToken::new()));
    address
}

/// Asks without a token, which is answered as well.
async fn ask_over(stream: &mut tokio::net::TcpStream) -> bool {
    let _ = stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let mut head = [0; 12];
    let answered = tokio::time::timeout(SOON, stream.read_exact(&mut head)).await.expect("it is answered or closed");
    answered.is_ok_and(|_| &head == b"HTTP/1.1 401")
}

async fn is_closed(stream: &mut tokio::net::TcpStream) {
    let mut rest = Vec::new();
    // Closed or reset, and nothing is said.
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.expect("it is closed");
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn who_takes_too_long_to_ask_is_closed() {
    let address = served_within(Limits { head: Duration::from_millis(200), seats: 16 }).await;
    let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(SOON, slow.read_to_end(&mut rest)).await.expect("it is closed");
    let mut silent = tokio::net::TcpStream::connect(address).await.unwrap();
    is_closed(&mut silent).await;
}

#[tokio::test]
async fn connections_without_a_token_make_room_for_others() {
    let address = served_within(Limits { head: Duration::from_secs(600), seats: 4 }).await;
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    assert!(ask_over(&mut tokio::net::TcpStream::connect(address).await.unwrap()).await);
    is_closed(&mut silent[0]).await;
    assert!(ask_over(&mut silent[4]).await, "the latest are still served");
}

#[test]
fn the_description_of_exec_names_everything_that_a_stream_can_be_opened_to() {
    let document = openapi();
    let text = document["paths"]["/agents/{name}/exec"]["get"]["description"].as_str().unwrap();
    let targets = document["components"]["schemas"]["StreamTarget"]["oneOf"].as_array().unwrap();
    assert!(targets.len() > 5);
    for target in targets {
        let word = target["properties"]["kind"]["const"].as_str().unwrap();
        assert!(text.contains(&format!("`{word}`, ")), "{word} is missing in: {text}");
    }
}

#[test]
fn the_checked_in_openapi_document_is_the_served_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas/openapi.json");
    let generated = format!("{:#}\n", openapi());
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(checked_in == generated, "schemas/openapi.json is out of date: run this test with UPDATE_SCHEMAS=1");
}

#[test]
fn every_operation_says_what_it_does_and_how_it_fails() {
    let document = openapi();
    let mut ids = std::collections::BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let place = format!("{method} {path}");
            assert!(method.parse::<Method>().is_ok());
            assert!(operation["summary"].is_string() && operation["tags"][0].is_string(), "{place}");
            assert!(ids.insert(operation["operationId"].to_string()), "{place}: its id is taken");
            let problem = &operation["responses"]["default"]["content"]["application/problem+json"]["schema"];
            assert_eq!(problem["$ref"], "#/components/schemas/Problem", "{place}");
            assert_eq!(path.contains('{'), operation["parameters"][0]["in"] == "path", "{place}");
        }
    }
}

#[test]
fn every_reference_in_the_openapi_document_leads_somewhere() {
    fn walk(value: &Value, document: &Value) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(reference)) = fields.get("$ref") {
                    let pointer = reference.strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{reference}");
                }
                fields.values().for_each(|value| walk(value, document));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(value, document)),
            _ => {}
        }
    }
    let document = openapi();
    walk(&document, &document);
}
