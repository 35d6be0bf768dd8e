//! What a task is to do and on which terms, from the command line.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use vm_agent_schemas::fleet::FileMode;
use vm_agent_schemas::task::{Content, Job, OUTPUT, Retry, RetryOn, TIMEOUT, Terms, Work};
use vm_agent_schemas::units::{ByteSize, Span};

use super::super::exec::argv;
use super::super::key_value;
use crate::exit::{CommandError, Exit};

/// What stdin is called, as a file.
const STDIN: &str = "-";
/// Most that is read of a script, of input or of a file that travels inside a task: what the wire carries as one text,
/// with room for the rest. Anything longer is a copy.
const CONTENT_MAX: u64 = 160 * 1024;

/// What a task is to do, and how.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// What kind of work it is. After `--` stand, by kind: a command (exec, build, test, deploy; the latter three find
    /// their own when there is none), PATH (file:read, file:write), URL [PATH] (git:clone), [PATH] (git:pull, git:push)
    #[arg(long = "type", value_name = "KIND", value_enum)]
    kind: Option<Kind>,
    /// Run this script (`-` is stdin); after `--` stand its arguments
    #[arg(long, value_name = "FILE", conflicts_with = "kind")]
    script: Option<PathBuf>,
    /// What runs the script, such as python3 or "node --test"
    #[arg(long, value_name = "PROGRAM", default_value = "bash")]
    interpreter: String,
    /// The branch or tag to clone or pull, or what to push
    #[arg(long = "ref", value_name = "REF", help_heading = "Options for git")]
    reference: Option<String>,
    /// How many commits of its history to clone [default: all]
    #[arg(long, value_name = "COUNT", help_heading = "Options for git")]
    depth: Option<u32>,
    /// The remote to pull from or to push to
    #[arg(long, value_name = "NAME", help_heading = "Options for git")]
    remote: Option<String>,
    /// The permissions of a file that is written [default: 0644]
    #[arg(long, value_name = "MODE")]
    mode: Option<FileMode>,
    /// What its process reads, or what file:write writes: a file here, or `-` for stdin
    #[arg(long, value_name = "FILE")]
    stdin: Option<PathBuf>,
    /// Environment, over the agent's (can be repeated)
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// The folder to work in, absolute or below the agent's work folder
    #[arg(short, long, visible_alias = "cwd", value_name = "DIR")]
    workdir: Option<String>,
    /// The user to run it as [default: the runtime's own]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// One of the agent's secrets that it is given (can be repeated) [default: all of them]
    #[arg(long = "secret", value_name = "NAME")]
    secrets: Vec<String>,
    /// Give it none of the agent's secrets
    #[arg(long, conflicts_with = "secrets")]
    no_secrets: bool,
    /// How much of each of stdout and stderr is kept: half from the beginning and half from the end [default: 8M]
    #[arg(long, value_name = "SIZE")]
    output_limit: Option<ByteSize>,
    /// A file that it makes, with `*`, `?` and `**` (can be repeated): told of with its checksum, and got with `task
    /// artifacts`
    #[arg(long = "artifact", value_name = "PATTERN")]
    artifacts: Vec<String>,
    /// How long each attempt may run [default: 1h]
    #[arg(long, value_name = "SPAN")]
    timeout: Option<Span>,
}

/// The kinds of work that are named by a word. A script is named by its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    #[value(name = "exec")]
    Exec,
    #[value(name = "file:read")]
    FileRead,
    #[value(name = "file:write")]
    FileWrite,
    #[value(name = "git:clone")]
    GitClone,
    #[value(name = "git:pull")]
    GitPull,
    #[value(name = "git:push")]
    GitPush,
    #[value(name = "build")]
    Build,
    #[value(name = "test")]
    Test,
    #[value(name = "deploy")]
    Deploy,
}

