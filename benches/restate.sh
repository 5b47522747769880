#!/bin/sh
# Runs a command that finds Restate's server in RESTATE_SERVER, if it can be had: the binary of an npm package, in target/restate. Without
# it the command runs all the same and says what it leaves out.
set -eu

version=1.7.12
folder=$(cd "$(dirname "$0")/.." && pwd)/target/restate
found() {
    find "$folder/node_modules/@restatedev" -path '*/bin/restate-server' -type f 2>/dev/null | head -n 1
}

if [ -z "${RESTATE_SERVER:-}" ]; then
    if [ "$(cat "$folder/version" 2>/dev/null)" != "$version" ] && command -v npm >/dev/null; then
        echo "restate: installing @restatedev/restate-server $version into target/restate, once" >&2
        rm -rf "$folder"
        mkdir -p "$folder"
        # Without its scripts: they only report the installation.
        npm install --prefix "$folder" --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error \
            "@restatedev/restate-server@$version" >&2 </dev/null || true
        # Last, so that an interrupted installation begins anew.
        if [ -n "$(found)" ]; then echo "$version" >"$folder/version"; fi
    fi
    RESTATE_SERVER=$(found)
fi
[ -n "$RESTATE_SERVER" ] || {
    echo "restate: no server: install Node.js with npm, or name the program in RESTATE_SERVER" >&2
    exec env -u RESTATE_SERVER "$@"
}
export RESTATE_SERVER
exec "$@"
