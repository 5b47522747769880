# What a person does with this project, a line each. `./just` lists them; `./just NAME` runs one.

set positional-arguments

# Those that are programs of their own; `shop` is all of them in one.
services := '--package inventory --package payment --package shipping --package order'
# Programs are run from where they are built. A person's cargo may be set to build elsewhere, which what is said here outranks.
export CARGO_TARGET_DIR := env('CARGO_TARGET_DIR', justfile_directory() / 'target')
unexport CARGO_BUILD_TARGET

[private]
default:
    @{{ quote(just_executable()) }} --list --unsorted --list-heading '{{ "./just RECIPE, where RECIPE is one of\n" }}'

# The services, three orders, each saga's timeline, the books; `demo breaker` kills shipping under load
[group('run')]
demo *WHAT:
    @if [ "${1:-}" = breaker ]; then \
        [ $# -eq 1 ] || { echo "demo breaker takes nothing more, such as ${2}" >&2; exit 2; }; \
        cargo build --locked {{ services }} --package tests && \
        exec "$CARGO_TARGET_DIR/debug/outage"; \
    else exec cargo run --package shop -- demo "$@"; fi

# Serve all services until Ctrl-C, with grpcurl lines to paste
[group('run')]
up *FLAGS:
    @cargo run --package shop -- serve "$@"

# Place an order with the services that `up` serves
[group('run')]
order *FLAGS:
    @cargo run --package shop -- order "$@"

# Watch sagas as they move, with the services that `up` serves
[group('run')]
watch *FLAGS:
    @cargo run --package shop -- watch "$@"

# The newest sagas of the services that `up` serves, and those that are parked, a line each
[group('run')]
sagas *FLAGS:
    @cargo run --quiet --package shop -- sagas "$@"

# One saga's timeline (show ID), or a definition as Mermaid (graph place-order)
[group('run')]
saga *WHAT:
    @cargo run --quiet --package shop -- saga "$@"

# The circuit breakers of the services that `up` serves and that call others: inventory and order
[group('run')]
breakers *FLAGS:
    @cargo run --quiet --package shop -- breakers "$@"

# Everything that must pass before a change lands; installs what it needs
[group('develop')]
test: check features loom (build '--workspace' '--bins' '--tests' '--examples')
    tests/strace.sh tests/nats.sh cargo test --workspace --locked
    tests/nats.sh tests/postgres.sh tests/on_postgres.sh

# Formatting, lints, documentation, contracts, manifests
[group('develop')]
check: tools
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --features benches/breakers --locked -- -D warnings
    RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet
    tests/contracts.sh
    tests/manifests.sh

# Format the code
[group('develop')]
fmt:
    cargo fmt --all

# Try every order in which two threads can meet in the breaker
[group('prove')]
loom:
    RUSTFLAGS='--cfg loom' cargo test --package breaker-loom --release --locked --target-dir "$CARGO_TARGET_DIR/loom"

# Try every world that a saga of four steps, or a few that share locks, can come into with so many mishaps; says how many each comes to
[group('prove')]
explore:
    @cargo test --quiet --package libs --lib --locked -- saga::exploration::no_world saga::exploration::locks::no_two --nocapture

# Leave out the saga's rules one at a time, in models, then in the code that ships (only NAMES of tests/mutants): 7 minutes of a core, 4 more the first time
[group('prove')]
mutants *NAMES:
    @[ $# -gt 0 ] || cargo test --quiet --package libs --lib --locked without_any_of -- --nocapture
    @tests/mutants.sh "$@"

# Crashes, pauses, partitions, each world from a seed: so many of them, from the first one named; of one alone the whole trace
[group('prove')]
simulate SEEDS='500' FIRST='1':
    @SIMULATE_SEEDS="$1" SIMULATE_FIRST="$2" cargo test --quiet --package libs --lib --locked saga::simulation::whatever -- --nocapture

# Kill services with SIGKILL under load, restart them, then check that the books add up
[group('prove')]
chaos SECONDS='60' SEED='':
    @cargo build --locked {{ services }} --package tests
    @"$CARGO_TARGET_DIR/debug/chaos" --seconds "$1" ${2:+--seed "$2"}

# Measure: all benches, or the one named (orders, saga, cqrs, server, breaker, breaker_torture)
[group('prove')]
bench *NAME:
    @cargo build --release --quiet --locked {{ services }}
    @name=${1:-}; [ -z "$name" ] || shift; \
    set -- cargo bench --package benches --features breakers --locked ${name:+--bench "$name"} -- "$@"; \
    case "${name:-all}" in \
        all | cqrs | saga) benches/beside.sh "$CARGO_TARGET_DIR" "${name:-all}" "$@" ;; \
        *) "$@" ;; \
    esac

# Remove what was built, the tools and the data of `up`
[group('develop')]
clean:
    cargo clean --quiet
    rm -rf target data

# The programs that end-to-end tests start. In one call with what starts them, so that cargo builds each dependency once.
[private]
build *FLAGS:
    cargo build --locked "$@"

# Every feature of `libs` must build without the others
[private]
features:
    tests/features.sh

# What the checks and tests run that is not Rust
[private]
tools:
    @tests/tools.sh
