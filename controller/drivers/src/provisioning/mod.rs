//! What goes into a machine at its birth: a small volume with the runtime, the units that run it and the script
//! that installs both, and what the fleet file wants in it besides; for images with cloud-init in the words of that.
//!
//! No secret is on it: the seed reaches the guest program over the channel. So copies of a machine may share one.

mod cloud_init;
mod seed_disk;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vm_agent_schemas::fleet::Provision;
use vm_agent_schemas::guest::{PROVISION_UNIT, SEED_DISK_RUNTIME};
use vm_agent_schemas::ids::Incarnation;
use vm_agent_schemas::names::InstanceName;

pub use cloud_init::{BIRTH_FILE, launch_data, meta_data, user_data};
pub use seed_disk::seed_disk;

/// The unit of the guest program.
const GUEST_UNIT: &str = "vm-agent-guest.service";

/// What the runtime needs around it, by name.
const GUEST_FILES: [(&str, &str); 3] = [
    ("install.sh", include_str!("../../../../provisioning/guest/install.sh")),
    (GUEST_UNIT, include_str!("../../../../provisioning/guest/vm-agent-guest.service")),
    ("vm-agent-runtime.service", include_str!("../../../../provisioning/guest/vm-agent-runtime.service")),
];

/// The unit that starts the runtime again at a boot, where nobody installs at each boot.
const RESUME_UNIT: &str = include_str!("../../../../provisioning/guest/vm-agent-resume.service");

/// What brings about the rest, where there is any.
const PROVISION_FILES: [(&str, &str); 2] = [
    ("provision.sh", include_str!("../../../../provisioning/guest/provision.sh")),
    (PROVISION_UNIT, include_str!("../../../../provisioning/guest/vm-agent-provision.service")),
];

/// What machines are provisioned with.
#[derive(Debug, Clone)]
pub struct Provisioning {
    runtime: PathBuf,
}

impl Provisioning {
    /// The runtime in this file.
    #[must_use]
    pub const fn new(runtime: PathBuf) -> Self {
        Self { runtime }
    }

    /// Writes the seed disk of an instance's incarnation. The same arguments give the same bytes.
    ///
    /// # Errors
    /// When the runtime can't be read or the file can't be written.
    pub fn write(
        &self,
        instance: &InstanceName,
        incarnation: Incarnation,
        provision: &Provision,
        path: &Path,
    ) -> io::Result<()> {
        let runtime = fs::read(&self.runtime)?;
        let texts = texts(instance, incarnation, provision);
        let mut files = vec![(SEED_DISK_RUNTIME, runtime.as_slice())];
        files.extend(texts.iter().map(|(name, text)| (*name, text.as_bytes())));
        fs::write(path, seed_disk(&files)?)
    }

    /// The same as an archive (tar), for drivers that install by themselves: without what cloud-init is told, and with
    /// a unit in the place of the one that listens to the channel. The same arguments give the same bytes.
    ///
    /// # Errors
    /// When the runtime can't be read.
    pub fn archive(&self, provision: &Provision) -> io::Result<Vec<u8>> {
        let runtime = fs::read(&self.runtime)?;
        let mut archive = tar::Builder::new(Vec::with_capacity(runtime.len()));
        let mut add = |name: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, content)
        };
        add(SEED_DISK_RUNTIME, &runtime)?;
        for (name, text) in installed(provision) {
            add(name, if name == GUEST_UNIT { RESUME_UNIT.as_bytes() } else { text.as_bytes() })?;
        }
        archive.into_inner()
    }
}

/// Everything on the disk but the runtime.
fn texts(instance: &InstanceName, incarnation: Incarnation, provision: &Provision) -> Vec<(&'static str, String)> {
    let mut files = vec![("meta-data", meta_data(instance, incarnation)), ("user-data", user_data(provision))];
    files.extend(installed(provision));
    files
}

/// What is installed besides the runtime, and what installs it.
fn installed(provision: &Provision) -> Vec<(&'static str, String)> {
    let mut files = vec![("user", format!("{}\n", provision.user()))];
    files.extend(GUEST_FILES.map(|(name, text)| (name, text.to_owned())));
    if *provision == Provision::default() {
        return files;
    }
    files.push(("runtime.conf", drop_in(provision)));
    if provision.sudo {
        files.push(("sudoers", format!("{} ALL=(ALL:ALL) NOPASSWD: ALL\n", provision.user())));
    }
    if provision.takes_time() {
        files.extend(PROVISION_FILES.map(|(name, text)| (name, text.to_owned())));
        files.push(("packages", provision.packages.iter().map(|package| format!("{package}\n")).collect()));
        if !provision.cloud_init.is_empty() {
            files.push(("cloud-init", "wanted\n".to_owned()));
        }
    }
    files
}

