//! What becomes of sagas where a server takes over that had not come as far, on the PostgreSQL that `TEST_POSTGRES` names.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod saga_processes;
mod saga_world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use libs::{
    cqrs::Decision,
    journal::{AggregateId, Journal, Location},
    refusal::Refusal,
    saga::{Coordinator, Definition, LocalWork, Options, TABLES, testing::Fault},
};
use proto::saga::v1::{Saga, SagaPhase, StepState};
use saga_processes::{leaves, only, process};
use saga_world::{Process, Reserve, Ship, World, becomes, buy, shares};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

/// A session of one's own where the world's sagas are. None without a server.
async fn server(world: &World) -> Option<PgConnection> {
    let Location::Postgres { url, schema } = database::location(world.folder.path(), "order") else {
        database::has_server();
        return None;
    };
    let mut server = PgConnection::connect(&url).await.unwrap();
    server.execute(AssertSqlSafe(format!("SET search_path = {schema}"))).await.unwrap();
    Some(server)
}

/// Keeps the sagas and whose they are, as of now.
async fn keep(server: &mut PgConnection) {
    let sql = "BEGIN ISOLATION LEVEL REPEATABLE READ;
        CREATE TABLE kept_sagas AS SELECT * FROM sagas;
        CREATE TABLE kept_aggregates AS SELECT * FROM aggregates;
        CREATE TABLE kept_head AS SELECT MAX(position) AS position FROM events;
        COMMIT";
    server.execute(sql).await.unwrap();
}

/// Loses all that came since, as with a failover to a server that had not come so far: between two batches, not in the midst of one.
async fn lose(server: &mut PgConnection) {
    let sql = "BEGIN;
        SELECT pg_advisory_xact_lock(hashtextextended('trellis/' || current_schema() || '/journal', 0));
        DELETE FROM sagas;
        INSERT INTO sagas SELECT * FROM kept_sagas;
        DELETE FROM aggregates;
        INSERT INTO aggregates SELECT * FROM kept_aggregates;
        DELETE FROM events WHERE position > (SELECT position FROM kept_head);
        DROP TABLE kept_sagas, kept_aggregates, kept_head;
        COMMIT";
    server.execute(sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_database_has_lost_of_a_saga_is_driven_once_more_by_its_owner() {
    let world = World::new();
    let Some(mut server) = server(&world).await else { return };
    only(&world.participants, &[]);
    let (one, two) = (process(&world, 100).await, process(&world, 100).await);
    // Or one would have what the other has, once that seems gone.
    shares(&one);
    shares(&two);
    let is_charging = |saga: &Saga| saga.steps.iter().any(|step| step.name == "charge" && step.attempts > 0);
    for order in ["tea", "rum"] {
        one.place(order).await.unwrap();
        one.until(order, is_charging).await;
    }
    keep(&mut server).await;
    // The one ends, and another process has the other.
    only(&world.participants, &["tea"]);
    assert_eq!(one.finished("tea").await.phase(), SagaPhase::Completed);
    two.coordinator.pause("rum", "ann", "it comes here").await.unwrap();
    becomes("let go", async || one.coordinator.live() == 0).await;
    lose(&mut server).await;
    becomes("let go", async || two.coordinator.live() == 0).await;

    only(&world.participants, &["tea", "rum"]);
    for order in ["tea", "rum"] {
        assert_eq!(one.finished(order).await.phase(), SagaPhase::Completed);
        assert_eq!(one.order(order).await, "Completed");
        assert_eq!(world.participants.done_for(order), ["reserve", "charge", "ship"]);
    }
    becomes("done", async || (one.coordinator.live(), two.coordinator.live()) == (0, 0)).await;
}

/// What others have done since stands. Only what was told of it is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_of_a_saga_under_way_is_told_again_as_it_goes_on() {
    let world = World::new();
    let Some(mut server) = server(&world).await else { return };
    only(&world.participants, &[]);
    let one = process(&world, 100).await;
    one.place("tea").await.unwrap();
    let is_at = |saga: &Saga, step: usize| saga.steps.get(step).is_some_and(|step| step.attempts > 0);
    one.until("tea", |saga| is_at(saga, 1)).await;
    keep(&mut server).await;
    world.participants.on_call(|call| if call.step == "ship" { Fault::LoseRequest } else { Fault::None });
    one.until("tea", |saga| is_at(saga, 2)).await;
    lose(&mut server).await;

    only(&world.participants, &["tea"]);
    assert_eq!(one.finished("tea").await.phase(), SagaPhase::Completed);
    let told = one.until_phase("tea", SagaPhase::Completed).await;
    assert!(told.steps.iter().all(|step| step.state() == StepState::Done), "{told:?}");
    assert_eq!(world.participants.done_for("tea"), ["reserve", "charge", "ship"]);
    assert_eq!(one.journal.losses().count(), 1);
}

/// It is told with what is committed next: not while own work is refused, which writes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_of_a_saga_whose_own_work_waits_is_told_again_once_that_is_done() {
    let (full, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let desk = (Arc::clone(&full), Arc::clone(&asked));
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.retriable_local("file", move |_, _| {
        let (full, asked) = desk.clone();
        Ok(LocalWork::new(Vec::new(), move |_| {
            asked.fetch_add(1, Ordering::Relaxed);
            let refusal = Refusal::exhausted("DESK_FULL", "the desk is full", Duration::from_millis(1));
            if full.load(Ordering::Relaxed) { Err(refusal) } else { Ok(Decision::reply(())) }
        }))
    });
    let world = World::with(saga.build().unwrap());
    let Some(mut server) = server(&world).await else { return };
    world.participants.on_call(|_| Fault::LoseRequest);
    let one = process(&world, 100).await;
    one.place("tea").await.unwrap();
    one.until("tea", |saga| saga.steps.first().is_some_and(|step| step.attempts > 0)).await;
    keep(&mut server).await;
    world.participants.on_call(|_| Fault::None);
    one.until("tea", |saga| saga.steps.get(1).is_some_and(|step| !step.last_error.is_empty())).await;
    lose(&mut server).await;
    // Once the loss is found, and once it is known.
    let before = asked.load(Ordering::Relaxed);
    becomes("asked for again", async || asked.load(Ordering::Relaxed) >= before + 3).await;
    full.store(false, Ordering::Relaxed);
    assert_eq!(one.finished("tea").await.phase(), SagaPhase::Completed);
    let told = one.until_phase("tea", SagaPhase::Completed).await;
    assert!(told.steps.iter().all(|step| step.state() == StepState::Done), "{told:?}");
}

/// It waits to be the first, and has nothing to commit meanwhile that would tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_in_a_queue_that_has_lost_it_stands_at_its_end_once_more() {
    let world = World::with(buy());
    let Some(mut server) = server(&world).await else { return };
    world.participants.on_call(|call| if call.saga_id == "ada-1" { Fault::LoseRequest } else { Fault::None });
    let clock = Arc::new(AtomicI64::new(1_700_000_000_000_000));
    let shown = Arc::clone(&clock);
    let shown = Arc::new(move || shown.load(Ordering::Relaxed));
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let (definitions, transport) = (vec![Arc::clone(&world.definition)], world.participants.clone());
    let coordinator = Coordinator::with_clock(journal.clone(), definitions, transport, Options::default(), shown);
    let process = Process { journal, coordinator: coordinator.unwrap() };
    process.coordinator.recover().await.unwrap();
    shares(&process);
    process.place("ada-1").await.unwrap();
    process.until("ada-1", |saga| saga.phase() == SagaPhase::Forward).await;
    let hour = clock.load(Ordering::Relaxed) + 3_600_000_000;
    process.try_place_at("ada-2", "ada-2", hour).await.unwrap();

    keep(&mut server).await;
    clock.store(hour, Ordering::Relaxed);
    // Who has mail looks at the clock.
    let coordinator = process.coordinator.clone();
    let second = tokio::spawn(async move { coordinator.finished("ada-2").await });
    process.until("ada-2", |saga| saga.waits_for_saga_id == "ada-1").await;
    let is_queued = async || {
        let queue = process.journal.aggregate(&AggregateId::new("saga_lock", "ada")).await.unwrap();
        String::from_utf8_lossy(&queue.state).contains("ada-2")
    };
    assert!(is_queued().await);
    lose(&mut server).await;
    becomes("in its queue again", is_queued).await;

    world.participants.on_call(|_| Fault::None);
    process.coordinator.retry("ada-1", "ann", "inventory is back").await.unwrap();
    for order in ["ada-1", "ada-2"] {
        assert_eq!(process.finished(order).await.phase(), SagaPhase::Completed);
    }
    assert_eq!(second.await.unwrap().unwrap().phase(), SagaPhase::Completed);
}

