//! Whoever watches breakers sees each thing that happens to them, in order, and is told when it could not.
#![cfg(feature = "breaker")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::{pin::Pin, sync::Arc, thread, time::Duration};

use futures::{FutureExt as _, Stream, StreamExt as _};
use libs::breaker::{Breaker, Class, Config, ManualClock, Registry, service::BreakerService};
use proto::breaker::v1::{
    CircuitState, OpenCause, Override, Transition, WatchBreakersRequest, WatchBreakersResponse,
    breaker_query_service_server::BreakerQueryService as _,
};
use tokio::task::unconstrained;
use tonic::{Request, Status};

type Watched = Pin<Box<dyn Stream<Item = Result<WatchBreakersResponse, Status>> + Send>>;

async fn watch(registry: &Registry, prefix: &str) -> Watched {
    let asked = WatchBreakersRequest { name_prefix: prefix.to_owned() };
    BreakerService::new("order", registry.clone()).watch_breakers(Request::new(asked)).await.unwrap().into_inner()
}

/// What is there to see now, however much it is.
fn seen(watched: &mut Watched) -> Vec<WatchBreakersResponse> {
    let next = || unconstrained(watched.next()).now_or_never()?.map(Result::unwrap);
    std::iter::from_fn(next).collect()
}

fn names(seen: &[WatchBreakersResponse]) -> Vec<&str> {
    seen.iter().map(|each| &*each.breaker.as_ref().unwrap().name).collect()
}

fn fail(breaker: &Breaker) {
    breaker.admit().unwrap().finish(Class::Failure);
}

fn eager() -> Config {
    Config::builder().consecutive_failures(1).probes(1, 1).build().unwrap()
}

#[tokio::test]
async fn transitions_that_follow_each_other_before_anybody_looks_are_all_seen() {
    let clock = Arc::new(ManualClock::default());
    let registry = Registry::with_clock(clock.clone());
    let payment = registry.breaker("payment", &eager());
    let mut watched = watch(&registry, "").await;
    assert_eq!(seen(&mut watched).iter().map(|first| first.transition).collect::<Vec<_>>(), [None]);

    fail(&payment);
    clock.advance(Duration::from_secs(60));
    payment.admit().unwrap().finish(Class::Success);
    payment.set_override(libs::breaker::Override::ForcedOpen);
    payment.reset();

    let (closed, open, half) = (CircuitState::Closed, CircuitState::Open, CircuitState::HalfOpen);
    let seen = seen(&mut watched);
    let moved = |from: CircuitState, to: CircuitState, generation, cause: OpenCause, over: Override| Transition {
        from: from.into(),
        to: to.into(),
        generation,
        cause: cause.into(),
        r#override: over.into(),
    };
    let (no_cause, free, forced) = (OpenCause::Unspecified, Override::Unspecified, Override::ForcedOpen);
    let told: Vec<_> = seen.iter().map(|each| each.transition.unwrap()).collect();
    assert_eq!(
        told,
        [
            moved(closed, open, 1, OpenCause::ConsecutiveFailures, free),
            moved(open, half, 2, no_cause, free),
            moved(half, closed, 3, no_cause, free),
            moved(closed, closed, 4, no_cause, forced),
            moved(closed, closed, 5, no_cause, forced),
        ]
    );
    assert!(seen.iter().all(|each| each.breaker.as_ref().unwrap().generation == 5 && each.skipped_changes == 0));
}

#[tokio::test]
async fn a_breaker_that_is_forgotten_is_seen_to_go() {
    let registry = Registry::new();
    drop(registry.breaker("order/Place", &eager()));
    let _held = registry.breaker("order/Cancel", &eager());
    let mut watched = watch(&registry, "order").await;
    seen(&mut watched);
    assert_eq!(registry.evict(""), 1);
    drop(registry.breaker("order/Place", &eager()));
    let seen = seen(&mut watched);
    assert_eq!(names(&seen), ["order/Place", "order/Place"]);
    assert_eq!(seen.iter().map(|each| each.gone).collect::<Vec<_>>(), [true, false], "and is new again");
}

#[tokio::test]
async fn a_breaker_made_later_is_shown_and_one_of_another_name_is_not() {
    let registry = Registry::new();
    let payment = registry.breaker("payment", &eager());
    let mut watched = watch(&registry, "ship").await;
    assert!(seen(&mut watched).is_empty());

    let shipping = registry.breaker("shipping", &eager());
    let again = registry.breaker("shipping", &eager());
    let new = seen(&mut watched);
    assert_eq!((names(&new), new[0].transition), (vec!["shipping"], None));
    fail(&payment);
    fail(&shipping);
    let changed = seen(&mut watched);
    assert_eq!((names(&changed), changed[0].transition.unwrap().to()), (vec!["shipping"], CircuitState::Open));
    assert!(Arc::ptr_eq(&shipping, &again));
}

#[tokio::test]
async fn whoever_is_too_slow_is_told_so_and_brought_up_to_date() {
    const CHANGES: u32 = 1_000;
    let registry = Registry::new();
    let [early, late] = ["early", "late"].map(|name| registry.breaker(name, &eager()));
    let mut watched = watch(&registry, "").await;
    assert_eq!(seen(&mut watched).len(), 2);

    fail(&early);
    (1..CHANGES).for_each(|_| late.reset());

    let seen = seen(&mut watched);
    assert_eq!(names(&seen), ["early", "late"], "and no transition that was before these");
    assert_eq!(seen[0].breaker.as_ref().unwrap().state(), CircuitState::Open);
    assert_eq!(seen[1].breaker.as_ref().unwrap().generation, CHANGES - 1);
    assert!(seen.iter().all(|picture| picture.transition.is_none()));
    assert_eq!(seen.iter().map(|each| each.skipped_changes).collect::<Vec<_>>(), [u64::from(CHANGES), 0]);

    early.reset();
    let next = self::seen(&mut watched);
    assert_eq!((names(&next), next[0].transition.unwrap().from()), (vec!["early"], CircuitState::Open));
}

#[tokio::test]
async fn whoever_is_too_slow_is_told_so_when_none_of_its_breakers_is_left() {
    let registry = Registry::new();
    drop(registry.breaker("order/Place", &eager()));
    let other = registry.breaker("payment", &eager());
    let mut watched = watch(&registry, "order/").await;
    assert_eq!(names(&seen(&mut watched)), ["order/Place"]);
    assert_eq!(registry.evict("order/"), 1);
    (0..300).for_each(|_| other.reset());
    let seen = seen(&mut watched);
    assert_eq!(seen, [WatchBreakersResponse { skipped_changes: 301, ..WatchBreakersResponse::default() }]);
}

#[tokio::test]
async fn what_threads_do_to_a_breaker_at_once_is_seen_in_the_order_it_happened() {
    const EACH: u32 = 60;
    for _ in 0..50 {
        let registry = Registry::new();
        let payment = registry.breaker("payment", &eager());
        let mut watched = watch(&registry, "").await;
        assert_eq!(seen(&mut watched).len(), 1);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..EACH).for_each(|_| payment.reset()));
            }
        });
        let generations: Vec<_> = seen(&mut watched).iter().map(|each| each.transition.unwrap().generation).collect();
        assert_eq!(generations, (1..=4 * EACH).collect::<Vec<_>>());
    }
}
