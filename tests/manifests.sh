#!/bin/sh
# Renders the overlays named, or all there are, and checks what comes out, against Kubernetes' schema and against the rules of tests/python.
set -eu

cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- k8s/overlays/*
bin=target/tools/python/bin
rendered=$(mktemp)
trap 'rm -f "$rendered"' EXIT
trap 'exit 1' HUP INT TERM

for overlay in "$@"; do
    "$bin/kubectl" kustomize "$overlay" >"$rendered"
    "$bin/kubernetes-validate" --strict --quiet "$rendered"
    "$bin/python3" tests/python/manifests.py <"$rendered"
    echo "$overlay: $(grep -c '^kind:' "$rendered") manifests are sound" >&2
done
