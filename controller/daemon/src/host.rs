//! What this host has that machines take.

use sysinfo::{MemoryRefreshKind, RefreshKind, System};
use vm_agent_schemas::observe::Host;
use vm_agent_schemas::units::ByteSize;

/// What this host has, or what the control group leaves of it that the controller runs in; nothing
/// where that can't be found out.
pub(crate) fn host() -> Option<Host> {
    let kind = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(kind).ok()?;
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    let memory = system.total_memory().min(limit);
    let cpus = std::thread::available_parallelism().ok()?.get();
    (memory > 0).then(|| Host { cpus: u32::try_from(cpus).unwrap_or(u32::MAX), memory: ByteSize::from_bytes(memory) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_runs_this_has_processors_and_memory() {
        let host = host().expect("a host that runs this has something");
        assert!(host.cpus > 0 && host.memory.bytes() > 16 * ByteSize::MIB, "{host:?}");
    }
}
