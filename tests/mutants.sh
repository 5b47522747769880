#!/bin/sh
# Breaks the code that ships, by one patch of tests/mutants at a time in a copy of the sources, and runs the test that the patch names: as
# the code is it must pass; broken it must fail, and say why in the patch's words. Tries those named, or all there are, and prints a table.
# The first run builds all that the tests stand on.
set -eu

cd "$(dirname "$0")/.."
root=$(pwd -P)
[ $# -gt 0 ] || for patch in tests/mutants/*.patch; do
    name=${patch##*/}
    set -- "$@" "${name%.patch}"
done

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/mutants"
target=$(cd "$target" && pwd -P)
folder=$target/mutants
copy=$folder/sources
log=$folder/log
# Not where the code is built as it is: to cargo the copy is the same workspace, and what is broken must not be taken for what isn't.
CARGO_TARGET_DIR=$folder/target
CARGO_INCREMENTAL=1
export CARGO_TARGET_DIR CARGO_INCREMENTAL

tell() {
    echo "mutants: $*" >&2
}
# What a patch says of itself above what it changes.
field() {
    sed -n "/^--- /q; s/^$2: //p" "tests/mutants/$1.patch"
}
# In the copy, which lies in another repository or in none.
apply() {
    (cd "$copy" && GIT_CEILING_DIRECTORIES=$folder git apply "$@")
}
# Where the test is that a mutant names: in the library, or in a file of libs/tests.
binary() {
    binary=$(field "$1" Test)
    binary=${binary%% *}
    if [ "$binary" = lib ]; then echo --lib; else echo "--test=$binary"; fi
}
built() {
    (cd "$copy" && cargo test --package libs --locked --no-run "$(binary "$1")") >"$log" 2>&1 </dev/null
}
# Whether the test passed or failed, looking for these words. Nothing if it is not there, or its process ended in its midst.
ended() {
    test=$(field "$1" Test)
    test=${test#* }
    beside=env
    [ "$(field "$1" Needs)" != postgres ] || beside=$root/tests/postgres.sh
    # In the simulation another rule may be broken first.
    (cd "$copy" && SIMULATE_WORDS=$2 "$beside" cargo test --package libs --locked "$(binary "$1")" -- --exact "$test") \
        >"$log" 2>&1 </dev/null || true
    sed -n "s/^test $test \.\.\. ok\$/passed/p; s/^test $test \.\.\. FAILED\$/failed/p" "$log"
}
row() {
    printf '%-26s  %-38s  %-77s  %s\n' "$@"
}
why() {
    tail -n 40 "$log" >&2
}

for mutant; do
    [ -f "tests/mutants/$mutant.patch" ] || {
        tell "there is no tests/mutants/$mutant.patch"
        exit 1
    }
done

# One at a time, as all that is broken is in one copy.
(set -C && echo $$ >"$folder/lock") 2>/dev/null || {
    tell "another run, process $(cat "$folder/lock"), is under way; if there is no such process, remove $folder/lock"
    exit 1
}
trap 'rm -f "$folder/lock"' EXIT
trap 'exit 1' HUP INT TERM
rm -rf "$copy"
mkdir "$copy"
tar -cf "$folder/sources.tar" --exclude target --exclude "./${target#"$root"/}" --exclude ./.git --exclude ./data .
# As new as can be: what an earlier run built of a copy that was broken is older than this one.
tar -xmf "$folder/sources.tar" -C "$copy"
rm -f "$folder/sources.tar"

sound=
table=
survivors=0
at=0
for mutant; do
    at=$((at + 1))
    test=$(field "$mutant" Test)
    run="<$test $(field "$mutant" Needs)>"
    case $sound in
        *"$run"*) ;;
        *)
            tell "$at of $#: ${test#* } as the code is"
            built "$mutant" || {
                why
                exit 1
            }
            [ "$(ended "$mutant" '')" = passed ] || {
                why
                tell "${test#* } must pass before it can tell anything"
                exit 1
            }
            sound=$sound$run
            ;;
    esac

    tell "$at of $#: $mutant"
    says=$(field "$mutant" Says)
    apply "$root/tests/mutants/$mutant.patch"
    if ! built "$mutant"; then
        why
        became='nothing: it does not compile'
    elif [ "$(ended "$mutant" "$says")" != failed ]; then
        why
        became='nothing: IT SURVIVES'
    elif ! said=$(tr ';' '\n' <"$log" | grep -F -m 1 -- "$says"); then
        why
        became='nothing: it fails for another reason'
    else
        became=
    fi
    apply --reverse "$root/tests/mutants/$mutant.patch"

    file=$(sed -n 's|^+++ b/libs/src/||p' "tests/mutants/$mutant.patch")
    if [ -n "$became" ]; then
        survivors=$((survivors + 1))
        tell "$mutant: $became"
        said=$became
    else
        said=$(printf '%s\n' "$said" | sed 's/^ *//; s/^SEED=[0-9]*: //' | cut -c 1-120)
    fi
    table="$table$(row "$mutant" "$file" "${test#* }" "$said")
"
done

row mutant 'in libs/src' 'caught by' 'in these words'
printf '%s' "$table"
[ "$survivors" -eq 0 ] || {
    tell "$survivors of $# were not caught"
    exit 1
}
