#!/bin/sh
# Builds a small Debian for driver `qemu`: build.sh FOLDER writes there
#
#   disk.qcow2  the root file system, without a partition table; it grows with its disk
#   kernel      booted directly, with root=/dev/vda
#   initrd      the few modules that reach the disk
#
# No firmware, boot loader or initramfs generator, and no cloud-init unless `cloud-init.cfg` lies beside this: what a machine needs besides comes on its seed
# disk (vm-agent-boot.service). Works as root, and as a user who has subordinate ids.
#
# VM_AGENT_IMAGE_SUITE   which Debian (bookworm)
# VM_AGENT_IMAGE_MIRROR  where it comes from (http://deb.debian.org/debian; what comes is signed)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
suite=${VM_AGENT_IMAGE_SUITE:-bookworm}
mirror=${VM_AGENT_IMAGE_MIRROR:-http://deb.debian.org/debian}

if [ $# -ne 1 ]; then
    echo "usage: build.sh FOLDER" >&2
    exit 2
fi

# mke2fs lies where ordinary users do not look.
PATH=$PATH:/usr/sbin:/sbin
missing=
for pair in mmdebstrap:mmdebstrap qemu-img:qemu-utils mke2fs:e2fsprogs dpkg-deb:dpkg gzip:gzip; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
if [ -n "$missing" ]; then
    echo "the image can't be built without$missing; install it: on Debian and Ubuntu \`apt-get install$missing\`" >&2
    exit 1
fi

mode=root
[ "$(id -u)" = 0 ] || mode=unshare

mkdir -p "$1"
out=$(cd "$1" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/vm-agent-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
# In mode `unshare` the tree's root is one of the user's subordinate ids: a stranger here.
mkdir "$work/recipe" "$work/made"
cp -R "$here/." "$work/recipe"
# The units lie beside the recipe in this program, and in a folder of their own in the repository.
[ -d "$here/guest" ] || cp -R "$here/../../guest" "$work/recipe"
chmod -R a+rX "$work"
chmod 1777 "$work/made"

with=
[ ! -e "$here/cloud-init.cfg" ] || with=,cloud-init
# The machine is made by customize.sh, inside the tree, which also tidies up. Without
# documentation and translations it is a third smaller.
mmdebstrap --quiet --mode="$mode" --variant=apt --format=null --skip=cleanup \
    --aptopt='Apt::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include="$(grep -v '^#' "$here/packages" | paste -sd,)$with" \
    --customize-hook="sh '$work/recipe/customize.sh' \"\$1\" '$work/recipe' '$work/made'" \
    "$suite" - "$mirror" >/dev/null

qemu-img convert -O qcow2 "$work/made/root.ext4" "$work/made/disk.qcow2"
for file in kernel initrd disk.qcow2; do
    cp "$work/made/$file" "$out/$file.part"
    mv "$out/$file.part" "$out/$file"
done
