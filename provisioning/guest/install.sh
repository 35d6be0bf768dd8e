#!/bin/sh
# Installs what lies beside it on the seed disk and starts the guest program. Run by root at each boot, it
# changes only what is another than before: the seed disk brings the controller's own version.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
changed=

put() { # mode, file, place
    cmp -s "$here/$2" "$3" && return
    mkdir -p "${3%/*}"
    install -m "$1" "$here/$2" "$3.new"
    mv "$3.new" "$3"
    changed=yes
}

put_if_there() { # mode, file, place
    [ ! -e "$here/$2" ] || put "$@"
}

# The runtime's folder is the user's: by that the guest program knows whose the seed is to be.
user=$(cat "$here/user")
id "$user" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$user"
install -d -m 700 -o "$user" -g "$(id -g "$user")" /var/lib/vm-agent

put 755 vm-agent-runtime /usr/local/bin/vm-agent-runtime
put_if_there 755 provision.sh /usr/local/lib/vm-agent/provision
put_if_there 644 packages /usr/local/lib/vm-agent/packages
put_if_there 644 cloud-init /usr/local/lib/vm-agent/cloud-init
put_if_there 440 sudoers /etc/sudoers.d/vm-agent
# Only changed units have systemd read all of them again.
changed=
put 644 vm-agent-guest.service /etc/systemd/system/vm-agent-guest.service
put 644 vm-agent-runtime.service /etc/systemd/system/vm-agent-runtime.service
put_if_there 644 vm-agent-provision.service /etc/systemd/system/vm-agent-provision.service
put_if_there 644 runtime.conf /etc/systemd/system/vm-agent-runtime.service.d/vm-agent.conf
[ -z "$changed" ] || systemctl daemon-reload
systemctl start --no-block vm-agent-guest.service
