#!/bin/sh
# Checks that each feature of `libs` builds without the others, and that none at all does; and the tests that are left with it.
set -eu

cd "$(dirname "$0")/.."
features=$(sed -n '/^\[features\]/,/^\[/s/^\([a-z0-9_-]\{1,\}\) = .*/\1/p' libs/Cargo.toml)
[ -n "$features" ] || {
    echo "features: found none in libs/Cargo.toml" >&2
    exit 1
}
for feature in '' $features; do
    echo "libs with ${feature:-no feature}" >&2
    # Clippy, because its `-D warnings` holds for this crate alone and so leaves the dependencies as they are built.
    cargo clippy --package libs --all-targets --locked --quiet --no-default-features --features "$feature" -- -D warnings
done
