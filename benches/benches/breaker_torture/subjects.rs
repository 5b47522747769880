//! The breakers that take the torture: each opens after five failures, rests 30 ms and lets one probe out.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

pub(crate) type Call = Pin<Box<dyn Future<Output = Result<(), ()>> + Send>>;
pub(crate) type Reply = Pin<Box<dyn Future<Output = Answer> + Send>>;

pub(crate) const REST: Duration = Duration::from_millis(30);
/// A caller of ours gives up after so long, and the breaker is told that this is long.
pub(crate) const PATIENCE: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Ok,
    Failed,
    Refused,
}

/// A breaker under test.
pub(crate) type Subject = Arc<dyn Fn(Call) -> Reply + Send + Sync>;

pub(crate) struct Crate {
    pub(crate) name: &'static str,
    /// Five failures, one probe.
    pub(crate) quick: fn() -> Subject,
    /// The last hundred calls at 50 %, where it has such a window.
    pub(crate) window: Option<fn() -> Subject>,
}

pub(crate) const CRATES: [Crate; 6] = [
    Crate { name: "ours", quick: ours::quick, window: Some(ours::window) },
    Crate { name: "failsafe 1.3.0", quick: failsafe_quick, window: None },
    Crate { name: "recloser 1.4.0", quick: || recloser(5, 1), window: Some(|| recloser(100, 10)) },
    Crate { name: "tower-res. 0.14.0", quick: || tower_resilience(false), window: Some(|| tower_resilience(true)) },
    Crate { name: "breaker 2.0.2", quick: || breaker(false), window: Some(|| breaker(true)) },
    Crate { name: "rust-zero 0.1.0", quick: rust_zero, window: None },
];

mod ours {
    use libs::breaker::{Breaker, Class, Config, ConfigBuilder, Rate};

    use super::{Answer, Arc, PATIENCE, REST, Subject};

    fn subject(config: ConfigBuilder) -> Subject {
        let config = config.open_for(REST, 1, REST).jitter(Rate::percent(0)).probes(1, 1);
        let config = config.probe_timeout(REST * 3).abandon_after(PATIENCE).build().expect("makes sense");
        let breaker = Arc::new(Breaker::new("subject", config));
        Arc::new(move |call| {
            let breaker = Arc::clone(&breaker);
            Box::pin(async move {
                let Ok(permit) = Breaker::admit_by(breaker, None) else { return Answer::Refused };
                if call.await.is_ok() {
                    permit.finish(Class::Success);
                    Answer::Ok
                } else {
                    permit.finish(Class::Failure);
                    Answer::Failed
                }
            })
        })
    }

    pub(super) fn quick() -> Subject {
        subject(Config::builder().consecutive_failures(5))
    }

    pub(super) fn window() -> Subject {
        subject(Config::builder().count_window(100).min_calls(100))
    }
}

fn failsafe_quick() -> Subject {
    use failsafe::{Error, backoff, failure_policy, futures::CircuitBreaker as _};
    let policy = failure_policy::consecutive_failures(5, backoff::constant(REST));
    let breaker = failsafe::Config::new().failure_policy(policy).build();
    Arc::new(move |call| {
        let breaker = breaker.clone();
        Box::pin(async move {
            match breaker.call(call).await {
                Ok(()) => Answer::Ok,
                Err(Error::Inner(())) => Answer::Failed,
                Err(Error::Rejected) => Answer::Refused,
            }
        })
    })
}

fn recloser(closed: usize, half_open: usize) -> Subject {
    use recloser::{AsyncRecloser, Error, Recloser};
    let builder = Recloser::custom().error_rate(0.5).closed_len(closed).half_open_len(half_open).open_wait(REST);
    let breaker = AsyncRecloser::from(builder.build());
    Arc::new(move |call| {
        let breaker = breaker.clone();
        Box::pin(async move {
            match breaker.call(call).await {
                Ok(()) => Answer::Ok,
                Err(Error::Inner(())) => Answer::Failed,
                Err(Error::Rejected) => Answer::Refused,
            }
        })
    })
}

fn tower_resilience(window: bool) -> Subject {
    use tower::{Layer as _, Service as _};
    use tower_resilience_circuitbreaker::{CircuitBreakerError, CircuitBreakerLayer};
    let builder = CircuitBreakerLayer::builder().wait_duration_in_open(REST).permitted_calls_in_half_open(1);
    let builder = if window {
        builder.sliding_window_size(100).minimum_number_of_calls(100).failure_rate_threshold(0.5)
    } else {
        builder.consecutive_failures(5)
    };
    let layer = builder.build().expect("makes sense");
    let service = layer.layer(Through);
    Arc::new(move |call| {
        let call = service.clone().call(call);
        Box::pin(async move {
            match call.await {
                Ok(()) => Answer::Ok,
                Err(CircuitBreakerError::Inner(())) => Answer::Failed,
                Err(CircuitBreakerError::OpenCircuit) => Answer::Refused,
            }
        })
    })
}

/// Does the call it is given.
#[derive(Clone)]
struct Through;

impl tower::Service<Call> for Through {
    type Response = ();
    type Error = ();
    type Future = Call;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), ()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Call {
        call
    }
}

fn breaker(window: bool) -> Subject {
    use breaker::{CircuitBreaker, CircuitBreakerConfig, CircuitBreakerError};
    let builder = CircuitBreakerConfig::builder().wait_duration(REST).half_open_max_calls(1).success_threshold(1);
    let builder = if window {
        builder.sliding_window_size(100).minimum_calls(100).failure_rate_threshold(0.5).consecutive_failures(10_000)
    } else {
        builder.consecutive_failures(5)
    };
    let breaker = Arc::new(CircuitBreaker::new(builder.build()));
    Arc::new(move |call| {
        let breaker = Arc::clone(&breaker);
        Box::pin(async move {
            match breaker.call(|| call).await {
                Ok(()) => Answer::Ok,
                Err(CircuitBreakerError::Failure(())) => Answer::Failed,
                Err(_) => Answer::Refused,
            }
        })
    })
}

fn rust_zero() -> Subject {
    use rust_zero_core::breaker::{CircuitBreaker, CircuitBreakerConfig};
    let breaker = Arc::new(CircuitBreaker::new(CircuitBreakerConfig::new(5, REST)));
    Arc::new(move |call| {
        let breaker = Arc::clone(&breaker);
        Box::pin(async move {
            let Some(permit) = breaker.acquire() else { return Answer::Refused };
            let result = call.await;
            permit.finish(result.is_ok());
            if result.is_ok() { Answer::Ok } else { Answer::Failed }
        })
    })
}
