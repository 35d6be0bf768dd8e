//! Events as reasons to look again.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Pause before looking without an event: for what no event tells, such as the end of a process.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Pause while there is no controller to tell anything.
const NOBODY: Duration = Duration::from_millis(50);

/// `vm-agent events --follow`, which is begun anew when its controller goes away.
pub(super) struct Follower<F: Fn() -> Command> {
    command: F,
    child: Child,
    lines: Receiver<()>,
}

impl<F: Fn() -> Command> Follower<F> {
    pub(super) fn new(command: F) -> Self {
        let (child, lines) = begin(&command);
        Self { command, child, lines }
    }

    /// Waits until something may have happened.
    pub(super) fn stirred(&mut self) {
        match self.lines.recv_timeout(LOOK_AGAIN) {
            Ok(()) => self.lines.try_iter().for_each(drop),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(NOBODY);
                self.end();
                (self.child, self.lines) = begin(&self.command);
            }
        }
    }

    fn end(&mut self) {
        // It fails only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<F: Fn() -> Command> Drop for Follower<F> {
    fn drop(&mut self) {
        self.end();
    }
}

fn begin(command: &impl Fn() -> Command) -> (Child, Receiver<()>) {
    let mut child =
        command().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("vm-agent runs");
    let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
    let (sender, lines) = channel();
    // It ends with the process, or when nobody listens any more.
    std::thread::spawn(move || {
        let mut told = BufReader::new(stdout).lines().map_while(Result::ok);
        while told.next().is_some() && sender.send(()).is_ok() {}
    });
    (child, lines)
}
