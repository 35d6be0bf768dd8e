//! How a process gets a root of its own.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_remount, unmount};
use rustix::process::{chdir, pivot_root};

use super::image::SEEN;
use crate::home::Home;
use crate::instance::Order;

/// Makes the disk of an instance the root of this process, which has mounts of its own already.
pub(super) fn enter(home: &Home, name: &str, order: &Order) -> io::Result<()> {
    let root = home.disk(name);
    empty(&root.join("run"))?;
    fs::write(root.join("sys/class/dmi/id/product_uuid"), format!("{}\n", order.uuid))?;
    mount_bind_recursive(&root, &root)?;
    let layers = format!("lowerdir={}:/usr", home.image().join("usr").display());
    let layers = std::ffi::CString::new(layers).map_err(io::Error::other)?;
    mount("overlay", root.join("usr"), "overlay", MountFlags::RDONLY, Some(layers.as_c_str()))?;
    mount_bind(root.join(".usr-local"), root.join("usr/local"))?;
    for seen in SEEN {
        let (from, to) = (Path::new("/etc").join(seen), root.join("etc").join(seen));
        if from.exists() {
            mount_bind(&from, &to)?;
            mount_remount(&to, MountFlags::BIND | MountFlags::RDONLY, "")?;
        }
    }
    mount_bind_recursive("/dev", root.join("dev"))?;
    let shared = root.join(super::SHARED.trim_start_matches('/'));
    fs::create_dir_all(&shared)?;
    mount_bind(home.machine(name), &shared)?;
    for (source, target) in &order.mounts {
        let target = match target.strip_prefix('/') {
            Some(target) => root.join(target),
            None => root.join("home/ubuntu").join(target),
        };
        fs::create_dir_all(&target)?;
        mount_bind(source, &target)?;
    }
    // As long as that of the host is in sight: without root there is none otherwise.
    mount("proc", root.join("proc"), "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)?;
    chdir(&root)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    Ok(())
}

/// Gives the machine an id of this boot, in the place of the host's.
pub(super) fn new_boot_id(first: bool) -> io::Result<()> {
    let file = Path::new(super::SHARED).join("boot_id");
    // In its place: what is mounted over the kernel's file is this very file.
    fs::write(&file, format!("{}\n", uuid::Uuid::new_v4()))?;
    if first {
        mount_bind(&file, "/proc/sys/kernel/random/boot_id")?;
    }
    Ok(())
}

/// Removes what lies in a folder, but not what is mounted there.
pub(super) fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path == Path::new(super::SHARED) || path == Path::new(super::SOCKET) {
            continue;
        }
        match path.is_dir() && !path.is_symlink() {
            true => fs::remove_dir_all(path)?,
            false => fs::remove_file(path)?,
        }
    }
    Ok(())
}
