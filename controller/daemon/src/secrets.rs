//! The values of secrets, read where the fleet file says that they are: in the controller's
//! environment, in files and from commands of the host.
//!
//! A value leaves this module only as a [`Secret`]. Errors name the variable, the source and the
//! reason, and hold nothing of what was read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::try_join_all;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use vm_agent_schemas::fleet::SecretSource;
use vm_agent_schemas::ids::Secret;
use vm_agent_schemas::names::AgentName;

use crate::engine::file::Exposure;
use crate::watch::exposed;

/// How long a source may take. A password manager that has to ask its server takes a second or two; one
/// that asks a person for a passphrase would wait for ever.
const DEADLINE: Duration = Duration::from_secs(10);

/// The longest value, in bytes: far more than any token, key or certificate chain has, and few enough to
/// travel in one message.
const VALUE_MAX: usize = 64 << 10;

/// How long output is waited for once its command has ended. It is in the pipe by then; what still holds
/// the pipe open has left the command's group, as the daemons of password managers do.
const LINGER: Duration = Duration::from_millis(500);

/// Why a secret could not be read.
#[derive(Debug, thiserror::Error)]
#[error("secret `{variable}` can't be read from {from}: {problem}")]
pub(crate) struct SecretError {
    variable: String,
    from: SecretSource,
    problem: Problem,
}

/// What was wrong with a source. Part of the sentence above, which so has no other cause behind it.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("it is not set in the controller's environment: set it there, and start the controller again")]
    Unset,
    #[error("{0}")]
    Io(io::Error),
    #[error("it is not a regular file")]
    NotAFile,
    #[error("there is no such program")]
    NoProgram,
    #[error("it failed ({0}): run it by hand to see why")]
    Failed(ExitStatus),
    #[error("it was not over after {} s, and was ended", .0.as_secs_f32())]
    Late(Duration),
    #[error("the disk has not answered for {} s", .0.as_secs_f32())]
    Silent(Duration),
    #[error("agent `{}` can write {}: keep what secrets come from where no agent can", .0.agent, .0.place.display())]
    Exposed(Exposure),
    #[error("the value is longer than {VALUE_MAX} bytes")]
    TooLong,
    #[error("the value is not text in UTF-8")]
    NotText,
    #[error("the value is empty")]
    Empty,
    #[error("the value has a zero byte in it, which no variable can hold")]
    ZeroByte,
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The folders of the host that agents may write, each with one of those that may.
pub(crate) type Writable = Arc<BTreeMap<PathBuf, AgentName>>;

/// Reads secrets.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// Who looks at a path holds its turn until the disk has answered. So a disk that hangs keeps one
    /// thread for each path, however often that is asked for.
    turns: Mutex<BTreeMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
}

impl Reader {
    /// Reads all of these secrets, side by side. Dropped, it leaves no command running.
    pub(crate) async fn resolve(
        &self,
        secrets: &BTreeMap<String, SecretSource>,
        writable: &Writable,
    ) -> Result<BTreeMap<String, Secret>, SecretError> {
        self.resolve_within(DEADLINE, secrets, writable).await
    }

    async fn resolve_within(
        &self,
        deadline: Duration,
        secrets: &BTreeMap<String, SecretSource>,
        writable: &Writable,
    ) -> Result<BTreeMap<String, Secret>, SecretError> {
        let all = secrets.iter().map(|(variable, from)| async move {
            let late = |_| match from {
                SecretSource::File(_) => Err(Problem::Silent(deadline)),
                SecretSource::Env(_) | SecretSource::Command(_) => Err(Problem::Late(deadline)),
            };
            let read = timeout(deadline, self.read(from, writable)).await.unwrap_or_else(late);
            match read.and_then(secret) {
                Ok(secret) => Ok((variable.clone(), secret)),
                Err(problem) => Err(SecretError { variable: variable.clone(), from: from.clone(), problem }),
            }
        });
        try_join_all(all).await.map(|read| read.into_iter().collect())
    }

