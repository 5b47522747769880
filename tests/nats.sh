#!/bin/sh
# Runs a command that finds the path of nats-server in TEST_NATS: its tests start servers of their own. Installs the distribution's when
# it is missing and may.
set -eu

program() {
    PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "${NATS_SERVER:-nats-server}"
}

found=$(program || true)
if [ -z "$found" ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "nats: installing nats-server from the distribution" >&2
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    trap 'exit 1' HUP INT TERM
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends nats-server; } \
        >"$log" 2>&1 </dev/null || tail -n 5 "$log" >&2
    rm -f "$log"
    trap - EXIT HUP INT TERM
    found=$(program || true)
fi
[ -n "$found" ] || {
    echo "nats: install nats-server 2.9 or newer (Debian: nats-server), or name the program in NATS_SERVER" >&2
    exit 1
}
# Tests have folders of their own.
TEST_NATS=$(cd "$(dirname "$found")" && pwd)/${found##*/}
export TEST_NATS
exec "$@"
