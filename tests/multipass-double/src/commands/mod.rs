//! The commands.

mod clone;
mod delete;
pub(crate) use delete::purge_one;
mod exec;
mod find;
pub(crate) mod help;
mod info;
mod launch;
mod list;
mod mount;
mod networks;
mod run;
mod settings;
mod snapshot;
mod transfer;
mod version;

use serde_json::Value;

use crate::args::{Arguments, Known, flag, valued};
use crate::daemon::{self, Serial};
use crate::failure::{Done, Failure};
use crate::home::Home;
use crate::knobs::{Json, Knobs, Version};
use crate::print::json;
use crate::print::screen::Screen;
use crate::state::{Instance, State};

/// What every command works with.
pub(crate) struct Context {
    /// The state folder.
    pub(crate) home: Home,
    /// What was asked of the double.
    pub(crate) knobs: Knobs,
    /// Where its words go.
    pub(crate) screen: Screen,
}

impl Context {
    /// The daemon, when it has time. It then takes as long over the command as was asked for.
    fn daemon(&mut self, command: &str) -> Result<Serial, Failure> {
        let serial = daemon::enter(&self.home, &self.knobs, command)?;
        self.phase(command);
        Ok(serial)
    }

    /// The same for a command with a spinner: when nobody listens, that ends first.
    fn spinning(&mut self, command: &str) -> Result<Serial, Failure> {
        self.daemon(command).map_err(|failure| self.stilled(failure))
    }

    fn phase(&mut self, phase: &str) {
        daemon::phase(&self.home, &self.knobs, phase);
    }

    /// A failure of a command with a spinner.
    fn stilled(&mut self, failure: Failure) -> Failure {
        self.screen.still();
        self.screen.still();
        failure
    }

    /// Prints a document of JSON.
    fn print_json(&mut self, value: &Value) {
        let text = match self.knobs.version {
            Version::Main => format!("{value:#}\n"),
            _ => json::document(value),
        };
        match self.knobs.json {
            Json::Whole => self.screen.out(text),
            Json::Truncated => self.screen.out(text.chars().take(text.chars().count() / 2).collect::<String>()),
            Json::Preceded => self.screen.out(format!("Warning: something else on stdout\n{text}")),
            Json::Garbage => self.screen.out("<html>no</html>\n"),
        }
    }
}

/// A command.
pub(crate) struct Command {
    /// How it is called.
    pub(crate) name: &'static str,
    /// What can be said besides.
    pub(crate) options: &'static [Known],
    /// The client does it by itself; what it needs of the daemon it asks.
    pub(crate) local: bool,
    /// What it does.
    pub(crate) run: fn(&mut Context, &Arguments) -> Done,
}

const FORMAT: Known = valued(&["format"]);
const ALL: Known = flag(&["all"]);
const TIMEOUT: Known = valued(&["timeout"]);

const COMMANDS: &[Command] = &[
    Command { name: "aliases", options: &[FORMAT], local: true, run: version::aliases },
    Command { name: "authenticate", options: &[], local: true, run: version::authenticate },
    Command { name: "clone", options: &[valued(&["name", "n"])], local: false, run: clone::clone },
    Command { name: "delete", options: &[ALL, flag(&["purge", "p"])], local: false, run: delete::delete },
    Command {
        name: "exec",
        options: &[valued(&["working-directory", "d"]), flag(&["no-map-working-directory", "n"])],
        local: true,
        run: exec::exec,
    },
    Command {
        name: "find",
        options: &[
            flag(&["show-unsupported"]),
            flag(&["only-images"]),
            flag(&["only-blueprints"]),
            flag(&["force-update"]),
            FORMAT,
        ],
        local: true,
        run: find::find,
    },
    Command { name: "get", options: &[flag(&["raw"]), flag(&["keys"])], local: true, run: settings::get },
    Command { name: "help", options: &[], local: true, run: help::help },
    Command {
        name: "info",
        options: &[flag(&["snapshots"]), FORMAT, ALL, flag(&["no-runtime-information"])],
        local: false,
        run: info::info,
    },
    Command {
        name: "launch",
        options: &[
            valued(&["cpus", "c"]),
            valued(&["disk", "d"]),
            valued(&["memory", "m"]),
            valued(&["mem"]),
            valued(&["name", "n"]),
            valued(&["cloud-init"]),
            valued(&["network"]),
            flag(&["bridged"]),
            valued(&["mount"]),
            TIMEOUT,
        ],
        local: false,
        run: launch::launch,
    },
    Command {
        name: "list",
        options: &[flag(&["snapshots"]), FORMAT, flag(&["no-ipv4"])],
        local: false,
        run: list::list,
    },
    Command { name: "ls", options: &[flag(&["snapshots"]), FORMAT, flag(&["no-ipv4"])], local: false, run: list::list },
    Command {
        name: "mount",
        options: &[valued(&["gid-map", "g"]), valued(&["uid-map", "u"]), valued(&["type", "t"])],
        local: false,
        run: mount::mount,
    },
    Command { name: "networks", options: &[FORMAT], local: true, run: networks::networks },
    Command { name: "purge", options: &[], local: false, run: delete::purge },
    Command { name: "recover", options: &[ALL], local: false, run: delete::recover },
    Command { name: "restart", options: &[ALL, TIMEOUT], local: false, run: run::restart },
    Command { name: "restore", options: &[flag(&["destructive", "d"])], local: false, run: snapshot::restore },
    Command { name: "set", options: &[], local: false, run: settings::set },
    Command {
        name: "snapshot",
        options: &[valued(&["name", "n"]), valued(&["comment", "c", "m"])],
        local: false,
        run: snapshot::snapshot,
    },
    Command { name: "start", options: &[ALL, TIMEOUT], local: false, run: run::start },
    Command {
        name: "stop",
        options: &[ALL, valued(&["time", "t"]), flag(&["cancel", "c"]), flag(&["force"])],
        local: false,
        run: run::stop,
    },
    Command { name: "suspend", options: &[ALL], local: false, run: run::suspend },
    Command {
        name: "transfer",
        options: &[flag(&["recursive", "r"]), flag(&["parents", "p"])],
        local: true,
        run: transfer::transfer,
    },
    Command { name: "umount", options: &[], local: false, run: mount::umount },
    Command { name: "unmount", options: &[], local: false, run: mount::umount },
    Command { name: "version", options: &[FORMAT], local: true, run: version::version },
];