/// How a task is treated by the controller.
#[derive(Debug, Args)]
#[command(next_help_heading = "Terms")]
pub(super) struct TermsArgs {
    /// When it has to be over, from now: nothing is begun after that, and what runs is ended
    #[arg(long, value_name = "SPAN")]
    deadline: Option<Span>,
    /// Try it again when it fails: how many attempts there may be in all
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    retry: Option<u32>,
    /// Which ends are tried again, separated by commas: failed, timed-out, not-started [default: failed,not-started]
    #[arg(long, value_name = "ENDS", value_delimiter = ',', value_parser = retry_on, requires = "retry")]
    retry_on: Vec<RetryOn>,
    /// The pause before the second attempt, doubled for each further one [default: 1s]
    #[arg(long, value_name = "SPAN", requires = "retry")]
    backoff: Option<Span>,
    /// Whether doing it twice is as good as once: then what was lost with its machine is done again
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    idempotent: Option<bool>,
    /// Run it after earlier tasks of this agent with the same key, which the fleet file calls `key`; those of different
    /// keys run side by side
    #[arg(long, value_name = "KEY")]
    order_key: Option<String>,
    /// What you call it: asking twice with one of these is asking once
    #[arg(long, value_name = "KEY")]
    pub(super) idempotency_key: Option<String>,
}

fn retry_on(word: &str) -> Result<RetryOn, String> {
    serde_json::from_value(word.into()).map_err(|_| "write failed, timed-out or not-started".to_owned())
}

impl JobArgs {
    /// Whether nothing at all is said of what is to be done, or how.
    pub(super) fn is_bare(&self) -> bool {
        // The interpreter alone has a value that nobody said.
        let Self { kind, script, interpreter: _, reference, depth, remote, mode, stdin, env, workdir, .. } = self;
        let Self { user, secrets, no_secrets, output_limit, artifacts, timeout, .. } = self;
        let is_work = kind.is_some() || script.is_some() || stdin.is_some() || mode.is_some() || user.is_some();
        let is_git = reference.is_some() || depth.is_some() || remote.is_some();
        let is_place = !env.is_empty() || workdir.is_some() || !secrets.is_empty() || *no_secrets;
        let is_limit = output_limit.is_some() || !artifacts.is_empty() || timeout.is_some();
        !(is_work || is_git || is_place || is_limit)
    }

    /// What is to be done with these operands.
    pub(crate) fn into_job(self, operands: Vec<String>) -> Result<Job, CommandError> {
        self.check()?;
        let stdin = self.stdin.as_deref().map(|path| read(path, "the input")).transpose()?;
        let (work, stdin) = self.work(operands, stdin)?;
        let stdin = stdin.map(|bytes| text(bytes, "the input")).transpose()?;
        let secrets = (self.no_secrets || !self.secrets.is_empty()).then(|| self.secrets.into_iter().collect());
        Ok(Job {
            env: self.env.into_iter().collect(),
            cwd: self.workdir,
            user: self.user,
            secrets,
            stdin,
            output: self.output_limit.unwrap_or(OUTPUT),
            artifacts: self.artifacts,
            ..Job::new(work)
        })
    }

    /// How long each attempt may run.
    pub(crate) fn timeout(&self) -> Span {
        self.timeout.unwrap_or(TIMEOUT)
    }

    /// That nothing is said that would be passed over.
    fn check(&self) -> Result<(), CommandError> {
        use Kind::{FileWrite, GitClone, GitPull, GitPush};
        let given: [(&str, bool, &[Kind]); 4] = [
            ("--ref", self.reference.is_some(), &[GitClone, GitPull, GitPush]),
            ("--depth", self.depth.is_some(), &[GitClone]),
            ("--remote", self.remote.is_some(), &[GitPull, GitPush]),
            ("--mode", self.mode.is_some(), &[FileWrite]),
        ];
        for (flag, given, kinds) in given {
            if given && !self.kind.is_some_and(|kind| kinds.contains(&kind)) {
                let names = kinds.iter().filter_map(|kind| kind.to_possible_value());
                let names: Vec<String> = names.map(|value| format!("--type {}", value.get_name())).collect();
                return Err(usage(format!("{flag} goes with {}", names.join(" or "))));
            }
        }
        Ok(())
    }

