//! File names that two programs share. What a runtime keeps lies in one folder: for driver `local`
//! that folder is the instance, elsewhere it lies inside the machine.

/// What the driver hands to the runtime: a [`Seed`](crate::wire::Seed) as JSON, mode 0600.
pub const SEED_FILE: &str = "seed.json";

/// The file whose exclusive lock a runtime holds as long as it lives. Its content is the runtime's
/// process id, written once the lock is held; without the lock the content means nothing.
pub const LOCK_FILE: &str = "runtime.lock";

/// Written by a runtime that goes down because it was asked to (SIGTERM, or a shutdown from inside),
/// and removed when one starts. A folder without lock and without this file is that of a crash.
pub const STOPPED_FILE: &str = "stopped";

/// What the runtime writes to stdout and stderr, as driver `local` keeps it.
pub const LOG_FILE: &str = "runtime.log";

/// The folder in which tasks and sessions run unless they say otherwise.
pub const WORK_DIR: &str = "work";

/// The environment variable that every process of an instance carries, with the nonce of the
/// instance as value: driver `local` finds by it what a killed runtime left behind.
pub const INSTANCE_VARIABLE: &str = "VM_AGENT_INSTANCE";
