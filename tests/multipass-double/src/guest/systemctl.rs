//! The program `systemctl`, and what it says to the first process.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::{SOCKET, complain, say};

/// What the first process is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    /// What to do.
    pub(super) verb: String,
    /// With which units.
    pub(super) units: Vec<String>,
    /// Without waiting for it.
    pub(super) no_block: bool,
    /// Also at once: `--now`.
    pub(super) now: bool,
    /// The signal of `kill`.
    pub(super) signal: Option<String>,
    /// `kill` reaches the main process alone.
    pub(super) main_only: bool,
    /// The properties of `show`.
    pub(super) properties: Vec<String>,
}

/// What it answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reply {
    /// The exit code.
    pub(super) code: u8,
    /// What goes to stdout.
    pub(super) out: String,
    /// What goes to stderr.
    pub(super) err: String,
}

impl Reply {
    /// All is well, and this is to be said.
    pub(super) fn told(out: String) -> Self {
        Self { code: 0, out, err: String::new() }
    }

    /// It is not.
    pub(super) fn failed(code: u8, err: String) -> Self {
        Self { code, out: String::new(), err }
    }
}

/// The whole name of a unit.
pub(super) fn full(name: &str) -> String {
    let kinds = [".service", ".socket", ".timer", ".target", ".mount", ".path", ".slice", ".scope"];
    if kinds.iter().any(|kind| name.ends_with(kind)) { name.to_owned() } else { format!("{name}.service") }
}

fn request(arguments: &[String]) -> Request {
    let mut request = Request {
        verb: String::new(),
        units: Vec::new(),
        no_block: false,
        now: false,
        signal: None,
        main_only: false,
        properties: Vec::new(),
    };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let (key, value) =
            word.split_once('=').map_or((word.as_str(), None), |(key, value)| (key, Some(value.to_owned())));
        match key {
            "--no-block" => request.no_block = true,
            "--now" => request.now = true,
            "--signal" | "-s" => request.signal = value.or_else(|| words.next().cloned()),
            "--kill-whom" | "--kill-who" => request.main_only = value.as_deref() == Some("main"),
            "--property" | "-p" => {
                let names = value.or_else(|| words.next().cloned()).unwrap_or_default();
                request.properties.extend(names.split(',').map(str::to_owned));
            }
            key if key.starts_with('-') => {}
            _ if request.verb.is_empty() => request.verb = word.clone(),
            _ => request.units.push(full(word)),
        }
    }
    request
}

/// The program.
pub(super) fn main(arguments: &[String]) -> ExitCode {
    let request = request(arguments);
    let asked = UnixStream::connect(SOCKET).and_then(|mut stream| {
        stream.write_all(serde_json::to_string(&request)?.as_bytes())?;
        stream.write_all(b"\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(serde_json::from_str::<Reply>(&line).unwrap_or_default())
    });
    match asked {
        Ok(reply) => {
            complain(&reply.err);
            say(&reply.out);
            ExitCode::from(reply.code)
        }
        Err(error) => {
            complain(&format!("Failed to connect to bus: {error}\n"));
            ExitCode::FAILURE
        }
    }
}
