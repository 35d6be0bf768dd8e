#!/bin/sh
# Installs what lies beside it on the seed disk and starts the guest program. Run by root at each boot, it
# changes only what is another than before: the seed disk brings the controller's own version.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
changed=

put() { # mode, file, place
    cmp -s "$here/$2" "$3" && return
    install -m "$1" "$here/$2" "$3.new"
    mv "$3.new" "$3"
    changed=yes
}

id vm-agent >/dev/null 2>&1 || useradd --create-home --shell /bin/bash vm-agent
put 755 vm-agent-runtime /usr/local/bin/vm-agent-runtime
# Only changed units have systemd read all of them again.
changed=
put 644 vm-agent-guest.service /etc/systemd/system/vm-agent-guest.service
put 644 vm-agent-runtime.service /etc/systemd/system/vm-agent-runtime.service
[ -z "$changed" ] || systemctl daemon-reload
systemctl start --no-block vm-agent-guest.service
