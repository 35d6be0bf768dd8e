//! What is said to and put into an instance: by programs that are run in it with `multipass exec`.
//!
//! Of such a program's exit code nothing is believed. The code may be Multipass's own, and a program that ends with 4
//! is run again for ever by versions up to 1.16: so each ends with 0 or 1, and says in words what it came to.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use vm_agent_schemas::guest::{Entropy, FromGuest, Identity, Lines, MachineId, SeedRequest, ToGuest, line};
use vm_agent_schemas::ids::{Digest, Nonce, RequestId};
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::wire::Seed;

use super::Fault;
use super::cli::{Program, Said};
use super::trouble::Trouble;
use crate::provisioning::BIRTH_FILE;

/// What was installed; the digest of it in the file `installed`.
const SHARE: &str = "/usr/local/lib/vm-agent";
/// What answers requests.
const GUEST_CALL: &str = "/usr/local/bin/vm-agent-runtime --guest-call";
/// The units that a boot starts.
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants";
/// What begins the lines that programs of ours say.
const MARK: &str = "vm-agent:";
/// How long a word with a guest may take. One that is emulated takes some seconds to let a program in.
const WORD_LIMIT: Duration = Duration::from_secs(90);
/// How long an installation may take: some megabytes have to be sent, and an emulated guest reads them slowly.
const INSTALL_LIMIT: Duration = Duration::from_secs(180);
/// For how long a guest that does not let anybody in is tried again. SSH refuses for some seconds after a start.
const PATIENCE: Duration = Duration::from_secs(60);
/// The pause before that.
const PAUSE: Duration = Duration::from_millis(500);

/// What an instance shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    /// The nonce that it was made with; nothing where it was not made by us.
    pub(super) birth: Option<Nonce>,
    /// What was installed in it last; nothing where nothing was.
    pub(super) installed: Option<String>,
}

/// An instance that runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guest<'a> {
    pub(super) program: &'a Program,
    pub(super) instance: &'a InstanceName,
}

