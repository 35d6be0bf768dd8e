//! What the tests have in common: a double in a folder of its own, and what a call gave.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_agent_multipass_double::{Double, Knobs};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_multipass");
/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A double, and a folder to work in beside its state.
pub(crate) struct Bench {
    /// Before the folder: it goes first.
    pub(crate) double: Double,
    folder: TempDir,
}

/// What a call gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Told {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Told {
    /// Stdout of a call that has to be well.
    #[track_caller]
    pub(crate) fn well(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{}", self.out);
        self.out
    }

    /// Stderr of a call that has to end with this code.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        self.err
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("base/t")).unwrap();
        let double = Double::new(&folder.path().join("state"), Path::new(PROGRAM));
        Self { double, folder }
    }

    /// With these knobs.
    pub(crate) fn with(knobs: Knobs) -> Self {
        let mut bench = Self::new();
        bench.double.set(knobs);
        bench
    }

    /// With an instance that runs.
    pub(crate) fn with_one(knobs: Knobs) -> Self {
        let bench = Self::with(knobs);
        bench.call("launch noble -n one -m 512M -d 3G").well();
        bench
    }

    /// The folder that stands for `/srv/mp` of the recordings.
    pub(crate) fn base(&self) -> PathBuf {
        self.folder.path().join("base")
    }

    /// The folder that calls are made in.
    pub(crate) fn work(&self) -> PathBuf {
        self.base().join("t")
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.double.command();
        command.args(words).current_dir(self.work()).stdin(Stdio::null());
        command
    }

    /// Calls it with the words of a line.
    pub(crate) fn call(&self, line: &str) -> Told {
        self.words(&line.split_whitespace().collect::<Vec<_>>())
    }

    pub(crate) fn words(&self, words: &[&str]) -> Told {
        self.command(words).output().unwrap().into()
    }

    pub(crate) fn call_with(&self, line: &str, input: &str) -> Told {
        let mut child = self.begin(line);
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        child.wait_with_output().unwrap().into()
    }

    /// Calls it, and does not wait.
    pub(crate) fn begin(&self, line: &str) -> Child {
        let mut command = self.command(&line.split_whitespace().collect::<Vec<_>>());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs a command in an instance.
    pub(crate) fn exec(&self, name: &str, script: &str) -> Told {
        self.words(&["exec", "-n", name, "--", "sh", "-c", script])
    }

    /// The state of an instance as `list` has it.
    pub(crate) fn state(&self, name: &str) -> Option<String> {
        let list = self.call("list --no-ipv4 --format json").well();
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        let found = list["list"].as_array().unwrap().iter().find(|entry| entry["name"] == name)?.clone();
        Some(found["state"].as_str().unwrap().to_owned())
    }

    /// Waits until an instance is in a state.
    #[track_caller]
    pub(crate) fn await_state(&self, name: &str, state: Option<&str>) {
        wait(&format!("{name} to be {state:?}"), || self.state(name).as_deref() == state);
    }
}

/// Waits for something.
#[track_caller]
pub(crate) fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// What a child gave, in the end.
pub(crate) fn end(child: Child) -> Told {
    child.wait_with_output().unwrap().into()
}
