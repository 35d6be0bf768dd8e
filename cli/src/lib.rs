//! The `vm-agent` command line.
//!
//! Each command is a file in `commands`: a struct whose documentation is its help, and a function
//! that talks to the controller through the public HTTP API and prints what comes back. Exit codes
//! are in [`exit`].

mod archive;
mod client;
mod commands;
mod diff;
pub mod exit;
mod explain;
mod file;
mod ids;
mod launch;
mod locate;
mod render;
mod select;
mod settle;
mod ssh;
mod table;
mod terminal;
mod transfer;
mod ui;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser};

use crate::commands::Command;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::locate::Place;
use crate::ui::{Color, Format, STRONG, Ui};

/// Isolated workers from a file: a fleet of virtual machines that stays as the file says
///
/// Exit codes: 0 done, 1 failed, 2 changes are pending (with --detailed-exitcode), 3 wrong usage or invalid file, 4 not
/// found, 5 conflict, 6 waited too long (it may still succeed), 8 no controller or runtime answers, 10 denied, 11
/// blocked (by an approval, a protection, a pause, a window, or too little room), 130 interrupted. `exec`, `shell`,
/// `run` and `task --wait` end with the code of what they ran, with 128 and the signal's number when a signal ended it,
/// with 3 when the command line makes no sense, and with 255 when there is no code: it never began, ran out of its time, was cancelled, or its end is not known.
/// `diff` ends with 0 when nothing differs, with 1 when something does, and with 2 when it failed.
#[derive(Debug, Parser)]
#[command(name = "vm-agent", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// The folder that the controller keeps its state in [default: the platform's usual place]
    #[arg(long, value_name = "DIR", env = "VM_AGENT_STATE_DIR", hide_env_values = true, global = true)]
    state_dir: Option<PathBuf>,
    /// Talk to a controller at this address, with the token from VM_AGENT_TOKEN or --token-file
    #[arg(long, value_name = "URL", global = true)]
    server: Option<String>,
    /// The file that holds the token for --server
    #[arg(long, value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
    /// When to use colour
    #[arg(long, value_name = "WHEN", default_value = "auto", value_enum, global = true)]
    color: Color,
    /// Print data and errors only
    #[arg(short, long, global = true)]
    quiet: bool,
}

/// What a command works with.
struct Context {
    ui: Ui,
    place: Place,
}

/// The whole command line, for reference pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program with these arguments, the program's own name first.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let parsed = command().try_get_matches_from(&arguments).and_then(|matches| {
        let format = format_of(&matches);
        Cli::from_arg_matches(&matches).map(|cli| (cli, format))
    });
    let exit = match parsed {
        // A runtime is a whole program of its own, and begins before any thread does.
        Ok((Cli { command: Command::Runtime(args), .. }, _)) => return vm_agent_runtime::program(&args.arguments),
        Ok((cli, format)) => run(cli, format),
        Err(error) => {
            // Help and version come this way too, and they are no errors. If nobody reads what is
            // printed here, there is nobody to tell either.
            let _ = error.print();
            if let Some(hint) = hint(&error, &arguments) {
                let _ = writeln!(anstream::stderr(), "{STRONG}hint:{STRONG:#} {hint}");
            }
            if error.use_stderr() { Exit::USAGE } else { Exit::SUCCESS }
        }
    };
    ExitCode::from(exit.code())
}

/// What to write instead, where more is known than what did not fit.
fn hint(error: &clap::Error, arguments: &[OsString]) -> Option<&'static str> {
    let is = |word: &str| arguments.iter().any(|argument| argument == word);
    let unread = matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::ValueValidation) && !is("--");
    match () {
        () if unread && is("task") && is("--type") => {
            Some("write what it works on after `--`: vm-agent task NAME --type KIND -- PATH")
        }
        () if unread && is("task") => Some("write the command after `--`: vm-agent task NAME -- COMMAND"),
        () if unread && is("run") => Some("write the command after `--`: vm-agent run -- COMMAND"),
        () if unread && is("shell") => Some("write the command after `--`: vm-agent shell NAME -- COMMAND"),
        () if unread && is("exec") => Some("write the command after `--`: vm-agent exec NAME -- COMMAND"),
        () => None,
    }
}

fn run(cli: Cli, format: Format) -> Exit {
    let Global { state_dir, server, token_file, color, quiet } = cli.global;
    let mut ui = Ui::new(color, quiet);
    let place = match Place::new(state_dir, server, token_file) {
        Ok(place) => place,
        Err(error) => {
            ui.error(&error, format);
            return error.exit;
        }
    };
    let mut context = Context { ui, place };
    let result = block_on(&mut context, cli.command);
    result.unwrap_or_else(|error| {
        context.ui.error(&error, format);
        error.exit
    })
}

fn block_on(context: &mut Context, command: Command) -> CommandResult {
    // A controller has work for several cores; everything else is one thing at a time.
    let mut builder = if matches!(command, Command::Controller(_)) {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder.enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::io("the program could not start", &error))?;
    let result = runtime.block_on(commands::run(context, command));
    // A thread that waits for input on stdin can't be ended: don't wait for it.
    runtime.shutdown_background();
    result
}

/// How the command prints, so that its errors are printed alike.
fn format_of(matches: &clap::ArgMatches) -> Format {
    let mut deepest = matches;
    while let Some((_, inner)) = deepest.subcommand() {
        deepest = inner;
    }
    deepest.try_get_one::<Format>("output").ok().flatten().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn errors_are_printed_as_the_command_prints() {
        let format = |line: &str| format_of(&command().get_matches_from(line.split(' ')));
        assert_eq!(format("vm-agent list -o json"), Format::Json);
        assert_eq!(format("vm-agent token ls -o yaml"), Format::Yaml);
        assert_eq!(format("vm-agent schema"), Format::Table);
    }
}
