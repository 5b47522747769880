//! What becomes of sagas whose process reads at a standby that lags, and writes at the primary. Runs where `TEST_POSTGRES_BIN` names the
//! server's programs.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod lines;
mod saga_world;
#[allow(dead_code, reason = "not all of it is needed here")]
mod standby;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use libs::{
    journal::{Journal, Location},
    rpc::verdict::Op,
    saga::{Definition, Options, Retry, TABLES, testing::Fault},
};
use lines::Lines;
use proto::saga::v1::SagaPhase;
use saga_world::{Charge, Process, Reserve, Ship, World, becomes, pay, shares};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use standby::{Pair, session, strand, until};
use tonic::Code;

/// How many sessions of a journal read.
const READERS: usize = 4;

/// A process whose database is at whichever of a pair is reached.
async fn process(world: &World, pair: &Pair) -> Process {
    let process = opened(world, pair).await;
    process.coordinator.recover().await.unwrap();
    process
}

/// The same, before it has a part in the sagas.
async fn opened(world: &World, pair: &Pair) -> Process {
    let location = Location::Postgres { url: pair.url(), schema: "test".to_owned() };
    let journal = Journal::open(location, TABLES).await.unwrap();
    Process::on(journal, vec![Arc::clone(&world.definition)], world.participants.clone(), Options::default())
}

/// Has all that reads for a process do so at the standby, which replays no more. Whoever reaches for a server is led to that one yet.
async fn reads_at_standby(pair: &Pair, process: &Process, primary: &mut PgConnection) {
    let (mut standby, mut gate) = (session(pair.standby).await, session(pair.standby).await);
    let end: String =
        sqlx::query_scalar("SELECT pg_current_wal_flush_lsn()::text").fetch_one(&mut *primary).await.unwrap();
    until(&mut standby, &format!("pg_last_wal_replay_lsn() >= '{end}'")).await;
    standby.execute("SELECT pg_wal_replay_pause()").await.unwrap();
    until(&mut standby, "pg_get_wal_replay_pause_state() = 'paused'").await;
    strand(pair, primary).await;
    // All at once, or one would read for all.
    gate.execute("SELECT pg_advisory_lock(7)").await.unwrap();
    let read = "SELECT (pg_advisory_xact_lock_shared(7) IS NULL)::int::int8, pg_is_in_recovery()::int::int8";
    let reads = join_all((0..READERS).map(|_| process.journal.reader().fetch(read, Vec::new())));
    let opens = async {
        let all = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        until(&mut standby, &format!("({all}) = {READERS}")).await;
        gate.execute("SELECT pg_advisory_unlock(7)").await.unwrap();
    };
    let (read, ()) = tokio::join!(reads, opens);
    assert!(read.into_iter().all(|read| read.unwrap()[0].int(1).unwrap() == 1), "all at the standby");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_whose_saga_a_standby_has_yet_to_replay_is_waited_for() {
    let Some(pair) = Pair::start().await else { return };
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot_saga::<String, ()>("pay", &pay(), |order, _| Ok(order.clone()));
    let world = World::with(saga.build().unwrap());
    let (process, mut primary) = (process(&world, &pair).await, session(pair.primary).await);
    reads_at_standby(&pair, &process, &mut primary).await;
    pair.lead_to(pair.primary);
    process.place("rome").await.unwrap();
    assert_eq!(process.finished("rome").await.phase(), SagaPhase::Completed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saga_that_a_standby_has_yet_to_replay_is_not_unknown() {
    let Some(pair) = Pair::start().await else { return };
    let world = World::new();
    let (process, mut primary) = (process(&world, &pair).await, session(pair.primary).await);
    reads_at_standby(&pair, &process, &mut primary).await;
    pair.lead_to(pair.primary);
    process.place("tea").await.unwrap();
    // Its task tells of the end once, and then what is stored.
    for _ in 0..2 {
        assert_eq!(process.finished("tea").await.phase(), SagaPhase::Completed);
    }
    let refused = process.coordinator.cancel("tea", "ann", "changed my mind").await.expect_err("it has ended");
    assert_eq!(refused.reason, "SAGA_CLOSED");
    assert_eq!(process.coordinator.finished("milk").await.unwrap_err().reason, "UNKNOWN_SAGA");
}

/// What it has called since would count as never called.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saga_is_not_taken_up_from_where_a_standby_has_it_that_lags() {
    let Some(pair) = Pair::start().await else { return };
    let is_broken = Arc::new(AtomicBool::new(true));
    let broken = Arc::clone(&is_broken);
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.compensatable::<Charge>("charge", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.pivot::<Ship>("ship", move |order, _| {
        assert!(!broken.load(Ordering::Relaxed), "it is yet to be mended");
        Ok(order.clone())
    });
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|_| Fault::LoseRequest);
    let (process, mut primary) = (process(&world, &pair).await, session(pair.primary).await);
    process.place("tea").await.unwrap();
    reads_at_standby(&pair, &process, &mut primary).await;
    pair.lead_to(pair.primary);
    // It goes on, and comes to where it can't.
    world.participants.on_call(|_| Fault::None);
    let is_parked = async || process.coordinator.finished("tea").await.is_err_and(|why| why.reason == "SAGA_PARKED");
    becomes("parked", is_parked).await;
    is_broken.store(false, Ordering::Relaxed);

    // As long as there is nobody else to be asked it stays as it is.
    pair.lead_to(pair.standby);
    let refused = process.coordinator.retry("tea", "ann", "it is mended").await.expect_err("only a standby is reached");
    assert_eq!(refused.code, Code::Unavailable, "{refused:?}");
    pair.lead_to(pair.primary);
    process.coordinator.retry("tea", "ann", "it is mended").await.unwrap();
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Completed);
    let told = "SELECT version FROM test.events WHERE kind = 'saga' AND id = 'tea' ORDER BY position";
    let told: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(told)).fetch_all(&mut primary).await.unwrap();
    assert_eq!(told, (1..=told.len() as i64).collect::<Vec<_>>(), "it goes on from the last");
}

