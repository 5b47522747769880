//! Work of our own that is refused for now, by what passes: it is asked for again, and nobody is called for it.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod saga_world;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::FutureExt as _;
use libs::{
    cqrs::Decision,
    journal::{AggregateId, Journal, events_after},
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{Coordinator, Definition, LocalWork, Options, TABLES, fold, testing::Fault},
};
use parking_lot::Mutex;
use prost::Message as _;
use proto::saga::v1::{Saga, SagaPhase, SagaTransition, StepState};
use saga_world::{PATIENCE, Process, Reserve, Ship, World};

/// What work of our own comes to, and how often it was asked for.
#[derive(Clone, Default)]
struct Desk {
    refusal: Arc<Mutex<Option<Refusal>>>,
    asked: Arc<AtomicUsize>,
    /// How long it takes to ask.
    takes: Duration,
}

impl Desk {
    /// One that has no room for now.
    fn full() -> Self {
        let desk = Self::default();
        *desk.refusal.lock() = Some(Refusal::exhausted("DESK_FULL", "the desk is full", Duration::from_millis(1)));
        desk
    }

    fn work(&self) -> LocalWork {
        let desk = self.clone();
        LocalWork::new(Vec::new(), move |_| {
            desk.asked.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(desk.takes);
            desk.refusal.lock().clone().map_or_else(|| Ok(Decision::reply(())), Err)
        })
    }

    fn has_room(&self) {
        *self.refusal.lock() = None;
    }

    /// Waits until it was asked so often since it was asked last.
    async fn asked(&self, more: usize) {
        let wanted = self.asked.load(Ordering::Relaxed) + more;
        let asked = async {
            while self.asked.load(Ordering::Relaxed) < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, asked).await.is_ok(), "nobody asks");
    }
}

/// One whose own work is done at this desk, whether it goes through or turns back.
fn definition(desk: &Desk) -> Arc<Definition> {
    let (file, end) = (desk.clone(), desk.clone());
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.retriable_local("file", move |_, _| Ok(file.work()));
    saga.retriable::<Ship>("tell", |order, _| Ok(order.clone()));
    saga.after(&["ship"]);
    saga.on_compensated(move |_, _| Ok(end.work()));
    saga.build().unwrap()
}

/// As it is stored.
async fn shown(process: &Process) -> Saga {
    let mut saga = Saga::default();
    for event in events_after(process.journal.reader(), 0, 10_000).await.unwrap() {
        if event.kind == "saga" && event.id == "tea" {
            fold(&mut saga, SagaTransition::decode(event.payload).unwrap());
        }
    }
    saga
}

/// A saga whose own work finds no room.
async fn waiting(desk: &Desk, back: bool) -> (World, Process) {
    let world = World::with(definition(desk));
    world.participants.on_call(move |call| {
        if back && call.step == "ship" { Fault::Reject(Refusal::precondition("NO", "no")) } else { Fault::None }
    });
    let process = world.open().await;
    process.place("tea").await.unwrap();
    // What it was refused for is stored before it is asked for again.
    desk.asked(2).await;
    (world, process)
}

#[tokio::test]
async fn work_of_our_own_that_is_refused_for_now_is_asked_for_again_and_holds_up_no_other_step() {
    let desk = Desk::full();
    let (_world, process) = waiting(&desk, false).await;
    let saga = process.until("tea", |saga| {
        saga.steps.get(3).is_some_and(|tell| tell.state() == StepState::Done) && !saga.steps[2].last_error.is_empty()
    });
    let saga = saga.await;
    assert_eq!((saga.phase(), saga.reason), (SagaPhase::Forward, None));
    let file = &saga.steps[2];
    assert_eq!((file.state(), &*file.last_error), (StepState::Unspecified, "the desk is full"));
    assert!(file.next_attempt_time.is_some());
    // That it goes on being refused is news to nobody.
    desk.asked(2).await;
    assert_eq!(shown(&process).await.version, saga.version);
    desk.has_room();
    let saga = process.finished("tea").await;
    assert_eq!((saga.phase(), &*saga.steps[2].last_error), (SagaPhase::Completed, ""));
}

