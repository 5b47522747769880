#!/bin/sh
# Runs a command that finds the path of nats-server in TEST_NATS: its tests start servers of their own. Installs the distribution's when
# it is missing and may.
set -eu

program() {
    PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "${NATS_SERVER:-nats-server}"
}

found=$(program || true)
[ -n "$found" ] || {
    "$(dirname "$0")/install.sh" nats nats-server
    found=$(program || true)
}
[ -n "$found" ] || {
    echo "nats: install nats-server 2.9 or newer (Debian: nats-server), or name the program in NATS_SERVER" >&2
    exit 1
}
# Tests have folders of their own.
TEST_NATS=$(cd "$(dirname "$found")" && pwd)/${found##*/}
export TEST_NATS
exec "$@"
