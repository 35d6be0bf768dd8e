//! The program's side: `vm-agent-runtime message send|receive`, for scripts and for people inside the machine.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::Post;
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::Address;

use super::socket::address;
use super::talk::{Answer, Letter, Request, SOCKET_VARIABLE};

/// How the program is called.
const USAGE: &str = "\
usage: vm-agent-runtime message send TO SUBJECT [BODY] [--reply-to ID] [--ttl SPAN] [--wait SPAN]
       vm-agent-runtime message receive [--subject SUBJECT] [--count N] [--follow]

send     gives a message to `host`, to an agent by its name, or to `broadcast`. BODY is JSON, or else is taken as
         text; `-` reads it from the input. Prints the message's id; with --wait, the first answer instead.
receive  takes the messages that wait, and prints each as a line of JSON; with --follow it waits for more.";

/// How long the hub's answer is waited for when no other answer is: the message is safe in any case.
const FATE_LIMIT: Duration = Duration::from_secs(5);

/// Why it did not work.
#[derive(Debug, thiserror::Error)]
enum ProgramError {
    #[error("{0}\n\n{USAGE}")]
    Usage(String),
    #[error("{SOCKET_VARIABLE} is not set: this is for programs that the runtime of an agent has started")]
    NoSocket,
    #[error("the runtime can't be reached at {path}; is it running?")]
    NoRuntime { path: PathBuf, source: io::Error },
    #[error("the connection to the runtime broke")]
    Broken(#[source] io::Error),
    #[error("the runtime went away")]
    Gone,
    #[error("the runtime gave an answer that makes no sense here; program and runtime may differ in version")]
    Strange,
    #[error("{0}")]
    Refused(String),
    #[error("no answer came within {0}; the message {1} stays sent, and an answer can still be received")]
    NoAnswer(Span, MessageId),
    #[error("the output can't be written")]
    Output(#[source] io::Error),
}

/// What is to be done.
#[derive(Debug, PartialEq)]
enum Order {
    Send { to: Address, post: Post, wait: Option<Span> },
    Receive { subject: Option<String>, follow: bool, count: Option<u64> },
    Help,
}

/// Does what the arguments behind `message` say.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let done = parse(arguments, &mut io::stdin()).and_then(|order| match order {
        Order::Help => print(USAGE),
        Order::Send { to, post, wait } => send(to, post, wait),
        Order::Receive { subject, follow, count } => receive(subject, follow, count),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&crate::chain(&error));
            ExitCode::from(if matches!(error, ProgramError::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn parse(arguments: &[String], input: &mut impl Read) -> Result<Order, ProgramError> {
    let wrong = |what: String| ProgramError::Usage(what);
    let (verb, rest) = arguments.split_first().ok_or_else(|| wrong("say `send` or `receive`".to_owned()))?;
    let (mut plain, mut options) = (Vec::new(), Options::default());
    let mut rest = rest.iter();
    while let Some(argument) = rest.next() {
        if argument == "--help" {
            return Ok(Order::Help);
        }
        match argument.strip_prefix("--") {
            Some(option) => options.set(option, &mut rest)?,
            None => plain.push(argument.as_str()),
        }
    }
    match (verb.as_str(), plain.as_slice()) {
        ("send", [to, subject, body @ ..]) if body.len() <= 1 => {
            options.only(&["reply-to", "ttl", "wait"])?;
            let to = Address::try_from((*to).to_owned())
                .map_err(|error| wrong(format!("`{to}` is no receiver: {error}")))?;
            let ttl_ms = options.ttl.map(|ttl| u64::try_from(ttl.get().as_millis()).unwrap_or(u64::MAX));
            let subject = (*subject).to_owned();
            let post =
                Post { subject, body: read_body(body.first().copied(), input)?, in_reply_to: options.reply_to, ttl_ms };
            Ok(Order::Send { to, post, wait: options.wait })
        }
        ("send", _) => Err(wrong("`send` takes a receiver, a subject and at most one body".to_owned())),
        ("receive", []) => {
            options.only(&["subject", "count", "follow"])?;
            Ok(Order::Receive { subject: options.subject, follow: options.follow, count: options.count })
        }
        ("receive", _) => Err(wrong("`receive` takes options only".to_owned())),
        ("help" | "--help" | "-h", _) => Ok(Order::Help),
        (other, _) => Err(wrong(format!("there is no `{other}`; say `send` or `receive`"))),
    }
}

#[derive(Debug, Default)]
struct Options {
    given: Vec<String>,
    reply_to: Option<MessageId>,
    ttl: Option<Span>,
    wait: Option<Span>,
    subject: Option<String>,
    count: Option<u64>,
    follow: bool,
}

impl Options {
    fn set<'a>(&mut self, option: &str, rest: &mut impl Iterator<Item = &'a String>) -> Result<(), ProgramError> {
        let (name, value) =
            option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value.to_owned())));
        self.given.push(name.to_owned());
        if name == "follow" {
            self.follow = true;
            return Ok(());
        }
        let value = value.or_else(|| rest.next().cloned());
        let value = value.ok_or_else(|| ProgramError::Usage(format!("`--{name}` needs a value")))?;
        let wrong = |error: &dyn std::fmt::Display| ProgramError::Usage(format!("`--{name} {value}`: {error}"));
        match name {
            "reply-to" => self.reply_to = Some(value.parse().map_err(|error| wrong(&error))?),
            "ttl" => self.ttl = Some(value.parse().map_err(|error| wrong(&error))?),
            "wait" => self.wait = Some(value.parse().map_err(|error| wrong(&error))?),
            "subject" => self.subject = Some(value),
            "count" => self.count = Some(value.parse().map_err(|error| wrong(&error))?),
            _ => return Err(ProgramError::Usage(format!("there is no option `--{name}`"))),
        }
        Ok(())
    }

    fn only(&self, allowed: &[&str]) -> Result<(), ProgramError> {
        match self.given.iter().find(|name| !allowed.contains(&name.as_str())) {
            Some(name) => Err(ProgramError::Usage(format!("`--{name}` does not belong here"))),
            None => Ok(()),
        }
    }
}

