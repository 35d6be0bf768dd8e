//! Who may do what, and what is kept of it.

use jiff::Timestamp;
use vm_agent_schemas::credential::ApiToken;
use vm_agent_schemas::ids::{Secret, TokenId};
use vm_agent_store as store;

use super::*;
use crate::http::roles::required;

/// A token of this role that ends then, and works until it does.
async fn token_with(controller: &Controller, name: &str, role: Role, expires_at: Option<Timestamp>) -> String {
    let secret = Secret::generate();
    let (digest, created_at) = (secret.digest(), Timestamp::UNIX_EPOCH);
    let token = ApiToken { id: TokenId::generate(), name: name.to_owned(), digest, role, created_at, expires_at };
    let stored = controller.core().ledger.store().write(move |conn| store::tokens::put(conn, &token)).await;
    stored.unwrap();
    format!("Bearer {}", secret.expose())
}

/// Asks with a body that is no document: who may ask is found out, and nothing is done.
async fn try_with(router: &Router, token: &str, method: &str, path: &str) -> Reply {
    let request = request(method, path).header(header::AUTHORIZATION, token);
    send(router, request.body(Body::from("{")).unwrap()).await
}

#[tokio::test]
async fn each_role_may_use_the_routes_that_are_its_own_and_no_others() {
    let controller = Controller::for_tests().await;
    let tcp = router(controller.clone(), Door::Tcp);
    let mut refused = 0;
    for role in Role::ALL {
        let token = token_with(&controller, role.as_str(), role, None).await;
        for (method, path) in described_routes() {
            let reply = try_with(&tcp, &token, &method, &path).await;
            let needed = required(&method.parse().unwrap(), &path);
            assert_eq!(reply.status == StatusCode::FORBIDDEN, role < needed, "{role}: {method} {path}: {}", reply.text);
            assert_ne!(reply.status, StatusCode::UNAUTHORIZED, "{role}: {method} {path}");
            if role < needed {
                assert_eq!(reply.problem().code, ProblemCode::Forbidden);
                refused += 1;
            }
        }
    }
    assert!(refused > 40, "{refused}");
}

#[tokio::test]
async fn a_token_whose_time_is_over_opens_nothing() {
    let controller = Controller::for_tests().await;
    let token = token_with(&controller, "ci", Role::Admin, Some(Timestamp::now())).await;
    let tcp = router(controller, Door::Tcp);
    assert_eq!(try_with(&tcp, &token, "GET", "/health").await.problem().code, ProblemCode::Unauthorized);
}

