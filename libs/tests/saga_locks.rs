//! Sagas that lock the same business keys: one after the other, whatever their types, through crashes and takeovers.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod saga_world;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use libs::{
    cqrs::Decision,
    journal::{Aggregate, Cause, Decided, Entry, Journal, Loaded},
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{Coordinator, Definition, LocalWork, Options, TABLES, testing::Fault},
};
use parking_lot::Mutex;
use proto::saga::v1::{Saga, SagaPhase};
use saga_world::{Charge, Process, Reserve, Ship, World, local};
use tonic::Code;

/// A saga whose input names what it locks: "customer/ada sku/tea".
fn locking(name: &'static str, refuse: bool) -> Arc<Definition> {
    let mut saga = Definition::builder::<String>(name, 1);
    let keys = |input: &String| input.split(' ').filter(|key| key.contains('/')).map(str::to_owned).collect::<Vec<_>>();
    if refuse {
        saga.lock_or_refuse(keys)
    } else {
        saga.lock(keys)
    }
    // What hangs does so until it is told to go on, and is not called again meanwhile.
    let hour = Duration::from_secs(3600);
    saga.compensatable::<Reserve>("reserve", |it, _| Ok(it.clone()), |undo| undo.request);
    saga.attempt_timeout(hour);
    saga.pivot::<Ship>("ship", |it, _| Ok(it.clone()));
    saga.attempt_timeout(hour);
    saga.on_compensated(|it, reason| Ok(local(&reason.reason, it)));
    saga.build().unwrap()
}

/// Another type that locks the same keys.
fn other() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("close-account", 1);
    saga.lock(|input: &String| vec![input.clone()]);
    saga.pivot::<Charge>("close", |it, _| Ok(it.clone()));
    saga.build().unwrap()
}

fn definitions() -> Vec<Arc<Definition>> {
    vec![locking("patient", false), locking("impatient", true), other()]
}

async fn open(world: &World) -> Process {
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let process = Process::on(journal, definitions(), world.participants.clone(), Options::default());
    process.coordinator.recover().await.unwrap();
    process
}

/// Starts a saga in a decision that sees its locks, or in one that doesn't.
async fn start(process: &Process, saga_type: &'static str, id: &str, input: &str, sees: bool) -> Result<(), Refusal> {
    let coordinator: Coordinator = process.coordinator.clone();
    let (id, input) = (id.to_owned(), input.to_owned());
    let aggregates = if sees { coordinator.locks(saga_type, &input)? } else { Vec::new() };
    let refused = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&refused);
    let decide = move |loaded: &Loaded<'_>| {
        coordinator.start(saga_type, &id, &input, loaded).unwrap_or_else(|refusal| {
            *slot.lock() = Some(refusal);
            Decided { rejected: true, ..Decided::default() }
        })
    };
    let entry = Entry { request: None, aggregates, cause: Cause::default(), decide: Box::new(decide), size: 100 };
    process.journal.submit(entry).await.unwrap();
    let refused = refused.lock().take();
    refused.map_or(Ok(()), Err)
}

async fn ended(process: &Process, id: &str) -> Saga {
    process.finished(id).await
}

/// Lets the actions of one saga wait until it is told to go on.
fn hang(world: &World, hanging: &'static str) {
    world
        .participants
        .on_call(move |call| if call.saga_id == hanging && call.op == Op::Action { Fault::Hang } else { Fault::None });
}

async fn let_go(world: &World, process: &Process, id: &str) {
    process.coordinator.cancel(id, "ann", "enough").await.unwrap();
    world.participants.on_call(|_| Fault::None);
}

async fn waits(process: &Process, id: &str) -> Saga {
    process.until(id, |saga| !saga.waits_for_saga_id.is_empty()).await
}

fn sagas_called(world: &World) -> Vec<String> {
    let mut called: Vec<String> = world.participants.calls().into_iter().map(|call| call.call.saga_id).collect();
    called.dedup();
    called
}