#[tokio::test]
async fn what_ends_a_compensated_saga_and_is_refused_for_now_is_asked_for_again() {
    let desk = Desk::full();
    let (_world, process) = waiting(&desk, true).await;
    let saga = shown(&process).await;
    assert_eq!(saga.phase(), SagaPhase::Compensating);
    let line = saga.history.last().unwrap();
    assert_eq!((&*line.what, &*line.detail), ("ending refused for now", "the desk is full"));
    desk.asked(2).await;
    assert_eq!(shown(&process).await.version, saga.version);
    desk.has_room();
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Compensated);
}

/// Its word is stored, although the work that comes with it is refused.
#[tokio::test]
async fn an_operator_is_heard_while_work_of_our_own_is_refused_for_now() {
    for back in [false, true] {
        let desk = Desk::full();
        let (world, process) = waiting(&desk, back).await;
        process.coordinator.retry("tea", "ann", "there must be room by now").await.unwrap();
        process.coordinator.pause("tea", "ann", "inventory day").await.unwrap();
        let asked = desk.asked.load(Ordering::Relaxed);
        process.crash().await;
        let process = world.open().await;
        process.coordinator.recover().await.unwrap();
        process.coordinator.retry("tea", "ann", "and now?").await.unwrap();
        let saga = shown(&process).await;
        assert!(saga.paused && saga.history.iter().any(|line| line.what == "paused"), "{saga:#?}");
        assert_eq!(desk.asked.load(Ordering::Relaxed), asked, "it is paused");
        process.coordinator.resume("tea", "ann", "done").await.unwrap();
        desk.asked(2).await;
        process.coordinator.pause("tea", "ann", "enough").await.unwrap();
        if back {
            let closed = process.coordinator.force_close("tea", "ann", "nobody misses it").await.unwrap();
            assert_eq!(closed.phase(), SagaPhase::ForceClosed);
        } else {
            let skipped =
                process.coordinator.skip("tea", "file", Op::Action, true, "ann", "filed by hand").await.unwrap();
            assert_eq!(skipped.steps[2].state(), StepState::Skipped);
        }
    }
}

/// As on a slow database: when one is refused, the wait of the other is over.
#[tokio::test]
async fn an_operator_is_heard_and_others_are_called_where_it_takes_longer_to_ask_than_to_wait() {
    let desk = Desk { takes: Duration::from_millis(150), ..Desk::full() };
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    for step in ["file", "copy"] {
        let desk = desk.clone();
        saga.retriable_local(step, move |_, _| Ok(desk.work()));
        saga.after(&["ship"]);
    }
    saga.retriable::<Reserve>("tell", |order, _| Ok(order.clone()));
    saga.after(&["ship"]);
    let world = World::with(saga.build().unwrap());
    let process = world.open().await;
    process.place("tea").await.unwrap();
    desk.asked(4).await;
    world.called(|calls| calls.iter().any(|call| call.call.step == "tell")).await;
    let operator = async {
        process.coordinator.retry("tea", "ann", "there must be room by now").await.unwrap();
        process.coordinator.pause("tea", "ann", "inventory day").await.unwrap();
    };
    assert!(tokio::time::timeout(PATIENCE, operator).await.is_ok(), "nobody hears");
    let saga = shown(&process).await;
    let errors = saga.steps[1..3].iter().map(|step| &*step.last_error);
    assert_eq!((saga.paused, errors.collect::<Vec<_>>()), (true, vec!["the desk is full"; 2]));
    let said = |what| saga.history.iter().filter(|line| line.what == what && line.actor == "ann").count();
    assert_eq!((said("retry asked"), said("paused")), (1, 1));
    process.coordinator.resume("tea", "ann", "done").await.unwrap();
    desk.has_room();
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Completed);
}

