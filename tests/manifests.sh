#!/bin/sh
# Renders the overlay $1 and checks what comes out, against Kubernetes' schema and against the rules of tests/python.
set -eu

cd "$(dirname "$0")/.."
bin=target/tools/python/bin
rendered=$(mktemp)
trap 'rm -f "$rendered"' EXIT

"$bin/kubectl" kustomize "$1" >"$rendered"
"$bin/kubernetes-validate" --strict --quiet "$rendered"
"$bin/python3" tests/python/manifests.py <"$rendered"
echo "$1: $(grep -c '^kind:' "$rendered") manifests are sound" >&2
