//! Random numbers that are a copy's own. A machine that goes on from the memory of another would draw what that draws,
//! and make the same keys, until its kernel draws anew; which it does by itself within a minute, and that is too late.
//!
//! A kernel with a driver for the device `vmgenid` draws anew when it becomes a copy, soon but beside everything else:
//! its word that it has is waited for. Any other is told to, by the one call for that, which needs a program of the
//! machine: this one makes no calls that its language can't vouch for. That program is started before the machine is
//! copied, as starting it costs an emulated machine more than all the rest.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

/// The driver of the device by which a hypervisor tells a kernel that it is a copy.
const DRIVER: &str = "sys/bus/acpi/drivers/vmgenid";

/// Where the kernel's words are read, one at a time.
const KERNEL_LOG: &str = "dev/kmsg";

/// What the kernel says once it has drawn anew.
const WORD: &[u8] = b"crng reseeded due to virtual machine fork";

/// How long that may take. It takes some milliseconds; the rest is for an emulated machine on a host under load.
const LIMIT: Duration = Duration::from_secs(10);

/// How often it is looked.
const PAUSE: Duration = Duration::from_millis(2);

/// What makes the call: it is a part of every Debian and of what is made of it.
pub(super) const PROGRAM: &str = "perl";

/// Has the kernel draw anew at each line that it reads, and says how that went. The number is `RNDRESEEDCRNG`.
const SCRIPT: &str = "open(my $pool, '>', '/dev/urandom') or die $!; $| = 1; \
     while (<STDIN>) { print ioctl($pool, 0x5207, 0) ? qq(done\\n) : qq($!\\n) }";

/// The same, once.
pub(super) const SCRIPT_ONCE: &str = "open(POOL, '>', '/dev/urandom') && ioctl(POOL, 0x5207, 0) or die $!";

/// How a machine that is to be copied comes to random numbers of its own once it is a copy.
#[derive(Debug)]
pub(super) enum Randomness {
    /// The kernel says when it has drawn anew.
    Told(KernelLog),
    /// A program has it do so.
    Asked(Asker),
}

impl Randomness {
    /// Makes ready for that.
    pub(super) fn prepare(root: &Path) -> Result<Self, String> {
        if root.join(DRIVER).exists() {
            let log = KernelLog::from_now_on(root);
            return log.map(Self::Told).map_err(|error| format!("the kernel's log can't be read: {error}"));
        }
        let asker = Asker::start(&root.join("usr/bin").join(PROGRAM));
        asker.map(Self::Asked).map_err(|error| {
            format!("the kernel does not notice when it is copied, and there is no {PROGRAM} to tell it: {error}")
        })
    }

    /// Has random numbers be the machine's own from now on.
    pub(super) fn draw_anew(&mut self) -> Result<(), String> {
        match self {
            Self::Told(log) => {
                let noticed = log.await_word(LIMIT);
                noticed.then_some(()).ok_or_else(|| "the kernel has not noticed that it is a copy".to_owned())
            }
            Self::Asked(asker) => {
                asker.ask().map_err(|error| format!("the kernel does not draw random numbers anew: {error}"))
            }
        }
    }
}

/// What the kernel says from some moment on.
#[derive(Debug)]
pub(super) struct KernelLog(File);

impl KernelLog {
    fn from_now_on(root: &Path) -> io::Result<Self> {
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        let mut log = OpenOptions::new().read(true).custom_flags(flags).open(root.join(KERNEL_LOG))?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self(log))
    }

    fn await_word(&mut self, limit: Duration) -> bool {
        let begun = Instant::now();
        // Longer than any word of the kernel.
        let mut word = [0; 8192];
        loop {
            match self.0.read(&mut word) {
                Ok(count) if word[..count].windows(WORD.len()).any(|part| part == WORD) => return true,
                Ok(count) if count > 0 => {}
                // Some words were overwritten before they were read.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                _ if begun.elapsed() > limit => return false,
                _ => std::thread::sleep(PAUSE),
            }
        }
    }
}

/// A program that waits until it is asked to have the kernel draw anew.
#[derive(Debug)]
pub(super) struct Asker {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Asker {
    fn start(program: &Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(["-e", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let missing = || io::Error::from(io::ErrorKind::BrokenPipe);
        let requests = child.stdin.take().ok_or_else(missing)?;
        let answers = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        let mut asker = Self { child, requests, answers };
        // It is of no use to find out only in a copy that it can't.
        asker.ask()?;
        Ok(asker)
    }

    fn ask(&mut self) -> io::Result<()> {
        self.requests.write_all(b"\n")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        if answer == "done\n" { Ok(()) } else { Err(io::Error::other(answer.trim().to_owned())) }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        // It fails only for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::TempDir;

    fn a_root(folders: &[&str]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in folders {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        root
    }

    #[test]
    fn only_what_the_kernel_says_after_the_beginning_counts() {
        let root = a_root(&["dev", DRIVER]);
        let path = root.path().join(KERNEL_LOG);
        let word = "5,600,12,-;random: crng reseeded due to virtual machine fork\n";
        fs::write(&path, word).unwrap();
        let mut log = KernelLog::from_now_on(root.path()).unwrap();
        assert!(!log.await_word(Duration::ZERO));
        let mut written = OpenOptions::new().append(true).open(&path).unwrap();
        written.write_all(b"6,601,13,-;something else\n").unwrap();
        assert!(!log.await_word(Duration::ZERO));
        let mut ready = Randomness::prepare(root.path()).unwrap();
        written.write_all(word.as_bytes()).unwrap();
        assert!(log.await_word(Duration::ZERO));
        assert_eq!(ready.draw_anew(), Ok(()));
    }

    #[test]
    fn a_kernel_that_does_not_notice_is_told_by_a_program_and_without_one_no_copy_is_made() {
        let root = a_root(&["usr/bin"]);
        let error = Randomness::prepare(root.path()).unwrap_err();
        assert!(error.contains("no perl"), "{error}");
        let program = root.path().join("usr/bin/perl");
        let put = |script: &str| {
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        };
        put("while read -r line; do echo 'Operation not permitted'; done");
        let error = Randomness::prepare(root.path()).unwrap_err();
        assert!(error.contains("Operation not permitted"), "{error}");
        put("read -r line; echo done; read -r line; echo done; exit 0");
        let mut ready = Randomness::prepare(root.path()).unwrap();
        assert_eq!(ready.draw_anew(), Ok(()));
        assert!(ready.draw_anew().is_err(), "it has ended");
    }
}