fn read_body(body: Option<&str>, input: &mut impl Read) -> Result<serde_json::Value, ProgramError> {
    let text = match body {
        None => return Ok(serde_json::Value::Null),
        Some("-") => {
            let mut text = String::new();
            input.read_to_string(&mut text).map_err(|error| ProgramError::Usage(format!("the input: {error}")))?;
            text
        }
        Some(text) => text.to_owned(),
    };
    Ok(serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)))
}

fn send(to: Address, post: Post, wait: Option<Span>) -> Result<(), ProgramError> {
    let mut runtime = Runtime::connect()?;
    runtime.ask(&Request::Send { to, post, wait: wait.is_some() })?;
    let message = match runtime.hear(None)? {
        Some(Answer::Kept { message }) => message,
        Some(Answer::Error { reason }) => return Err(ProgramError::Refused(reason)),
        _ => return Err(ProgramError::Strange),
    };
    if wait.is_none() {
        print(&message.to_string())?;
    }
    let deadline = Instant::now() + wait.map_or(FATE_LIMIT, Span::get);
    loop {
        match (runtime.hear(Some(deadline))?, wait) {
            (Some(Answer::Accepted { .. }), None) => return Ok(()),
            (Some(Answer::Accepted { .. }), Some(_)) => {}
            (Some(Answer::Refused { reason, .. }), _) => return Err(ProgramError::Refused(reason)),
            (Some(Answer::Message { message }), Some(_)) => return runtime.take(&message),
            (None, Some(wait)) => return Err(ProgramError::NoAnswer(wait, message)),
            (None, None) => {
                complain(&format!("the hub can't be reached; the message {message} is kept and goes out when it can"));
                return Ok(());
            }
            (Some(Answer::Error { reason }), _) => return Err(ProgramError::Refused(reason)),
            (Some(_), _) => return Err(ProgramError::Strange),
        }
    }
}

fn receive(subject: Option<String>, follow: bool, count: Option<u64>) -> Result<(), ProgramError> {
    let mut left = count.unwrap_or(u64::MAX);
    if left == 0 {
        return Ok(());
    }
    let mut runtime = Runtime::connect()?;
    runtime.ask(&Request::Receive { subject, follow })?;
    while left > 0 {
        match runtime.hear(None)? {
            Some(Answer::Message { message }) => runtime.take(&message)?,
            Some(Answer::Nothing) => break,
            Some(Answer::Error { reason }) => return Err(ProgramError::Refused(reason)),
            _ => return Err(ProgramError::Strange),
        }
        left -= 1;
    }
    Ok(())
}

