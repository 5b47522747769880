#!/bin/sh
# The contracts are clean and break nobody: who speaks what was committed last is still understood.
set -eu

cd "$(dirname "$0")/../proto"
buf=../target/tools/python/bin/buf
"$buf" lint
# A copy without history, or the first commit, has nothing to compare with.
skip() {
    echo "contracts: $1: what breaks who speaks the contracts of before was not looked for" >&2
    exit 0
}
git rev-parse --quiet --verify HEAD >/dev/null 2>&1 || skip "there is no history"
before=HEAD
if git diff --quiet HEAD -- .; then
    before=HEAD~1
    git rev-parse --quiet --verify "$before" >/dev/null 2>&1 || skip "the commit before is not here"
fi
"$buf" breaking --against "../.git#ref=$(git rev-parse "$before"),subdir=proto"
