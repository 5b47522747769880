#!/bin/sh
# Runs a command that finds Restate's server in RESTATE_SERVER, if it can be had: the binary of an npm package, in target/restate. Without
# it the command runs all the same and says what it leaves out.
set -eu

version=1.7.12
folder=$(cd "$(dirname "$0")/.." && pwd)/target/restate
found() {
    find "$1/node_modules/@restatedev" -path '*/bin/restate-server' -type f 2>/dev/null | head -n 1
}

if [ -z "${RESTATE_SERVER:-}" ]; then
    if [ "$(cat "$folder/version" 2>/dev/null)" != "$version" ] && command -v npm >/dev/null; then
        echo "restate: installing @restatedev/restate-server $version into target/restate, once" >&2
        new=$folder.new
        rm -rf "$new"
        mkdir -p "$new"
        # Without its scripts: they only report the installation.
        npm install --prefix "$new" --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error \
            "@restatedev/restate-server@$version" >&2 </dev/null || true
        # Another version stays where it is until this one is whole.
        if [ -n "$(found "$new")" ]; then
            echo "$version" >"$new/version"
            rm -rf "$folder"
            mv "$new" "$folder"
        else
            rm -rf "$new"
        fi
    fi
    [ "$(cat "$folder/version" 2>/dev/null)" != "$version" ] || RESTATE_SERVER=$(found "$folder")
fi
[ -n "${RESTATE_SERVER:-}" ] || {
    why="install Node.js with npm"
    ! command -v npm >/dev/null || why="npm could not install it"
    echo "restate: no server: $why, or name the program in RESTATE_SERVER" >&2
    exec env -u RESTATE_SERVER "$@"
}
export RESTATE_SERVER
exec "$@"
