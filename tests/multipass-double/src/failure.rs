//! How a command fails.

use crate::print::log_line;

/// What a command says when it fails, and its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// What goes to stderr.
    pub(crate) text: String,
}

/// A command that does what it should exits with 0.
pub(crate) type Done = Result<(), Failure>;

impl Failure {
    /// Wrong usage, or anything else that the client itself finds.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { code: 1, text: format!("{}\n", text.into()) }
    }

    /// The daemon says no.
    pub(crate) fn daemon(command: &str, text: impl AsRef<str>) -> Self {
        Self { code: 2, text: format!("{command} failed: {}\n", text.as_ref()) }
    }

    /// The daemon says no for several reasons.
    pub(crate) fn errors(command: &str, errors: &[String]) -> Self {
        Self::daemon(command, format!("The following errors occurred:\n{}", errors.join("\n")))
    }

    /// Nobody listens.
    pub(crate) fn no_socket(command: &str) -> Self {
        Self::daemon(command, "cannot connect to the multipass socket")
    }

    /// The client ends by an exception.
    pub(crate) fn exception(text: &str) -> Self {
        Self { code: 1, text: log_line("client", &format!("Caught an unhandled exception: {text}")) }
    }
}
