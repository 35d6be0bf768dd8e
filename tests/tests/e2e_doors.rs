//! Who gets in, and what must not get out.

#![expect(clippy::unwrap_used, reason = "in a test it is the message that something is wrong")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use vm_agent_schemas::wire::Seed;
use vm_agent_tests::e2e::Fleet;

const TWO: &str = "defaults: {driver: local}\nagents:\n  web: {}\n  db: {}\n";

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The status of an answer over TCP to a request with this further header line.
fn status_of(address: SocketAddr, path: &str, header: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{header}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn no_token_is_written_down_anywhere() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    let token = fleet.ok(&["token", "create", "somebody"]).trim().to_owned();
    assert!(token.len() > 30, "a token is long: {}", token.len());
    assert!(fleet.ok(&["token", "ls"]).contains("somebody"));
    assert_eq!(status_of(fleet.status().addresses.api, "/agents", &format!("Authorization: Bearer {token}\r\n")), 200);
    assert_eq!(fleet.holders(&token), Vec::<PathBuf>::new());
    assert!(fleet.processes().iter().all(|process| process.command.iter().all(|word| !word.contains(&token))));

    for agent in ["web", "db"] {
        let seed = fleet.instance(agent).join("seed.json");
        let join = serde_json::from_slice::<Seed>(&std::fs::read(&seed).unwrap()).unwrap().join_token;
        assert_eq!(fleet.holders(join.expose()), [seed], "the seed alone carries it");
        assert!(
            fleet.processes().iter().all(|process| process.command.iter().all(|word| !word.contains(join.expose())))
        );
    }
    fleet.finish();
}

#[test]
fn nothing_is_left_readable_to_others() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    let state = fleet.state_dir();
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("api.sock")), 0o600);
    for name in ["web/seed.json", "web/key"] {
        assert_eq!(mode(&state.join("instances").join(name)), 0o600, "{name}");
    }
    for name in ["state.db", "controller.json", "controller.log", "hub.pem"] {
        assert_eq!(mode(&state.join(name)), 0o600, "{name}");
    }
    fleet.finish();
}

#[test]
fn the_api_over_tcp_wants_a_token() {
    let fleet = Fleet::new(TWO);
    fleet.up();
    let address = fleet.status().addresses.api;
    assert_eq!(status_of(address, "/agents", ""), 401);
    assert_eq!(status_of(address, "/agents", "Authorization: Bearer wrong\r\n"), 401);

    let server = format!("http://{address}");
    let list = |token: Option<&str>| {
        let mut command = fleet.command(&["--server", &server, "list", "-o", "name"]);
        let output = command.envs(token.map(|token| ("VM_AGENT_TOKEN", token))).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let token = fleet.ok(&["token", "create", "somebody"]).trim().to_owned();
    assert_eq!(list(None), (10, String::new()));
    assert_eq!(list(Some("wrong")), (10, String::new()));
    assert_eq!(list(Some(&token)), (0, "db\nweb\n".to_owned()));

    let file = fleet.path().join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let remote = ["--server", &server, "--token-file", file.to_str().unwrap()];
    assert_eq!(fleet.ok(&[&remote[..], &["exec", "web", "--", "echo far"]].concat()), "far\n");

    let id = fleet.ok(&["token", "ls", "-o", "json"]);
    let id = serde_json::from_str::<serde_json::Value>(&id).unwrap()["items"][0]["id"].as_str().unwrap().to_owned();
    fleet.ok(&["token", "revoke", &id]);
    assert_eq!(list(Some(&token)), (10, String::new()), "a revoked token is worthless at once");
    fleet.finish();
}
