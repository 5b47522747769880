#!/bin/sh
# The tests that hold on every database, and those that only a server can fail, on the PostgreSQL that TEST_POSTGRES names; then
# processes killed under load on it.
set -eu

cd "$(dirname "$0")/.."
cargo test --locked --package libs --test journal --test command_queue --test views --test views_anew --test views_replaced --test views_over_restored --test views_shapes --test delivery --test jetstream --test jetstream_restored --test jetstream_looks --test jetstream_limits --test evolution --test saga_api --test saga_engine --test saga_owners --test saga_takeover --test saga_steering --test saga_lost_tail --test saga_parked --test saga_revival --test saga_sweep --test saga_locks --test saga_local --test saga_sub_sagas --test answers --test rows --test barrier --test followed --test saga_metadata --test slow_watcher --test postgres --test postgres_commits --test postgres_sessions --test postgres_standby --test lost_tail --test saga_standby --test saga_late_calls --test queries --test unwritable --test reads_refused
"${CARGO_TARGET_DIR:-target}/debug/chaos" --seconds 10
cargo test --locked --package tests --test owners --test postgres --test replicas --test overlay
