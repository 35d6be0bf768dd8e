//! Sessions by hand: terminals that outlive their controller, copies, ports, logs, and answers to messages.
#![expect(clippy::unwrap_used, reason = "this is a test")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use vm_agent_tests::e2e::{Fleet, runtime_program};

const ONE: &str = "defaults: {driver: local}\nagents:\n  web: {}\n";

/// Runs a program in a terminal of its own: stdin are its keys, and NUL, rows, columns give it another size.
const PTY: &str = r#"
import fcntl, os, pty, select, struct, sys, termios
pid, master = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
def size(rows, cols):
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
size(24, 80)
while True:
    ready, _, _ = select.select([0, master], [], [])
    if master in ready:
        try:
            data = os.read(master, 65536)
        except OSError:
            break
        if not data:
            break
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    if 0 in ready:
        data = os.read(0, 65536)
        if not data:
            break
        while data:
            keys, mark, data = data.partition(b"\0")
            os.write(master, keys)
            if mark:
                size(data[0], data[1])
                data = data[2:]
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)
"#;

/// The program in a terminal.
struct Terminal<'a> {
    fleet: &'a Fleet,
    child: Child,
    seen: Arc<Mutex<String>>,
}

impl<'a> Terminal<'a> {
    fn open(fleet: &'a Fleet, arguments: &[&str]) -> Self {
        let program = fleet.command(arguments);
        let mut python = std::process::Command::new("python3");
        python.args(["-c", PTY]).arg(program.get_program()).args(program.get_args()).current_dir(fleet.path());
        python
            .env_clear()
            .envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .env("TERM", "xterm");
        let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let seen: Arc<Mutex<String>> = Arc::default();
        let screen = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut piece = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = stdout.read(&mut piece) {
                screen.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..count]));
            }
        });
        Self { fleet, child, seen }
    }

    fn types(&mut self, keys: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(keys).unwrap();
    }

    /// Waits until that is on the screen, and gives all that is.
    fn shows(&self, text: &str) -> String {
        let seen = || Some(self.seen.lock().unwrap().clone()).filter(|seen| seen.contains(text));
        self.fleet.wait_for(&format!("`{text}` on the screen"), seen)
    }

    fn end(mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        // It fails for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn up() -> Fleet {
    let fleet = Fleet::new(ONE);
    fleet.up();
    fleet
}

#[test]
fn a_shell_echoes_follows_its_size_and_outlives_its_controller() {
    let fleet = up();
    let mut shell = Terminal::open(&fleet, &["shell", "web", "--", "/bin/sh"]);
    shell.types(b"echo typed-$((40 + 2))\n");
    let seen = shell.shows("typed-42");
    assert!(seen.contains("echo typed-$((40 + 2))"), "{seen}");
    shell.types(b"\0\x28\x64");
    shell.types(b"until test \"$(stty size)\" = '40 100'; do sleep 0.05; done; echo size-$((1 + 0))\n");
    shell.shows("size-1");

    // A long line of numbers, in the midst of which the controller dies.
    shell
        .types(b"i=0; while [ $i -lt 400 ]; do echo \"n $i.\"; sleep 0.005; i=$((i + 1)); done; echo all-$((2 + 0))\n");
    shell.shows("n 50.");
    fleet.kill_controller();
    fleet.up();
    let seen = shell.shows("all-2");
    let numbers: Vec<&str> = seen.split(['\r', '\n']).filter(|line| line.starts_with("n ")).collect();
    let expected: Vec<String> = (0..400).map(|i| format!("n {i}.")).collect();
    assert_eq!(numbers, expected);
    shell.types(b"exit 7\n");
    assert_eq!(shell.end(), 7);
    fleet.finish();
}

#[test]
fn a_terminal_that_was_left_goes_on_and_is_come_back_to() {
    let fleet = up();
    let mut shell = Terminal::open(&fleet, &["shell", "web", "--", "/bin/sh"]);
    shell.types(b"kept=it; echo be$((3 + 0))gun\n");
    shell.shows("be3gun");
    // A terminal says `\r` for Enter, and only after that a `~` is not typed.
    shell.types(b"\r~.");
    assert_eq!(shell.end(), 0);
    // Which terminals are kept comes with the runtime's report.
    let is_kept = || fleet.ok(&["shell", "ls", "web"]).contains("detached").then_some(());
    fleet.wait_for("the terminal to be told of", is_kept);
    let mut again = Terminal::open(&fleet, &["shell", "web", "--attach"]);
    again.shows("leaves this terminal running");
    again.shows("be3gun");
    again.types(b"echo \"still-$kept\"; exit 5\n");
    again.shows("still-it");
    assert_eq!(again.end(), 5);
    let mut command =
        Terminal::open(&fleet, &["exec", "web", "-it", "--", "read word; test -t 0 && echo \"got $word.\""]);
    command.types(b"hello\n");
    command.shows("got hello.");
    assert_eq!(command.end(), 0);
    fleet.finish();
}