    /// The work, and what is left of the input.
    fn work(&self, operands: Vec<String>, stdin: Option<Vec<u8>>) -> Result<(Work, Option<Vec<u8>>), CommandError> {
        if let Some(path) = &self.script {
            let script = text(read(path, "the script")?, "the script")?;
            let interpreter = self.interpreter.split_whitespace().map(ToOwned::to_owned).collect();
            return Ok((Work::Script { interpreter, script, args: operands }, stdin));
        }
        let kind = self.kind.unwrap_or(Kind::Exec);
        let (reference, remote) = (self.reference.clone(), self.remote.clone());
        let mut stdin = stdin;
        let work = match kind {
            Kind::Exec => Work::Exec { argv: command(operands)? },
            Kind::Build => Work::Build { argv: argv(operands) },
            Kind::Test => Work::Test { argv: argv(operands) },
            Kind::Deploy => Work::Deploy { argv: argv(operands) },
            Kind::FileRead => Work::FileRead { path: one(operands, kind)? },
            Kind::FileWrite => {
                let content = stdin.take().ok_or_else(|| {
                    usage("there is nothing to write").hint("name its content: --stdin FILE, or `--stdin -` for stdin")
                })?;
                let path = one(operands, kind)?;
                Work::FileWrite { path, content: content_of(content), mode: self.mode.unwrap_or_default() }
            }
            Kind::GitClone => {
                let mut words = at_most(operands, 2, kind)?.into_iter();
                let url = words.next().ok_or_else(|| operands_wrong(kind))?;
                Work::GitClone { url, path: words.next(), reference, depth: self.depth }
            }
            Kind::GitPull => Work::GitPull { path: at_most(operands, 1, kind)?.pop(), remote, reference },
            Kind::GitPush => Work::GitPush { path: at_most(operands, 1, kind)?.pop(), remote, reference },
        };
        Ok((work, stdin))
    }
}

impl TermsArgs {
    /// Whether nothing is said of how it is to be treated.
    pub(super) fn is_bare(&self) -> bool {
        let Self { deadline, retry, retry_on: _, backoff: _, idempotent, order_key, idempotency_key } = self;
        let is_treated = deadline.is_some() || retry.is_some() || idempotent.is_some();
        !(is_treated || order_key.is_some() || idempotency_key.is_some())
    }

    pub(super) fn into_terms(self, timeout: Span, now: Timestamp) -> Result<Terms, CommandError> {
        let deadline = self.deadline.map(|span| after(now, span)).transpose()?;
        let on: BTreeSet<RetryOn> = self.retry_on.into_iter().collect();
        let usual = Retry::default();
        let retry = self.retry.map(|attempts| Retry {
            attempts,
            on: if on.is_empty() { usual.on } else { on },
            backoff: self.backoff.unwrap_or(usual.backoff),
            backoff_max: usual.backoff_max.max(self.backoff.unwrap_or(usual.backoff)),
        });
        Ok(Terms { timeout, deadline, idempotent: self.idempotent, retry, key: self.order_key })
    }
}

/// The moment that is so far away.
pub(super) fn after(now: Timestamp, span: Span) -> Result<Timestamp, CommandError> {
    let end = SignedDuration::try_from(span.get()).ok().and_then(|span| now.checked_add(span).ok());
    end.ok_or_else(|| usage(format!("{span} from now is beyond the calendar")))
}

fn command(operands: Vec<String>) -> Result<Vec<String>, CommandError> {
    let argv = argv(operands);
    if argv.is_empty() {
        return Err(usage("there is no command").hint("write it after `--`, as in `-- make test`"));
    }
    Ok(argv)
}

fn one(operands: Vec<String>, kind: Kind) -> Result<String, CommandError> {
    <[String; 1]>::try_from(operands).map(|[one]| one).map_err(|_| operands_wrong(kind))
}