#[tokio::test]
async fn of_two_sagas_that_name_a_key_the_second_waits_for_the_end_of_the_first() {
    for sees in [true, false] {
        let world = World::new();
        hang(&world, "one");
        let process = open(&world).await;
        start(&process, "patient", "one", "customer/ada", sees).await.unwrap();
        process.until("one", |saga| saga.phase() == SagaPhase::Forward).await;
        // Another type, the same key; and one that has nothing to do with it.
        start(&process, "close-account", "two", "customer/ada", sees).await.unwrap();
        start(&process, "patient", "else", "customer/bob", sees).await.unwrap();
        assert_eq!(ended(&process, "else").await.phase(), SagaPhase::Completed);
        let two = waits(&process, "two").await;
        assert_eq!((two.phase(), two.waits_for_saga_id.as_str()), (SagaPhase::Scheduled, "one"));
        assert_eq!(two.lock_keys, ["customer/ada"]);
        assert!(!sagas_called(&world).contains(&"two".to_owned()), "it calls nobody while it waits");
        let_go(&world, &process, "one").await;
        assert_eq!(ended(&process, "one").await.phase(), SagaPhase::Compensated);
        let two = ended(&process, "two").await;
        assert_eq!((two.phase(), two.waits_for_saga_id.as_str()), (SagaPhase::Completed, ""));
        assert_eq!(sagas_called(&world).last().unwrap(), "two");
    }
}

#[tokio::test]
async fn who_asks_first_is_first() {
    let world = World::new();
    hang(&world, "s-0");
    let process = open(&world).await;
    start(&process, "patient", "s-0", "customer/ada", true).await.unwrap();
    let ids = ["s-1", "s-2", "s-3", "s-4", "s-5", "s-6"];
    for (at, id) in ids.into_iter().enumerate() {
        start(&process, "patient", id, "customer/ada", at % 2 == 0).await.unwrap();
        waits(&process, id).await;
    }
    // One of those that wait may leave.
    process.coordinator.cancel("s-3", "ann", "changed my mind").await.unwrap();
    assert_eq!(ended(&process, "s-3").await.phase(), SagaPhase::Compensated);
    let_go(&world, &process, "s-0").await;
    for id in ["s-1", "s-2", "s-4", "s-5", "s-6"] {
        assert_eq!(ended(&process, id).await.phase(), SagaPhase::Completed);
    }
    assert_eq!(sagas_called(&world), ["s-0", "s-1", "s-2", "s-4", "s-5", "s-6"]);
}

#[tokio::test]
async fn sagas_with_several_keys_in_any_order_never_wait_in_a_circle() {
    let world = World::new();
    let process = open(&world).await;
    let inputs = ["k/a k/b", "k/b k/c", "k/c k/a", "k/b", "k/c k/b k/a", "k/a"];
    let ids: Vec<String> = (0..60).map(|at| format!("s-{at}")).collect();
    let starts = ids.iter().enumerate().map(|(at, id)| start(&process, "patient", id, inputs[at % 6], at % 7 < 3));
    futures::future::try_join_all(starts).await.unwrap();
    for id in &ids {
        assert_eq!(ended(&process, id).await.phase(), SagaPhase::Completed);
    }
    // No call of one came between the two calls of another that shares a key.
    let calls = world.participants.calls();
    for (at, call) in calls.iter().enumerate().filter(|(_, call)| call.call.step == "reserve") {
        let ships = |later: &&libs::saga::testing::Call| later.call.saga_id != call.call.saga_id;
        let between: Vec<_> = calls[at + 1..].iter().take_while(ships).collect();
        let keys = |call: &libs::saga::testing::Call| String::from_utf8_lossy(&call.message).into_owned();
        for other in between {
            let shared = inputs
                .iter()
                .any(|_| keys(call).split('/').skip(1).any(|key| keys(other).contains(&format!("/{}", &key[..1]))));
            assert!(!shared, "{} ran into {}", other.call.saga_id, call.call.saga_id);
        }
    }
}