/// The connection to the runtime.
struct Runtime {
    lines: BufReader<UnixStream>,
}

impl Runtime {
    fn connect() -> Result<Self, ProgramError> {
        let path = PathBuf::from(std::env::var_os(SOCKET_VARIABLE).ok_or(ProgramError::NoSocket)?);
        let stream = address(&path).and_then(|(address, _way)| UnixStream::connect(address));
        let stream = stream.map_err(|source| ProgramError::NoRuntime { path, source })?;
        Ok(Self { lines: BufReader::new(stream) })
    }

    fn ask(&mut self, request: &Request) -> Result<(), ProgramError> {
        let mut line = serde_json::to_vec(request).expect("messages are plain data with texts as keys");
        line.push(b'\n');
        self.lines.get_mut().write_all(&line).map_err(ProgramError::Broken)
    }

    /// The next answer; nothing if none comes in time.
    fn hear(&mut self, deadline: Option<Instant>) -> Result<Option<Answer>, ProgramError> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(None);
        }
        self.lines.get_ref().set_read_timeout(left).map_err(ProgramError::Broken)?;
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Err(ProgramError::Gone),
            Ok(_) => serde_json::from_str(&line).map(Some).map_err(|_| ProgramError::Strange),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(ProgramError::Broken(error)),
        }
    }

    /// Prints a message, and only then lets the runtime forget it.
    fn take(&mut self, letter: &Letter) -> Result<(), ProgramError> {
        print(&serde_json::to_string(letter).expect("messages are plain data with texts as keys"))?;
        self.ask(&Request::Taken { message: letter.id })?;
        Ok(())
    }
}

fn print(line: &str) -> Result<(), ProgramError> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}").and_then(|()| output.flush()).map_err(ProgramError::Output)
}

fn complain(sentence: &str) {
    // There is nowhere else to say it.
    let _ = writeln!(io::stderr(), "vm-agent-runtime: {sentence}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn order(line: &str) -> Result<Order, String> {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        parse(&arguments, &mut b"[1]".as_slice()).map_err(|error| error.to_string().lines().next().unwrap().to_owned())
    }

    #[test]
    fn calls_are_understood() {
        let post = |subject: &str, body| Post { subject: subject.to_owned(), body, in_reply_to: None, ttl_ms: None };
        let send = |to, post| Ok(Order::Send { to, post, wait: None });
        let tester = || Address::Agent("tester".parse().unwrap());
        assert_eq!(order("send host ready"), send(Address::Host, post("ready", json!(null))));
        assert_eq!(order(r#"send tester ready {"a":1}"#), send(tester(), post("ready", json!({"a": 1}))));
        assert_eq!(order("send tester ready well"), send(tester(), post("ready", json!("well"))));
        assert_eq!(order("send broadcast ready -"), send(Address::Broadcast, post("ready", json!([1]))));
        let waited = Order::Send {
            to: tester(),
            post: Post { ttl_ms: Some(5000), ..post("ready", json!(null)) },
            wait: Some(Span::from_secs(60)),
        };
        assert_eq!(order("send --wait 1m tester --ttl=5s ready"), Ok(waited));
        let received = Order::Receive { subject: Some("x".to_owned()), follow: true, count: Some(2) };
        assert_eq!(order("receive --subject x --follow --count 2"), Ok(received));
    }

    #[test]
    fn a_wrong_call_is_told_what_is_wrong() {
        let wrong = [
            ("sned", "there is no `sned`; say `send` or `receive`"),
            ("send tester", "`send` takes a receiver, a subject and at most one body"),
            ("send tester ready --follow", "`--follow` does not belong here"),
            ("send tester ready --wait", "`--wait` needs a value"),
            ("receive --cuont 1", "there is no option `--cuont`"),
            ("receive x", "`receive` takes options only"),
        ];
        for (line, sentence) in wrong {
            assert_eq!(order(line), Err(sentence.to_owned()));
        }
        assert!(order("send Tester ready").unwrap_err().starts_with("`Tester` is no receiver: "));
    }
}
