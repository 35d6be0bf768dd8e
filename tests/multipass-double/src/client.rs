//! The client: finds out what is meant, has it done, and shows what comes of it.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::args::{Arguments, parse};
use crate::calls;
use crate::commands::{self, Command, Context};
use crate::daemon::{self, BEGIN, ROLE_VARIABLE, WORKER};
use crate::failure::{Done, Failure};
use crate::guest;
use crate::home::{DIR_VARIABLE, Home};
use crate::instance::{self, BECOME, MOUNT};
use crate::knobs::{Knobs, Wrong};
use crate::print::screen::{Event, Screen};
use crate::print::terminal::{Ending, Terminal};

/// The program, by whatever name it was called.
#[must_use]
pub fn main() -> ExitCode {
    let mut words = std::env::args();
    let name = words.next().unwrap_or_default();
    let name = Path::new(&name).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let words: Vec<String> = words.collect();
    // The copy in the machines is also called by its own name, with that of the program as first argument.
    if let Some(code) = guest::main(&name, &words) {
        return code;
    }
    if name == "guest"
        && let Some((name, rest)) = words.split_first()
        && let Some(code) = guest::main(name, rest)
    {
        return code;
    }
    let Some(folder) = std::env::var_os(DIR_VARIABLE) else {
        Terminal::default().show(Event::Err(format!("{DIR_VARIABLE} names no folder for the double's state\n"))).ok();
        return ExitCode::FAILURE;
    };
    let home = Home::new(&std::path::absolute(PathBuf::from(folder)).unwrap_or_default());
    if let Err(error) = std::fs::create_dir_all(home.path()) {
        Terminal::default().show(Event::Err(format!("the double has no state folder: {error}\n"))).ok();
        return ExitCode::FAILURE;
    }
    let knobs: Knobs = match read_knobs(&home) {
        Ok(knobs) => knobs,
        Err(text) => {
            Terminal::default().show(Event::Err(text)).ok();
            return ExitCode::from(99);
        }
    };
    match words.first().map(String::as_str) {
        Some(BECOME) => return become_machine(&home, &words),
        Some(MOUNT) => {
            return match instance::mount_here(&words[1..]) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    Terminal::default().show(Event::Err(format!("{error}\n"))).ok();
                    ExitCode::FAILURE
                }
            };
        }
        Some(BEGIN) => {
            thread::sleep(Duration::from_millis(words.get(1).and_then(|pause| pause.parse().ok()).unwrap_or_default()));
            daemon::begin_now(&home, &knobs);
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    if std::env::var(ROLE_VARIABLE).is_ok_and(|role| role == WORKER) {
        let mut context = Context { home, knobs, screen: Screen::to_client() };
        let code = run(&mut context, &words);
        context.screen.show(Event::Exit(code));
        return ExitCode::from(code);
    }
    calls::begin(&home, &words).ok();
    let code = answer(&home, &knobs, &words);
    calls::end(&home, code).ok();
    ExitCode::from(code)
}

/// Knobs that can't be read are a test's mistake, and said loudly.
fn read_knobs(home: &Home) -> Result<Knobs, String> {
    match std::fs::read(home.knobs()) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| format!("knobs.json: {error}\n")),
        Err(_) => Ok(Knobs::default()),
    }
}

fn become_machine(home: &Home, words: &[String]) -> ExitCode {
    let Some(name) = words.get(1) else { return ExitCode::FAILURE };
    match guest::init::become_machine(home, name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            Terminal::default().show(Event::Err(format!("the machine could not run: {error}\n"))).ok();
            ExitCode::FAILURE
        }
    }
}

/// Carries out a call: here, or by the daemon.
fn answer(home: &Home, knobs: &Knobs, words: &[String]) -> u8 {
    let mut terminal = Terminal::default();
    if let Some(banner) = &knobs.banner {
        terminal.show(Event::Err(banner.clone())).ok();
    }
    let fault = daemon::fault(home, knobs, command_of(words), words);
    let mut leaving = (None, String::new());
    let then = match fault.map(|fault| fault.what) {
        None => None,
        Some(Wrong::Fails { code, stderr, stdout }) => {
            terminal.show(Event::Out(stdout)).ok();
            terminal.show(Event::Err(stderr)).ok();
            return code;
        }
        Some(Wrong::Hangs) => hang(),
        Some(Wrong::Late { by }) => {
            thread::sleep(Duration::from_millis(by));
            None
        }
        Some(Wrong::Leaves { at, code, stderr }) => {
            terminal = terminal.leaving_at(at);
            leaving = (code, stderr);
            None
        }
        Some(Wrong::HangsThoughDone) => Some(None),
        Some(Wrong::FailsThoughDone { code, stderr }) => Some(Some((code, stderr))),
    };
    let local = commands::find(command_of(words)).is_none_or(|command| command.local);
    let code = match local {
        true => run_here(home, knobs, words),
        false => match run_by_daemon(home, &mut terminal, words, command_of(words)) {
            Some(code) => code,
            None => leave(&mut terminal, leaving),
        },
    };
    match then {
        None => code,
        Some(None) => hang(),
        Some(Some((code, stderr))) => {
            terminal.show(Event::Err(stderr)).ok();
            code
        }
    }
}

