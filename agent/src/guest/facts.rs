//! What the machine's files tell of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;
use vm_agent_schemas::guest::{CloudInitState, Mac, MachineId};
use vm_agent_schemas::ids::BootId;

/// The stages of cloud-init that can fail, in order.
const STAGES: [&str; 4] = ["init-local", "init", "modules-config", "modules-final"];

/// Makers of hardware that is none, each with systemd's word for what they make.
const MAKERS: [(&str, &str); 8] = [
    ("KVM", "kvm"),
    ("QEMU", "qemu"),
    ("VMware", "vmware"),
    ("innotek GmbH", "oracle"),
    ("VirtualBox", "oracle"),
    ("Xen", "xen"),
    ("Parallels", "parallels"),
    ("Apple Virtualization", "apple"),
];

/// A view of the machine whose root is this folder. Nothing is kept: what is asked is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a>(pub(super) &'a Path);

impl Facts<'_> {
    /// The boot.
    pub(super) fn boot_id(&self) -> BootId {
        let id = self.text("proc/sys/kernel/random/boot_id").and_then(|text| text.parse().ok());
        // Every Linux has one. Without /proc it is another each time, and passes for nobody's.
        id.unwrap_or_else(BootId::generate)
    }

    /// The id of the hardware: its maker's, or the hypervisor's; where it has none, what the datasource of cloud-init
    /// calls the machine. A machine that goes on from a saved memory has that of the saved one until it boots.
    pub(super) fn hardware(&self) -> Option<String> {
        let id = self.text("sys/class/dmi/id/product_uuid").map(|id| id.to_ascii_lowercase());
        id.or_else(|| self.text("var/lib/cloud/data/instance-id"))
    }

    /// The hypervisor, in systemd's words: by the name that the hardware bears, else by the mark that a processor under
    /// one has.
    pub(super) fn hypervisor(&self) -> Option<String> {
        let names = ["sys_vendor", "product_name", "bios_vendor", "board_vendor"];
        let mut named = names.iter().filter_map(|name| self.text(&format!("sys/class/dmi/id/{name}")));
        let maker = named.find_map(|name| MAKERS.iter().find(|(maker, _)| name.starts_with(maker)));
        let marked = || {
            let processor = self.text("proc/cpuinfo")?;
            let mut flags = processor.lines().filter(|line| line.starts_with("flags"));
            flags.any(|line| line.split_whitespace().any(|flag| flag == "hypervisor")).then_some("vm-other")
        };
        maker.map(|(_, word)| *word).or_else(marked).map(str::to_owned)
    }

    /// The machine id.
    pub(super) fn machine_id(&self) -> Option<MachineId> {
        self.text("etc/machine-id")?.parse().ok()
    }

    /// The host name that the kernel has.
    pub(super) fn hostname(&self) -> Option<String> {
        self.text("proc/sys/kernel/hostname")
    }

    /// The host name that the next boot would have.
    pub(super) fn kept_hostname(&self) -> Option<String> {
        self.text("etc/hostname")
    }

    /// The list of hosts; empty where there is none.
    pub(super) fn hosts(&self) -> String {
        fs::read_to_string(self.0.join("etc/hosts")).unwrap_or_default()
    }

    /// The network cards with hardware behind them, with their addresses, in order of their names.
    pub(super) fn cards(&self) -> Vec<(String, Option<Mac>)> {
        let Ok(entries) = fs::read_dir(self.0.join("sys/class/net")) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let place = |name: &str| format!("sys/class/net/{name}");
        let mut cards: Vec<_> = names
            .filter(|name| self.0.join(place(name)).join("device").exists())
            .map(|name| {
                let mac = self.text(&format!("{}/address", place(&name))).and_then(|text| text.parse().ok());
                (name, mac)
            })
            .collect();
        cards.sort_by(|(a, _), (b, _)| a.cmp(b));
        cards
    }

    /// The number that the kernel has for a network card.
    pub(super) fn card_number(&self, card: &str) -> Option<u32> {
        self.text(&format!("sys/class/net/{card}/ifindex"))?.parse().ok()
    }

    /// How far cloud-init has come.
    pub(super) fn cloud_init(&self) -> Option<CloudInitState> {
        let status = self.text("run/cloud-init/status.json")?;
        Some(cloud_init(&status, self.0.join("run/cloud-init/result.json").exists()))
    }

    /// The user and group ids of a folder's owner.
    pub(super) fn owner(&self, folder: &str) -> Option<(u32, u32)> {
        let found = fs::symlink_metadata(self.0.join(folder)).ok()?;
        found.is_dir().then(|| (found.uid(), found.gid()))
    }

    /// The user and group ids of a user.
    pub(super) fn user(&self, name: &str) -> Option<(u32, u32)> {
        self.text("etc/passwd")?.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then_some(())?;
            Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        })
    }

    /// A file without the white space around its text; nothing where it says nothing.
    fn text(&self, file: &str) -> Option<String> {
        let text = fs::read_to_string(self.0.join(file)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }
}

/// What cloud-init's `status.json` says. A file that says something else is one without errors.
fn cloud_init(status: &str, done: bool) -> CloudInitState {
    let status: Value = serde_json::from_str(status).unwrap_or_default();
    let texts = |value: &Value| -> Vec<String> {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().map(|error| error.as_str().map_or_else(|| error.to_string(), str::to_owned)).collect()
    };
    CloudInitState {
        done,
        stage: status["v1"]["stage"].as_str().map(str::to_owned),
        errors: STAGES.iter().flat_map(|stage| texts(&status["v1"][stage]["errors"])).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cloud_init_tells_its_stage_and_all_its_errors() {
        let text = r#"{"v1": {"datasource": null, "init": {"errors": [], "finished": 3.1, "start": 2.0},
            "init-local": {"errors": ["no seed"], "finished": 1.0, "start": 0.5}, "modules-config": {"errors": []},
            "modules-final": {"errors": ["('runcmd', 1)"]}, "stage": "modules-final"}}"#;
        let state = cloud_init(text, false);
        assert_eq!(state.stage.as_deref(), Some("modules-final"));
        assert_eq!(state.errors, ["no seed", "('runcmd', 1)"]);
        let nothing = CloudInitState { done: true, stage: None, errors: Vec::new() };
        assert_eq!(cloud_init("not JSON", true), nothing);
    }

    #[test]
    fn a_hypervisor_is_told_by_the_hardwares_maker_or_the_processors_mark() {
        let seen = |vendor: &str, flags: &str| {
            let root = tempfile::tempdir().unwrap();
            for (file, text) in [("sys/class/dmi/id/sys_vendor", vendor), ("proc/cpuinfo", flags)] {
                let path = root.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Facts(root.path()).hypervisor()
        };
        assert_eq!(seen("QEMU\n", "").as_deref(), Some("qemu"));
        assert_eq!(seen("innotek GmbH\n", "").as_deref(), Some("oracle"));
        let marked = "processor : 0\nflags\t\t: fpu hypervisor lahf_lm\n";
        assert_eq!(seen("Somebody\n", marked).as_deref(), Some("vm-other"));
        assert_eq!(seen("LENOVO\n", "flags : fpu vmx\n"), None);
    }

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let users = "root:x:0:0::/root:/bin/sh\nvm-agent-2:x:1:2::/:/bin/sh\nvm-agent:x:998:997::/:/bin/sh\n";
        fs::write(root.path().join("etc/passwd"), users).unwrap();
        assert_eq!(Facts(root.path()).user("vm-agent"), Some((998, 997)));
        assert_eq!(Facts(root.path()).user("vm"), None);
    }
}
