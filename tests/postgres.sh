#!/bin/sh
# Runs a command beside a PostgreSQL server of its own, fsync on, in a folder that is removed at the end. The command finds the
# server's address in TEST_POSTGRES, and the folder of its programs in TEST_POSTGRES_BIN: some tests start servers of their own.
# Installs the distribution's PostgreSQL when it is missing and it may.
set -eu

command -v "${1:-}" >/dev/null || {
    echo "postgres: there is no command ${1:-to run}" >&2
    exit 127
}

complete() {
    [ -x "$1/initdb" ] && [ -x "$1/postgres" ]
}
# The newest of those that a distribution has side by side, else those on PATH.
binaries() {
    for folder in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin; do
        ! complete "$folder" || echo "$("$folder/postgres" --version | sed 's/.*(PostgreSQL) *//; s/[^0-9.].*//') $folder"
    done | sort -n | tail -n 1 | cut -d ' ' -f 2- | grep . && return
    command -v initdb >/dev/null && command -v postgres >/dev/null && dirname "$(command -v initdb)"
}

if [ -n "${POSTGRES_BIN:-}" ]; then
    complete "$POSTGRES_BIN" || {
        echo "postgres: POSTGRES_BIN is $POSTGRES_BIN, where initdb and postgres are not" >&2
        exit 1
    }
    bin=$(cd "$POSTGRES_BIN" && pwd)
else
    bin=$(binaries || true)
fi
[ -n "$bin" ] || {
    "$(dirname "$0")/install.sh" postgres postgresql
    bin=$(binaries || true)
}
[ -n "$bin" ] || {
    echo "postgres: install PostgreSQL 14 or newer (Debian: postgresql, macOS: brew install postgresql@17), or name its programs' folder in POSTGRES_BIN" >&2
    exit 1
}

# The server refuses to run as root.
if [ "$(id -u)" -eq 0 ]; then
    id postgres >/dev/null 2>&1 || {
        echo "postgres: as root the server is run as the user postgres, and there is none: add it, or be somebody else" >&2
        exit 1
    }
    # Busybox has one that sets no user.
    setpriv --reuid=postgres --regid=postgres --init-groups true 2>/dev/null || {
        echo "postgres: as root the server is run as the user postgres by util-linux's setpriv, which is not there: install it (Alpine: setpriv)" >&2
        exit 1
    }
    as() { setpriv --reuid=postgres --regid=postgres --init-groups env HOME="$folder" "$@"; }
else
    as() { "$@"; }
fi
child=
stop() {
    trap '' HUP INT TERM
    as "$bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$folder"
}
# Whoever is told to end tells the command, and ends when that has.
pass() {
    [ -n "$child" ] || exit 1
    passed=yes
    kill -s "$1" "$child" 2>/dev/null || true
}
folder=$(mktemp -d /tmp/postgres.XXXXXX)
trap stop EXIT
trap 'pass HUP' HUP
trap 'pass INT' INT
trap 'pass TERM' TERM
[ "$(id -u)" -ne 0 ] || chown postgres "$folder"

cd "$folder"
as "$bin/initdb" -D "$folder/data" -U trellis --auth=trust --encoding=UTF8 --lc-messages=C >"$folder/log" 2>&1 || {
    cat "$folder/log" >&2
    exit 1
}
# None that the kernel may give to a client before the server has it, nor one that a test has taken (tests/src/port.rs).
port=$(python3 -c 'import random, socket
try:
    low, high = map(int, open("/proc/sys/net/ipv4/ip_local_port_range").read().split())
except OSError:
    low, high = 32000, 65535
ports = [port for port in range(10000, 65536) if not low <= port <= high] or list(range(10000, 32000))
random.shuffle(ports)
for port in ports:
    try:
        for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
            socket.socket(type=kind).bind(("127.0.0.1", port))
    except OSError:
        continue
    print(port)
    break')
as "$bin/pg_ctl" -D "$folder/data" -w -l "$folder/data/log" \
    -o "-p $port -k $folder -c listen_addresses=127.0.0.1 -c max_connections=300" start >"$folder/log" 2>&1 || {
    cat "$folder/log" "$folder/data/log" >&2
    exit 1
}
cd - >/dev/null
export TEST_POSTGRES="postgres://trellis@127.0.0.1:$port/postgres" TEST_POSTGRES_BIN="$bin"

# In the background, as a shell that waits for a command in the foreground hears no signal until that has ended. A shell takes standard
# input and Ctrl-C from what it runs there: the one comes back as 3, the other by Python, which takes two more from what it runs.
exec 3<&0
python3 -c 'import os, signal, sys
for name in "SIGINT", "SIGQUIT", "SIGPIPE", "SIGXFSZ":
    signal.signal(getattr(signal, name), signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])' "$@" <&3 3<&- &
child=$!
exec 3<&-
# A signal ends the wait, not the command.
until
    passed=
    code=0
    wait "$child" || code=$?
    [ -z "$passed" ]
do :; done
exit "$code"
