//! How the program ends: exit codes that a script can rely on, and errors that carry theirs.

use std::fmt;
use std::io;

use vm_agent_schemas::api::{Problem, ProblemCode};
use vm_agent_schemas::fleet::Diagnostic;
use vm_agent_schemas::wire::TaskOutcome;

/// The number that the program ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(u8);

impl Exit {
    /// All went well.
    pub const SUCCESS: Self = Self(0);
    /// Something failed that has no number of its own.
    pub const FAILURE: Self = Self(1);
    /// There are changes. Only with `--detailed-exitcode`.
    pub const CHANGES: Self = Self(2);
    /// `diff` found differences.
    pub const DIFFERENCES: Self = Self(1);
    /// `diff` failed in a way that has no number of its own: 1 would say that something differs.
    pub const TROUBLE: Self = Self(2);
    /// The command line or a fleet file makes no sense, or a confirmation is missing.
    pub const USAGE: Self = Self(3);
    /// There is no such thing.
    pub const NOT_FOUND: Self = Self(4);
    /// It contradicts what is: another fleet, a stale plan, a name that is taken.
    pub const CONFLICT: Self = Self(5);
    /// It took too long to wait for. What was asked for goes on and may still succeed.
    pub const TIMED_OUT: Self = Self(6);
    /// No controller answers, or the agent's runtime is not connected to it.
    pub const UNREACHABLE: Self = Self(8);
    /// No credential, or a wrong one.
    pub const DENIED: Self = Self(10);
    /// Something stands in the way that waiting may not remove: an approval, a protection, a pause, a window, too
    /// little room.
    pub const BLOCKED: Self = Self(11);
    /// Interrupted by Ctrl-C.
    pub const INTERRUPTED: Self = Self(130);
    /// `exec`, `shell`, `run` or `task --wait` have no code of what they ran: it never began, ran out of its time, was
    /// cancelled, or its end is not known. Any other code of theirs is its own, but for that of an interrupt, and of a
    /// command line that makes no sense.
    pub const EXEC_FAILED: Self = Self(255);

    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0
    }

    /// The code of work that ended elsewhere, as a shell would give it; nothing when there is none
    /// because it did not run, was ended from outside, or its end was not seen.
    pub(crate) fn remote(outcome: &TaskOutcome) -> Option<Self> {
        match outcome {
            // The kernel keeps eight bits of an exit code, so nothing is lost here.
            TaskOutcome::Exited { code } => Some(Self(code.to_le_bytes()[0])),
            TaskOutcome::Signaled { signal } => u8::try_from(128 + signal).ok().map(Self),
            TaskOutcome::Failed { .. } => Some(Self::FAILURE),
            TaskOutcome::TimedOut
            | TaskOutcome::NotStarted { .. }
            | TaskOutcome::Canceled
            | TaskOutcome::Expired
            | TaskOutcome::Interrupted => None,
        }
    }
}

impl From<ProblemCode> for Exit {
    fn from(code: ProblemCode) -> Self {
        match code {
            ProblemCode::Invalid => Self::USAGE,
            ProblemCode::Unauthorized | ProblemCode::Forbidden => Self::DENIED,
            ProblemCode::NotFound => Self::NOT_FOUND,
            ProblemCode::Conflict => Self::CONFLICT,
            ProblemCode::Blocked => Self::BLOCKED,
            ProblemCode::Offline | ProblemCode::Unavailable => Self::UNREACHABLE,
            ProblemCode::Internal => Self::FAILURE,
        }
    }
}

/// Why a command did not do what it was asked: what the program ends with, and what people read.
#[derive(Debug)]
pub(crate) struct CommandError {
    /// What the program ends with.
    pub(crate) exit: Exit,
    /// What went wrong, in a sentence.
    message: String,
    /// What to do about it.
    hints: Vec<String>,
    /// What the controller said, when it was the controller that said no.
    problem: Option<Box<Problem>>,
}

/// What a command comes to.
pub(crate) type CommandResult = Result<Exit, CommandError>;

impl CommandError {
    /// A controller of this program's own that could not do its work.
    pub(crate) fn from_daemon(error: &vm_agent_daemon::RunError) -> Self {
        let exit = match error {
            vm_agent_daemon::RunError::OtherFleet { .. } => Exit::CONFLICT,
            _ => Exit::FAILURE,
        };
        Self::caused(exit, error)
    }

