//! What the guest program changes in its machine.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use vm_agent_schemas::guest::{CHALLENGE_FILE, Entropy, PROVISION_UNIT, RUNTIME_UNIT, UnitState};
use vm_agent_schemas::ids::Secret;
use vm_agent_schemas::layout::SEED_FILE;
use vm_agent_schemas::wire::Seed;

use super::decide::{Change, Present};
use super::facts::Facts;
use super::life::Life;
use super::randomness::{self, Randomness};
use super::system::{RunError, System};

/// The runtime's folder.
const RUNTIME_DIR: &str = "var/lib/vm-agent";
/// Whom it belongs to where it is not there yet.
const RUNTIME_USER: &str = "vm-agent";
/// Where units lie that a machine got at its birth.
const UNITS: &str = "etc/systemd/system";
/// The folder of the guest program, which nobody but root may change.
const GUEST_DIR: &str = "var/lib/vm-agent-guest";
/// What it remembers there.
const LIFE_FILE: &str = "life.json";
/// How much of the runtime's journal is told.
const JOURNAL_LINES: &str = "--lines=20";
/// How much of each line, in characters.
const JOURNAL_LINE_MAX: usize = 1000;

/// A machine, to be changed.
pub(super) struct Ground<S> {
    /// The folder that is its root.
    root: PathBuf,
    system: S,
    /// How it comes to random numbers of its own as a copy, once it was made ready for that.
    prepared: Option<Randomness>,
}

impl<S: System> Ground<S> {
    /// The machine with this folder as its root.
    pub(super) fn new(root: &Path, system: S) -> Self {
        Self { root: root.to_owned(), system, prepared: None }
    }