/// The command of a name.
pub(crate) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// Whether a release has a command.
pub(crate) fn is_in(version: Version, name: &str) -> bool {
    name != "clone" || version >= Version::V1_16
}

/// How something is to be printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Table,
    Json,
    Csv,
    Yaml,
}

fn format(arguments: &Arguments) -> Result<Format, Failure> {
    match arguments.value("format").unwrap_or("table") {
        "table" => Ok(Format::Table),
        "json" => Ok(Format::Json),
        "csv" => Ok(Format::Csv),
        "yaml" => Ok(Format::Yaml),
        _ => Err(Failure::usage("Invalid format type given.")),
    }
}

/// Whether the argument of `--timeout` is one, and what it is.
fn timeout(arguments: &Arguments) -> Result<Option<u64>, Failure> {
    let Some(text) = arguments.value("timeout") else { return Ok(None) };
    match text.parse::<i64>() {
        Ok(seconds) if seconds > 0 => Ok(u64::try_from(seconds).ok()),
        _ => Err(Failure::usage("error: --timeout value has to be a positive integer")),
    }
}

/// For a command that is for instances: either their names, or all.
fn either(arguments: &Arguments) -> Done {
    match arguments.has("all") && !arguments.positional.is_empty() {
        true => Err(Failure::usage("Cannot specify name when --all option set")),
        false => Ok(()),
    }
}

/// For a command that is for nothing in particular.
fn without_names(arguments: &Arguments) -> Done {
    match arguments.positional.is_empty() {
        true => Ok(()),
        false => Err(Failure::usage("This command takes no arguments")),
    }
}

/// The names that a command is for: those given, all that are not deleted, or the primary one.
fn names(arguments: &Arguments, state: &State) -> Vec<String> {
    let all = || state.instances.iter().filter(|(_, instance)| !instance.deleted).map(|(name, _)| name.clone());
    match (arguments.has("all"), arguments.positional.is_empty()) {
        (true, _) => all().collect(),
        (false, true) => vec![state.setting("client.primary-name").to_owned()],
        (false, false) => arguments.positional.clone(),
    }
}

/// What a command with a spinner says of whom it is for.
fn whom(arguments: &Arguments) -> String {
    match (arguments.has("all"), arguments.positional.as_slice()) {
        (true, _) => "all instances".to_owned(),
        (false, []) => "primary".to_owned(),
        (false, [one]) => one.clone(),
        (false, _) => "requested instances".to_owned(),
    }
}

/// All of these instances, or what is wrong with the first of them.
fn require(command: &str, state: &State, names: &[String]) -> Done {
    let errors: Vec<String> = names.iter().filter_map(|name| lacking(state, name)).collect();
    if errors.is_empty() { Ok(()) } else { Err(Failure::errors(command, &errors)) }
}

/// What is to be said of an instance that can't be worked with.
fn lacking(state: &State, name: &str) -> Option<String> {
    match state.instances.get(name) {
        None => Some(format!("instance \"{name}\" does not exist")),
        Some(instance) if instance.deleted => Some(format!("instance \"{name}\" is deleted")),
        Some(_) => None,
    }
}

/// An instance that is there, or what is to be said.
fn existing<'a>(command: &str, state: &'a mut State, name: &str) -> Result<&'a mut Instance, Failure> {
    match lacking(state, name) {
        Some(text) => Err(Failure::daemon(command, text)),
        None => Ok(state.instances.get_mut(name).expect("it was just there")),
    }
}
