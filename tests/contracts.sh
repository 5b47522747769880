#!/bin/sh
# The contracts are clean and break nobody: who speaks what was committed last is still understood.
set -eu

cd "$(dirname "$0")/../proto"
buf=../target/tools/python/bin/buf
"$buf" lint
# A copy without history, or the first commit, has nothing to compare with.
git rev-parse --quiet --verify HEAD >/dev/null 2>&1 || exit 0
before=HEAD
if git diff --quiet HEAD -- .; then
    before=HEAD~1
    git rev-parse --quiet --verify "$before" >/dev/null 2>&1 || exit 0
fi
"$buf" breaking --against "../.git#ref=$(git rev-parse "$before"),subdir=proto"
