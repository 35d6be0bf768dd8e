//! What QEMU can do on this host: found out by trying it, within a bound, because the mere existence of
//! `/dev/kvm` says nothing. Data for whoever starts machines and for whoever asks about the host.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::programs::Programs;
use crate::launched::inherited;
use crate::tool;

/// How QEMU runs a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// On the processor, by Linux.
    Kvm,
    /// On the processor, by macOS.
    Hvf,
    /// By translating them: some ten times slower.
    Emulation,
}

impl Acceleration {
    /// The word for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Hvf => "HVF",
            Self::Emulation => "emulation",
        }
    }
}

/// What QEMU can do on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// QEMU's version.
    pub version: String,
    /// What machines are run with.
    pub acceleration: Acceleration,
    /// Why that, as a sentence.
    pub reason: String,
    /// Whether QEMU can lock itself in, so that a guest that breaks out of it finds little.
    pub sandbox: bool,
}

/// How long the trial machine may take. On a processor it takes tens of milliseconds.
const TRIAL_LIMIT: Duration = Duration::from_secs(5);

/// What QEMU ends with when the trial machine says what it was told to: twice that and one.
const TRIAL_CODE: i32 = (0x15 << 1) | 1;

/// A boot sector that writes 0x15 to the port of the device that ends QEMU.
const TRIAL_SECTOR: [u8; 512] = {
    let program = [0xba, 0xf4, 0x00, 0xb0, 0x15, 0xee, 0xfa, 0xf4]; // mov dx,0xf4; mov al,0x15; out dx,al; cli; hlt
    let mut sector = [0; 512];
    let mut at = 0;
    while at < program.len() {
        sector[at] = program[at];
        at += 1;
    }
    sector[510] = 0x55;
    sector[511] = 0xaa;
    sector
};

impl Host {
    /// Finds out. It takes up to some seconds, and never longer.
    pub async fn look(programs: &Programs) -> Self {
        let (version, sandbox) = tokio::join!(version(programs), can_sandbox(programs));
        let (acceleration, reason) = acceleration(programs).await;
        Self { version, acceleration, reason, sandbox }
    }
}

async fn version(programs: &Programs) -> String {
    let said = tool::run(&programs.system, ["--version"]).await.unwrap_or_default();
    // "QEMU emulator version 7.2.22 (Debian …)"
    let text = String::from_utf8_lossy(&said);
    let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1);
    version.unwrap_or("unknown").to_owned()
}

async fn acceleration(programs: &Programs) -> (Acceleration, String) {
    let (candidate, accel) = match candidate(Path::new("/proc/cpuinfo"), Path::new("/dev/kvm")) {
        Ok(candidate) => candidate,
        Err(reason) => return (Acceleration::Emulation, reason),
    };
    match trial(programs, accel).await {
        Ok(()) => (candidate, format!("{} works", candidate.as_str())),
        Err(reason) => (Acceleration::Emulation, format!("{} does not work here: {reason}", candidate.as_str())),
    }
}

/// The acceleration that may work on this host, and QEMU's word for it; else why none can.
fn candidate(cpuinfo: &Path, device: &Path) -> Result<(Acceleration, &'static str), String> {
    if cfg!(target_os = "macos") {
        return Ok((Acceleration::Hvf, "hvf"));
    }
    let processor = fs::read_to_string(cpuinfo).unwrap_or_default();
    if !can_virtualise(&processor) {
        let reason = "the processor shows neither vmx nor svm; switch virtualisation on in the firmware, or nested \
                      virtualisation where this host is a machine itself";
        return Err(reason.to_owned());
    }
    match fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok((Acceleration::Kvm, "kvm")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(format!(
            "{} may not be opened; make this user a member of group kvm: `sudo usermod -aG kvm $USER`, then log in again",
            device.display()
        )),
        Err(error) => Err(format!("{}: {error}; load the kernel's module kvm_intel or kvm_amd", device.display())),
    }
}