    /// What a source holds, as it is.
    async fn read(&self, from: &SecretSource, writable: &Writable) -> Result<Vec<u8>, Problem> {
        use std::os::unix::ffi::OsStringExt;
        let writable = Arc::clone(writable);
        match from {
            SecretSource::Env(name) => std::env::var_os(name).map(OsStringExt::into_vec).ok_or(Problem::Unset),
            SecretSource::File(path) => {
                let read = move |path: &Path| guarded(path, &writable).and_then(|()| read_file(path));
                self.in_turn(path, read).await.map(without_line_end)
            }
            SecretSource::Command(command) => {
                let argv = command.argv();
                let (program, arguments) = argv.split_first().ok_or(Problem::NoProgram)?;
                let find = move |program: &Path| {
                    let program = found(program).ok_or(Problem::NoProgram)?;
                    guarded(&program, &writable).map(|()| program)
                };
                let program = self.in_turn(Path::new(program), find).await?;
                output(&program, arguments).await.map(without_line_end)
            }
        }
    }

    /// Looks at a path where that may block, when nobody else does.
    async fn in_turn<T: Send + 'static>(
        &self,
        path: &Path,
        look: impl FnOnce(&Path) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = self.turn(path).lock_owned().await;
        let path = path.to_owned();
        let looking = tokio::task::spawn_blocking(move || {
            // Held for as long as the disk takes, whether or not anybody still waits.
            let _turn = turn;
            look(&path)
        });
        looking.await.unwrap_or_else(|error| Err(io::Error::other(error).into()))
    }

    fn turn(&self, path: &Path) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(path.to_owned()).or_default())
    }
}

/// Refuses a path on which an agent can put what it likes.
fn guarded(path: &Path, writable: &BTreeMap<PathBuf, AgentName>) -> Result<(), Problem> {
    exposed(path, writable)?.map_or(Ok(()), |exposure| Err(Problem::Exposed(exposure)))
}

/// Where a program lies: where its path says, or in the first folder for programs that has it.
fn found(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 || program.is_absolute() {
        return Some(program.to_owned());
    }
    let is_program = |path: &PathBuf| path.metadata().is_ok_and(|it| it.is_file() && it.mode() & 0o111 != 0);
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(is_program)
}

fn read_file(path: &Path) -> Result<Vec<u8>, Problem> {
    // Looked at before it is opened: to open a pipe waits for somebody to write.
    if !std::fs::metadata(path)?.is_file() {
        return Err(Problem::NotAFile);
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(VALUE_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > VALUE_MAX { Err(Problem::TooLong) } else { Ok(bytes) }
}

/// Cuts the one line end that editors and commands put at the end.
fn without_line_end(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.pop_if(|last| *last == b'\n').is_some() {
        bytes.pop_if(|last| *last == b'\r');
    }
    bytes
}

/// A value that a variable can hold.
fn secret(value: Vec<u8>) -> Result<Secret, Problem> {
    match String::from_utf8(value) {
        Ok(value) if value.len() > VALUE_MAX => Err(Problem::TooLong),
        Ok(value) if value.is_empty() => Err(Problem::Empty),
        Ok(value) if value.contains('\0') => Err(Problem::ZeroByte),
        Ok(value) => Ok(Secret::from_text(value)),
        Err(_) => Err(Problem::NotText),
    }
}

/// What a command writes to its stdout. It runs in the controller's folder and environment, with nothing
/// to read, and all that it started in its group ends with it.
async fn output(program: &Path, arguments: &[String]) -> Result<Vec<u8>, Problem> {
    // Told of ends from before there can be one.
    let ends = signal(SignalKind::child())?;
    let mut command = Command::new(program);
    // What it complains of may hold the value, so it goes nowhere.
    command.args(arguments).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut group = Group(command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Problem::NoProgram,
        _ => Problem::Io(error),
    })?);
    let stdout = group.0.stdout.take().expect("stdout was asked to be a pipe");

    let mut value = Vec::new();
    let status = {
        let mut heard = std::pin::pin!(take(stdout, &mut value));
        let mut ended = std::pin::pin!(group.ended(ends));
        tokio::select! {
            // To the end of the pipe, or too much.
            all = &mut heard => {
                all?;
                ended.await?
            }
            status = &mut ended => {
                // What came in time is taken, whoever holds the pipe now.
                timeout(LINGER, heard).await.unwrap_or(Ok(()))?;
                status?
            }
        }
    };
    if status.success() { Ok(value) } else { Err(Problem::Failed(status)) }
}

