//! Sagas whose clock is set while they wait.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod saga_world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use libs::{
    journal::Journal,
    rpc::verdict::Op,
    saga::{Clock, Coordinator, Definition, Options, Retry, TABLES, testing::Fault},
};
use proto::saga::v1::SagaPhase;
use saga_world::{Process, Reserve, World, tokio_clock};

const HOUR: Duration = Duration::from_secs(3600);

/// One step, called again after that wait.
fn reserve(wait: Duration, tune: impl FnOnce(&mut libs::saga::Builder<String>)) -> World {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.retry(Retry { initial: wait, most: wait, jitter: 0.0, ..Retry::default() });
    tune(&mut saga);
    World::with(saga.build().unwrap())
}

/// A process that goes by this clock.
async fn going_by(world: &World, clock: Clock) -> Process {
    let journal = Journal::open(&world.folder.path().join("order.db"), TABLES).await.unwrap();
    let (definitions, transport) = (vec![Arc::clone(&world.definition)], world.participants.clone());
    let coordinator = Coordinator::with_clock(journal.clone(), definitions, transport, Options::default(), clock);
    Process { journal, coordinator: coordinator.unwrap() }
}

/// A clock that can be set, and a process that goes by it, whose saga waits for its participant.
async fn waiting(world: &World) -> (Arc<AtomicI64>, Process) {
    let mut lost = false;
    world.participants.on_call(move |call| match call.op {
        Op::Action if !std::mem::replace(&mut lost, true) => Fault::LoseRequest,
        _ => Fault::None,
    });
    let (ahead, right) = (Arc::new(AtomicI64::new(0)), tokio_clock());
    let shown = Arc::clone(&ahead);
    let process = going_by(world, Arc::new(move || right() + shown.load(Ordering::Relaxed))).await;
    process.place("tea").await.unwrap();
    process.until("tea", |saga| !saga.steps[0].last_error.is_empty()).await;
    // It isn't paused. Once it has said so, it waits.
    process.coordinator.resume("tea", "ann", "as the test says").await.unwrap();
    (ahead, process)
}

/// By how much it is put forward, or back.
fn set(clock: &AtomicI64, hours: i64) {
    clock.fetch_add(hours * i64::try_from(HOUR.as_micros()).unwrap(), Ordering::Relaxed);
}

/// Lets so much time pass at once.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Waits for its end, and tells it nothing meanwhile.
async fn ended(process: &Process, phase: SagaPhase) {
    process.until_phase("tea", phase).await;
}

#[tokio::test]
async fn a_clock_that_is_put_back_makes_no_call_wait_for_longer() {
    let world = reserve(HOUR, |_| {});
    let (clock, process) = waiting(&world).await;
    // By more than passes: it is seen to be put back.
    set(&clock, -2);
    pass(HOUR).await;
    ended(&process, SagaPhase::Completed).await;
}

/// It waits until no action can come any more, and that is no longer either.
#[tokio::test]
async fn a_clock_that_is_put_back_makes_no_undoing_wait_for_longer() {
    let world = reserve(HOUR, |saga| {
        saga.attempt_timeout(Duration::from_millis(100)).without_barrier();
    });
    let (clock, process) = waiting(&world).await;
    let cancelled = process.coordinator.cancel("tea", "ann", "changed my mind").await.unwrap();
    assert_eq!(cancelled.phase(), SagaPhase::Compensating);
    set(&clock, -1);
    ended(&process, SagaPhase::Compensated).await;
}

/// Nobody else looks at the clock while it is paused.
#[tokio::test]
async fn a_clock_that_is_put_back_keeps_no_operator_from_settling_an_undoing() {
    let world = reserve(HOUR, |saga| {
        saga.attempt_timeout(Duration::from_secs(10)).without_barrier();
    });
    let (clock, process) = waiting(&world).await;
    process.coordinator.cancel("tea", "ann", "changed my mind").await.unwrap();
    process.coordinator.pause("tea", "ann", "I look").await.unwrap();
    set(&clock, -1);
    let skipped = process.coordinator.skip("tea", "reserve", Op::Compensation, true, "ann", "it isn't there").await;
    let refused = skipped.expect_err("its action may come yet");
    assert_eq!(refused.reason, "STEP_UNDER_WAY", "{refused:?}");
    assert!(refused.retry_after.unwrap() <= Duration::from_secs(30), "{refused:?}");
}

/// The first to come after that is an operator: what they ask for is committed by the clock that is right.
#[tokio::test]
async fn a_clock_that_is_put_back_makes_no_undoing_wait_for_longer_after_a_crash() {
    let world = reserve(HOUR, |saga| {
        saga.attempt_timeout(Duration::from_millis(500)).without_barrier();
    });
    let (clock, process) = waiting(&world).await;
    set(&clock, -1);
    let cancelled = process.coordinator.cancel("tea", "ann", "changed my mind").await.unwrap();
    assert_eq!(cancelled.phase(), SagaPhase::Compensating);
    process.crash().await;
    let (right, hour) = (tokio_clock(), i64::try_from(HOUR.as_micros()).unwrap());
    // Later than the cancel, by the clock that is right.
    let process = going_by(&world, Arc::new(move || right() - hour + 60_000_000)).await;
    process.coordinator.recover().await.unwrap();
    ended(&process, SagaPhase::Compensated).await;
}

#[tokio::test]
async fn a_clock_that_is_put_forward_is_seen_within_a_minute() {
    let world = reserve(24 * HOUR, |saga| {
        saga.deadline(HOUR);
    });
    let (clock, process) = waiting(&world).await;
    set(&clock, 1);
    pass(Duration::from_secs(60)).await;
    ended(&process, SagaPhase::Compensated).await;
}
