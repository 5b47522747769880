//! Several processes that share the sagas of one database, on the PostgreSQL that `TEST_POSTGRES` names.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod saga_world;

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use libs::{
    journal::{Journal, Member},
    rpc::verdict::Op,
    saga::{
        Attempt, Options, TABLES, Transport,
        testing::{Fault, Participants},
    },
};
use proto::saga::v1::SagaPhase;
use saga_world::{Process, World, place_order};
use tokio::{runtime::Runtime, sync::watch};
use tonic::{Status, metadata::MetadataMap};

/// What a call takes effect for at once, and is answered when the gate is open.
#[derive(Clone)]
struct Gated {
    participants: Participants,
    open: watch::Receiver<bool>,
}

impl Transport for Gated {
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Result<(Bytes, MetadataMap), Status>> {
        let answer = self.participants.call(attempt);
        let mut open = self.open.clone();
        Box::pin(async move {
            let answer = answer.await;
            open.wait_for(|open| *open).await.unwrap();
            answer
        })
    }
}

/// One more process on the world's database.
async fn process(world: &World, transport: impl Transport) -> Process {
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let process = Process::on(journal, vec![place_order()], transport, Options::default());
    process.coordinator.recover().await.unwrap();
    process
}

fn shares(process: &Process) {
    tokio::spawn(process.coordinator.clone().share());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_drives_what_it_started_and_whoever_asks_hears_of_the_end() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    let (one, two) =
        (process(&world, world.participants.clone()).await, process(&world, world.participants.clone()).await);
    shares(&one);
    shares(&two);
    for at in 0..20 {
        let (from, other) = if at % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let order = format!("tea-{at}");
        from.place(&order).await.unwrap();
        assert_eq!(other.coordinator.finished(&order).await.unwrap().phase(), SagaPhase::Completed);
        assert_eq!(world.participants.done_for(&order), ["reserve", "charge", "ship"]);
    }
    // Nobody did the other's work again.
    assert_eq!(world.participants.calls().len(), 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_may_ask_any_of_them() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    // The process that started it has charged, and waits for the answer.
    let (open, gate) = watch::channel(false);
    let one = process(&world, Gated { participants: world.participants.clone(), open: gate }).await;
    world.participants.on_call(|_| Fault::None);
    let two = process(&world, world.participants.clone()).await;
    one.place("tea").await.unwrap();
    let cancelled = two.coordinator.cancel("tea", "ada", "changed my mind").await.unwrap();
    assert_eq!(cancelled.phase(), SagaPhase::Compensating);
    let ended = two.coordinator.finished("tea").await.unwrap();
    assert_eq!(ended.phase(), SagaPhase::Compensated);
    assert_eq!(two.order("tea").await, "Rejected  CANCELLED");
    // The answer comes at last. What it would lead to is refused, and the one who had it lets go.
    open.send_replace(true);
    while one.coordinator.live() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(one.coordinator.finished("tea").await.unwrap().version, ended.version);
    assert_eq!(world.participants.done_for("tea"), ["reserve", "-reserve"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_leaves_is_taken_up_by_another() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    world.participants.on_call(|call| if call.step == "charge" { Fault::Hang } else { Fault::None });
    let killed = Runtime::new().unwrap();
    let orders: Vec<String> = (0..10).map(|at| format!("tea-{at}")).collect();
    let location = database::location(world.folder.path(), "order");
    let participants = world.participants.clone();
    let left = orders.clone();
    let running = killed.spawn(async move {
        let journal = Journal::open(location, TABLES).await.unwrap();
        let one = Process::on(journal, vec![place_order()], participants, Options::default());
        one.coordinator.recover().await.unwrap();
        shares(&one);
        for order in left {
            one.place(&order).await.unwrap();
            one.until(&order, |saga| saga.steps.iter().any(|step| step.name == "charge" && step.attempts > 0)).await;
        }
    });
    running.await.unwrap();
    // As SIGKILL leaves it.
    killed.shutdown_background();

    let two = process(&world, world.participants.clone()).await;
    assert_eq!(two.coordinator.live(), 0, "its owner counts as there for a while");
    world.participants.on_call(|_| Fault::None);
    shares(&two);
    let begin = tokio::time::Instant::now();
    for order in &orders {
        assert_eq!(two.coordinator.finished(order).await.unwrap().phase(), SagaPhase::Completed);
        assert_eq!(world.participants.done_for(order), ["reserve", "charge", "ship"]);
    }
    assert!(begin.elapsed() > Member::BEAT, "not before the lease was over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_taken_for_dead_and_goes_on_changes_nothing() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    let (open, gate) = watch::channel(false);
    // It never says that it is there: stopped, as far as the others can tell.
    let stopped = process(&world, Gated { participants: world.participants.clone(), open: gate }).await;
    stopped.place("tea").await.unwrap();
    world.participants.on_call(|call| {
        // Its successor turns the saga back.
        let no = libs::refusal::Refusal::precondition("NO", "sold out");
        if call.step == "charge" { Fault::Reject(no) } else { Fault::None }
    });
    let two = process(&world, world.participants.clone()).await;
    shares(&two);
    let ended = two.coordinator.finished("tea").await.unwrap();
    assert_eq!(ended.phase(), SagaPhase::Compensated);
    let calls = world.participants.calls().len();
    open.send_replace(true);
    while stopped.coordinator.live() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let known = stopped.coordinator.finished("tea").await.unwrap();
    assert_eq!((known.phase(), known.version), (ended.phase(), ended.version));
    assert_eq!(world.participants.done_for("tea"), ["reserve", "-reserve"]);
    assert_eq!(world.participants.calls().len(), calls, "and it calls nobody");
    let undone = world.participants.effects().iter().filter(|effect| effect.op == Op::Compensation).count();
    assert_eq!(undone, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shuts_down_is_not_waited_for() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    world.participants.on_call(|call| if call.step == "charge" { Fault::Hang } else { Fault::None });
    let (one, two) =
        (process(&world, world.participants.clone()).await, process(&world, world.participants.clone()).await);
    shares(&one);
    one.place("tea").await.unwrap();
    one.until("tea", |saga| saga.steps.iter().any(|step| step.name == "charge" && step.attempts > 0)).await;
    world.participants.on_call(|_| Fault::None);
    one.coordinator.drain(Duration::from_millis(50)).await;
    one.crash().await;
    shares(&two);
    let begin = tokio::time::Instant::now();
    assert_eq!(two.coordinator.finished("tea").await.unwrap().phase(), SagaPhase::Completed);
    assert!(begin.elapsed() < Member::LEASE - Member::BEAT, "the lease was given up");
}