/// Whether the processor can run guests: `vmx` is Intel's name for it, `svm` AMD's.
fn can_virtualise(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags")).flat_map(str::split_whitespace);
    flags.into_iter().any(|flag| matches!(flag, "vmx" | "svm"))
}

/// Boots a machine of a few instructions that ends itself.
async fn trial(programs: &Programs, accel: &str) -> Result<(), String> {
    let mut disk = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    disk.write_all(&TRIAL_SECTOR).map_err(|error| error.to_string())?;
    let mut command = bare(programs);
    command.args(["-machine", "pc", "-accel", accel, "-m", "32", "-no-reboot"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]);
    command
        .arg("-drive")
        .arg(format!("if=ide,format=raw,file={}", disk.path().display().to_string().replace(',', ",,")));
    let ended = tokio::time::timeout(TRIAL_LIMIT, command.output()).await;
    match ended {
        Err(_) => Err(format!("a machine of a few instructions did not end within {} s", TRIAL_LIMIT.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) if output.status.code() == Some(TRIAL_CODE) => Ok(()),
        Ok(Ok(output)) => Err(tool::last_words(&output.stderr)),
    }
}

/// Whether QEMU was built with its sandbox. Asked of a QEMU without a machine.
async fn can_sandbox(programs: &Programs) -> bool {
    let mut command = bare(programs);
    command.args(["-machine", "none", "-sandbox", "on,spawn=deny", "-monitor", "stdio"]);
    let ended = async {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        if let Some(mut monitor) = child.stdin.take() {
            // One that has ended already reads nothing, and says by its end what is to be known.
            let _ = monitor.write_all(b"quit\n").await;
        }
        child.wait().await
    };
    matches!(tokio::time::timeout(TRIAL_LIMIT, ended).await, Ok(Ok(status)) if status.success())
}

fn bare(programs: &Programs) -> Command {
    let mut command = Command::new(&programs.system);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command.env_clear().envs(inherited()).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_says_whether_it_runs_guests() {
        assert!(can_virtualise("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(can_virtualise("flags : fpu svm"));
        assert!(!can_virtualise("flags\t\t: fpu vme sse\nvmx flags\t: vnmi\nmodel name: svm vmx\n"));
        assert!(!can_virtualise(""));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn why_there_is_no_acceleration_is_a_sentence_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let cpuinfo = folder.path().join("cpuinfo");
        fs::write(&cpuinfo, "flags : fpu\n").unwrap();
        let reason = candidate(&cpuinfo, Path::new("/dev/null")).unwrap_err();
        assert!(reason.contains("neither vmx nor svm") && reason.contains("firmware"), "{reason}");
        fs::write(&cpuinfo, "flags : vmx\n").unwrap();
        let reason = candidate(&cpuinfo, &folder.path().join("kvm")).unwrap_err();
        assert!(reason.contains("No such file") && reason.contains("module"), "{reason}");
        assert_eq!(candidate(&cpuinfo, Path::new("/dev/null")), Ok((Acceleration::Kvm, "kvm")));
    }

    #[tokio::test]
    async fn the_trial_machine_runs_where_the_accelerator_works_and_tells_where_not() {
        let programs = Programs::find().unwrap_or_else(|missing| panic!("{missing}"));
        assert_eq!(trial(&programs, "tcg").await, Ok(()));
        let reason = trial(&programs, "no-such-accelerator").await.unwrap_err();
        assert!(reason.contains("no-such-accelerator") || reason.contains("invalid accelerator"), "{reason}");
    }

    #[tokio::test]
    async fn what_qemu_can_do_here_is_told() {
        let programs = Programs::find().unwrap_or_else(|missing| panic!("{missing}"));
        let host = Host::look(&programs).await;
        assert!(host.version.starts_with(|first: char| first.is_ascii_digit()), "{host:?}");
        assert!(!host.reason.is_empty());
    }
}
