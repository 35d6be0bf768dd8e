//! What goes into a machine at its birth: a small volume with the runtime, the units that run it and the script
//! that installs both, and for images with cloud-init the few lines that have it do so.
//!
//! No secret is on it: the seed reaches the guest program over the channel. So copies of a machine may share one.

mod cloud_init;
mod seed_disk;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use vm_agent_schemas::guest::SEED_DISK_RUNTIME;
use vm_agent_schemas::ids::Incarnation;
use vm_agent_schemas::names::InstanceName;

pub use cloud_init::{Conflict, meta_data, user_data};
pub use seed_disk::seed_disk;

/// What the runtime needs around it, by name.
const GUEST_FILES: [(&str, &str); 3] = [
    ("install.sh", include_str!("../../../../provisioning/guest/install.sh")),
    ("vm-agent-guest.service", include_str!("../../../../provisioning/guest/vm-agent-guest.service")),
    ("vm-agent-runtime.service", include_str!("../../../../provisioning/guest/vm-agent-runtime.service")),
];

/// What machines are provisioned with.
#[derive(Debug, Clone)]
pub struct Provisioning {
    runtime: PathBuf,
    user_data: String,
}

impl Provisioning {
    /// The runtime in this file, and what the user wants of cloud-init, which may be nothing.
    ///
    /// # Errors
    /// When the user wants something else of cloud-init where ours is needed.
    pub fn new(runtime: PathBuf, cloud_init: &Map<String, Value>) -> Result<Self, Conflict> {
        Ok(Self { runtime, user_data: user_data(cloud_init)? })
    }

    /// Writes the seed disk of an instance's incarnation. The same arguments give the same bytes.
    ///
    /// # Errors
    /// When the runtime can't be read or the file can't be written.
    pub fn write(&self, instance: &InstanceName, incarnation: Incarnation, path: &Path) -> io::Result<()> {
        let runtime = fs::read(&self.runtime)?;
        let meta_data = meta_data(instance, incarnation);
        let mut files = vec![
            ("meta-data", meta_data.as_bytes()),
            ("user-data", self.user_data.as_bytes()),
            (SEED_DISK_RUNTIME, &runtime),
        ];
        files.extend(GUEST_FILES.map(|(name, content)| (name, content.as_bytes())));
        fs::write(path, seed_disk(&files)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_of_an_incarnation_is_always_the_same_and_holds_all_that_is_installed_from_it() {
        let place = tempfile::tempdir().unwrap();
        let runtime = place.path().join("runtime");
        fs::write(&runtime, "the runtime").unwrap();
        let provisioning = Provisioning::new(runtime, &Map::new()).unwrap();
        let disk = |name: &str, incarnation| {
            let path = place.path().join(name);
            provisioning.write(&"web".parse().unwrap(), Incarnation(incarnation), &path).unwrap();
            fs::read(path).unwrap()
        };
        let first = disk("a", 1);
        assert!(first == disk("b", 1));
        assert!(first != disk("c", 2));
        let files = seed_disk::tests::files(&first);
        assert_eq!(files["vm-agent-runtime"], b"the runtime");
        assert_eq!(files["meta-data"], meta_data(&"web".parse().unwrap(), Incarnation(1)).as_bytes());
        // Every file that the script takes from beside it.
        let script = std::str::from_utf8(&files["install.sh"]).unwrap();
        let taken = script.lines().filter_map(|line| line.strip_prefix("put 755 ").or(line.strip_prefix("put 644 ")));
        let taken: Vec<_> = taken.filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(taken.len(), 3);
        assert!(taken.iter().all(|name| files.contains_key(*name)), "{taken:?}");
        assert!(std::str::from_utf8(&files["user-data"]).unwrap().contains("install.sh"));
    }
}