/// One whose last work starts another saga, in a process that begins to leave just then.
fn leaving(coordinator: Arc<OnceLock<Coordinator>>, leaves: Arc<Mutex<bool>>, back: bool) -> Arc<Definition> {
    let work = move |order: &String| {
        let (coordinator, order, leaves) = (Arc::clone(&coordinator), order.clone(), Arc::clone(&leaves));
        LocalWork::new(Vec::new(), move |state| {
            let coordinator = coordinator.get().unwrap();
            if std::mem::take(&mut *leaves.lock()) {
                assert!(coordinator.drain(Duration::ZERO).now_or_never().is_none(), "the saga is under way");
            }
            let next = coordinator.start("next", "milk", &order, state.loaded())?;
            Ok(Decision::reply(()).beside(next))
        })
    };
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    if back {
        saga.on_compensated(move |order, _| Ok(work(order)));
    } else {
        saga.retriable_local("go-on", move |order, _| Ok(work(order)));
    }
    saga.build().unwrap()
}

fn next() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("next", 1);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.build().unwrap()
}

#[tokio::test]
async fn work_of_our_own_that_a_shutdown_refuses_is_done_after_the_next_start() {
    for back in [false, true] {
        let (coordinator, leaves) = (Arc::new(OnceLock::new()), Arc::new(Mutex::new(true)));
        let world = World::with(leaving(Arc::clone(&coordinator), Arc::clone(&leaves), back));
        world.participants.on_call(move |call| {
            let refuses = back && call.saga_id == "tea";
            if refuses { Fault::Reject(Refusal::precondition("NO", "no")) } else { Fault::None }
        });
        let definitions = vec![Arc::clone(&world.definition), next()];
        let process = world.open_with(definitions, Options::default()).await;
        assert!(coordinator.set(process.coordinator.clone()).is_ok());
        process.place("tea").await.unwrap();
        let left = async {
            while process.coordinator.live() > 0 || *leaves.lock() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, left).await.is_ok(), "it leaves");
        let saga = shown(&process).await;
        let phase = if back { SagaPhase::Compensating } else { SagaPhase::Forward };
        assert_eq!(saga.phase(), phase, "{saga:#?}");
        process.crash().await;

        let coordinator = Arc::new(OnceLock::new());
        let definitions = vec![leaving(Arc::clone(&coordinator), leaves, back), next()];
        let process = world.open_with(definitions, Options::default()).await;
        assert!(coordinator.set(process.coordinator.clone()).is_ok());
        process.coordinator.recover().await.unwrap();
        let phase = if back { SagaPhase::Compensated } else { SagaPhase::Completed };
        assert_eq!(process.finished("tea").await.phase(), phase);
        assert_eq!(process.finished("milk").await.phase(), SagaPhase::Completed);
    }
}

/// A server can look up none of a batch's rows where one can't be its: whoever is in it would be tried again for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_of_our_own_on_what_can_have_no_row_leaves_its_saga_stuck_and_no_other() {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.retriable_local("file", |order, _| {
        Ok(LocalWork::new([AggregateId::new("file", order.as_str())], |_| Ok(Decision::reply(()))))
    });
    let world = World::with(saga.build().unwrap());
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let definitions = vec![Arc::clone(&world.definition)];
    let process = Process::on(journal, definitions, world.participants.clone(), Options::default());
    process.coordinator.recover().await.unwrap();
    for (at, order) in ["a\0b".to_owned(), "x".repeat(513)].iter().enumerate() {
        let (bad, good) = (format!("bad-{at}"), format!("good-{at}"));
        process.try_place(&bad, order).await.unwrap();
        process.place(&good).await.unwrap();
        let saga = process.until_phase(&bad, SagaPhase::Stuck).await;
        assert!(saga.steps[1].last_error.contains("file"), "{:?}", saga.steps[1].last_error);
        assert_eq!(process.finished(&good).await.phase(), SagaPhase::Completed);
    }
}