#[tokio::test]
async fn who_would_rather_not_wait_is_refused_and_told_who_holds_the_key() {
    let world = World::new();
    hang(&world, "one");
    let process = open(&world).await;
    start(&process, "impatient", "one", "customer/ada", true).await.unwrap();
    let refusal = start(&process, "impatient", "two", "sku/tea customer/ada", true).await.unwrap_err();
    assert_eq!((refusal.code, &*refusal.reason), (Code::Aborted, "SAGA_LOCKED"));
    assert_eq!((refusal.metadata["holder"].as_str(), refusal.metadata["key"].as_str()), ("one", "customer/ada"));
    assert!(refusal.retry_after.is_some());
    assert_eq!(process.coordinator.finished("two").await.unwrap_err().reason, "UNKNOWN_SAGA");
    // Where the decision doesn't see the locks, the saga comes to nothing, and its own service hears why.
    start(&process, "impatient", "three", "customer/ada", false).await.unwrap();
    let three = ended(&process, "three").await;
    assert_eq!((three.phase(), three.reason.unwrap().reason.as_str()), (SagaPhase::Compensated, "SAGA_LOCKED"));
    assert_eq!(process.order("customer/ada").await, "SAGA_LOCKED");
    // None of them has left anything locked.
    start(&process, "impatient", "four", "sku/tea", true).await.unwrap();
    assert_eq!(ended(&process, "four").await.phase(), SagaPhase::Completed);
    let_go(&world, &process, "one").await;
    ended(&process, "one").await;
    start(&process, "impatient", "five", "customer/ada", true).await.unwrap();
    assert_eq!(ended(&process, "five").await.phase(), SagaPhase::Completed);
    assert_eq!(sagas_called(&world), ["one", "four", "one", "five"]);
}

#[tokio::test]
async fn a_saga_that_an_operator_closes_gives_its_keys_back() {
    let world = World::new();
    world.participants.on_call(|call| match (&*call.saga_id, call.op) {
        ("one", Op::Action) if call.step == "ship" => Fault::Conflict,
        _ => Fault::None,
    });
    let process = open(&world).await;
    start(&process, "patient", "one", "customer/ada", false).await.unwrap();
    process.until_phase("one", SagaPhase::Stuck).await;
    start(&process, "patient", "two", "customer/ada", false).await.unwrap();
    assert_eq!(waits(&process, "two").await.waits_for_saga_id, "one");
    process.coordinator.force_close("one", "ann", "mended by hand").await.unwrap();
    assert_eq!(ended(&process, "two").await.phase(), SagaPhase::Completed);
}

#[tokio::test]
async fn who_is_cancelled_in_the_queue_waits_for_nobody_any_more() {
    let world = World::new();
    hang(&world, "one");
    let process = open(&world).await;
    start(&process, "patient", "one", "customer/ada", true).await.unwrap();
    start(&process, "patient", "two", "customer/ada", true).await.unwrap();
    waits(&process, "two").await;
    process.coordinator.cancel("two", "ann", "enough").await.unwrap();
    let two = ended(&process, "two").await;
    assert_eq!((two.phase(), two.waits_for_saga_id.as_str()), (SagaPhase::Compensated, ""));
}

#[tokio::test]
async fn who_is_closed_in_the_queue_waits_for_nobody_and_is_held_by_nobody_any_more() {
    let world = World::new();
    hang(&world, "one");
    let process = open(&world).await;
    start(&process, "patient", "one", "customer/ada", true).await.unwrap();
    start(&process, "patient", "two", "customer/ada", true).await.unwrap();
    waits(&process, "two").await;
    process.coordinator.pause("two", "ann", "enough").await.unwrap();
    let two = process.coordinator.force_close("two", "ann", "enough").await.unwrap();
    assert_eq!((two.phase(), two.waits_for_saga_id.as_str(), two.paused), (SagaPhase::ForceClosed, "", false));
}

/// One whose last work starts a saga that locks the same key, and one for each of these customers.
fn going_on(coordinator: Arc<OnceLock<Coordinator>>, others: &'static [&'static str], and_on: bool) -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("move", 1);
    saga.lock(|input: &String| vec![input.clone()]);
    saga.pivot::<Ship>("ship", |it, _| Ok(it.clone()));
    saga.retriable_local("go-on", move |it, _| {
        let (coordinator, it) = (Arc::clone(&coordinator), it.clone());
        Ok(LocalWork::new(Vec::new(), move |state| {
            let coordinator = coordinator.get().unwrap();
            let mut next = coordinator.start("patient", "two", &it, state.loaded())?;
            for other in others {
                next.absorb(coordinator.start("patient", other, &format!("customer/{other}"), state.loaded())?);
            }
            Ok(Decision::reply(()).beside(next))
        }))
    });
    if and_on {
        saga.retriable::<Charge>("tell", |it, _| Ok(it.clone()));
    }
    saga.build().unwrap()
}

