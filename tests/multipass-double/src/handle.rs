//! The tests' handle of a double.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::calls::{self, Call};
use crate::daemon::{self, PROGRAM_VARIABLE};
use crate::home::{DIR_VARIABLE, Home, read_json, write_json};
use crate::instance;
use crate::knobs::Knobs;
use crate::state::{Instance, State};

/// How often it is looked whether what was killed is gone.
const LOOKS: usize = 1000;

/// A double: its state folder, and the program that works on it. What runs for it ends when this is dropped, and
/// also when the test's process ends without that.
#[derive(Debug)]
pub struct Double {
    home: Home,
    program: PathBuf,
    generation: u64,
    /// Held as long as this lives.
    _owner: File,
}

impl Double {
    /// A double with this state folder, which is made, and this program: the binary `multipass` of this crate.
    ///
    /// # Panics
    ///
    /// If the folder can't be written, or belongs to another handle.
    #[must_use]
    pub fn new(folder: &Path, program: &Path) -> Self {
        let home = Home::new(&std::path::absolute(folder).expect("a folder has a name"));
        fs::create_dir_all(home.path()).expect("the state folder can be made");
        let owner =
            OpenOptions::new().create(true).append(true).open(home.owner()).expect("the state folder can be written");
        owner.try_lock().expect("the state folder has one handle");
        Self { home, program: program.to_owned(), generation: 0, _owner: owner }
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The state folder.
    #[must_use]
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// What a caller of the program needs in its environment.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, OsString)> {
        vec![(DIR_VARIABLE.to_owned(), self.home.path().as_os_str().to_owned())]
    }

    /// The program, to be called with more arguments. With a steady locale and time zone.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.envs(self.environment()).env("LC_ALL", "C").env("TZ", "UTC");
        command
    }

    /// Has the double behave so from now on. Faults are counted anew.
    ///
    /// # Panics
    ///
    /// If the state folder can't be written.
    pub fn set(&mut self, knobs: Knobs) {
        self.generation += 1;
        drop(fs::remove_file(self.home.path().join("killed")));
        write_json(&self.home.knobs(), &Knobs { generation: self.generation, ..knobs })
            .expect("the state folder can be written");
    }

    /// All calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        calls::read(&self.home)
    }

    /// How often a command was called.
    #[must_use]
    pub fn count(&self, command: &str) -> usize {
        self.calls().iter().filter(|call| call.command() == command).count()
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        drop(fs::remove_file(self.home.calls()));
    }

    /// What the daemon remembers, as it was last written down.
    #[must_use]
    pub fn state(&self) -> State {
        read_json(&self.home.state())
    }

    /// What the daemon remembers of an instance.
    #[must_use]
    pub fn instance(&self, name: &str) -> Option<Instance> {
        self.state().instances.remove(name)
    }

    /// The folder that is the root of an instance's machine.
    #[must_use]
    pub fn root(&self, name: &str) -> PathBuf {
        self.home.disk(name)
    }

    /// The first process of an instance's machine, while it lives.
    #[must_use]
    pub fn machine(&self, name: &str) -> Option<u32> {
        instance::pid(&self.home, name)
    }

    /// Ends an instance's machine at once, without anybody being told.
    pub fn crash(&self, name: &str) {
        instance::kill(&self.home, name);
    }

    /// Has an instance's machine stand still: it neither answers nor refuses.
    pub fn freeze(&self, name: &str) {
        instance::freeze(&self.home, name);
    }

    /// Has it go on.
    pub fn thaw(&self, name: &str) {
        instance::thaw(&self.home, name);
    }

    /// Removes an instance with all that it has, as somebody else would.
    pub fn delete_behind_back(&self, name: &str) {
        self.change(|state| crate::commands::purge_one(&self.home, state, name));
    }

    /// Changes what the daemon remembers, as somebody else would.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        let mut serial = daemon::hold(&self.home);
        change(&mut serial.state);
        serial.save();
    }

    /// Keeps the daemon busy until the guard is dropped: every other command waits.
    #[must_use]
    pub fn occupy_daemon(&self) -> Busy {
        Busy { _serial: daemon::hold(&self.home) }
    }

    /// Ends the daemon as by SIGTERM: machines that run are saved.
    pub fn stop_daemon(&self) {
        daemon::stop_now(&self.home);
    }

    /// Ends the daemon as by SIGKILL: machines are gone, and so is all that was under way.
    pub fn kill_daemon(&self) {
        daemon::kill_now(&self.home);
    }

    /// Begins a daemon again: what ran when the last one ended is started, and runs when this returns.
    pub fn start_daemon(&self) {
        let done = self.command().args([daemon::BEGIN, "0"]).env(PROGRAM_VARIABLE, &self.program).status();
        assert!(done.is_ok_and(|done| done.success()), "the daemon could not begin");
    }

    /// Ends everything that runs for this double, and waits until it has.
    pub fn end_all(&self) {
        for _ in 0..LOOKS {
            // One that was just born is met the next time.
            let running: Vec<u32> = daemon::processes(&self.home).into_iter().map(|process| process.pid).collect();
            let running: Vec<u32> = running.into_iter().filter(|pid| *pid != std::process::id()).collect();
            if running.is_empty() {
                return;
            }
            running.iter().for_each(|pid| daemon::end(*pid));
            for _ in 0..LOOKS {
                if running.iter().all(|pid| instance::started(*pid).is_none()) {
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// The daemon is busy as long as this lives.
pub struct Busy {
    _serial: daemon::Serial,
}

impl Drop for Double {
    fn drop(&mut self) {
        self.end_all();
    }
}
