//! The disks of machines: folders with little in them. Programs and libraries are those of this host, which a
//! machine sees but can't change; below them lie the few that the double has in their place.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use crate::daemon::expect_io;
use crate::home::Home;

/// This program in a machine.
pub(crate) const PROGRAM: &str = "usr/lib/multipass-double/guest";
/// The names under which it is called there.
const NAMES: [&str; 8] =
    ["systemctl", "journalctl", "cloud-init", "systemd-detect-virt", "poweroff", "reboot", "halt", "shutdown"];
/// What a machine has of this host's settings.
const SETTINGS: [&str; 20] = [
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "nsswitch.conf",
    "login.defs",
    "pam.d",
    "pam.conf",
    "security",
    "services",
    "protocols",
    "host.conf",
    "profile",
    "bash.bashrc",
    "skel",
    "default",
    "debian_version",
    "shells",
    "inputrc",
    "mime.types",
    "gai.conf",
];
/// What it sees of them.
pub(crate) const SEEN: [&str; 3] = ["alternatives", "ssl", "ca-certificates"];
/// The folders that are there from the beginning.
const FOLDERS: [&str; 22] = [
    "dev",
    "proc",
    "run",
    "root",
    "etc",
    "opt",
    "srv",
    "mnt",
    "media",
    "boot",
    "usr",
    "home/ubuntu",
    "var/lib",
    "var/log/journal",
    "var/cache",
    "var/spool",
    "sys/class/dmi/id",
    "var/lib/cloud/seed/nocloud",
    ".usr-local/bin",
    ".usr-local/sbin",
    ".usr-local/lib",
    ".usr-local/share",
];
const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\nubuntu:x:1000:1000:Ubuntu:/home/ubuntu:/bin/bash\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nadm:x:4:ubuntu\ntty:x:5:\nsudo:x:27:ubuntu\nshadow:x:42:\nusers:x:100:\n\
    nogroup:x:65534:\nubuntu:x:1000:\n";
const SHADOW: &str = "root:*:20000:0:99999:7:::\nubuntu:!:20000:0:99999:7:::\n";

/// Makes what all machines of a double see. Once there, it stays.
pub(crate) fn install(home: &Home) {
    let image = home.image();
    if image.join("ready").exists() {
        return;
    }
    drop(fs::remove_dir_all(&image));
    let program = image.join(PROGRAM);
    let bin = image.join("usr/bin");
    for folder in [&bin, &image.join("usr/sbin"), program.parent().expect("a program lies in a folder")] {
        expect_io(fs::create_dir_all(folder), "make the image");
    }
    let own = crate::daemon::own(home, "").get_program().to_owned();
    expect_io(fs::copy(&own, &program), "copy this program into the image");
    for name in NAMES {
        for folder in ["usr/bin", "usr/sbin"] {
            expect_io(symlink(format!("/{PROGRAM}"), image.join(folder).join(name)), "link a program of the image");
        }
    }
    // A copy of its own: this one becomes root.
    let sudo = bin.join("sudo");
    expect_io(fs::copy(&own, &sudo), "copy this program into the image");
    expect_io(fs::set_permissions(&sudo, Permissions::from_mode(0o4755)), "let sudo become root");
    expect_io(fs::write(image.join("ready"), ""), "finish the image");
}

/// Makes the disk of a new instance. One that is there stays as it is.
pub(crate) fn make_disk(home: &Home, name: &str) {
    let root = home.disk(name);
    if root.exists() {
        return;
    }
    for folder in FOLDERS {
        expect_io(fs::create_dir_all(root.join(folder)), "make a disk");
    }
    for folder in ["tmp", "var/tmp"] {
        expect_io(fs::create_dir_all(root.join(folder)), "make a disk");
        expect_io(fs::set_permissions(root.join(folder), Permissions::from_mode(0o1777)), "open a folder to all");
    }
    expect_io(fs::set_permissions(root.join("root"), Permissions::from_mode(0o700)), "close root's home");
    for link in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        if let Ok(target) = fs::read_link(Path::new("/").join(link)) {
            expect_io(symlink(target, root.join(link)), "link a folder of programs");
        }
    }
    make_settings(&root);
    let ubuntu = root.join("home/ubuntu");
    drop(Command::new("cp").arg("-a").arg("/etc/skel/.").arg(&ubuntu).status());
    if rustix::process::geteuid().is_root() {
        drop(Command::new("chown").args(["-R", "1000:1000"]).arg(&ubuntu).status());
        drop(chown(root.join("etc/shadow"), Some(0), Some(42)));
    }
}

fn make_settings(root: &Path) {
    let etc = root.join("etc");
    let there = SETTINGS.iter().map(|name| Path::new("/etc").join(name)).filter(|path| path.exists());
    drop(Command::new("cp").arg("-a").args(there).arg(&etc).status());
    for folder in SEEN.into_iter().chain(["sudoers.d", "systemd/system/multi-user.target.wants"]) {
        expect_io(fs::create_dir_all(etc.join(folder)), "make a folder of settings");
    }
    let id = uuid::Uuid::new_v4().simple().to_string();
    let resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let files = [
        ("passwd", PASSWD, 0o644),
        ("group", GROUP, 0o644),
        ("shadow", SHADOW, 0o640),
        ("gshadow", "root:*::\n", 0o640),
        ("hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644),
        ("resolv.conf", &resolv, 0o644),
        ("machine-id", &format!("{id}\n"), 0o444),
    ];
    for (name, text, mode) in files {
        expect_io(fs::write(etc.join(name), text), "write a setting");
        expect_io(fs::set_permissions(etc.join(name), Permissions::from_mode(mode)), "close a setting");
    }
    expect_io(symlink("../usr/lib/os-release", etc.join("os-release")), "link a setting");
}