#[test]
fn a_folder_is_copied_both_ways_as_it_is() {
    let fleet = up();
    let from = fleet.path().join("from");
    std::fs::create_dir_all(from.join("deep")).unwrap();
    let large: Vec<u8> = (0..20_u32 << 18).flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    std::fs::write(from.join("deep/large"), &large).unwrap();
    std::fs::write(from.join("run"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(from.join("run"), std::fs::Permissions::from_mode(0o750)).unwrap();
    symlink("deep/large", from.join("link")).unwrap();
    fleet.ok(&["cp", "./from", "web:there"]);
    assert_eq!(fleet.exec("web", "stat -c %a there/run; readlink there/link"), "750\ndeep/large\n");
    fleet.ok(&["cp", "web:there", "back"]);
    let back = fleet.path().join("back");
    assert!(std::fs::read(back.join("deep/large")).unwrap() == large);
    assert_eq!(std::fs::metadata(back.join("run")).unwrap().permissions().mode() & 0o777, 0o750);
    assert_eq!(std::fs::read_link(back.join("link")).unwrap().to_str(), Some("deep/large"));
    fleet.finish();
}

#[test]
fn a_port_of_an_agent_is_reached_from_here() {
    let fleet = up();
    let server = r#"
import socket
s = socket.create_server(("127.0.0.1", 0))
open("port.new", "w").write(str(s.getsockname()[1]))
import os; os.rename("port.new", "port")
c, _ = s.accept()
data = b""
while piece := c.recv(65536): data += piece
c.sendall(data[::-1]); c.close()
"#;
    fleet.ok(&["task", "web", "--", "python3", "-c", server]);
    let port = fleet.instance("web").join("work/port");
    let port = fleet.wait_for("the server", || std::fs::read_to_string(&port).ok());
    let here = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut forward = fleet.begin(&["forward", "web", &format!("{}:{port}", here.port())]);
    let mut stream = fleet.wait_for("the port", || TcpStream::connect(here).ok());
    stream.write_all(&[b"abc".repeat(100_000), b"end".to_vec()].concat()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer == [b"dne".to_vec(), b"cba".repeat(100_000)].concat(), "{} bytes", answer.len());
    forward.kill().unwrap();
    forward.wait().unwrap();
    fleet.finish();
}

#[test]
fn a_log_is_shown_from_its_end_from_a_time_on_and_as_it_comes() {
    let line = "i=0; while :; do i=$((i + 1)); echo \"line $i.\"; test $i -lt 20 || until test -e on; do sleep 0.05; done; rm -f on; done";
    let service = format!("{{exec: {}}}", serde_json::Value::from(line));
    let fleet =
        Fleet::new(&format!("defaults: {{driver: local}}\nagents:\n  web: {{services: {{talk: {service}}}}}\n"));
    fleet.up();
    let log = |flags: &[&str]| fleet.ok(&[&["logs", "web"], flags].concat());
    fleet.wait_for("the service's lines", || log(&[]).contains("line 20.").then_some(()));
    let last = log(&["--tail", "2"]);
    assert_eq!(last.lines().count(), 2, "{last}");
    assert!(last.lines().last().unwrap().contains("line 20."), "{last}");
    let passed = fleet.wait_for("a second", || Some(log(&["--since", "1s"])).filter(|log| !log.contains("line 20.")));
    assert!(log(&["--since", "10m"]).contains("line 20."), "{passed}");

    let mut follow = fleet.command(&["logs", "web", "--follow", "--tail", "1"]);
    let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("line 20."));
    for number in [21, 22] {
        std::fs::write(fleet.instance("web").join("work/on"), "").unwrap();
        let line = lines.next().unwrap().unwrap();
        assert!(line.contains(&format!("line {number}.")), "{line}");
    }
    follow.kill().unwrap();
    follow.wait().unwrap();
    fleet.finish();
}

#[test]
fn a_run_takes_what_the_file_says_of_its_profile() {
    let fleet = Fleet::new("profiles: {small: {driver: local, env: {SIZE: small}}}\nagents: {}\n");
    fleet.up();
    let run = ["run", "--rm", "--profile", "small", "--", "echo $SIZE"];
    assert_eq!(fleet.ok(&run), "small\n");
    let refused = fleet.run(&["run", "--rm", "--profile", "smal", "--", "true"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.stderr.contains("there is no profile `smal`; did you mean `small`?"), "{refused:?}");
    fleet.ok(&["create", "web", "--profile", "small", "--env", "SIZE=other"]);
    assert_eq!(fleet.exec("web", "echo $SIZE"), "other\n");
    fleet.finish();
}

#[test]
fn a_run_leaves_nothing_but_its_exit_code() {
    let fleet = up();
    let ran = fleet.run(&["run", "--rm", "--driver", "local", "--", "echo here; exit 9"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (9, "here\n"), "{ran:?}");
    assert_eq!(fleet.ok(&["list", "-o", "name"]), "web\n");
    fleet.finish();
}

#[test]
fn who_waits_for_an_answer_gets_it() {
    let fleet = up();
    let program = runtime_program();
    let answer = format!(
        r#"m=$('{program}' message receive --follow --count 1 --subject ask)
        id=$(printf %s "$m" | sed 's/.*"id":"\([^"]*\)".*/\1/')
        '{program}' message send host answer '{{"it": 42}}' --reply-to "$id""#,
        program = program.display()
    );
    fleet.ok(&["task", "web", "--", &answer]);
    assert_eq!(fleet.ok(&["message", "send", "web", "ask", "--wait", "60s"]), "{\"it\":42}\n");
    fleet.finish();
}
