#!/bin/sh
# Brings about what the fleet file wants in this machine besides the runtime, once, and fails where it can't: then
# the last that it says is what people are told.
set -eu
done=/var/lib/vm-agent-guest/provisioned
[ ! -e "$done" ] || exit 0
packages=$(cat /usr/local/lib/vm-agent/packages)
sudo=
[ ! -e /etc/sudoers.d/vm-agent ] || command -v sudo >/dev/null || sudo=sudo

fail() {
    echo "$1" >&2
    exit 1
}

# Installs packages by apt, which is all there is in an image without cloud-init.
install_packages() {
    command -v apt-get >/dev/null || fail "this image has neither cloud-init nor apt-get: there is no way to install $*"
    export DEBIAN_FRONTEND=noninteractive
    waited=0
    until ip route | grep -q '^default' || [ "$waited" = 60 ]; do
        sleep 1
        waited=$((waited + 1))
    done
    apt-get -qq -o APT::Update::Error-Mode=any -o Acquire::Retries=3 update
    # Only now is it known which there are; the words for that are apt's.
    apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold --no-install-recommends install "$@"
}

if [ -e /run/cloud-init/result.json ]; then
    # cloud-init has ended by now, and has said how.
    result=$(tr -d ' \n' </run/cloud-init/result.json)
    case $result in
    *'"errors":[]'*) ;;
    *)
        tail -n 20 /var/log/cloud-init-output.log >&2 || true
        fail "cloud-init: $result"
        ;;
    esac
    [ -z "$sudo" ] || fail "this image has no sudo; add it to \`packages\`"
elif [ -s /usr/local/lib/vm-agent/cloud-init ]; then
    fail "this image has no cloud-init, which \`cloudInit\` is for"
elif [ -n "$packages$sudo" ]; then
    # Names without a blank in them, each a word of its own.
    # shellcheck disable=SC2086
    install_packages $packages $sudo
fi
: >"$done"