    /// An error with what caused it, in one sentence.
    pub(crate) fn caused(exit: Exit, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(source) = cause {
            message = format!("{message}: {source}");
            cause = source.source();
        }
        Self::new(exit, message)
    }

    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hints: Vec::new(), problem: None }
    }

    /// A failure of this machine's: `what` could not be done because of `error`.
    pub(crate) fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        Self::new(Exit::FAILURE, format!("{what}: {error}"))
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The same, of a command whose other exit codes are those of the process that it runs.
    pub(crate) fn of_exec(mut self) -> Self {
        if !matches!(self.exit, Exit::INTERRUPTED | Exit::USAGE) {
            self.exit = Exit::EXEC_FAILED;
        }
        self
    }

    /// The same, of `diff`, where 1 is no failure.
    pub(crate) fn of_diff(mut self) -> Self {
        if self.exit == Exit::FAILURE {
            self.exit = Exit::TROUBLE;
        }
        self
    }

    pub(crate) fn hints(&self) -> &[String] {
        &self.hints
    }

    /// What is wrong with a fleet file, place by place.
    pub(crate) fn diagnostics(&self) -> &[Diagnostic] {
        self.problem.as_ref().map_or(&[], |problem| &problem.diagnostics)
    }

    /// Nothing to tell: whoever read our output has gone.
    pub(crate) fn is_silent(&self) -> bool {
        self.message.is_empty()
    }

    /// The error as the API would put it, for programs that asked for JSON.
    pub(crate) fn to_problem(&self) -> Problem {
        if let Some(problem) = &self.problem {
            let mut problem = problem.as_ref().clone();
            // What was found out since on this side is said as well.
            problem.remediation = (!self.hints.is_empty()).then(|| self.hints.join("; "));
            return problem;
        }
        let code = match self.exit {
            Exit::USAGE => ProblemCode::Invalid,
            Exit::NOT_FOUND => ProblemCode::NotFound,
            Exit::CONFLICT => ProblemCode::Conflict,
            Exit::TIMED_OUT | Exit::UNREACHABLE => ProblemCode::Unavailable,
            Exit::DENIED => ProblemCode::Unauthorized,
            Exit::BLOCKED => ProblemCode::Blocked,
            _ => ProblemCode::Internal,
        };
        let problem = Problem::new(code, self.message.clone());
        if self.hints.is_empty() { problem } else { problem.remedy(self.hints.join("; ")) }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Problem> for CommandError {
    fn from(problem: Problem) -> Self {
        let hints = problem.remediation.clone().into_iter().collect();
        Self { exit: problem.code.into(), message: problem.reason.clone(), hints, problem: Some(Box::new(problem)) }
    }
}

/// Errors of writing output. A reader that has gone (`vm-agent list | head -1`) is no failure to
/// complain of.
impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
            return Self::new(Exit::FAILURE, "");
        }
        Self::io("the output could not be written", &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_process_becomes_the_code_that_a_shell_would_give() {
        assert_eq!(Exit::remote(&TaskOutcome::Exited { code: 7 }), Some(Exit(7)));
        assert_eq!(Exit::remote(&TaskOutcome::Signaled { signal: 15 }), Some(Exit(143)));
        assert_eq!(Exit::remote(&TaskOutcome::TimedOut), None);
    }

    #[test]
    fn a_problem_keeps_its_sentence_its_remedy_and_its_code() {
        let problem = Problem::new(ProblemCode::NotFound, "there is no agent `web`").remedy("see `vm-agent list`");
        let error = CommandError::from(problem.clone());
        assert_eq!((error.exit, error.to_string()), (Exit::NOT_FOUND, "there is no agent `web`".to_owned()));
        assert_eq!(error.hints(), ["see `vm-agent list`"]);
        assert_eq!(error.to_problem(), problem);
        assert_eq!(error.of_exec().exit, Exit::EXEC_FAILED);
        assert_eq!(CommandError::new(Exit::USAGE, "there is no command").of_exec().exit, Exit::USAGE);
    }
}