fn at_most(operands: Vec<String>, most: usize, kind: Kind) -> Result<Vec<String>, CommandError> {
    if operands.len() > most { Err(operands_wrong(kind)) } else { Ok(operands) }
}

fn operands_wrong(kind: Kind) -> CommandError {
    let (name, operands) = match kind {
        Kind::FileRead => ("file:read", "PATH"),
        Kind::FileWrite => ("file:write", "PATH"),
        Kind::GitClone => ("git:clone", "URL [PATH]"),
        Kind::GitPull => ("git:pull", "[PATH]"),
        Kind::GitPush => ("git:push", "[PATH]"),
        Kind::Exec | Kind::Build | Kind::Test | Kind::Deploy => ("exec", "COMMAND"),
    };
    usage(format!("--type {name} is written: vm-agent task NAME --type {name} -- {operands}"))
}

/// Reads a file that travels inside a task.
fn read(path: &Path, what: &str) -> Result<Vec<u8>, CommandError> {
    let read = || {
        let mut bytes = Vec::new();
        if path.as_os_str() == STDIN {
            io::stdin().lock().take(CONTENT_MAX + 1).read_to_end(&mut bytes)?;
        } else {
            File::open(path)?.take(CONTENT_MAX + 1).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    };
    let bytes = read().map_err(|error: io::Error| {
        CommandError::new(Exit::USAGE, format!("`{}` can't be read: {error}", path.display()))
    })?;
    if bytes.len() as u64 > CONTENT_MAX {
        let most = ByteSize::from_bytes(CONTENT_MAX);
        return Err(usage(format!("{what} has more than the {most} that a task can carry"))
            .hint("copy it first: vm-agent cp FILE NAME:PATH"));
    }
    Ok(bytes)
}

fn text(bytes: Vec<u8>, what: &str) -> Result<String, CommandError> {
    String::from_utf8(bytes)
        .map_err(|_| usage(format!("{what} is not UTF-8")).hint("copy it as a file first: vm-agent cp FILE NAME:PATH"))
}

fn content_of(bytes: Vec<u8>) -> Content {
    String::from_utf8(bytes).map_or_else(|error| Content::Base64(STANDARD.encode(error.as_bytes())), Content::Text)
}

fn usage(sentence: impl Into<String>) -> CommandError {
    CommandError::new(Exit::USAGE, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        job: JobArgs,
        #[command(flatten)]
        terms: TermsArgs,
        #[arg(last = true)]
        operands: Vec<String>,
    }

    fn line(words: &[&str]) -> Line {
        Line::try_parse_from(std::iter::once(&"task").chain(words)).unwrap()
    }

    fn job(words: &[&str]) -> Result<Job, String> {
        let line = line(words);
        line.job.into_job(line.operands).map_err(|error| error.to_string())
    }

    fn terms(words: &[&str]) -> Terms {
        let now = Timestamp::UNIX_EPOCH;
        let line = line(words);
        line.terms.into_terms(line.job.timeout(), now).unwrap()
    }

    #[test]
    fn each_kind_takes_its_own_operands() {
        let work = |words: &[&str]| job(words).map(|job| job.work);
        assert_eq!(work(&["--", "make && ls"]), Ok(Work::Exec { argv: argv(vec!["make && ls".into()]) }));
        assert_eq!(work(&["--type", "build"]), Ok(Work::Build { argv: Vec::new() }));
        assert_eq!(
            work(&["--type", "file:read", "--", "/etc/hosts"]),
            Ok(Work::FileRead { path: "/etc/hosts".into() })
        );
        let clone = Work::GitClone {
            url: "https://host/app.git".into(),
            path: Some("src".into()),
            reference: Some("main".into()),
            depth: Some(1),
        };
        let words = ["--type", "git:clone", "--ref", "main", "--depth", "1", "--", "https://host/app.git", "src"];
        assert_eq!(work(&words), Ok(clone));
        assert_eq!(work(&["--type", "git:pull"]), Ok(Work::GitPull { path: None, remote: None, reference: None }));
    }

    #[test]
    fn what_does_not_fit_the_kind_is_refused_with_what_would() {
        assert_eq!(job(&[]).unwrap_err(), "there is no command");
        assert_eq!(
            job(&["--type", "git:clone"]).unwrap_err(),
            "--type git:clone is written: vm-agent task NAME --type git:clone -- URL [PATH]"
        );
        assert_eq!(
            job(&["--type", "file:read", "--", "a", "b"]).unwrap_err().split(" is ").next(),
            Some("--type file:read")
        );
        assert_eq!(job(&["--depth", "1", "--", "ls"]).unwrap_err(), "--depth goes with --type git:clone");
        assert_eq!(job(&["--type", "file:write", "--", "x"]).unwrap_err(), "there is nothing to write");
    }

    #[test]
    fn scripts_and_contents_are_read_here() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it");
        let name = path.to_str().unwrap();
        std::fs::write(&path, "echo $1\n").unwrap();
        let script = job(&["--script", name, "--interpreter", "bash -e", "--", "a"]).unwrap();
        let interpreter = vec!["bash".to_owned(), "-e".to_owned()];
        assert_eq!(script.work, Work::Script { interpreter, script: "echo $1\n".into(), args: vec!["a".into()] });
        let written = job(&["--type", "file:write", "--stdin", name, "--mode", "0600", "--", "x"]).unwrap();
        let content = Content::Text("echo $1\n".into());
        assert_eq!(written.work, Work::FileWrite { path: "x".into(), content, mode: "0600".parse().unwrap() });
        assert_eq!(written.stdin, None);
        assert_eq!(job(&["--stdin", name, "--", "cat"]).unwrap().stdin.as_deref(), Some("echo $1\n"));
        std::fs::write(&path, [0xff, 0]).unwrap();
        let written = job(&["--type", "file:write", "--stdin", name, "--", "x"]).unwrap();
        assert!(matches!(written.work, Work::FileWrite { content: Content::Base64(text), .. } if text == "/wA="));
        assert_eq!(job(&["--stdin", name, "--", "cat"]).unwrap_err(), "the input is not UTF-8");
        std::fs::write(&path, vec![b'x'; usize::try_from(CONTENT_MAX).unwrap() + 1]).unwrap();
        assert!(job(&["--stdin", name, "--", "cat"]).unwrap_err().contains("160K"));
    }

    #[test]
    fn secrets_are_all_some_or_none() {
        let secrets = |words: &[&str]| job(&[words, &["--", "x"]].concat()).unwrap().secrets;
        assert_eq!(secrets(&[]), None);
        assert_eq!(secrets(&["--secret", "A", "--secret", "B"]), Some(["A".to_owned(), "B".to_owned()].into()));
        assert_eq!(secrets(&["--no-secrets"]), Some(BTreeSet::new()));
    }

    #[test]
    fn terms_are_counted_from_now() {
        assert_eq!(terms(&[]), Terms::default());
        let given = terms(&[
            "--timeout",
            "5m",
            "--deadline",
            "10m",
            "--retry",
            "3",
            "--retry-on",
            "timed-out,failed",
            "--backoff",
            "10m",
            "--idempotent",
            "--order-key",
            "deploys",
        ]);
        let retry = Retry {
            attempts: 3,
            on: [RetryOn::Failed, RetryOn::TimedOut].into(),
            backoff: Span::from_secs(600),
            backoff_max: Span::from_secs(600),
        };
        let expected = Terms {
            timeout: Span::from_secs(300),
            deadline: Some(Timestamp::from_second(600).unwrap()),
            idempotent: Some(true),
            retry: Some(retry),
            key: Some("deploys".into()),
        };
        assert_eq!(given, expected);
        assert_eq!(terms(&["--idempotent=false"]).idempotent, Some(false));
    }
}
