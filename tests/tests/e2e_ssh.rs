//! The SSH client of this machine, in an agent that has no SSH server.

#![expect(clippy::unwrap_used, reason = "in a test it is the message that something is wrong")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};

use ring::digest::{SHA256, digest};
use vm_agent_tests::e2e::Fleet;

/// How much goes through a pipe both ways, in bytes: some windows of all that are on the way.
const MUCH: usize = 10 * 1024 * 1024;

/// A fleet of one agent, and how SSH reaches it.
struct Reached {
    fleet: Fleet,
}

impl Reached {
    fn new() -> Self {
        let fleet = Fleet::new("defaults: {driver: local}\nagents:\n  web: {}\n");
        fleet.up();
        fs::write(fleet.path().join("ssh.conf"), fleet.ok(&["ssh-config"])).unwrap();
        Self { fleet }
    }

    /// A program that speaks SSH, with the settings of this fleet and of nobody else.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-F").arg(self.fleet.path().join("ssh.conf")).current_dir(self.fleet.path());
        command.env("HOME", self.fleet.path()).stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn ssh(&self, arguments: &[&str]) -> Output {
        self.command("ssh").args(arguments).output().unwrap()
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn an_ssh_client_runs_commands_with_their_input_output_and_exit_codes() {
    let reached = Reached::new();
    let ran = reached.ssh(&["web.vm-agent", "echo $VM_AGENT_INSTANCE; echo other >&2; exit 7"]);
    let instance = reached.fleet.exec("web", "echo $VM_AGENT_INSTANCE");
    assert_eq!((ran.status.code(), text(&ran.stdout)), (Some(7), instance.as_str()), "{}", text(&ran.stderr));
    assert!(!instance.trim().is_empty());
    assert!(text(&ran.stderr).contains("other"), "{}", text(&ran.stderr));

    let mut command = reached.command("ssh");
    command.args(["-o", "SetEnv=GREETING=hello", "web.vm-agent", "echo $GREETING; kill -TERM $$"]);
    let ran = command.output().unwrap();
    assert_eq!((ran.status.code(), text(&ran.stdout)), (Some(143), "hello\n"));

    let ran = reached.ssh(&["-tt", "web.vm-agent", "stty size; tty >/dev/null && echo terminal"]);
    assert!(text(&ran.stdout).contains("terminal"), "{ran:?}");
    assert_eq!(ran.status.code(), Some(0));

    let bytes: Vec<u8> = (0..MUCH).map(|place| ((place * 31) >> 7) as u8).collect();
    let mut child = reached
        .command("ssh")
        .args(["web.vm-agent", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let ran = std::thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&bytes).unwrap();
            drop(stdin);
        });
        child.wait_with_output().unwrap()
    });
    assert_eq!((ran.status.code(), ran.stdout.len()), (Some(0), MUCH));
    assert_eq!(digest(&SHA256, &ran.stdout).as_ref(), digest(&SHA256, &bytes).as_ref());
    reached.fleet.finish();
}

#[test]
fn an_ssh_client_reaches_ports_of_the_machine() {
    let reached = Reached::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    // Answers with what came, backwards, and only once the other direction has ended.
    std::thread::spawn(move || {
        for client in server.incoming() {
            let mut client = client.unwrap();
            std::thread::spawn(move || {
                let mut question = String::new();
                client.read_to_string(&mut question).unwrap();
                let answer: String = question.chars().rev().collect();
                client.write_all(answer.as_bytes()).unwrap();
            });
        }
    });
    let local = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forward = format!("{local}:127.0.0.1:{port}");
    let mut command = reached.command("ssh");
    command.args(["-o", "ExitOnForwardFailure=yes", "-L", &forward, "web.vm-agent", "echo ready; cat"]);
    let mut ssh = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // It listens before it asks for a command.
    let mut ready = [0; 6];
    ssh.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let mut clients = [0, 1].map(|_| TcpStream::connect(("127.0.0.1", local)).unwrap());
    for (number, client) in clients.iter_mut().enumerate().rev() {
        client.write_all(format!("hello {number}").as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("{number} olleh"));
    }
    drop((clients, ssh.stdin.take()));
    assert_eq!(ssh.wait().unwrap().code(), Some(0));

    let refused = reached.ssh(&["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1", "web.vm-agent", "true"]);
    assert_eq!(refused.status.code(), Some(255), "{}", text(&refused.stderr));
    reached.fleet.finish();
}

#[test]
fn files_are_copied_by_scp_sftp_and_rsync() {
    let reached = Reached::new();
    let (here, there) = (reached.fleet.path().join("here"), reached.fleet.path().join("there"));
    let run = |mut command: Command| {
        let ran = command.output().unwrap();
        assert_eq!(ran.status.code(), Some(0), "{command:?}: {}", text(&ran.stderr));
    };
    for protocol in ["-O", "-s"] {
        fs::write(&here, protocol).unwrap();
        for way in [["here", "web.vm-agent:there"], ["web.vm-agent:there", "there"]] {
            let mut scp = reached.command("scp");
            scp.arg(protocol).args(way);
            run(scp);
        }
        assert_eq!(fs::read_to_string(&there).unwrap(), protocol);
    }

    fs::write(
        reached.fleet.path().join("batch"),
        "mkdir deep\nput here deep/it\nrename deep/it deep/that\nget deep/that there\n",
    )
    .unwrap();
    let mut sftp = reached.command("sftp");
    sftp.args(["-b", "batch", "web.vm-agent"]);
    fs::write(&here, "by sftp").unwrap();
    run(sftp);
    assert_eq!(fs::read_to_string(&there).unwrap(), "by sftp");

    let folder = reached.fleet.path().join("folder");
    fs::create_dir_all(folder.join("deep")).unwrap();
    fs::write(folder.join("deep/a"), "a".repeat(100_000)).unwrap();
    fs::write(folder.join("b"), "b").unwrap();
    let rsync = |from: &str, to: &str| {
        let mut rsync = Command::new("rsync");
        rsync.args(["-a", "--delete", "-e", "ssh -F ssh.conf", from, to]).current_dir(reached.fleet.path());
        rsync.env("HOME", reached.fleet.path()).stdin(Stdio::null()).stderr(Stdio::piped());
        run(rsync);
    };
    rsync("folder/", "web.vm-agent:synced/");
    fs::remove_file(folder.join("b")).unwrap();
    rsync("folder/", "web.vm-agent:synced/");
    assert_eq!(reached.fleet.exec("web", "cd synced && find . -type f && wc -c < deep/a"), "./deep/a\n100000\n");
    rsync("web.vm-agent:synced/", "back/");
    assert_eq!(fs::read_to_string(reached.fleet.path().join("back/deep/a")).unwrap().len(), 100_000);
    reached.fleet.finish();
}

#[test]
fn an_agent_that_can_not_be_reached_gets_a_sentence() {
    let reached = Reached::new();
    let ran = reached.fleet.run(&["ssh-proxy", "wb"]);
    assert_eq!(ran.code, 255);
    assert!(ran.stderr.contains("there is no agent `wb`") && ran.stdout.is_empty(), "{ran:?}");
    reached.fleet.ok(&["stop", "web"]);
    let ran = reached.ssh(&["web.vm-agent", "true"]);
    assert_eq!(ran.status.code(), Some(255));
    assert!(text(&ran.stderr).contains("error: "), "{}", text(&ran.stderr));
    reached.fleet.finish();
}