/// What of the runtime's unit is another for this machine.
fn drop_in(provision: &Provision) -> String {
    let mut text = String::new();
    if provision.takes_time() {
        text.push_str(&format!("[Unit]\nRequires={PROVISION_UNIT}\nAfter={PROVISION_UNIT}\n\n"));
    }
    text.push_str(&format!("[Service]\nUser={}\n", provision.user()));
    if provision.sudo {
        // Each of these would keep sudo from working.
        text.push_str("NoNewPrivileges=no\nCapabilityBoundingSet=~\nRestrictRealtime=no\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeSet;

    #[test]
    fn the_disk_of_an_incarnation_is_always_the_same_and_holds_all_that_is_installed_from_it() {
        let place = tempfile::tempdir().unwrap();
        let runtime = place.path().join("runtime");
        fs::write(&runtime, "the runtime").unwrap();
        let provisioning = Provisioning::new(runtime);
        let wanted = serde_json::from_value(json!({"sudo": true, "packages": ["git"], "cloudInit": {"a": 1}})).unwrap();
        let disk = |name: &str, incarnation, provision: &Provision| {
            let path = place.path().join(name);
            provisioning.write(&"web".parse().unwrap(), Incarnation(incarnation), provision, &path).unwrap();
            fs::read(path).unwrap()
        };
        let first = disk("a", 1, &wanted);
        assert!(first == disk("b", 1, &wanted));
        assert!(first != disk("c", 2, &wanted));
        let (plain, files) =
            (seed_disk::tests::files(&disk("d", 1, &Provision::default())), seed_disk::tests::files(&first));
        assert_eq!(files["vm-agent-runtime"], b"the runtime");
        assert_eq!(files["meta-data"], meta_data(&"web".parse().unwrap(), Incarnation(1)).as_bytes());
        // Every file that the script takes from beside it, those that there may be and those that there are.
        let script = std::str::from_utf8(&files["install.sh"]).unwrap();
        let taken = |verb: &str| -> BTreeSet<String> {
            let lines = script.lines().filter_map(|line| line.trim().strip_prefix(verb));
            lines.filter_map(|line| line.split(' ').nth(1).map(str::to_owned)).collect()
        };
        let (always, where_there) = (taken("put "), taken("put_if_there "));
        assert_eq!((always.len(), where_there.len()), (3, 6));
        assert!(always.iter().all(|name| plain.contains_key(name)), "{always:?}");
        assert!(
            where_there.iter().all(|name| files.contains_key(name) && !plain.contains_key(name)),
            "{where_there:?}"
        );
        assert!(std::str::from_utf8(&files["user-data"]).unwrap().contains("install.sh"));
    }

    #[test]
    fn the_archive_is_always_the_same_and_has_what_is_installed_but_nothing_for_cloud_init() {
        let place = tempfile::tempdir().unwrap();
        let runtime = place.path().join("runtime");
        fs::write(&runtime, "the runtime").unwrap();
        let provisioning = Provisioning::new(runtime);
        let wanted = serde_json::from_value(json!({"user": "dev", "packages": ["git"]})).unwrap();
        let archive = provisioning.archive(&wanted).unwrap();
        assert!(archive == provisioning.archive(&wanted).unwrap());
        let read = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            io::Read::read_to_string(&mut entry, &mut text).unwrap();
            (entry.path().unwrap().to_string_lossy().into_owned(), text)
        };
        let mut archive = tar::Archive::new(archive.as_slice());
        let files: std::collections::BTreeMap<_, _> = archive.entries().unwrap().map(read).collect();
        assert_eq!(files["vm-agent-runtime"], "the runtime");
        assert_eq!(files["packages"], "git\n");
        assert!(files["vm-agent-guest.service"].contains("--guest-boot"));
        assert!(files.contains_key("install.sh") && !files.contains_key("user-data"));
    }

    #[test]
    fn what_the_file_wants_of_a_machine_lies_on_its_disk_in_plain_words() {
        let shown = |wanted| {
            let provision = serde_json::from_value(wanted).unwrap();
            let fixed: Vec<_> = GUEST_FILES.iter().chain(&PROVISION_FILES).map(|(name, _)| *name).collect();
            let texts = texts(&"web".parse().unwrap(), Incarnation(1), &provision);
            let own = texts.into_iter().filter(|(name, _)| !fixed.contains(name) && !name.ends_with("-data"));
            own.map(|(name, text)| format!("{name}:\n{text}")).collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(shown(json!({})), @"
        user:
        vm-agent
        ");
        insta::assert_snapshot!(shown(json!({"user": "dev"})), @"
        user:
        dev

        runtime.conf:
        [Service]
        User=dev
        ");
        let all =
            json!({"user": "dev", "sudo": true, "packages": ["ripgrep", "git=1:2"], "cloudInit": {"runcmd": ["ls"]}});
        insta::assert_snapshot!(shown(all), @"
        user:
        dev

        runtime.conf:
        [Unit]
        Requires=vm-agent-provision.service
        After=vm-agent-provision.service

        [Service]
        User=dev
        NoNewPrivileges=no
        CapabilityBoundingSet=~
        RestrictRealtime=no

        sudoers:
        dev ALL=(ALL:ALL) NOPASSWD: ALL

        packages:
        git=1:2
        ripgrep

        cloud-init:
        wanted
        ");
    }
}