#[tokio::test]
async fn a_saga_that_the_last_work_of_another_starts_has_its_lock_after_it() {
    let world = World::new();
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let coordinator = Arc::new(OnceLock::new());
    let definitions = vec![going_on(Arc::clone(&coordinator), &[], false), locking("patient", false), other()];
    let process = Process::on(journal, definitions, world.participants.clone(), Options::default());
    assert!(coordinator.set(process.coordinator.clone()).is_ok());
    process.coordinator.recover().await.unwrap();
    hang(&world, "two");
    start(&process, "move", "one", "customer/ada", true).await.unwrap();
    assert_eq!(ended(&process, "one").await.phase(), SagaPhase::Completed);
    // It has the lock: who comes now waits for it, and for nobody else.
    start(&process, "close-account", "three", "customer/ada", true).await.unwrap();
    assert_eq!(waits(&process, "three").await.waits_for_saga_id, "two");
    let_go(&world, &process, "two").await;
    assert_eq!(ended(&process, "two").await.phase(), SagaPhase::Compensated);
    assert_eq!(ended(&process, "three").await.phase(), SagaPhase::Completed);
}

/// It ends with the transition that begins the other ones, however many there are.
#[tokio::test]
async fn a_saga_that_the_last_work_of_another_starts_has_its_place() {
    let world = World::new();
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let coordinator = Arc::new(OnceLock::new());
    let definitions = vec![going_on(Arc::clone(&coordinator), &["bob", "cleo"], false), locking("patient", false)];
    let options = Options { most_live: 1, ..Options::default() };
    let process = Process::on(journal, definitions, world.participants.clone(), options);
    assert!(coordinator.set(process.coordinator.clone()).is_ok());
    process.coordinator.recover().await.unwrap();
    hang(&world, "two");
    start(&process, "move", "one", "customer/ada", true).await.unwrap();
    for id in ["one", "bob", "cleo"] {
        assert_eq!(ended(&process, id).await.phase(), SagaPhase::Completed);
    }
    // And nobody else has one beside it.
    let refused = start(&process, "patient", "three", "customer/dan", true).await.unwrap_err();
    assert_eq!(refused.reason, "TOO_MANY_SAGAS");
    let_go(&world, &process, "two").await;
    assert_eq!(ended(&process, "two").await.phase(), SagaPhase::Compensated);
}

/// It goes on itself, and only when it has ended is there a place.
#[tokio::test]
async fn a_saga_that_the_work_of_another_starts_in_its_midst_has_a_place_beside_it() {
    let world = World::new();
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let coordinator = Arc::new(OnceLock::new());
    let definitions = vec![going_on(Arc::clone(&coordinator), &[], true), locking("patient", false)];
    let options = Options { most_live: 1, ..Options::default() };
    let process = Process::on(journal, definitions, world.participants.clone(), options);
    assert!(coordinator.set(process.coordinator.clone()).is_ok());
    process.coordinator.recover().await.unwrap();
    start(&process, "move", "one", "customer/ada", true).await.unwrap();
    for id in ["one", "two"] {
        assert_eq!(ended(&process, id).await.phase(), SagaPhase::Completed);
    }
}

#[tokio::test]
async fn two_sagas_of_one_decision_cannot_both_take_a_key() {
    let world = World::new();
    let process = open(&world).await;
    let decided = |inputs: [&'static str; 2]| {
        let coordinator = &process.coordinator;
        let names = inputs.iter().flat_map(|input| coordinator.locks("patient", &input.to_string()).unwrap());
        let seen: Vec<_> = names.map(|name| (name, Aggregate::default())).collect();
        let loaded = Loaded::new(&seen, None, 1_700_000_000_000_000);
        let saga = |id| coordinator.start("patient", id, &inputs[id.len() - 1].to_owned(), &loaded).unwrap();
        Decision::reply(()).beside(saga("a")).beside(saga("bb")).into_decided(&loaded)
    };
    decided(["sku/tea", "sku/jam"]).unwrap();
    assert_eq!(decided(["sku/tea sku/jam", "sku/jam"]).unwrap_err().code, Code::Internal);
}

#[tokio::test]
async fn a_key_that_cannot_be_locked_starts_nothing() {
    let world = World::new();
    let process = open(&world).await;
    let refusal = start(&process, "patient", "one", "customer/\u{7}", true).await.unwrap_err();
    assert_eq!(refusal.code, Code::InvalidArgument);
    assert_eq!(
        start(&process, "patient", "one", &"k/".repeat(200), false).await.unwrap_err().code,
        Code::InvalidArgument
    );
}

