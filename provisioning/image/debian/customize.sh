#!/bin/sh
# Makes a machine of a tree of packages: customize.sh ROOT RECIPE MADE, run by build.sh as the tree's root.
set -eu

root=$1
recipe=$2
made=$3

# The kernel's package alone, without what it would install to boot itself; busybox is the initrd.
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
tree=$root/tmp/kernel
mkdir -p "$tree" "$made/debs"
chmod 777 "$made/debs"
(cd "$made/debs" && apt-get -qq download "$kernel" busybox-static)
for package in "$made"/debs/*.deb; do
    dpkg-deb -x "$package" "$tree"
done
mkdir -p "$tree/usr"
ln -s ../lib "$tree/usr/lib" 2>/dev/null || true
version=$(ls "$tree/lib/modules")
cp "$tree/boot/vmlinuz-$version" "$made/kernel"

# The modules named, and those that they need, in the order in which they are to be loaded.
chroot "$root" depmod -b /tmp/kernel "$version"
needed() {
    grep -v '^#' "$recipe/$1" | while read -r module; do
        chroot "$root" modprobe -d /tmp/kernel -S "$version" --show-depends "$module"
    done | sed -n 's/^insmod \/tmp\/kernel//p' | awk '!seen[$1]++ {print $1}'
}
take() {
    while read -r path; do
        mkdir -p "$1${path%/*}"
        cp "$tree$path" "$1$path"
    done
}

initrd=$made/initrd.d
mkdir -p "$initrd/bin" "$initrd/dev" "$initrd/proc" "$initrd/sys" "$initrd/root"
cp "$tree/bin/busybox" "$initrd/bin/busybox"
ln -s busybox "$initrd/bin/sh"
needed modules.initrd | take "$initrd"
needed modules.initrd >"$initrd/modules"
install -m 755 "$recipe/initrd" "$initrd/init"
(cd "$initrd" && find . | bin/busybox cpio -o -H newc -R 0:0 2>/dev/null) | gzip -9n >"$made/initrd"

{ needed modules.initrd; needed modules; } | take "$root"
cp "$tree/lib/modules/$version/modules.builtin" "$tree/lib/modules/$version/modules.order" \
    "$tree/lib/modules/$version/modules.builtin.modinfo" "$root/lib/modules/$version/"
chroot "$root" depmod "$version"
grep -v '^#' "$recipe/modules" >"$root/etc/modules-load.d/vm-agent.conf"
rm -rf "$tree"

# What install.sh would make at the first boot is there already, which spares each machine the time. The runtime's
# user has no password, and there is no sudo.
chroot "$root" useradd --create-home --shell /bin/bash vm-agent
chroot "$root" passwd --quiet --lock root
cp -R "$recipe/root/." "$root"
install -m 644 "$recipe/guest/"*.service "$root/etc/systemd/system/"
chmod 755 "$root/usr/local/lib/vm-agent/boot"
if [ -e "$recipe/cloud-init.cfg" ]; then
    # It finds the seed disk, and runs what installs from it.
    install -m 644 "$recipe/cloud-init.cfg" "$root/etc/cloud/cloud.cfg.d/99_vm-agent.cfg"
    boot=
else
    boot=vm-agent-boot
fi
chroot "$root" systemctl --quiet enable systemd-networkd $boot
chroot "$root" systemctl --quiet disable systemd-networkd-wait-online
# systemd-firstboot would ask a person. The rest costs time at each boot and does nothing for a machine that is
# made of an image and thrown away.
chroot "$root" systemctl --quiet mask systemd-firstboot.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer getty.target \
    systemd-networkd-wait-online.service sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount \
    dev-mqueue.mount modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service \
    modprobe@efi_pstore.service modprobe@fuse.service modprobe@loop.service systemd-pstore.service \
    proc-sys-fs-binfmt_misc.automount systemd-binfmt.service sys-fs-fuse-connections.mount \
    systemd-journal-flush.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    systemd-ask-password-console.path systemd-ask-password-wall.path kmod-static-nodes.service
# Users, the linker's cache and the journal's catalogue are up to date.
touch "$root/etc/.updated" "$root/var/.updated"
: >"$root/etc/machine-id"
rm -f "$root/etc/hostname" "$root/etc/resolv.conf" "$root/var/lib/dbus/machine-id"
echo "nameserver 10.0.2.3" >"$root/etc/resolv.conf"
rm -rf "$root/var/cache/apt/"* "$root/var/lib/apt/lists/"* "$root/var/cache/debconf/"*-old "$root/var/log/"*.log \
    "$root/var/log/apt" "$root/tmp/"* "$root/var/lib/dpkg/"*-old

# By these mmdebstrap keeps services from starting here; in the machine they would keep on doing so.
rm -f "$root/usr/sbin/policy-rc.d"
[ ! -e "$root/sbin/start-stop-daemon.REAL" ] || mv "$root/sbin/start-stop-daemon.REAL" "$root/sbin/start-stop-daemon"

# A view of the tree without what is mounted in it. A journal, because a machine may be killed at any time;
# blocks of 4 KiB also at this size, since it grows.
rm -rf "$made/debs" "$initrd"
mkdir "$made/tree"
mount --bind "$root" "$made/tree"
mke2fs -q -t ext4 -b 4096 -L root -E lazy_itable_init=1,lazy_journal_init=1 -d "$made/tree" "$made/root.ext4" 1G
umount "$made/tree"
chmod a+r "$made"/*
