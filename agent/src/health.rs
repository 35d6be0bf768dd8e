//! How the machine is, read as cheaply as it goes: this is what an idle runtime spends its time on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sysinfo::{MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use vm_agent_schemas::names::ServiceName;
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{HealthReport, ServiceReport, TerminalReport};

/// Reads the machine's state. What can't be read is reported as zero: a report that is not complete is
/// worth more than none.
#[derive(Debug)]
pub(crate) struct Health {
    system: System,
    own: Option<Pid>,
    folder: PathBuf,
}

impl Health {
    /// Reports on this machine and the file system that holds `folder`.
    pub(crate) fn new(folder: &Path) -> std::io::Result<Self> {
        let system = System::new().map_err(std::io::Error::other)?;
        Ok(Self { system, own: sysinfo::get_current_pid().ok(), folder: folder.to_owned() })
    }

    /// A fresh report, with what only the caller knows.
    pub(crate) fn report(
        &mut self,
        tasks: u32,
        streams: u32,
        terminals: Vec<TerminalReport>,
        services: BTreeMap<ServiceName, ServiceReport>,
    ) -> HealthReport {
        self.system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let (disk_total, disk_used) = self.disk();
        let cpus =
            std::thread::available_parallelism().map_or(0, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
        HealthReport {
            cpus,
            load: System::load_average().map_or(0.0, |load| load.one),
            memory_total: ByteSize::from_bytes(self.system.total_memory()),
            memory_used: ByteSize::from_bytes(self.system.used_memory()),
            disk_total: ByteSize::from_bytes(disk_total),
            disk_used: ByteSize::from_bytes(disk_used),
            uptime_secs: System::uptime().unwrap_or(0),
            runtime_memory: ByteSize::from_bytes(self.own_memory()),
            tasks,
            streams,
            terminals,
            services,
        }
    }

    fn own_memory(&mut self) -> u64 {
        let Some(own) = self.own else { return 0 };
        let kind = ProcessRefreshKind::nothing().with_memory().without_tasks();
        self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, kind);
        self.system.process(own).map_or(0, sysinfo::Process::memory)
    }

    /// Size and use of the file system, in bytes. One system call: sysinfo would list all disks first.
    fn disk(&self) -> (u64, u64) {
        let Ok(disk) = rustix::fs::statvfs(&self.folder) else { return (0, 0) };
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        (bytes(disk.f_blocks), bytes(disk.f_blocks.saturating_sub(disk.f_bfree)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_complete_and_makes_sense() {
        let report = Health::new(Path::new("/")).unwrap().report(2, 3, Vec::new(), BTreeMap::new());
        assert!(report.cpus > 0 && report.uptime_secs > 0);
        assert!(report.memory_used > ByteSize::from_bytes(0) && report.memory_used < report.memory_total);
        assert!(report.disk_used > ByteSize::from_bytes(0) && report.disk_used <= report.disk_total);
        assert!(report.runtime_memory > ByteSize::from_bytes(0));
        assert_eq!((report.tasks, report.streams), (2, 3));
    }
}