impl Guest<'_> {
    /// Asks what it is.
    pub(super) async fn shown(self) -> Result<Shown, Fault> {
        let script = format!(
            "echo '{MARK} birth' $(cat {BIRTH_FILE} 2>/dev/null)\necho '{MARK} installed' $(cat {SHARE}/installed 2>/dev/null)"
        );
        let said = self.heard(&script, None, WORD_LIMIT, "installed").await?;
        let word = |name: &str| marked(&said, name).filter(|word| !word.is_empty());
        Ok(Shown { birth: word("birth").map(Nonce::from_text), installed: word("installed") })
    }

    /// Waits until its cloud-init has ended, well or not.
    pub(super) async fn settled(self, limit: Duration) -> Result<(), Fault> {
        let script = format!(
            "timeout {} cloud-init status --wait >/dev/null 2>&1 || true\necho '{MARK} settled'",
            limit.as_secs()
        );
        self.heard(&script, None, limit + WORD_LIMIT, "settled").await.map(drop)
    }

    /// Installs what an archive has in it. Its digest is remembered, so that it is not sent again.
    pub(super) async fn install(self, archive: &[u8], digest: &Digest) -> Result<(), Fault> {
        // Not on the input of a program that is run in it: of that, Multipass loses something when it is long.
        let (file, deadline) = (format!(".vm-agent-{}.tar", digest.short()), Instant::now() + PATIENCE);
        loop {
            let place = format!("{}:{file}", self.instance);
            let said = self.program.call(&["transfer", "-", &place], Some(archive), INSTALL_LIMIT).await?;
            if said.code == Some(0) {
                break;
            }
            self.bear(Fault::of(&said), deadline).await?;
        }
        self.heard(&install_script(&file, digest.as_str()), None, INSTALL_LIMIT, "done").await.map(drop)
    }

    /// Has it say from now on that it was made with this nonce, unless it says something already.
    pub(super) async fn brand(self, birth: &Nonce) -> Result<(), Fault> {
        let folder = BIRTH_FILE.rsplit_once('/').map_or("/", |(folder, _)| folder);
        let script = format!(
            "set -e\numask 077\nmkdir -p -m 755 {folder}\n[ -s {BIRTH_FILE} ] || echo {birth} >{BIRTH_FILE}\necho '{MARK} branded'"
        );
        self.heard(&script, None, WORD_LIMIT, "branded").await.map(drop)
    }

    /// Has it say from now on that it was made with this nonce, where it says one of those others.
    pub(super) async fn rebrand(self, from: [&Nonce; 2], to: &Nonce) -> Result<(), Fault> {
        let [source, given] = from;
        let script = format!(
            "set -e\numask 077\ncase \"$(cat {BIRTH_FILE})\" in {source}|{given}) echo {to} >{BIRTH_FILE}.new; \
             mv {BIRTH_FILE}.new {BIRTH_FILE}; sync;; esac\necho '{MARK} branded'"
        );
        self.heard(&script, None, WORD_LIMIT, "branded").await.map(drop)
    }

    /// Makes folders of the user's, with those on the way to them.
    pub(super) async fn make_folders(self, user: &str, folders: &[String]) -> Result<(), Fault> {
        let folders: Vec<_> = folders.iter().map(|folder| quoted(folder)).collect();
        let script = format!("sudo -n -u {user} mkdir -p -- {}\necho '{MARK} made'", folders.join(" "));
        self.heard(&format!("set -e\n{script}"), None, WORD_LIMIT, "made").await.map(drop)
    }

    /// Gives it its seed.
    pub(super) async fn seed(self, seed: &Seed, machine_id: &MachineId) -> Result<FromGuest, Fault> {
        let identity = || Identity {
            hostname: self.instance.clone(),
            machine_id: machine_id.clone(),
            // The one that it has was given to it with its address.
            mac: None,
            time: Timestamp::now(),
            entropy: Entropy::generate(),
        };
        self.ask(|id| ToGuest::Seed(Box::new(SeedRequest { id, seed: seed.clone(), identity: identity() }))).await
    }

    /// Asks its guest program. Everything that is asked can be asked twice.
    pub(super) async fn ask(self, request: impl Fn(RequestId) -> ToGuest) -> Result<FromGuest, Fault> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.ask_once(&request).await {
                Err(fault) => self.bear(fault, deadline).await?,
                Ok(answer) => return Ok(answer),
            }
        }
    }

    /// The same for one that may go down meanwhile: to call again would start it.
    pub(super) async fn ask_once(self, request: impl Fn(RequestId) -> ToGuest) -> Result<FromGuest, Fault> {
        let id = RequestId::generate();
        let said = self.run(GUEST_CALL, Some(&line(&request(id))), WORD_LIMIT).await?;
        let answers = Lines::<FromGuest>::default().push(&said.stdout);
        let answer = answers.into_iter().flatten().find(|answer| answer.answers() == Some(id));
        answer.ok_or_else(|| Fault::of(&said))
    }

    /// Runs a script until it has said its last word, and gives what it said.
    async fn heard(self, script: &str, stdin: Option<&[u8]>, limit: Duration, last: &str) -> Result<Said, Fault> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.run(script, stdin, limit).await?;
            if marked(&said, last).is_some() {
                return Ok(said);
            }
            self.bear(Fault::of(&said), deadline).await?;
        }
    }

    /// Bears for a while what fails only because nobody is let in yet.
    async fn bear(self, fault: Fault, deadline: Instant) -> Result<(), Fault> {
        if fault.trouble() != Trouble::Transport || Instant::now() >= deadline {
            return Err(fault);
        }
        tracing::debug!(instance = %self.instance, %fault, "a guest does not let us in yet");
        sleep(PAUSE).await;
        Ok(())
    }

    /// Runs a script of the shell as root. The instance has to be up: Multipass would start it.
    async fn run(self, script: &str, stdin: Option<&[u8]>, limit: Duration) -> Result<Said, Fault> {
        let script = harmless(script);
        // Not from a folder that may be mounted in it, which costs a look at all instances.
        let arguments = ["exec", "-n", self.instance.as_str(), "--", "sudo", "-n", "sh", "-c", &script];
        Ok(self.program.call(&arguments, stdin, limit).await?)
    }
}