/// The holder and two who wait, cut off around every call of the holder, and taken up again by a process that knows nothing.
#[tokio::test]
async fn a_crash_at_any_moment_leaves_every_lock_with_whom_it_was() {
    if database::is_shared() {
        // There the lease decides when somebody else goes on, which takes its time; see the next test.
        return;
    }
    for back in [false, true] {
        for cut in 0..6 {
            let world = World::new();
            let (reached, mut seen) = tokio::sync::mpsc::unbounded_channel();
            let mut calls = 0;
            let refuse =
                move |call: &libs::rpc::verdict::SagaCall| back && call.saga_id == "one" && call.step == "ship";
            let no = || Fault::Reject(Refusal::precondition("NO", "no"));
            world.participants.on_call(move |call| {
                calls += 1;
                if calls > cut {
                    let _ = reached.send(());
                    return Fault::Hang;
                }
                if refuse(call) { no() } else { Fault::None }
            });
            let process = open(&world).await;
            for id in ["one", "two", "three"] {
                start(&process, "patient", id, "customer/ada", cut % 2 == 0).await.unwrap();
                process.until(id, |saga| saga.version > u64::from(cut % 2 == 1)).await;
            }
            tokio::select! {
                _ = seen.recv() => {}
                _ = ended(&process, "three") => {}
            }
            process.crash().await;
            world.participants.on_call(move |call| if refuse(call) { no() } else { Fault::None });
            let process = open(&world).await;
            let one = ended(&process, "one").await.phase();
            assert_eq!(one, if back { SagaPhase::Compensated } else { SagaPhase::Completed });
            for id in ["two", "three"] {
                assert_eq!(ended(&process, id).await.phase(), SagaPhase::Completed, "{cut} {back}");
            }
            assert_eq!(sagas_called(&world), ["one", "two", "three"], "{cut} {back}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_passes_from_process_to_process() {
    if !database::has_server() {
        return;
    }
    let world = World::new();
    hang(&world, "one");
    let (first, second) = (open(&world).await, open(&world).await);
    tokio::spawn(first.coordinator.clone().share());
    tokio::spawn(second.coordinator.clone().share());
    start(&first, "patient", "one", "customer/ada", true).await.unwrap();
    start(&second, "patient", "two", "customer/ada", true).await.unwrap();
    assert_eq!(waits(&second, "two").await.waits_for_saga_id, "one");
    // Who frees it doesn't drive who waits for it.
    let_go(&world, &first, "one").await;
    assert_eq!(ended(&second, "two").await.phase(), SagaPhase::Completed);
    // And who holds it may be taken over.
    hang(&world, "three");
    start(&first, "patient", "three", "customer/ada", true).await.unwrap();
    start(&second, "patient", "four", "customer/ada", true).await.unwrap();
    assert_eq!(waits(&second, "four").await.waits_for_saga_id, "three");
    world.called(|calls| calls.iter().any(|call| call.call.saga_id == "three")).await;
    world.participants.on_call(|_| Fault::None);
    first.coordinator.drain(Duration::ZERO).await;
    first.coordinator.leave().await;
    first.crash().await;
    assert_eq!(ended(&second, "three").await.phase(), SagaPhase::Completed);
    assert_eq!(ended(&second, "four").await.phase(), SagaPhase::Completed);
}

#[tokio::test]
async fn an_operator_who_is_answered_is_heard_while_a_saga_waits_for_its_lock_too() {
    if std::env::var_os("TEST_POSTGRES").is_some() {
        // There a process that is gone leaves its sagas for as long as its lease says.
        return;
    }
    let world = World::with(locking("patient", false));
    hang(&world, "one");
    let process = open(&world).await;
    for id in ["one", "two"] {
        start(&process, "patient", id, "customer/ada", true).await.unwrap();
    }
    process.until("two", |saga| saga.waits_for_saga_id == "one").await;
    process.coordinator.pause("two", "ann", "inventory day").await.unwrap();
    process.crash().await;

    let process = open(&world).await;
    let resumed = process.coordinator.resume("two", "ann", "done").await.unwrap();
    assert!(!resumed.paused);
    process.crash().await;

    world.participants.on_call(|_| Fault::None);
    let process = open(&world).await;
    ended(&process, "two").await;
    let two = process.until_phase("two", SagaPhase::Completed).await;
    assert!(two.history.iter().any(|line| (&*line.what, &*line.detail) == ("resumed", "done")), "{two:#?}");
}
