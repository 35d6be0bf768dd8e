//! Folders of the host in an instance: mounts of Multipass's kind `classic`, which a machine that runs can be given.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::layout::WORK_DIR;
use vm_agent_schemas::names::InstanceName;

use super::trouble::Trouble;
use super::{Held, Multipass, SHORT_LIMIT, answer};
use crate::{Act, DriverError, Mounts};

/// How long a mount may take. It may have to install what it needs in the machine first.
const MOUNT_LIMIT: Duration = Duration::from_secs(180);
/// The folder of the runtime.
const RUNTIME_DIR: &str = "/var/lib/vm-agent";

/// Sees to it that these mounts can be had: the folders are there, and may be written.
pub(super) fn check(instance: &InstanceName, mounts: &Mounts) -> Result<(), DriverError> {
    for (place, mount) in mounts {
        if !mount.writable {
            let what = format!(
                "keep a machine from writing to what is mounted in it; mount `{place}` with `writable: true`, or copy it"
            );
            return Err(DriverError::Unsupported { driver: DriverName::Multipass, what });
        }
        let failed = |why: &str| {
            let folder = mount.source.display();
            Act("mount folders in", instance).failed(&std::io::Error::other(format!("mount `{place}`: {folder} {why}")))
        };
        if place.split('/').any(|part| part == "..") {
            return Err(failed("can't be mounted at a path with `..` in it"));
        }
        match std::fs::metadata(&mount.source) {
            Ok(found) if found.is_dir() && mount.source.is_absolute() => {}
            Ok(_) => return Err(failed("is no absolute path of a folder of the host")),
            Err(error) => return Err(failed(&format!("can't be used: {error}"))),
        }
    }
    Ok(())
}

/// Where a mount lies in the machine.
fn place(target: &str) -> String {
    if target.starts_with('/') { target.to_owned() } else { format!("{RUNTIME_DIR}/{WORK_DIR}/{target}") }
}

/// The places and sources of mounts.
fn wanted(mounts: &Mounts) -> BTreeMap<String, PathBuf> {
    mounts.iter().map(|(target, mount)| (place(target), mount.source.clone())).collect()
}

impl Multipass {
    /// Has an instance that is down not get mounts that it is not to have when it starts.
    pub(super) async fn unmount_others(&self, held: &mut Held<'_>, mounts: &Mounts) -> Result<(), DriverError> {
        if !held.record.has_mounts {
            return Ok(());
        }
        let wanted = wanted(mounts);
        for (place, source) in self.mounted(held).await? {
            if wanted.get(&place) != Some(&source) {
                let target = format!("{}:{place}", held.name());
                let _turn = self.lanes.change(format!("umount {target}")).await;
                if let Err(fault) = self.call(&["umount", &target], None, SHORT_LIMIT).await
                    && fault.trouble() != Trouble::Missing
                {
                    return Err(self.trouble(held.act, &fault));
                }
            }
        }
        held.record.has_mounts = !mounts.is_empty();
        self.remember(held).await
    }

    /// Has an instance that is up have these mounts and no others. What Multipass could not mount when it started, it
    /// has forgotten by then.
    pub(super) async fn mount(&self, held: &mut Held<'_>, mounts: &Mounts) -> Result<(), DriverError> {
        self.unmount_others(held, mounts).await?;
        if mounts.is_empty() {
            return Ok(());
        }
        if !held.record.has_mounts {
            held.record.has_mounts = true;
            self.remember(held).await?;
        }
        let below: Vec<_> =
            mounts.keys().filter(|target| !target.starts_with('/')).map(|target| place(target)).collect();
        if !below.is_empty() {
            // By the runtime's user: Multipass would make them its own.
            let user = held.record.provision.user().to_owned();
            self.guest(held.act.1).make_folders(&user, &below).await.map_err(|fault| self.trouble(held.act, &fault))?;
        }
        let there = self.mounted(held).await?;
        for (place, source) in wanted(mounts) {
            if there.contains_key(&place) {
                continue;
            }
            let target = format!("{}:{place}", held.name());
            let arguments =
                ["mount".as_ref(), "--type".as_ref(), "classic".as_ref(), source.as_os_str(), target.as_ref()];
            let called = {
                let _turn = self.lanes.change(format!("mount {target}")).await;
                self.call(&arguments, None, MOUNT_LIMIT).await
            };
            if let Err(fault) = called
                && fault.trouble() != Trouble::Exists
            {
                return Err(self.trouble(held.act, &fault));
            }
        }
        Ok(())
    }

    /// The mounts that Multipass remembers of an instance.
    async fn mounted(&self, held: &Held<'_>) -> Result<BTreeMap<String, PathBuf>, DriverError> {
        let info = self.info(held.act).await?;
        answer::mounts(&info, held.name()).map_err(|error| held.act.failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_schemas::fleet::Mount;

    #[test]
    fn what_can_not_be_mounted_is_told_before_anything_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let check = |place: &str, source: PathBuf, writable| {
            let mounts = Mounts::from([(place.to_owned(), Mount { source, writable })]);
            check(&"web".parse().unwrap(), &mounts).map_err(|error| error.to_string())
        };
        let here = || folder.path().to_owned();
        assert_eq!(check("src", here(), true), Ok(()));
        assert!(check("src", here(), false).unwrap_err().contains("writable: true"));
        assert!(check("../src", here(), true).unwrap_err().contains("`..`"));
        assert!(check("src", here().join("none"), true).unwrap_err().contains("can't be used"));
        assert!(check("src", "relative".into(), true).is_err());
    }

    #[test]
    fn a_mount_lies_at_its_path_or_below_the_work_folder() {
        assert_eq!(place("/src"), "/src");
        assert_eq!(place("shared/src"), "/var/lib/vm-agent/work/shared/src");
    }
}
