//! `exec`: the client asks the daemon how to get in, and then runs the command by SSH itself. The command is the
//! machine's: it goes on when the client is killed.

use std::io::{self, IsTerminal, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::Context;
use crate::args::Arguments;
use crate::client::run_by_daemon;
use crate::daemon;
use crate::failure::{Done, Failure};
use crate::instance;
use crate::knobs::Version;
use crate::print::terminal::Terminal;
use crate::state::Phase;

const COMMAND: &str = "exec";
/// How often a guest that exits with 4 is asked again before the double calls that a mistake: the real one never
/// stops.
const RETRIES: u32 = 5;
/// The exit code of such a mistake.
const MISTAKE: u8 = 98;
/// The guest's exit code that the client takes for a wish to try again.
const RETRY: i32 = 4;

/// `exec`.
pub(super) fn exec(context: &mut Context, arguments: &Arguments) -> Done {
    let [name, words @ ..] = arguments.positional.as_slice() else {
        return Err(Failure::usage("Wrong number of arguments"));
    };
    if words.is_empty() {
        return Err(Failure::usage("Wrong number of arguments"));
    }
    let folder = arguments.value("working-directory");
    let unmapped = arguments.has("no-map-working-directory");
    if folder.is_some() && unmapped {
        return Err(Failure::usage("Options --working-directory and --no-map-working-directory clash"));
    }
    let mut folder = folder.map(str::to_owned);
    if folder.is_none() && !unmapped {
        folder = mapped_folder(context, name);
    }
    let line = line(words, folder.as_deref());
    for _ in 0..RETRIES {
        enter(context, COMMAND, name, true)?;
        let status = run(context, name, &line)?;
        match status.code() {
            Some(0) => return Ok(()),
            Some(RETRY) if context.knobs.version < Version::Main => {}
            code => return Err(exit(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255))),
        }
    }
    let text = format!(
        "the double gives up: `{}` exits with 4, and multipass before 1.17 would run it again for ever\n",
        words.join(" ")
    );
    Err(Failure { code: MISTAKE, text })
}

fn exit(code: u8) -> Failure {
    Failure { code, text: String::new() }
}

/// The command line as it goes to the guest's shell.
fn line(words: &[String], folder: Option<&str>) -> String {
    let all = |words: &[String]| words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    match (folder, words) {
        (None, words) => all(words),
        // The folder may be one that only root can go to. The words are not quoted, then.
        (Some(folder), [sudo, rest @ ..]) if sudo == "sudo" => {
            format!("'sudo' 'sh' '-c' {}", quoted(&format!("cd {folder} && {}", rest.join(" "))))
        }
        (Some(folder), words) => format!("cd {} && {}", quoted(folder), all(words)),
    }
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The guest's name of the host's folder that this process is in, where that is mounted. A missing instance is
/// complained about here, and once more later.
fn mapped_folder(context: &mut Context, name: &str) -> Option<String> {
    let found = daemon::enter(&context.home, &context.knobs, COMMAND).and_then(|mut serial| {
        let missing = || Failure::errors(COMMAND, &[format!("instance \"{name}\" does not exist")]);
        serial.state.instances.remove(name).ok_or_else(missing)
    });
    let mounts = match found {
        Ok(found) => found.mounts,
        Err(failure) => {
            context.screen.err(failure.text);
            return None;
        }
    };
    let here = std::env::current_dir().ok()?;
    mounts.iter().find_map(|(target, mount)| {
        let rest = here.strip_prefix(&mount.source).ok()?;
        Some(std::path::Path::new(target).join(rest).to_string_lossy().trim_end_matches('/').to_owned())
    })
}

/// Makes sure that SSH answers: where the command may, it starts the machine for that.
pub(super) fn enter(context: &mut Context, command: &str, name: &str, may_start: bool) -> Done {
    let no = |context: &Context, failure: Failure| match context.knobs.version {
        Version::Main if command == COMMAND => Failure { code: 255, ..failure },
        _ => failure,
    };
    for attempt in 0..2 {
        let serial = context.daemon(command).map_err(|failure| no(context, failure))?;
        if let Some(text) = super::lacking(&serial.state, name) {
            return Err(no(context, Failure::errors(command, &[text])));
        }
        let found = &serial.state.instances[name];
        let text = match found.phase {
            Phase::Running => None,
            Phase::DelayedShutdown => found.shutdown_at.filter(|at| at - Timestamp::now().as_millisecond() <= 60_000).map(|_| {
                format!(
                    "\"{name}\" is scheduled to shut down in less than a minute, use 'multipass stop --cancel {name}' to \
                     cancel the shutdown."
                )
            }),
            Phase::Unknown => Some("Cannot retrieve credentials in unknown state".to_owned()),
            _ if !may_start || attempt > 0 => Some(format!("instance \"{name}\" is not running")),
            _ => {
                drop(serial);
                let words = ["start".to_owned(), name.to_owned()];
                match run_by_daemon(&context.home, &mut Terminal::default(), &words, "start") {
                    Some(0) | None => continue,
                    Some(code) => return Err(exit(code)),
                }
            }
        };
        return match text {
            Some(text) => Err(no(context, Failure::daemon(command, text))),
            None => {
                drop(serial);
                connect(context, command, name).map_err(|failure| no(context, failure))
            }
        };
    }
    Err(Failure::daemon(command, format!("instance \"{name}\" is not running")))
}

/// A machine that stands still does not answer, but it does not refuse either.
fn connect(context: &mut Context, command: &str, name: &str) -> Done {
    context.phase(&format!("{command}.connect"));
    let begun = Instant::now();
    while instance::is_frozen(&context.home, name) {
        if begun.elapsed() >= context.knobs.limit("ssh") {
            return Err(Failure::daemon(command, "ssh connection failed: 'Timeout connecting to the instance'"));
        }
        thread::sleep(Duration::from_millis(20));
    }
    if !instance::is_up(&context.home, name) {
        return Err(Failure::daemon(command, "ssh connection failed: 'Connection refused'"));
    }
    Ok(())
}

fn run(context: &mut Context, name: &str, line: &str) -> Result<ExitStatus, Failure> {
    let refused = || Failure::daemon(COMMAND, "ssh connection failed: 'Connection refused'");
    let mut command = instance::shell(&context.home, name, line).ok_or_else(refused)?;
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        return command.status().map_err(|_| refused());
    }
    relay(&mut command).map_err(|_| refused())
}

/// Runs a command with the words of this process between: they end with this process, and the command does not.
fn relay(command: &mut Command) -> io::Result<ExitStatus> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // Not waited for: who has nothing more to say may keep the line.
    thread::spawn(move || input.map(|input| pump(io::stdin(), input)));
    let output = thread::spawn(move || output.map(|output| pump(output, io::stdout())));
    let errors = thread::spawn(move || errors.map(|errors| pump(errors, io::stderr())));
    drop((output.join(), errors.join()));
    child.wait()
}

/// Copies as it comes.
pub(super) fn pump(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                to.write_all(&bytes[..count])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_to_the_guest_one_by_one_but_not_sudos_in_a_folder() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(line(&words("echo it's $HOME"), None), "'echo' 'it'\\''s' '$HOME'");
        assert_eq!(line(&words("pwd"), Some("/a b")), "cd '/a b' && 'pwd'");
        assert_eq!(line(&words("sudo ls *"), Some("/root")), "'sudo' 'sh' '-c' 'cd /root && ls *'");
    }
}
