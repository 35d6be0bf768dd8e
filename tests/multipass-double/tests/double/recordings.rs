//! What the real Multipass 1.16.3 said, call by call, against what the double says. What differs by nature is made
//! the same first: times, addresses, hashes, loads, how full things are, and how far the spinner came.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::support::{Bench, PROGRAM, Told};
use regex::Regex;
use serde_json::Value;
use vm_agent_multipass_double::Knobs;

/// A call of a recording.
struct Entry {
    line: String,
    input: String,
    told: Told,
}

/// Reads a recording. Control bytes are written as escapes, and a missing newline is said.
fn read(name: &str) -> Vec<Entry> {
    let path = format!("{}/tests/recordings/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).unwrap();
    let mut entries = Vec::new();
    for part in text.split("\n===\n").map(str::trim_start).filter(|part| part.starts_with("$ ")) {
        let part = format!("{part}\n");
        let (head, rest) = part.split_once("--- stdout").unwrap();
        let (out, err) = rest.split_once("--- stderr").unwrap();
        let body = |text: &str| unescape(text.split_once('\n').unwrap().1);
        let (line, tail) = head[2..].split_once("\n[").unwrap();
        let input = tail.strip_prefix("stdin: b'").map_or("", |tail| tail.split_once("']").unwrap().0);
        let code = head.rsplit_once("[exit ").unwrap().1.split(']').next().unwrap();
        entries.push(Entry {
            line: line.to_owned(),
            input: input.replace("\\n", "\n"),
            told: Told { code: code.parse().ok(), out: body(out), err: body(err) },
        });
    }
    assert!(!entries.is_empty(), "there is nothing in the recording {name}");
    entries
}

fn unescape(text: &str) -> String {
    let text = text.strip_suffix("<no newline at end>\n").unwrap_or(text);
    text.replace("\\x1b", "\x1b").replace("\\x08", "\x08").replace("\\r", "\r")
}

/// What is made the same in both.
struct Same(Vec<(Regex, &'static str)>);

impl Same {
    fn new() -> Self {
        let rules = [
            // The spinner.
            (r"(?:\x08[/\-\\|])+…?", ""),
            (r"(?:\rRetrieving image: \d+%\x1b\[2K\x1b\[0A\x1b\[0E)+", "\rRETRIEVING"),
            (r"\[\d{4}-\d\d-\d\dT[\d:.]+\]", "[TIME]"),
            (r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4} UTC", "DATE"),
            (r"[A-Z][a-z]{2} +\d+ \d\d:\d\d ", "WHEN "),
            (r"10\.155\.\d+\.\d+ *", "ADDRESS "),
            (r"\b[0-9a-f]{64}\b", "HASH"),
            (r"\b[0-9a-f]{12} \(Ubuntu", "HASH (Ubuntu"),
            (r"(?m)^ +(?:- )?\d+\.\d+(,?)$", "NUMBER$1"),
            (r"\d+\.\d\d \d+\.\d\d \d+\.\d\d", "LOAD"),
            (r"\b\d{6,}\b", "BYTES"),
            (r"[\d.]+[KMG]iB out of [\d.]+[KMG]iB", "USAGE"),
            (r"\b\d+:default", "USER:default"),
            (r"'/[^' ]*/image\.qcow2'", "'IMAGE'"),
        ];
        Self(rules.map(|(rule, same)| (Regex::new(rule).unwrap(), same)).into())
    }

    fn of(&self, bench: &Bench, text: &str) -> String {
        let release = fs::read_to_string("/usr/lib/os-release").unwrap();
        let release =
            release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap().trim_matches('"').to_owned();
        let base = bench.base().canonicalize().unwrap();
        let text = text.replace(&release, "RELEASE").replace("Debian GNU/Linux 12 (bookworm)", "RELEASE");
        let text = text.replace(base.to_str().unwrap(), "/srv/mp");
        self.0.iter().fold(text, |text, (rule, same)| rule.replace_all(&text, *same).into_owned())
    }
}

/// Lists of JSON are in no order: sorted, where there is more than one.
fn sorted(text: String) -> String {
    match serde_json::from_str::<Value>(&text) {
        Ok(mut told) if told["list"].as_array().is_some_and(|list| list.len() > 1) => {
            let list = told["list"].as_array_mut().unwrap();
            list.sort_by_key(|entry| entry["name"].to_string());
            told.to_string()
        }
        _ => text,
    }
}

/// Makes the calls of a recording, one after the other.
fn replay(bench: &Bench, name: &str) {
    let same = Same::new();
    let mut wrong = Vec::new();
    for entry in read(name) {
        let line = entry.line.replace("/srv/mp", bench.base().canonicalize().unwrap().to_str().unwrap());
        let mut command = Command::new("bash");
        let path =
            format!("{}:{}", std::path::Path::new(PROGRAM).parent().unwrap().display(), std::env::var("PATH").unwrap());
        command
            .args(["-c", &line])
            .envs(bench.double.environment())
            .env("PATH", path)
            .env("LC_ALL", "C")
            .env("TZ", "UTC");
        command.current_dir(bench.work()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdin.take().unwrap().write_all(entry.input.as_bytes()));
        let told: Told = child.wait_with_output().unwrap().into();
        let of = |told: &Told| (told.code, sorted(same.of(bench, &told.out)), same.of(bench, &told.err));
        let (expected, got) = (of(&entry.told), of(&told));
        if expected != got {
            wrong.push(format!("$ {}\nexpected {expected:#?}\ngot      {got:#?}", entry.line));
        }
    }
    assert!(wrong.is_empty(), "{} of {name} differ:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// What lay beside the recorder: an image that the manifests know, and files to transfer and mount.
fn bench_of_recorder(knobs: Knobs) -> Bench {
    let bench = Bench::with(knobs);
    fs::write(bench.base().join("image.qcow2"), "24.04\n").unwrap();
    let work = bench.work();
    let user_data =
        "#cloud-config\nwrite_files:\n- {path: /etc/mp-test, content: hello}\nruncmd:\n- printf ran >/var/tmp/ran\n";
    fs::write(work.join("ok.yaml"), user_data.replace("printf ran", "echo ran")).unwrap();
    fs::write(work.join("scalar.yaml"), "only words\n").unwrap();
    fs::write(work.join("f1"), vec![b'x'; 3_000_000]).unwrap();
    fs::write(work.join("ex.sh"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(work.join("ex.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(work.join("f1"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::create_dir_all(work.join("d/sub")).unwrap();
    fs::write(work.join("d/sub/x"), "x").unwrap();
    fs::write(work.join("d/y"), "y").unwrap();
    fs::create_dir_all(work.join("mnt")).unwrap();
    fs::write(work.join("mnt/hostfile"), "from host\n").unwrap();
    fs::set_permissions(work.join("mnt"), fs::Permissions::from_mode(0o777)).unwrap();
    bench
}

/// The recorder's first instance, running.
fn bench_with_one() -> Bench {
    let bench = bench_of_recorder(Knobs::default());
    let image = bench.base().join("image.qcow2");
    bench.words(&["launch", &format!("file://{}", image.display()), "-n", "one", "-m", "512M", "-d", "3G"]).well();
    // The recorder had fetched the image long before.
    bench.double.change(|state| {
        state.cached.insert("24.04".to_owned());
    });
    bench
}

/// The same, switched off.
fn bench_with_one_stopped() -> Bench {
    let bench = bench_with_one();
    bench.call("stop one").well();
    bench
}

#[test]
fn usage_and_help() {
    replay(&bench_of_recorder(Knobs::default()), "usage");
    replay(&bench_of_recorder(Knobs::default()), "more-usage");
}

#[test]
fn what_is_said_where_there_is_nothing() {
    replay(&bench_of_recorder(Knobs::default()), "empty");
}

#[test]
fn launches_that_are_refused() {
    replay(&bench_of_recorder(Knobs::default()), "launch-errors");
}

#[test]
fn a_launch_and_what_is_told_of_it() {
    let latency = [("launch.prepare".to_owned(), 2000)].into();
    replay(&bench_of_recorder(Knobs { latency, ..Knobs::default() }), "launch");
}

#[test]
fn start_and_stop() {
    replay(&bench_with_one(), "run");
}

#[test]
fn commands_in_an_instance() {
    replay(&bench_with_one(), "exec");
}

#[test]
fn files_to_and_from_an_instance() {
    replay(&bench_with_one(), "transfer");
}

#[test]
fn mounts() {
    replay(&bench_with_one(), "mount");
}

#[test]
fn snapshots() {
    replay(&bench_with_one_stopped(), "snapshots");
}

#[test]
fn restores() {
    let bench = bench_with_one_stopped();
    let names = ["snapshot1", "base", "BASE", "snapshot4", "third", "snapshot9", "snapshot7", "snapshot8"];
    for name in names {
        let comment = match name {
            "base" => "newc",
            "third" => "line1\nline2",
            "snapshot8" => "only-comment",
            _ => "",
        };
        bench.words(&["snapshot", "one", "-n", name, "-m", comment]).well();
    }
    bench.call("start one").well();
    replay(&bench, "restore");
}

#[test]
fn sizes() {
    replay(&bench_with_one_stopped(), "settings");
}

#[test]
fn several_instances() {
    replay(&bench_with_one_stopped(), "several");
}

#[test]
fn clones() {
    replay(&bench_with_one(), "clone");
}

#[test]
fn no_daemon() {
    let bench = bench_with_one();
    bench.double.stop_daemon();
    replay(&bench, "daemon-down");
}