/// The standby has yet to replay that another process took the saga over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_settles_is_not_called_any_more_by_who_reads_at_a_standby_that_lags() {
    let Some(pair) = Pair::start().await else { return };
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Charge>("pay", |order, _| Ok(order.clone()));
    saga.retriable::<Ship>("send", |order, _| Ok(order.clone()));
    // Its next call is due when all this is done.
    let wait = Duration::from_secs(5);
    let retry = Retry { initial: wait, most: wait, jitter: 0.0, ..Retry::default() };
    saga.attempt_timeout(Duration::from_millis(50)).retry(retry);
    let world = World::with(saga.build().unwrap());
    world.participants.on_call(|call| if call.step == "send" { Fault::LoseRequest } else { Fault::None });
    let (one, mut primary) = (process(&world, &pair).await, session(pair.primary).await);
    one.place("tea").await.unwrap();
    one.until("tea", |saga| !saga.steps[1].last_error.is_empty()).await;
    reads_at_standby(&pair, &one, &mut primary).await;
    pair.lead_to(pair.primary);
    let two = process(&world, &pair).await;
    two.coordinator.pause("tea", "ann", "the post office is closed").await.unwrap();
    two.settle("tea", "send", Op::Action, true).await.unwrap();
    let sends = || world.participants.calls().iter().filter(|call| call.call.step == "send").count();
    let made = sends();
    becomes("without a saga", async || one.coordinator.live() == 0).await;
    assert_eq!(sends(), made, "it was sent by hand");
}

/// There the last word of all processes is as old as what was replayed last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_at_a_standby_that_lags_takes_nobody_for_gone() {
    let Some(pair) = Pair::start().await else { return };
    let world = World::new();
    world.participants.on_call(|_| Fault::LoseRequest);
    let (one, two) = (process(&world, &pair).await, opened(&world, &pair).await);
    one.place("tea").await.unwrap();
    let mut primary = session(pair.primary).await;
    let seen_for = async |primary: &mut PgConnection, seconds: u32| {
        let now = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        let sql = format!("UPDATE test.members SET seen_until = {now} + {seconds} * 1000000");
        primary.execute(AssertSqlSafe(sql)).await.unwrap();
    };
    seen_for(&mut primary, 0).await;
    reads_at_standby(&pair, &two, &mut primary).await;
    pair.lead_to(pair.primary);
    seen_for(&mut primary, 15).await;
    assert_eq!(two.coordinator.recover().await.unwrap(), 0, "its owner is there");
    assert_eq!(one.coordinator.live(), 1);
}

#[tokio::test]
async fn who_is_heard_by_the_others_and_reads_at_a_standby_does_not_say_that_it_is_not() {
    let Some(pair) = Pair::start().await else { return };
    let (lines, _keeping) = Lines::keep();
    let world = World::new();
    let (process, mut primary) = (process(&world, &pair).await, session(pair.primary).await);
    reads_at_standby(&pair, &process, &mut primary).await;
    // Who writes has a session with the primary, and who reads comes to none.
    pair.lead_to(pair.primary);
    process.place("tea").await.unwrap();
    process.finished("tea").await;
    pair.lead_to(pair.standby);
    let begun = "SELECT MAX(seen_until) FROM test.members";
    let begun: i64 = sqlx::query_scalar(begun).fetch_one(&mut primary).await.unwrap();
    shares(&process);
    becomes("told of", async || !lines.that_say("the server is a standby").is_empty()).await;
    until(&mut primary, &format!("MAX(seen_until) > {begun} FROM test.members")).await;
    assert_eq!(lines.that_say("nor to them"), Vec::<String>::new());
}