    /// What the machine's files tell.
    pub(super) fn facts(&self) -> Facts<'_> {
        Facts(&self.root)
    }

    /// The time.
    pub(super) fn now(&self) -> Timestamp {
        self.system.now()
    }

    /// The machine's identity as it stands.
    pub(super) fn look(&self) -> Present {
        let facts = self.facts();
        Present {
            hostname: facts.hostname(),
            kept_hostname: facts.kept_hostname(),
            hosts: facts.hosts(),
            machine_id: facts.machine_id(),
            cards: facts.cards(),
            now: self.system.now(),
        }
    }

    /// Removes a difference.
    pub(super) fn apply(&self, change: &Change) -> Result<(), String> {
        match change {
            Change::Hostname(name) => {
                self.write("etc/hostname", format!("{name}\n").as_bytes())?;
                self.write("proc/sys/kernel/hostname", name.as_str().as_bytes())
            }
            Change::Hosts(hosts) => self.write("etc/hosts", hosts.as_bytes()),
            Change::MachineId(id) => self.write("etc/machine-id", format!("{id}\n").as_bytes()),
            Change::Clock(time) => {
                self.system.set_time(*time).map_err(|error| format!("could not set the clock to {time}: {error}"))
            }
            Change::Mac(card, mac) => {
                let changed = self
                    .facts()
                    .card_number(card)
                    .map_or_else(|| Err(io::ErrorKind::NotFound.into()), |number| self.system.set_address(number, mac));
                changed.map_err(|error| format!("could not give {card} the address {mac}: {error}"))
            }
        }
    }

    /// Stirs randomness into the kernel's pool.
    pub(super) fn stir(&self, entropy: &Entropy) -> Result<(), String> {
        self.write("dev/urandom", entropy.as_bytes())
    }

    /// Writes the seed into the runtime's folder, for its user alone.
    pub(super) fn write_seed(&self, seed: &Seed) -> Result<(), String> {
        let owner = self.runtime_user()?;
        let folder = self.folder(RUNTIME_DIR, Some(owner))?;
        let text = serde_json::to_vec(seed).map_err(|error| format!("the seed is no JSON: {error}"))?;
        let path = folder.join(SEED_FILE);
        replace(&path, &text, Some(owner)).map_err(|error| sentence("write", &path, &error))
    }

    /// Lays a challenge where only the runtime's user reads it, in the place of what lay there. It is no file of the
    /// disk, so a copy of the disk has none.
    pub(super) fn lay_challenge(&self, challenge: &Secret) -> Result<(), String> {
        let owner = self.runtime_user()?;
        let path = Path::new(CHALLENGE_FILE.trim_start_matches('/'));
        let folder = self.folder(&path.parent().unwrap_or(path).to_string_lossy(), Some(owner))?;
        let path = folder.join(path.file_name().unwrap_or_default());
        replace(&path, challenge.expose().as_bytes(), Some(owner)).map_err(|error| sentence("write", &path, &error))
    }

    /// Whom the runtime runs as, by user and group id.
    fn runtime_user(&self) -> Result<(u32, u32), String> {
        let facts = self.facts();
        let owner = facts.owner(RUNTIME_DIR).or_else(|| facts.user(RUNTIME_USER));
        owner.ok_or_else(|| format!("this machine has no user `{RUNTIME_USER}`"))
    }

    /// The life that the machine leads. A record that can't be read is none: then any seed begins one.
    pub(super) fn life(&self) -> Option<Life> {
        let text = fs::read(self.root.join(GUEST_DIR).join(LIFE_FILE)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Makes a life the one that the machine leads.
    pub(super) fn remember(&self, life: &Life) -> Result<(), String> {
        let path = self.folder(GUEST_DIR, None)?.join(LIFE_FILE);
        let text = serde_json::to_vec(life).map_err(|error| format!("a life is no JSON: {error}"))?;
        replace(&path, &text, None).map_err(|error| sentence("write", &path, &error))
    }

    /// Makes the machine ready to be copied: its runtime runs and waits for a seed, which it does not get before
    /// the machine is a copy, and what was written is on the disk, so that no copy has to write it.
    pub(super) fn prepare(&mut self) -> Result<(), String> {
        if self.life().is_some() {
            return Err("this machine has had a seed, so its copies would not be nobody's".to_owned());
        }
        if self.prepared.is_none() {
            self.prepared = Some(Randomness::prepare(&self.root)?);
        }
        // It waits by itself for what the machine is to have besides.
        self.run("systemctl", &["start", "--no-block", RUNTIME_UNIT])?;
        self.system.sync();
        Ok(())
    }

    /// Whether the runtime waits for a seed already.
    pub(super) const fn is_prepared(&self) -> bool {
        self.prepared.is_some()
    }

    /// The same, for the last time: from now on it is a machine like any other.
    pub(super) fn was_prepared(&mut self) -> bool {
        self.prepared.take().is_some()
    }

    /// Has random numbers be those of the life that begins, and of no other. One that was led before may have been
    /// another machine's.
    pub(super) fn draw_anew(&mut self, has_lived: bool) -> Result<(), String> {
        if let Some(randomness) = &mut self.prepared {
            return randomness.draw_anew();
        }
        if has_lived && let Err(error) = self.run(randomness::PROGRAM, &["-e", randomness::SCRIPT_ONCE]) {
            tracing::warn!("the kernel draws random numbers anew only later, by itself: {error}");
        }
        Ok(())
    }

    /// How far the machine's boot has come, in systemd's words, such as `starting` or `running`.
    pub(super) fn boot(&self) -> Option<String> {
        let said = self.system.run("systemctl", &["show", "--property=SystemState"]).ok()?;
        Some(said.trim().strip_prefix("SystemState=")?.to_owned())
    }

    /// Stops the runtime, with all that it runs.
    pub(super) fn stop_runtime(&self) -> Result<(), String> {
        self.run("systemctl", &["stop", RUNTIME_UNIT])
    }

    /// Starts the runtime where it does not run. Where the machine is to have something before, that takes its
    /// time, and nobody waits for it here.
    pub(super) fn start_runtime(&self) -> Result<(), String> {
        match self.is_provisioned() {
            true => self.run("systemctl", &["start", "--no-block", RUNTIME_UNIT]),
            false => self.run("systemctl", &["start", RUNTIME_UNIT]),
        }
    }

    /// Tells a runtime that went on with the machine after a sleep that its connection is of yesterday. It would find
    /// out by itself, at its next heartbeat.
    pub(super) fn wake_runtime(&self) {
        if let Err(error) = self.run("systemctl", &["kill", "--kill-whom=main", "--signal=HUP", RUNTIME_UNIT]) {
            tracing::debug!("the runtime is not told that the machine slept: {error}");
        }
    }

    /// How it goes with the runtime.
    pub(super) fn runtime(&self) -> UnitState {
        self.unit(RUNTIME_UNIT, &["--unit", RUNTIME_UNIT, "--output=short-iso"])
    }

    /// How it goes with what else the machine is to have, where there is any such.
    pub(super) fn provision(&self) -> Option<UnitState> {
        // What it said itself, without what systemd says of it.
        let own = format!("_SYSTEMD_UNIT={PROVISION_UNIT}");
        self.is_provisioned().then(|| self.unit(PROVISION_UNIT, &[&own, "--output=cat"]))
    }

    fn is_provisioned(&self) -> bool {
        self.root.join(UNITS).join(PROVISION_UNIT).exists()
    }

    fn unit(&self, unit: &str, lines: &[&str]) -> UnitState {
        let told = self.system.run("systemctl", &["show", unit, "--property=ActiveState,SubState,Result,NRestarts"]);
        // Lines from before the machine id became another are in another place, which `merge` includes.
        let told_of = [&["--merge", JOURNAL_LINES, "--no-pager", "--quiet"], lines].concat();
        let journal = self.system.run("journalctl", &told_of);
        let journal = journal.unwrap_or_else(|error| error.to_string());
        unit_state(&told.unwrap_or_else(|error| format!("SubState={error}")), &journal)
    }

    /// The hypervisor that systemd sees; where there is no systemd, the one that the hardware names.
    pub(super) fn hypervisor(&self) -> Option<String> {
        match self.system.run("systemd-detect-virt", &["--vm"]) {
            Ok(seen) => Some(seen.trim().to_owned()).filter(|seen| !seen.is_empty() && seen != "none"),
            Err(RunError::Missing(_)) => self.facts().hypervisor(),
            // It fails where it sees none.
            Err(_) => None,
        }
    }

    fn run(&self, program: &'static str, arguments: &[&str]) -> Result<(), String> {
        self.system.run(program, arguments).map(drop).map_err(|error| error.to_string())
    }

    /// Writes over a file in its place: what stands for the kernel can't be replaced, and neither can a file
    /// that another is mounted on.
    fn write(&self, file: &str, content: &[u8]) -> Result<(), String> {
        let path = self.root.join(file);
        let mut options = OpenOptions::new();
        // What the kernel offers is there.
        if file.starts_with("etc/") {
            options.create(true).truncate(true);
        }
        let written = options.write(true).open(&path).and_then(|mut file| file.write_all(content));
        written.map_err(|error| sentence("write", &path, &error))
    }

    /// A folder for one user alone, made where it is missing.
    fn folder(&self, name: &str, owner: Option<(u32, u32)>) -> Result<PathBuf, String> {
        let path = self.root.join(name);
        let made = match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => owner.map_or(Ok(()), |(user, group)| chown(&path, Some(user), Some(group))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        };
        made.map_err(|error| sentence("make", &path, &error))?;
        Ok(path)
    }
}

/// Replaces a file as a whole, mode 0600. The folder may be a stranger's: nothing that lies there already is
/// followed or written through.
fn replace(path: &Path, content: &[u8], owner: Option<(u32, u32)>) -> io::Result<()> {
    let next = path.with_extension("new");
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
    if let Some((user, group)) = owner {
        fchown(&file, Some(user), Some(group))?;
    }
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn sentence(action: &str, path: &Path, error: &io::Error) -> String {
    format!("could not {action} {}: {error}", path.display())
}

/// What `systemctl show` and the journal say of a unit.
fn unit_state(shown: &str, journal: &str) -> UnitState {
    let property = |name: &str| {
        let lines = shown.lines().filter_map(|line| line.split_once('='));
        lines.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    UnitState {
        state: Some(property("ActiveState")).filter(|state| !state.is_empty()).unwrap_or_else(|| "unknown".to_owned()),
        detail: property("SubState"),
        result: property("Result"),
        restarts: property("NRestarts").parse().unwrap_or(0),
        journal: journal.lines().map(|line| line.chars().take(JOURNAL_LINE_MAX).collect()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_units_state_is_what_systemd_says() {
        let shown = "Result=exit-code\nNRestarts=3\nActiveState=activating\nSubState=auto-restart\n";
        let state = unit_state(shown, "2026-01-02 one\n2026-01-02 two\n");
        assert_eq!((state.state.as_str(), state.detail.as_str()), ("activating", "auto-restart"));
        assert_eq!((state.result.as_str(), state.restarts), ("exit-code", 3));
        assert_eq!(state.journal, ["2026-01-02 one", "2026-01-02 two"]);
    }

    #[test]
    fn a_state_fits_on_the_channel_whatever_the_journal_holds() {
        let endless = "x".repeat(1_000_000);
        let state = unit_state("", &endless);
        assert_eq!(state.state, "unknown");
        assert_eq!(state.journal[0].len(), JOURNAL_LINE_MAX);
    }

    #[test]
    fn what_lies_in_the_way_of_a_file_is_not_written_through() {
        let place = tempfile::tempdir().unwrap();
        let victim = place.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let path = place.path().join("seed.json");
        for trap in [&path, &path.with_extension("new")] {
            std::os::unix::fs::symlink(&victim, trap).unwrap();
        }
        replace(&path, b"new", None).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }
}
