//! What an operator is told while a saga's database is out, and what becomes of what they asked for once it is back, on the PostgreSQL that
//! `TEST_POSTGRES` names.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod link;
mod saga_world;
mod schema;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use libs::{
    journal::{Journal, Location},
    refusal::Refusal,
    saga::{Attempt, Definition, Options, TABLES, Transport, testing::Participants},
};
use link::Cut;
use proto::saga::v1::{Saga, SagaPhase};
use saga_world::{Charge, PATIENCE, Process, Reserve, World, becomes};
use schema::{Schema, When};
use sqlx::{AssertSqlSafe, Executor as _};
use tokio::{sync::watch, time::timeout};
use tonic::{Code, Status, metadata::MetadataMap};

/// For how long a caller waits for an answer.
const CALLER: Duration = Duration::from_secs(30);
const FULL: &str = "RAISE EXCEPTION 'no space left on device' USING ERRCODE = '53100'";

/// What a call takes effect for at once, and is answered when the gate is open.
struct Gated {
    participants: Participants,
    open: watch::Receiver<bool>,
}

impl Transport for Gated {
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Result<(Bytes, MetadataMap), Status>> {
        let (answer, mut open) = (self.participants.call(attempt), self.open.clone());
        Box::pin(async move {
            let answer = answer.await;
            open.wait_for(|open| *open).await.unwrap();
            answer
        })
    }
}

/// A process whose saga has reserved, and waits for the answer until the gate is open.
async fn waiting(schema: &Schema) -> (Process, watch::Sender<bool>) {
    waiting_at(Location::Postgres { url: schema.url.clone(), schema: schema.name.clone() }).await
}

/// The same, by this way to its database.
async fn waiting_at(location: Location) -> (Process, watch::Sender<bool>) {
    waiting_of(reserving(), location).await
}

/// reserve → charge
fn reserving() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.attempt_timeout(PATIENCE);
    saga.pivot::<Charge>("charge", |order, _| Ok(order.clone()));
    saga.build().unwrap()
}

/// The same, of a saga of this definition, itself or below.
async fn waiting_of(definition: Arc<Definition>, location: Location) -> (Process, watch::Sender<bool>) {
    let world = World::with(definition);
    let (gate, open) = watch::channel(false);
    let transport = Gated { participants: world.participants.clone(), open };
    let journal = Journal::open(location, TABLES).await.unwrap();
    let process = Process::on(journal, vec![Arc::clone(&world.definition)], transport, Options::default());
    process.coordinator.recover().await.unwrap();
    process.place("tea").await.unwrap();
    becomes("reserved", async || !world.participants.effects().is_empty()).await;
    (process, gate)
}

async fn run(schema: &Schema, sql: &str) {
    schema.connect().await.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
}

async fn pauses(process: &Process) -> Result<Saga, Refusal> {
    let answered = timeout(CALLER, process.coordinator.pause("tea", "ann", "the shop is closed")).await;
    answered.expect("who asks is answered")
}

/// How often an operator had a saga do this, as its history says.
fn told(saga: &Saga, what: &str) -> usize {
    saga.history.iter().filter(|entry| entry.what == what).count()
}

fn is_out(answer: Result<Saga, Refusal>) -> bool {
    answer.is_err_and(|refusal| (refusal.code, &*refusal.reason) == (Code::Unavailable, "DATABASE_UNAVAILABLE"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_database_does_not_take_is_as_if_nobody_had_asked() {
    let Some(schema) = Schema::new() else { return };
    let (process, gate) = waiting(&schema).await;
    schema.trouble(When::Written, 1_000_000, FULL).await;
    assert!(is_out(pauses(&process).await), "it takes no writes");
    run(&schema, "DROP TRIGGER trouble ON events").await;
    // It can't be read whose the saga is.
    run(&schema, "ALTER TABLE aggregates RENAME TO elsewhere").await;
    assert!(is_out(pauses(&process).await), "it can't be read");
    run(&schema, "ALTER TABLE elsewhere RENAME TO aggregates").await;

    // What goes on from here does so from the record as it was.
    let resumed = process.coordinator.resume("tea", "ann", "to see").await.unwrap();
    assert_eq!((resumed.paused, told(&resumed, "paused"), told(&resumed, "resumed")), (false, 0, 0));
    let paused = pauses(&process).await.unwrap();
    assert_eq!((paused.paused, told(&paused, "paused"), paused.version), (true, 1, resumed.version + 1));
    process.coordinator.resume("tea", "ann", "the shop is open").await.unwrap();
    gate.send_replace(true);
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Completed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_while_the_saga_waits_for_its_database_is_answered_and_nothing_comes_of_it_later() {
    let Some(schema) = Schema::new() else { return };
    let (process, gate) = waiting(&schema).await;
    schema.trouble(When::Written, 1_000_000, FULL).await;
    gate.send_replace(true);
    becomes("stored in vain", async || schema.written().await > 0).await;
    let written = schema.written().await;
    let left = timeout(Duration::from_millis(1), process.coordinator.retry("tea", "ann", "to see")).await;
    assert!(left.is_err(), "they leave");
    assert!(is_out(pauses(&process).await));
    assert!(schema.written().await > written, "its saga tries on");
    run(&schema, "DROP TRIGGER trouble ON events").await;

    let ended = process.finished("tea").await;
    assert_eq!((ended.phase(), told(&ended, "paused"), told(&ended, "retry asked")), (SagaPhase::Completed, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_answered_so_although_the_database_did_not_say_it() {
    let Some(schema) = Schema::new() else { return };
    let (linked, cut) = link::to(&schema).await;
    let (process, _gate) = waiting_at(linked).await;
    *cut.lock().unwrap() = Cut::After;
    let paused = pauses(&process).await.unwrap();
    assert_eq!((paused.paused, told(&paused, "paused")), (true, 1));
    assert_eq!(*cut.lock().unwrap(), Cut::Never, "its commit was not answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saga_below_that_could_not_be_told_to_turn_back_is_told_once_its_database_is_back() {
    let Some(schema) = Schema::new() else { return };
    let mut above = Definition::builder::<String>("place-order", 1);
    above.compensatable_saga::<String, ()>("book", &bookable(), |order, _| Ok(order.clone()));
    above.pivot::<Charge>("charge", |order, _| Ok(order.clone()));
    let location = Location::Postgres { url: schema.url.clone(), schema: schema.name.clone() };
    let (process, gate) = waiting_of(above.build().unwrap(), location).await;
    run(&schema, "CREATE SEQUENCE refused").await;
    let full = format!("IF NEW.id = 'tea:book' THEN PERFORM nextval('refused'); {FULL}; END IF");
    schema.trouble(When::Written, 1_000_000, &full).await;

    process.coordinator.cancel("tea", "ann", "changed my mind").await.unwrap();
    let is_refused = async || {
        let mut connection = schema.connect().await;
        sqlx::query_scalar("SELECT is_called FROM refused").fetch_one(&mut connection).await.unwrap()
    };
    becomes("refused", is_refused).await;
    run(&schema, "DROP TRIGGER trouble ON events").await;
    // It has an answer to wait for, and tells of nothing until that comes.
    process.until_phase("tea:book", SagaPhase::Compensating).await;
    gate.send_replace(true);
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Compensated);
}

/// reserve, and nothing else
fn bookable() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("book", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.attempt_timeout(PATIENCE);
    saga.build().unwrap()
}
