#!/bin/sh
# Installs packages of the distribution, where there is apt-get and it may; NAME is who asks. Says nothing of it where it can't: who asks
# looks whether there is now what it wanted.
#
#     tests/install.sh NAME PACKAGE…
set -eu

name=$1
shift
[ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || exit 0
echo "$name: installing $* from the distribution" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 1' HUP INT TERM
try() {
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
}
# A machine that has just started may be updating itself, whose lock on the lists nobody waits for. And a mirror may not answer once.
for pause in 10 20 0; do
    ! try "$@" >"$log" 2>&1 </dev/null || exit 0
    sleep "$pause"
done
tail -n 5 "$log" >&2
