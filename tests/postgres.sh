#!/bin/sh
# Runs a command beside a PostgreSQL server of its own, fsync on, in a folder that is removed at the end. The command finds the
# server's address in TEST_POSTGRES, and the folder of its programs in TEST_POSTGRES_BIN: some tests start servers of their own.
# Installs the distribution's PostgreSQL when it is missing and it may.
set -eu

binaries() {
    for folder in "${POSTGRES_BIN:-}" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql*/bin; do
        [ -n "$folder" ] && [ -x "$folder/initdb" ] && [ -x "$folder/postgres" ] && echo "$folder" && return
    done
    command -v initdb >/dev/null && command -v postgres >/dev/null && dirname "$(command -v initdb)"
}

bin=$(binaries || true)
if [ -z "$bin" ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "postgres: installing postgresql from the distribution" >&2
    log=$(mktemp)
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql; } \
        >"$log" 2>&1 </dev/null || tail -n 5 "$log" >&2
    rm -f "$log"
    bin=$(binaries || true)
fi
[ -n "$bin" ] || {
    echo "postgres: install PostgreSQL 14 or newer (Debian: postgresql), or name its programs' folder in POSTGRES_BIN" >&2
    exit 1
}

folder=$(mktemp -d /tmp/postgres.XXXXXX)
# The server refuses to run as root.
if [ "$(id -u)" -eq 0 ]; then
    chown postgres "$folder"
    as() { setpriv --reuid=postgres --regid=postgres --init-groups env HOME="$folder" "$@"; }
else
    as() { "$@"; }
fi
stop() {
    as "$bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 1' INT TERM

cd "$folder"
as "$bin/initdb" -D "$folder/data" -U trellis --auth=trust --encoding=UTF8 >"$folder/log" 2>&1 || {
    cat "$folder/log" >&2
    exit 1
}
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
as "$bin/pg_ctl" -D "$folder/data" -w -l "$folder/data/log" \
    -o "-p $port -k $folder -c listen_addresses=127.0.0.1 -c max_connections=300" start >"$folder/log" 2>&1 || {
    cat "$folder/log" "$folder/data/log" >&2
    exit 1
}
cd - >/dev/null
TEST_POSTGRES="postgres://trellis@127.0.0.1:$port/postgres" TEST_POSTGRES_BIN="$bin" "$@"