/// A trip, of which a step is a saga that books.
fn trip() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("book", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    let book = saga.build().unwrap();
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable_saga::<String, ()>("book", &book, |order, _| Ok(order.clone()));
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.build().unwrap()
}

/// Has what is below told that it is done, and loses that. `above` drives the one above, which is paused, and `below` what is below.
async fn lose_what_is_told(world: &World, server: &mut PgConnection, above: &Process, below: &Process) {
    keep(server).await;
    world.participants.on_call(|_| Fault::None);
    below.until("rome:book", |saga| saga.history.iter().any(|line| line.what == "done, waits for its parent")).await;
    lose(server).await;
    above.coordinator.resume("rome", "ann", "it is here").await.unwrap();
    assert_eq!(above.finished("rome").await.phase(), SagaPhase::Completed);
    // What is shown of it is all there, too.
    let below = below.until_phase("rome:book", SagaPhase::Completed).await;
    assert_eq!((below.steps[0].state(), below.steps[0].attempts > 0), (StepState::Done, true));
    assert_eq!(world.participants.done_for("rome:book"), ["reserve"]);
}

/// What is below stays open when it is done, and has nothing to commit then that would tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_whose_saga_has_told_what_is_lost_is_done_all_the_same() {
    let world = World::with(trip());
    let Some(mut server) = server(&world).await else { return };
    world.participants.on_call(|_| Fault::LoseRequest);
    let one = process(&world, 100).await;
    one.place("rome").await.unwrap();
    one.until_phase("rome:book", SagaPhase::Forward).await;
    // Whoever takes it up asks below only once it goes on.
    one.coordinator.pause("rome", "ann", "it goes elsewhere").await.unwrap();
    leaves(one).await;
    let two = process(&world, 100).await;
    shares(&two);
    lose_what_is_told(&world, &mut server, &two, &two).await;
}

/// Whoever drives the one above can ask only the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_whose_saga_has_told_what_is_lost_in_another_process_is_done_all_the_same() {
    let world = World::with(trip());
    let Some(mut server) = server(&world).await else { return };
    world.participants.on_call(|_| Fault::LoseRequest);
    let (one, two) = (process(&world, 100).await, process(&world, 100).await);
    shares(&one);
    shares(&two);
    one.place("rome").await.unwrap();
    one.until_phase("rome:book", SagaPhase::Forward).await;
    two.coordinator.pause("rome", "ann", "it comes here").await.unwrap();
    becomes("let go", async || one.coordinator.live() == 1).await;
    lose_what_is_told(&world, &mut server, &two, &one).await;
}
