//! The recipe that comes with this program.

use super::{Recipe, RecipeFile};

macro_rules! files {
    ($($path:literal = $source:literal),* $(,)?) => {
        vec![$(RecipeFile {
            path: $path,
            content: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../provisioning/", $source)),
        }),*]
    };
}

/// Builds a small Debian that is booted directly, in about a minute, out of Debian's packages.
#[must_use]
pub fn debian() -> Recipe {
    let files = files![
        "build.sh" = "image/debian/build.sh",
        "customize.sh" = "image/debian/customize.sh",
        "initrd" = "image/debian/initrd",
        "modules" = "image/debian/modules",
        "modules.initrd" = "image/debian/modules.initrd",
        "packages" = "image/debian/packages",
        "root/etc/fstab" = "image/debian/root/etc/fstab",
        "root/etc/systemd/journald.conf.d/vm-agent.conf" =
            "image/debian/root/etc/systemd/journald.conf.d/vm-agent.conf",
        "root/etc/systemd/network/vm-agent.network" = "image/debian/root/etc/systemd/network/vm-agent.network",
        "root/etc/systemd/system/systemd-udev-trigger.service.d/vm-agent.conf" =
            "image/debian/root/etc/systemd/system/systemd-udev-trigger.service.d/vm-agent.conf",
        "root/usr/local/lib/vm-agent/boot" = "image/debian/root/usr/local/lib/vm-agent/boot",
        "guest/vm-agent-boot.service" = "guest/vm-agent-boot.service",
        "guest/vm-agent-guest.service" = "guest/vm-agent-guest.service",
        "guest/vm-agent-runtime.service" = "guest/vm-agent-runtime.service",
    ];
    Recipe { script: "build.sh", files }
}
