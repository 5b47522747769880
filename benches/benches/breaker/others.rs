//! The rows of other crates, each as its documentation has it used.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;

use super::{Outcome, Row};

pub(super) const VERSIONS: &str = "breaker 2.0.2, failsafe 1.3.0, recloser 1.4.0, rust-zero-core 0.1.0-alpha.1, tower-resilience-circuitbreaker 0.14.0";

const HOUR: Duration = Duration::from_secs(3600);

/// Every crate.
pub(super) fn closed() -> Vec<Row> {
    vec![failsafe_row(), recloser_row(), breaker_row(), rust_zero_row(), tower_resilience_row()]
}

pub(super) fn open() -> Vec<Row> {
    let rows = closed();
    for row in &rows {
        (0..1000).for_each(|_| _ = (row.call)(Err(())));
    }
    rows
}

fn failsafe_row() -> Row {
    use failsafe::{CircuitBreaker as _, Error, backoff, failure_policy};
    let policy = failure_policy::consecutive_failures(100, backoff::constant(HOUR));
    let breaker = failsafe::Config::new().failure_policy(policy).build();
    let call = move |outcome: Outcome| !matches!(breaker.call(|| outcome), Err(Error::Rejected));
    Row { name: "failsafe: consecutive", call: Box::new(call) }
}

fn recloser_row() -> Row {
    use recloser::{Error, Recloser};
    let breaker = Recloser::custom().error_rate(0.5).closed_len(100).open_wait(HOUR).build();
    let call = move |outcome: Outcome| !matches!(breaker.call(|| outcome), Err(Error::Rejected));
    Row { name: "recloser: count window", call: Box::new(call) }
}

fn breaker_row() -> Row {
    use breaker::{CircuitBreaker, CircuitBreakerConfig, CircuitBreakerError};
    let config = CircuitBreakerConfig::builder().sliding_window_size(100).consecutive_failures(100).wait_duration(HOUR);
    let breaker = CircuitBreaker::new(config.build());
    let call = move |outcome: Outcome| {
        let result = breaker.call(|| std::future::ready(outcome)).now_or_never();
        !matches!(result, Some(Err(CircuitBreakerError::CircuitOpen)))
    };
    Row { name: "breaker: count window", call: Box::new(call) }
}

fn rust_zero_row() -> Row {
    use rust_zero_core::breaker::{CircuitBreaker, CircuitBreakerConfig, CircuitBreakerError};
    let breaker = Arc::new(CircuitBreaker::new(CircuitBreakerConfig::new(100, HOUR)));
    let call = move |outcome: Outcome| !matches!(breaker.execute(|| outcome), Err(CircuitBreakerError::Open));
    Row { name: "rust-zero-core: consecutive", call: Box::new(call) }
}

fn tower_resilience_row() -> Row {
    use tower::{Layer as _, Service as _, service_fn};
    use tower_resilience_circuitbreaker::{CircuitBreakerError, CircuitBreakerLayer};
    let builder = CircuitBreakerLayer::builder().sliding_window_size(100).minimum_number_of_calls(100);
    let layer = builder.failure_rate_threshold(0.5).wait_duration_in_open(HOUR).build().expect("makes sense");
    let service = layer.layer(service_fn(std::future::ready::<Outcome>));
    let call = move |outcome: Outcome| {
        let result = service.clone().call(outcome).now_or_never();
        !matches!(result, Some(Err(CircuitBreakerError::OpenCircuit)))
    };
    Row { name: "tower-resilience: count window", call: Box::new(call) }
}