/// Ends the client in the middle, as it was asked for.
fn leave(terminal: &mut Terminal, (code, stderr): (Option<u8>, String)) -> u8 {
    terminal.show(Event::Err(stderr)).ok();
    code.unwrap_or_else(|| {
        daemon::end(std::process::id());
        hang()
    })
}

fn hang() -> ! {
    loop {
        thread::park();
    }
}

/// The command: the first word that is no option.
fn command_of(words: &[String]) -> &str {
    words.iter().find(|word| !word.starts_with('-')).map_or("", String::as_str)
}

fn run_here(home: &Home, knobs: &Knobs, words: &[String]) -> u8 {
    let mut terminal = Terminal::default();
    let screen = Screen::new(move |event| terminal.show(event).map(drop));
    run(&mut Context { home: home.clone(), knobs: knobs.clone(), screen }, words)
}

/// Has a process of its own do it, which does not end with this one, and shows what it says. Gives the exit code;
/// nothing where this is to end before it.
pub(crate) fn run_by_daemon(home: &Home, terminal: &mut Terminal, words: &[String], command: &str) -> Option<u8> {
    let spawned = daemon::own(home, WORKER).args(words).stdin(Stdio::inherit()).stdout(Stdio::piped()).spawn();
    let mut worker = daemon::expect_io(spawned, "run this program again");
    match show_all(&mut worker, terminal) {
        Ok(Ending::Exit(code)) => Some(code),
        Ok(Ending::Left) => None,
        // The daemon died of it.
        Ok(Ending::Cut) | Err(_) => {
            terminal.show(Event::Still).ok();
            terminal.show(Event::Still).ok();
            terminal.show(Event::Err(Failure::no_socket(command).text)).ok();
            Some(2)
        }
    }
}

fn show_all(worker: &mut Child, terminal: &mut Terminal) -> io::Result<Ending> {
    let out = worker.stdout.take().expect("it was asked for");
    let (events, coming) = mpsc::channel();
    thread::spawn(move || {
        let lines = BufReader::new(out).lines().map_while(Result::ok);
        for event in lines.filter_map(|line| serde_json::from_str(&line).ok()) {
            drop(events.send(event));
        }
    });
    terminal.run(&coming)
}

/// Runs a command to its end, and gives the exit code.
fn run(context: &mut Context, words: &[String]) -> u8 {
    let done = dispatch(context, words);
    match done {
        Ok(code) => code,
        Err(failure) => {
            context.screen.err(failure.text);
            failure.code
        }
    }
}

fn dispatch(context: &mut Context, words: &[String]) -> Result<u8, Failure> {
    let place = words.iter().position(|word| !word.starts_with('-'));
    let Some((place, command)) = place.map(|place| (place, words[place].as_str())) else {
        return commands::help::without_command(context, words);
    };
    let Some(command) = commands::find(command).filter(|_| commands::is_in(context.knobs.version, command)) else {
        context.screen.out(format!(
            "Error: Unknown command or alias '{command}' (try \"multipass help\" or \"multipass aliases\")\n"
        ));
        return Ok(1);
    };
    let rest: Vec<String> = words[..place].iter().chain(&words[place + 1..]).cloned().collect();
    let arguments = parse(command.options, &rest).map_err(|text| usage(command, &rest, &text))?;
    if arguments.has("h") {
        return commands::help::of(context, command.name).map(|()| 0);
    }
    perform(context, command, &arguments).map(|()| 0)
}

fn perform(context: &mut Context, command: &Command, arguments: &Arguments) -> Done {
    (command.run)(context, arguments)
}

fn usage(command: &Command, rest: &[String], text: &str) -> Failure {
    let hint = command.name == "exec" && text.starts_with("Unknown option") && !rest.iter().any(|word| word == "--");
    match hint {
        true => Failure::usage(format!(
            "{text}\n\nOptions to the inner command should come after \"--\", like this:\nmultipass exec <instance> -- \
             <command> <arguments>"
        )),
        false => Failure::usage(text),
    }
}