/// A script that ends with 0 or 1, whatever it comes to.
fn harmless(script: &str) -> String {
    // No `||` around it: what is tried does not end at its first failure, whatever `set -e` says.
    format!("trap '[ $? = 0 ] || exit 1' EXIT\n{script}")
}

/// The script that installs the archive that lies under this name in the folder where scripts begin, which is the home
/// of the user by whom Multipass comes in.
fn install_script(file: &str, digest: &str) -> String {
    format!(
        r#"set -e
place=$(mktemp -d /var/tmp/vm-agent.XXXXXX)
trap 'code=$?; rm -rf "$place"; [ $code = 0 ] || exit 1' EXIT
mv {file} "$place/archive"
echo "{digest}  $place/archive" | sha256sum --check --status || {{ echo 'the archive came damaged' >&2; exit 1; }}
tar -xf "$place/archive" -C "$place"
sh "$place/install.sh" >&2
mkdir -p {WANTED} {SHARE}
ln -sf ../vm-agent-guest.service {WANTED}/vm-agent-guest.service
echo {digest} >{SHARE}/installed.new
mv {SHARE}/installed.new {SHARE}/installed
echo '{MARK} done'"#
    )
}

/// A text as one word of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What stands behind our mark and this name, on a line of what was said.
fn marked(said: &Said, name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(&said.stdout);
    let found = text.lines().rev().find_map(|line| line.split_once(MARK)?.1.trim_start().strip_prefix(name));
    found.map(|rest| rest.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn sh(script: &str, input: &[u8]) -> std::process::Output {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    #[test]
    fn no_program_in_a_guest_ends_with_the_code_that_has_it_run_again_for_ever() {
        for (script, code) in
            [("exit 4", 1), ("set -e\nsh -c 'exit 4'", 1), ("exit 255", 1), ("kill -9 $$", 1), ("true", 0)]
        {
            let script = harmless(script);
            let ended = sh(&script.replace("kill -9 $$", "sh -c 'kill -9 $$'"), b"");
            assert_eq!(ended.status.code(), Some(code), "{script}");
        }
    }

    #[test]
    fn an_archive_that_came_damaged_is_not_installed() {
        let place = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"whole");
        let (inside, sent) = (place.path().join("tmp"), place.path().join("sent.tar"));
        fs::create_dir(&inside).unwrap();
        let script = install_script(sent.to_str().unwrap(), digest.as_str());
        let script = harmless(&script).replace("/var/tmp", inside.to_str().unwrap());
        fs::write(&sent, b"who").unwrap();
        let ended = sh(&script, b"");
        assert_eq!(ended.status.code(), Some(1));
        assert_eq!(String::from_utf8(ended.stderr).unwrap().trim(), "the archive came damaged");
        assert_eq!(fs::read_dir(&inside).unwrap().count(), 0, "it leaves nothing behind");
        assert!(!sent.exists());
        fs::write(&sent, b"whole").unwrap();
        let whole = sh(&script, b"");
        assert_eq!(whole.status.code(), Some(1), "it is no archive");
        assert!(!String::from_utf8(whole.stdout).unwrap().contains(MARK));
    }

    #[test]
    fn what_a_program_says_is_found_behind_whatever_else_was_written() {
        let stdout = b"\x1b[2K\x1b[0EStarting web |\x08vm-agent: birth abc\nvm-agent: installed\nbye\n".to_vec();
        let said = Said { code: Some(0), stdout, stderr: Vec::new() };
        assert_eq!(marked(&said, "birth").as_deref(), Some("abc"));
        assert_eq!(marked(&said, "installed").as_deref(), Some(""));
        assert_eq!(marked(&said, "made"), None);
    }

    #[test]
    fn a_word_of_the_shell_is_one_whatever_is_in_it() {
        let ended = sh(&format!("printf %s {}", quoted("a b'$(c)\"")), b"");
        assert_eq!(String::from_utf8(ended.stdout).unwrap(), "a b'$(c)\"");
    }
}
