#!/bin/sh
# Runs a benchmark beside what it is compared with: a PostgreSQL server, other engines' programs, Restate's server.
#
#     benches/beside.sh TARGET NAME COMMAND…    NAME is cqrs, saga or all; programs are built below TARGET
set -eu

target=$1 name=$2
shift 2
build() {
    cargo build --release --quiet --locked --manifest-path benches/peers/Cargo.toml --target-dir "$target/peers" --package "$1"
}
case $name in all | cqrs)
    build cqrs-peers
    export CQRS_PEERS="$target/peers/release/cqrs-peers"
    ;;
esac
case $name in all | saga)
    build saga-peers
    export SAGA_PEERS="$target/peers/release/saga-peers"
    set -- benches/restate.sh "$@"
    ;;
esac
# The services of `ours` on SQLite must not find it.
exec tests/postgres.sh sh -c 'exec env -u TEST_POSTGRES BENCH_POSTGRES="$TEST_POSTGRES" "$@"' sh "$@"