/// Reads all that fits into a value.
async fn take(pipe: impl AsyncRead + Unpin, value: &mut Vec<u8>) -> Result<(), Problem> {
    pipe.take(VALUE_MAX as u64 + 1).read_to_end(value).await?;
    if value.len() > VALUE_MAX { Err(Problem::TooLong) } else { Ok(()) }
}

/// A command that leads a process group of its own. Dropped, the whole group is killed.
struct Group(Child);

impl Group {
    /// Waits for the command to end, and ends what it left behind in its group.
    async fn ended(&mut self, mut ends: tokio::signal::unix::Signal) -> io::Result<ExitStatus> {
        // Looked at without taking its status: until then its id can't become another's, and the group
        // can be killed by it.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while let Some(leader) = self.leader()
            && waitid(WaitId::Pid(leader), look)?.is_none()
        {
            ends.recv().await;
        }
        self.kill();
        self.0.wait().await
    }

    /// The command, as long as its status has not been taken.
    fn leader(&self) -> Option<Pid> {
        self.0.id().and_then(|id| Pid::from_raw(id.cast_signed()))
    }

    fn kill(&self) {
        if let Some(group) = self.leader() {
            // A group that is gone needs no signal.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::unix::pipe;
    use vm_agent_schemas::fleet::CommandLine;

    use super::*;

    /// Longer than any test takes.
    const LONG: Duration = Duration::from_secs(60);

    fn shell(line: &str) -> SecretSource {
        SecretSource::Command(CommandLine::Shell(line.to_owned()))
    }

    async fn resolve(secrets: &BTreeMap<String, SecretSource>) -> Result<BTreeMap<String, Secret>, SecretError> {
        Reader::default().resolve(secrets, &Writable::default()).await
    }

    async fn one(from: SecretSource) -> Result<String, String> {
        one_within(LONG, from).await
    }

    async fn one_within(deadline: Duration, from: SecretSource) -> Result<String, String> {
        let secrets = BTreeMap::from([("TOKEN".to_owned(), from)]);
        let resolved =
            Reader::default().resolve_within(deadline, &secrets, &Writable::default()).await.map_err(|error| {
                assert!(std::error::Error::source(&error).is_none(), "the sentence says all");
                error.to_string()
            })?;
        Ok(resolved["TOKEN"].expose().to_owned())
    }

    /// A named pipe, which ends for its reader when no process that has opened it lives any more.
    struct Fifo {
        place: tempfile::TempDir,
        reader: pipe::Receiver,
        // The pipe does not end before somebody else had time to open it.
        writer: pipe::Sender,
    }

    impl Fifo {
        fn new() -> Self {
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("fifo");
            assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
            let reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
            let writer = pipe::OpenOptions::new().open_sender(&path).unwrap();
            Self { place, reader, writer }
        }

        /// What a shell does to open it.
        fn opened(&self) -> String {
            format!("exec 3>{}", self.place.path().join("fifo").display())
        }

        /// Waits until everybody who has opened it has ended.
        async fn ends(mut self) {
            drop(self.writer);
            let mut rest = String::new();
            timeout(LONG, self.reader.read_to_string(&mut rest)).await.expect("whoever has opened it ends").unwrap();
        }
    }

    #[tokio::test]
    async fn a_secret_comes_from_the_environment_a_file_or_a_command() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "from a file\n").unwrap();
        let secrets = BTreeMap::from([
            ("A".to_owned(), SecretSource::Env("PATH".to_owned())),
            ("B".to_owned(), SecretSource::File(file.path().to_owned())),
            ("C".to_owned(), shell("echo from a command")),
            ("D".to_owned(), SecretSource::Command(CommandLine::Argv(vec!["echo".into(), "$HOME; x".into()]))),
        ]);
        let resolved = tokio::spawn(async move { resolve(&secrets).await }).await.unwrap().unwrap();
        let values: Vec<_> = resolved.values().map(Secret::expose).collect();
        assert_eq!(values, [&std::env::var("PATH").unwrap(), "from a file", "from a command", "$HOME; x"]);
    }

