//! Starting a controller of its own session, and waiting until it answers.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use vm_agent_schemas::api::Alive;
use vm_agent_schemas::fleet::{Fleet, HubSettings};

use crate::exit::{CommandError, Exit};
use crate::locate::{Local, TOKEN_VARIABLE, find};

/// What a controller writes to stdout and stderr, in its state folder.
pub(crate) const LOG_FILE: &str = "controller.log";
/// How long a controller may take until it answers. It opens a database and three ports; the rest is
/// for a machine that is busy.
const START_LIMIT: Duration = Duration::from_secs(30);
/// First and longest pause between two looks at a controller that is starting.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));
/// How much of the log of a controller that did not start is shown.
const LOG_LINES: usize = 12;

/// Starts a controller for a fleet on a state folder, and waits until it answers. `program` is the one
/// whose `controller` command is run: this one, but in tests.
pub(crate) async fn launch(
    program: &Path,
    state_dir: &Path,
    fleet: &Fleet,
    watch: bool,
) -> Result<Local, CommandError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(|error| CommandError::io(format_args!("`{}` can't be made", state_dir.display()), &error))?;
    let log = Log::open(state_dir)?;
    let mut child = spawn(program, state_dir, fleet, watch, &log.file)
        .map_err(|error| CommandError::io("a controller could not be started", &error))?;
    let answering = tokio::time::timeout(START_LIMIT, answering(&log, &mut child)).await;
    if let Ok(answering) = answering {
        return answering;
    }
    // Left alone it might come up later, unasked.
    let _ = child.kill().await;
    Err(log.explain(&format!("the controller did not answer within {} s", START_LIMIT.as_secs())))
}

fn spawn(program: &Path, state_dir: &Path, fleet: &Fleet, watch: bool, log: &File) -> io::Result<Child> {
    let mut command = Command::new(program);
    command
        .args(["controller", "--own-session", "--fleet", fleet.name.as_str(), "--state-dir"])
        .arg(state_dir)
        .args(listen_flags(&fleet.hub))
        .args((!watch).then_some("--no-watch"))
        // A folder that is not where the person stood, so that that one can be unmounted or deleted.
        .current_dir(state_dir)
        .env_remove(TOKEN_VARIABLE)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?);
    command.spawn()
}

/// The `hub:` of the file, as flags of `vm-agent controller`.
fn listen_flags(hub: &HubSettings) -> Vec<String> {
    let flags = [
        ("--hub-listen", hub.listen.map(|address| address.to_string())),
        ("--hub-advertise", hub.advertise.as_ref().map(ToString::to_string)),
        ("--api-listen", hub.api_listen.map(|address| address.to_string())),
        ("--dashboard-listen", hub.dashboard_listen.map(|address| address.to_string())),
        ("--heartbeat", hub.heartbeat.map(|span| span.to_string())),
    ];
    flags.into_iter().filter_map(|(flag, value)| Some([flag.to_owned(), value?])).flatten().collect()
}

/// Waits until the controller answers, or fails when it ends before. The controller writes its file once it listens,
/// so this looks for the file; what an earlier life left there is told apart by its process id, or is
/// not understood, and is overwritten soon.
async fn answering(log: &Log<'_>, child: &mut Child) -> Result<Local, CommandError> {
    let pid = child.id();
    let mut pause = LOOK_AGAIN.0;
    loop {
        let local = find(log.state_dir).await.ok().flatten().filter(|local| Some(local.file.pid) == pid);
        if let Some(local) = local
            && local.client.get::<Alive>("/health").await.is_ok()
        {
            return Ok(local);
        }
        tokio::select! {
            status = child.wait() => {
                let status = status.map_err(|error| CommandError::io("the controller can't be watched", &error))?;
                return Err(log.explain(&format!("the controller ended as it started ({status})")));
            }
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LOOK_AGAIN.1),
        }
    }
}

/// The controller's log, and where this start begins in it.
struct Log<'a> {
    state_dir: &'a Path,
    file: File,
    begin: u64,
}

impl<'a> Log<'a> {
    fn open(state_dir: &'a Path) -> Result<Self, CommandError> {
        let path = state_dir.join(LOG_FILE);
        let open = || {
            let file = File::options().create(true).append(true).read(true).mode(0o600).open(&path)?;
            let begin = file.metadata()?.len();
            Ok(Self { state_dir, file, begin })
        };
        open().map_err(|error| CommandError::io(format_args!("`{}` can't be opened", path.display()), &error))
    }

    fn explain(&self, what: &str) -> CommandError {
        let error = CommandError::new(Exit::UNREACHABLE, format!("{what}{}", self.tail()));
        error.hint(format!("its whole log is {}", self.state_dir.join(LOG_FILE).display()))
    }

    /// The last lines of this start, as an indented block.
    fn tail(&self) -> String {
        let mut bytes = Vec::new();
        let mut file = &self.file;
        // A log that can't be read leaves the sentence without its block.
        let _ = file.seek(SeekFrom::Start(self.begin)).and_then(|_| file.read_to_end(&mut bytes));
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
        last.iter().map(|line| format!("\n  | {line}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use vm_agent_schemas::net::Listen;

    #[test]
    fn only_what_the_file_says_becomes_a_flag() {
        let hub = HubSettings {
            listen: Some(Listen::Auto),
            dashboard_listen: Some("127.0.0.1:0".parse().unwrap()),
            ..HubSettings::default()
        };
        assert_eq!(listen_flags(&hub).join(" "), "--hub-listen auto --dashboard-listen 127.0.0.1:0");
    }

    #[tokio::test]
    async fn a_controller_that_ends_as_it_starts_is_told_with_the_end_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("deep/state");
        let error = launch(Path::new("/bin/echo"), &state_dir, &Fleet::default(), true).await.err().unwrap();
        assert_eq!(error.exit, Exit::UNREACHABLE);
        let expected = format!(
            "the controller ended as it started (exit status: 0)\n  | controller --own-session --fleet default --state-dir {}",
            state_dir.display()
        );
        assert_eq!(error.to_string(), expected);
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&state_dir), mode(&state_dir.join(LOG_FILE))), (0o700, 0o600));
    }

    #[test]
    fn only_the_log_of_this_start_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(LOG_FILE), "of an earlier start\n").unwrap();
        let log = Log::open(dir.path()).unwrap();
        (&log.file).write_all(b"port 9090 is taken\n").unwrap();
        let error = log.explain("the controller ended");
        assert_eq!(error.to_string(), "the controller ended\n  | port 9090 is taken");
    }
}
