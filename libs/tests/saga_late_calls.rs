//! What becomes of a call that could leave late, where several processes share a database, on the PostgreSQL that `TEST_POSTGRES` names.
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
    rpc::verdict::Op,
    saga::{Attempt, Coordinator, Definition, Operation as _, Options, TABLES, Transport, testing::Participants},
};
use link::Cut;
use proto::saga::v1::SagaPhase;
use saga_world::{Charge, PATIENCE, Process, Ship, World, becomes};
use schema::Schema;
use tokio::sync::{oneshot, watch};
use tonic::{Status, metadata::MetadataMap};

/// What is to be shipped is called for once there is a connection, whoever looks after the call, unless that was given up: as by HTTP/2,
/// where a connection has no stream left.
struct Connecting {
    participants: Participants,
    connected: watch::Receiver<bool>,
}

impl Transport for Connecting {
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Result<(Bytes, MetadataMap), Status>> {
        if attempt.path != Ship::PATH {
            return self.participants.call(attempt);
        }
        let (participants, mut connected) = (self.participants.clone(), self.connected.clone());
        let (mut answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let is_connected = async { connected.wait_for(|connected| *connected).await.map(drop) };
            let is_called = tokio::select! {
                biased;
                () = answer.closed() => false,
                is_connected = is_connected => is_connected.is_ok(),
            };
            if is_called {
                let _ = answer.send(participants.call(attempt).await);
            }
        });
        Box::pin(async move { answered.await.unwrap() })
    }
}

async fn process(world: &World, location: Location, transport: impl Transport) -> Process {
    let journal = Journal::open(location, TABLES).await.unwrap();
    let process = Process::on(journal, vec![Arc::clone(&world.definition)], transport, Options::default());
    process.coordinator.recover().await.unwrap();
    process
}

/// It waits for a connection when the way to the database is cut, and nobody looks after it for as long as its saga is to be stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_settles_elsewhere_is_not_called_once_there_is_a_connection() {
    let Some(schema) = Schema::new() else { return };
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Charge>("pay", |order, _| Ok(order.clone()));
    saga.retriable::<Ship>("send", |order, _| Ok(order.clone()));
    saga.attempt_timeout(Duration::from_secs(1));
    let world = World::with(saga.build().unwrap());
    let (linked, cut) = link::to(&schema).await;
    let (connect, connected) = watch::channel(false);
    let transport = Connecting { participants: world.participants.clone(), connected };
    let one = process(&world, linked, transport).await;
    one.place("tea").await.unwrap();
    becomes("waiting", async || connect.receiver_count() == 2).await;
    *cut.lock().unwrap() = Cut::Silent("BEGIN");
    let coordinator = one.coordinator.clone();
    tokio::spawn(async move { coordinator.pause("tea", "ann", "the post office is closed").await });
    becomes("cut", async || *cut.lock().unwrap() == Cut::Never).await;

    let location = Location::Postgres { url: schema.url.clone(), schema: schema.name.clone() };
    let two = process(&world, location, world.participants.clone()).await;
    two.coordinator.pause("tea", "ann", "the post office is closed").await.unwrap();
    two.settle("tea", "send", Op::Action, true).await.unwrap();
    connect.send_replace(true);
    becomes("without a call", async || connect.receiver_count() == 1).await;
    assert_eq!(world.participants.done_for("tea"), ["pay"], "it was sent by hand");
}

/// Its clock is put back by as long as the call waits for its turn: by that one no time has passed since the saga was its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_settles_elsewhere_is_not_called_once_there_is_a_turn() {
    let Some(schema) = Schema::new() else { return };
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Charge>("pay", |order, _| Ok(order.clone()));
    saga.attempt_timeout(Duration::from_millis(300));
    saga.retriable::<Ship>("send", |order, _| Ok(order.clone()));
    saga.attempt_timeout(PATIENCE);
    let world = World::with(saga.build().unwrap());
    let location = Location::Postgres { url: schema.url.clone(), schema: schema.name.clone() };
    let (connect, connected) = watch::channel(false);
    let transport = Connecting { participants: world.participants.clone(), connected };
    let journal = Journal::open(&location, TABLES).await.unwrap();
    let (options, clock) = (Options { most_calls: 1, ..Options::default() }, Arc::new(|| 1_700_000_000_000_000));
    let definitions = vec![Arc::clone(&world.definition)];
    let coordinator = Coordinator::with_clock(journal.clone(), definitions, transport, options, clock).unwrap();
    let one = Process { journal, coordinator };
    one.coordinator.recover().await.unwrap();
    one.place("rum").await.unwrap();
    becomes("the only one that is called", async || connect.receiver_count() == 2).await;
    one.place("tea").await.unwrap();

    let two = process(&world, location, world.participants.clone()).await;
    two.coordinator.pause("tea", "ann", "the bank is closed").await.unwrap();
    two.settle("tea", "pay", Op::Action, true).await.unwrap();
    connect.send_replace(true);
    assert_eq!(one.finished("rum").await.phase(), SagaPhase::Completed);
    becomes("without a saga", async || one.coordinator.live() == 0).await;
    assert_eq!(world.participants.done_for("tea"), Vec::<String>::new(), "it was paid in cash");
}