    #[tokio::test]
    async fn one_line_end_is_cut_and_no_more() {
        for (written, value) in [
            ("plain", "plain"),
            (r"unix\n", "unix"),
            (r"dos\r\n", "dos"),
            (r"two\n\n", "two\n"),
            (r"a\nb\n", "a\nb"),
            (r" space \n", " space "),
        ] {
            assert_eq!(one(shell(&format!("printf '{written}'"))).await.unwrap(), value);
        }
    }

    #[tokio::test]
    async fn errors_name_variable_source_and_reason() {
        let place = tempfile::tempdir().unwrap();
        let file = |name: &str| SecretSource::File(place.path().join(name));
        let env = SecretSource::Env("VM_AGENT_NO_SUCH_VARIABLE".to_owned());
        let program = SecretSource::Command(CommandLine::Argv(vec!["/no/such/program".into()]));
        let failed = shell("exit 3");
        let killed = shell("kill -9 $$");
        for (from, reason) in [
            (env, "it is not set in the controller's environment: set it there, and start the controller again"),
            (file("absent"), "No such file or directory (os error 2)"),
            (file(""), "it is not a regular file"),
            (program, "there is no such program"),
            (failed, "it failed (exit status: 3): run it by hand to see why"),
            (killed, "it failed (signal: 9 (SIGKILL)): run it by hand to see why"),
            (shell(":"), "the value is empty"),
            (shell("printf 'a\\0b'"), "the value has a zero byte in it, which no variable can hold"),
            (shell("printf '\\377hunter2'"), "the value is not text in UTF-8"),
        ] {
            let expected = format!("secret `TOKEN` can't be read from {from}: {reason}");
            assert_eq!(one(from).await.unwrap_err(), expected);
        }
    }

    #[tokio::test]
    async fn no_error_gives_a_value_away() {
        // Where the value is no part of the command's own words, which are shown.
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("value");
        std::fs::write(&path, "hunter2\nhunter3\n").unwrap();
        let path = path.display();
        for line in [
            format!("cat {path}; exit 1"),
            format!("echo \"no luck with $(tail -1 {path})\" >&2; exit 1"),
            format!("cat {path}; printf '\\377'"),
            format!("cat {path}; printf '\\0'"),
        ] {
            let secrets = BTreeMap::from([("TOKEN".to_owned(), shell(&line))]);
            let error = resolve(&secrets).await.unwrap_err();
            let told = format!("{error} {error:?}");
            assert!(told.contains("TOKEN") && !told.contains("hunter"), "{told}");
        }
    }

