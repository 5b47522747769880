#!/bin/sh
# Runs a command that finds the path of strace in TEST_STRACE: its tests kill processes at one system call after another, and record what
# they write. Installs the distribution's when it is missing and may. Where there is none for the system, those tests are left out.
set -eu

[ "$(uname)" = Linux ] || exec "$@"
command -v strace >/dev/null || "$(dirname "$0")/install.sh" strace strace
command -v strace >/dev/null || {
    echo "strace: install strace 5.3 or newer (Debian: strace)" >&2
    exit 1
}
strace -qq -e trace=none true || {
    echo "strace: this system doesn't let a process be traced; allow ptrace (in a container: --cap-add SYS_PTRACE)" >&2
    exit 1
}
TEST_STRACE=$(command -v strace)
export TEST_STRACE
exec "$@"
