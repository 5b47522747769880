#!/bin/sh
# The contracts are clean and break nobody: who speaks those of before is still understood. Before is the commit that CONTRACTS_SINCE
# names; else where this branch left origin's; on that branch itself, what was committed last.
set -eu

cd "$(dirname "$0")/../proto"
command -v git >/dev/null || ../tests/install.sh contracts git
command -v git >/dev/null || {
    echo "contracts: install git: what breaks who speaks the contracts of before is looked for in the history" >&2
    exit 1
}
buf=../target/tools/python/bin/buf
"$buf" lint

# A copy without history, or the first commit, has nothing to compare with.
skip() {
    echo "contracts: $1: what breaks who speaks the contracts of before was not looked for${2:+; $2}" >&2
    exit 0
}
commit() {
    git rev-parse --quiet --verify "$1^{commit}" 2>/dev/null
}
# Where git refuses to look, as in another user's copy, there may well be a history.
words=$(LC_ALL=C git rev-parse --git-dir 2>&1) || case $words in
    *"not a git repository"*) skip "${words#fatal: }" ;;
    *)
        echo "contracts: $words" >&2
        exit 1
        ;;
esac
head=$(commit HEAD) || skip "there is no history"
deeper=
[ "$(git rev-parse --is-shallow-repository)" = false ] || deeper="fetch more of this shallow copy: git fetch --unshallow"

if [ -n "${CONTRACTS_SINCE:-}" ]; then
    before=$(commit "$CONTRACTS_SINCE") || {
        echo "contracts: CONTRACTS_SINCE is $CONTRACTS_SINCE, which is no commit here${deeper:+; $deeper}" >&2
        exit 1
    }
else
    before=$head
    left=
    if commit refs/remotes/origin/HEAD >/dev/null; then
        left=$(git merge-base HEAD refs/remotes/origin/HEAD || true)
        before=${left:-$head}
    elif git remote get-url origin >/dev/null 2>&1; then
        # Fetching alone, as CI does, doesn't make it.
        deeper="${deeper:+$deeper; }ask origin for its branch, git remote set-head origin --auto, or name a commit in CONTRACTS_SINCE"
    fi
    if [ "$before" = "$head" ] && git diff --quiet HEAD -- .; then
        before=$(commit HEAD~1) || skip "the commit before is not here" "$deeper"
    fi
    [ -n "$left" ] || [ -z "$deeper" ] ||
        echo "contracts: compared with the last commit alone: where this branch left origin's is not here; $deeper" >&2
fi

# Not by the path of .git: it is a file in a worktree, and elsewhere if this workspace is a folder of a larger repository.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
contracts=$before:$(git rev-parse --show-prefix)
git rev-parse --quiet --verify "$contracts" >/dev/null || skip "there were none in $before"
git -C "$(git rev-parse --show-toplevel)" archive --output "$folder/before.tar" "$contracts"
"$buf" breaking --against "$folder/before.tar"