    #[tokio::test]
    async fn a_value_has_a_longest_length_wherever_it_comes_from() {
        let place = tempfile::tempdir().unwrap();
        let file = |length: usize| {
            let path = place.path().join(length.to_string());
            std::fs::write(&path, "x".repeat(length)).unwrap();
            SecretSource::File(path)
        };
        let print = |length: usize| shell(&format!("head -c {length} /dev/zero | tr '\\0' x"));
        for from in [file(VALUE_MAX), print(VALUE_MAX)] {
            assert_eq!(one(from).await.unwrap().len(), VALUE_MAX);
        }
        for from in [file(VALUE_MAX + 1), print(VALUE_MAX + 1), shell("yes")] {
            let error = one(from).await.unwrap_err();
            assert!(error.ends_with("the value is longer than 65536 bytes"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_command_has_nothing_to_read_and_may_complain_at_length() {
        assert_eq!(one(shell("cat; echo value")).await.unwrap(), "value");
        let line = "head -c 1000000 /dev/zero | tr '\\0' x >&2; echo value";
        assert_eq!(one(shell(line)).await.unwrap(), "value");
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_ended_with_all_that_it_started() {
        let fifo = Fifo::new();
        let line = format!("{}; sleep 1000 & sleep 1000", fifo.opened());
        let error = one_within(Duration::from_millis(200), shell(&line)).await.unwrap_err();
        assert!(error.ends_with("it was not over after 0.2 s, and was ended"), "{error}");
        fifo.ends().await;
    }

    #[tokio::test]
    async fn a_command_whose_value_nobody_waits_for_any_more_is_ended() {
        let mut fifo = Fifo::new();
        let line = format!("{}; sleep 1000 & echo up >&3; wait", fifo.opened());
        let mut up = [0; 3];
        tokio::select! {
            ended = one(shell(&line)) => panic!("it should hang, and gave {ended:?}"),
            read = fifo.reader.read_exact(&mut up) => assert_eq!(read.unwrap(), 3),
        }
        fifo.ends().await;
    }

    #[tokio::test]
    async fn what_a_command_leaves_behind_neither_delays_its_value_nor_stays() {
        let fifo = Fifo::new();
        // The one left behind has stdout and stderr open too.
        let line = format!("{}; sleep 1000 & echo value", fifo.opened());
        assert_eq!(one(shell(&line)).await.unwrap(), "value");
        fifo.ends().await;
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn what_has_left_the_group_of_a_command_does_not_delay_its_value_for_long() {
        let place = tempfile::tempdir().unwrap();
        let pid = place.path().join("pid");
        let line = format!(
            "setsid sh -c 'echo $$ > {0}; exec sleep 1000' & until [ -s {0} ]; do :; done; echo value",
            pid.display()
        );
        let value = one(shell(&line)).await;
        let left: i32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
        assert_eq!(value.unwrap(), "value");
    }

    #[tokio::test]
    async fn several_commands_run_side_by_side_and_the_first_failure_ends_the_others() {
        let fifo = Fifo::new();
        let hangs = shell(&format!("{}; sleep 1000", fifo.opened()));
        let secrets = BTreeMap::from([("A".to_owned(), hangs), ("B".to_owned(), shell("exit 1"))]);
        let (reader, writable) = (Reader::default(), Writable::default());
        let resolved = timeout(LONG, reader.resolve_within(LONG, &secrets, &writable)).await.unwrap();
        let error = resolved.unwrap_err().to_string();
        assert!(error.starts_with("secret `B` "), "{error}");
        fifo.ends().await;
    }

    #[tokio::test]
    async fn a_path_on_a_disk_that_hangs_is_looked_at_once() {
        let reader = Reader::default();
        let (answer, hangs) = std::sync::mpsc::channel::<()>();
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&path, "value").unwrap();
        let hanging = reader.in_turn(path.path(), move |_| hangs.recv().map_err(|_| Problem::Unset));
        assert!(timeout(Duration::from_millis(20), hanging).await.is_err(), "nobody answers");

        let (secrets, writable) =
            (BTreeMap::from([("A".to_owned(), SecretSource::File(path.path().to_owned()))]), Writable::default());
        let within = |deadline| reader.resolve_within(deadline, &secrets, &writable);
        let error = within(Duration::from_millis(100)).await.unwrap_err().to_string();
        assert!(error.ends_with("the disk has not answered for 0.1 s"), "{error}");
        answer.send(()).unwrap();
        assert_eq!(within(LONG).await.unwrap()["A"].expose(), "value");
    }

    #[tokio::test]
    async fn what_an_agent_can_write_is_no_source() {
        let place = tempfile::tempdir().unwrap();
        let (shared, own) = (place.path().join("shared"), place.path().join("own"));
        for folder in [&shared, &own] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("token"), "value").unwrap();
        }
        std::os::unix::fs::symlink(own.join("token"), shared.join("out")).unwrap();
        std::os::unix::fs::symlink(shared.join("token"), own.join("in")).unwrap();
        let writable = Writable::new(BTreeMap::from([(shared.clone(), "web".parse().unwrap())]));
        let command = |path: PathBuf| SecretSource::Command(CommandLine::Argv(vec![path.display().to_string()]));
        for from in [
            SecretSource::File(shared.join("token")),
            SecretSource::File(shared.join("out")),
            SecretSource::File(own.join("in")),
            command(shared.join("program")),
        ] {
            let secrets = BTreeMap::from([("A".to_owned(), from)]);
            let error = Reader::default().resolve(&secrets, &writable).await.unwrap_err().to_string();
            assert!(error.contains("agent `web` can write "), "{error}");
        }
        let secrets = BTreeMap::from([("A".to_owned(), SecretSource::File(own.join("token")))]);
        assert_eq!(Reader::default().resolve(&secrets, &writable).await.unwrap()["A"].expose(), "value");
    }
}