#[tokio::test]
async fn whatever_changes_something_is_audited_and_so_is_what_a_role_forbids() {
    let controller = Controller::for_tests().await;
    let tcp = router(controller.clone(), Door::Tcp);
    let tokens = [
        token_with(&controller, "root", Role::Admin, None).await,
        token_with(&controller, "looker", Role::Read, None).await,
    ];
    let mut asked = Vec::new();
    for (actor, token) in ["root", "looker"].into_iter().zip(&tokens) {
        for (method, path) in described_routes() {
            let status = try_with(&tcp, token, &method, &path).await.status.as_u16();
            if method != "GET" || path.ends_with("/exec") {
                asked.push((actor.to_owned(), method, path, status));
            }
        }
    }
    assert!(asked.len() > 40);
    let reply = send(
        &tcp,
        request("GET", "/audit?limit=1000").header(header::AUTHORIZATION, &tokens[0]).body(Body::empty()).unwrap(),
    )
    .await;
    let document: Value = serde_json::from_str(&reply.text).unwrap();
    assert_eq!(document["kind"], "AuditList");
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap().to_owned();
    let items = document["items"].as_array().unwrap();
    let audited: Vec<_> = items
        .iter()
        .map(|entry| {
            let status = entry["status"].as_u64().unwrap().try_into().unwrap();
            (text(entry, "actor"), text(entry, "method"), text(entry, "path"), status)
        })
        .collect();
    assert_eq!(audited, asked);
    let after = items[items.len() - 2]["seq"].as_u64().unwrap();
    assert_eq!(controller.audited(Some(after), 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_token_that_is_rotated_works_beside_its_successor_for_a_while() {
    let controller = Controller::for_tests().await;
    let old = token_with(&controller, "ci", Role::Read, None).await;
    let id = controller.tokens().await.unwrap()[0].id;
    let tcp = router(controller.clone(), Door::Tcp);
    let socket = router(controller.clone(), Door::Socket { user: "ann".to_owned() });
    let rotated = async |id: TokenId, overlap: &str| {
        let body = Body::from(format!(r#"{{"overlap": "{overlap}"}}"#));
        send(&socket, request("POST", &format!("/tokens/{id}/rotate")).body(body).unwrap()).await
    };
    let reply = rotated(id, "1h").await;
    assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text);
    let made: Value = serde_json::from_str(&reply.text).unwrap();
    assert_eq!((&made["token"]["name"], &made["token"]["role"]), (&"ci".into(), &"read".into()));
    let new = format!("Bearer {}", made["secret"].as_str().unwrap());
    let tokens = controller.tokens().await.unwrap();
    assert!(tokens.iter().any(|token| token.id == id && token.expires_at > Some(Timestamp::now())));
    assert!(tokens.iter().any(|token| token.id != id && token.expires_at.is_none()));
    for token in [&old, &new] {
        assert_eq!(try_with(&tcp, token, "GET", "/health").await.status, StatusCode::OK);
    }
    assert_eq!(rotated(id, "0s").await.status, StatusCode::CREATED);
    assert_eq!(try_with(&tcp, &old, "GET", "/health").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(rotated(id, "1h").await.problem().code, ProblemCode::NotFound, "what is over has no successor");
}

#[tokio::test]
async fn the_key_of_a_runtime_that_is_away_is_not_rotated() {
    let socket = socket().await;
    assert_eq!(ask(&socket, "POST", "/agents/web/rotate").await.problem().code, ProblemCode::NotFound);
    let made = send(&socket, request("PUT", "/agents/web").body(Body::from("{}")).unwrap()).await;
    assert!(made.status.is_success(), "{}", made.text);
    let refused = ask(&socket, "POST", "/agents/web/rotate").await.problem();
    assert_eq!((refused.code, refused.retryable), (ProblemCode::Offline, true), "{}", refused.reason);
}

#[test]
fn the_threat_model_names_places_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("THREAT_MODEL.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let mut checked = 0;
    for place in quoted.filter(|word| word.contains('/') && !word.contains(' ')) {
        let (head, rest) = place.split_once('{').unwrap_or((place, ""));
        let (names, tail) = rest.split_once('}').unwrap_or(("", ""));
        for name in names.split(',') {
            let file = format!("{head}{name}{tail}");
            assert!(root.join(&file).exists(), "THREAT_MODEL.md names `{file}`, which does not exist");
            checked += 1;
        }
    }
    assert!(checked > 15, "{checked}");
}

/// A stream of events over a real connection, whose head has come.
async fn following(address: std::net::SocketAddr, token: &str) -> tokio::net::TcpStream {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET /events?follow=true HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    stream
}

#[tokio::test]
async fn a_stream_ends_with_the_token_that_opened_it_and_no_other_does() {
    let controller = Controller::for_tests().await;
    let soon = Timestamp::now() + jiff::SignedDuration::from_secs(2);
    let revoked = token_with(&controller, "revoked", Role::Read, None).await;
    let expires = token_with(&controller, "expires", Role::Read, Some(soon)).await;
    let stays = token_with(&controller, "stays", Role::Read, None).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    tokio::spawn(serve_tcp(listener, router(controller.clone(), Door::Tcp), shutdown.clone()));
    let [mut ends, mut ends_in_time, mut goes_on] =
        [following(address, &revoked).await, following(address, &expires).await, following(address, &stays).await];

    let id = controller.tokens().await.unwrap().into_iter().find(|token| token.name == "revoked").unwrap().id;
    controller.revoke_token(id, &Actor { name: "ann".to_owned(), role: Role::Admin }).await.unwrap();
    for stream in [&mut ends, &mut ends_in_time] {
        let mut rest = Vec::new();
        let read = async {
            while !rest.ends_with(b"0\r\n\r\n") {
                assert!(stream.read_buf(&mut rest).await.unwrap() > 0, "it ends in order");
            }
        };
        tokio::time::timeout(SOON, read).await.expect("the stream ends");
    }
    let mut said = Vec::new();
    let ended = async { while !said.ends_with(b"0\r\n\r\n") && goes_on.read_buf(&mut said).await.unwrap() > 0 {} };
    assert!(tokio::time::timeout(Duration::from_millis(200), ended).await.is_err(), "the other goes on");
    shutdown.cancel();
}
