//! What of a request's metadata goes with the calls of the saga that it began, and what doesn't.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod saga_world;

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use libs::{
    cqrs::{CommandSide, Decision, Method},
    journal::Journal,
    refusal::{Refusal, Violations},
    rpc::{carried::CarriedKeys, verdict::SagaCall},
    saga::{
        Attempt, Coordinator, Definition, LocalWork, Options, TABLES, Transport,
        testing::{Fault, Participants},
    },
};
use parking_lot::Mutex;
use proto::saga::v1::SagaPhase;
use saga_world::{PATIENCE, Process, Reserve, Ship, World};
use sha2::{Digest as _, Sha256};
use tonic::{Status, metadata::MetadataMap};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Calls with the metadata they came with, without what says which call it is.
#[derive(Clone)]
struct Seen {
    participants: Participants,
    calls: Arc<Mutex<Vec<BTreeSet<String>>>>,
    /// Of those that said another hash than their request's.
    wrong: Arc<Mutex<Vec<SagaCall>>>,
}

impl Transport for Seen {
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Result<(Bytes, MetadataMap), Status>> {
        let text = |key: &str, value: &str| format!("{key}: {value}");
        let entries = attempt.metadata.iter().filter_map(|entry| match entry {
            tonic::metadata::KeyAndValueRef::Ascii(key, value) if !key.as_str().starts_with("saga-") => {
                Some(text(key.as_str(), value.to_str().unwrap()))
            }
            _ => None,
        });
        self.calls.lock().push(entries.collect());
        let call = SagaCall::from_metadata(&attempt.metadata).unwrap().unwrap();
        if call.request != Some(Sha256::digest(&attempt.request).into()) {
            self.wrong.lock().push(call);
        }
        self.participants.call(attempt)
    }
}

/// A saga whose first step is one, too.
fn definition() -> Arc<Definition> {
    let mut below = Definition::builder::<String>("below", 1);
    below.compensatable::<Reserve>("reserve", |it, _| Ok(it.clone()), |undo| undo.request);
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable_saga::<String, ()>("prepare", &below.build().unwrap(), |it, _| Ok(it.clone()));
    saga.pivot::<Ship>("ship", |it, _| Ok(it.clone()));
    saga.build().unwrap()
}

async fn open(world: &World, seen: &Seen) -> Process {
    open_with(world, seen, vec![definition()]).await
}

async fn open_with(world: &World, seen: &Seen, definitions: Vec<Arc<Definition>>) -> Process {
    let journal = Journal::open(database::location(world.folder.path(), "order"), TABLES).await.unwrap();
    let carried = CarriedKeys::new(&["x-tenant"], &["session"]).unwrap();
    Process::on(journal, definitions, seen.clone(), Options { carried, ..Options::default() })
}

fn metadata(entries: &[(&'static str, &str)]) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for (key, value) in entries {
        metadata.append(*key, value.parse().unwrap());
    }
    metadata
}

/// Asks as a command surface does.
async fn ask(process: &Process, id: &'static str, metadata: &MetadataMap) -> Result<(), Status> {
    const METHOD: Method = Method { name: "test.v1.Test/Place", compensates: false };
    let side = CommandSide::new("test", process.journal.clone()).carrying(process.coordinator.carries());
    let request = id.to_owned();
    let accepted = side.accept(&METHOD, metadata, &request, id, Violations::default()).await?;
    let coordinator: Coordinator = process.coordinator.clone();
    let place = move |state: &libs::cqrs::State<'_>| -> Result<Decision<()>, Refusal> {
        Ok(Decision::reply(()).beside(coordinator.start("place-order", id, &request, state.loaded())?))
    };
    side.submit(accepted, Vec::new(), place).await.map(drop)
}

#[tokio::test]
async fn what_is_named_and_the_trace_go_with_every_call_after_a_restart_too_and_nothing_else_does() {
    let world = World::with(definition());
    let seen = Seen { participants: world.participants.clone(), calls: Arc::default(), wrong: Arc::default() };
    world.participants.on_call(|call| if call.step == "reserve" { Fault::Hang } else { Fault::None });
    let process = open(&world, &seen).await;
    let sent = metadata(&[
        ("x-tenant", "acme"),
        ("x-other", "no"),
        ("authorization", "Bearer secret"),
        ("baggage", "user=ada,session=7;ttl=1"),
        ("traceparent", TRACE),
    ]);
    ask(&process, "tea", &sent).await.unwrap();
    let called = async {
        while seen.calls.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, called).await.unwrap();
    process.crash().await;
    world.participants.on_call(|_| Fault::None);
    // On a server the first process counts as there for a while: an operator asks the second one.
    let process = open(&world, &seen).await;
    process.coordinator.recover().await.unwrap();
    for id in ["tea:prepare", "tea"] {
        let _ = process.coordinator.retry(id, "ann", "go on").await;
    }
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Completed);
    let calls = seen.calls.lock().clone();
    // Twice the one that hung, and the pivot.
    assert!(calls.len() >= 3, "{calls:?}");
    for call in calls {
        let trace = format!("traceparent: {TRACE}");
        assert_eq!(call.into_iter().collect::<Vec<_>>(), ["baggage: session=7;ttl=1", &trace, "x-tenant: acme"]);
    }
    assert_eq!(*seen.wrong.lock(), []);
    // Another saga has its own, or none.
    seen.calls.lock().clear();
    ask(&process, "milk", &metadata(&[("x-other", "no")])).await.unwrap();
    process.finished("milk").await;
    assert!(!seen.calls.lock().is_empty() && seen.calls.lock().iter().all(BTreeSet::is_empty));
}

/// One whose last work starts another saga.
fn going_on(coordinator: Arc<OnceLock<Coordinator>>) -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.pivot::<Ship>("ship", |it, _| Ok(it.clone()));
    saga.retriable_local("go-on", move |it, _| {
        let (coordinator, it) = (Arc::clone(&coordinator), it.clone());
        Ok(LocalWork::new(Vec::new(), move |state| {
            let next = coordinator.get().unwrap().start("next", "next", &it, state.loaded())?;
            Ok(Decision::reply(()).beside(next))
        }))
    });
    saga.build().unwrap()
}

#[tokio::test]
async fn what_goes_with_a_sagas_calls_goes_with_those_of_one_that_its_work_starts() {
    let world = World::new();
    let seen = Seen { participants: world.participants.clone(), calls: Arc::default(), wrong: Arc::default() };
    let mut next = Definition::builder::<String>("next", 1);
    next.pivot::<Reserve>("reserve", |it, _| Ok(it.clone()));
    let coordinator = Arc::new(OnceLock::new());
    let definitions = vec![going_on(Arc::clone(&coordinator)), next.build().unwrap()];
    let process = open_with(&world, &seen, definitions).await;
    assert!(coordinator.set(process.coordinator.clone()).is_ok());
    ask(&process, "tea", &metadata(&[("x-tenant", "acme"), ("traceparent", TRACE)])).await.unwrap();
    assert_eq!(process.finished("tea").await.phase(), SagaPhase::Completed);
    assert_eq!(process.finished("next").await.phase(), SagaPhase::Completed);
    let trace = format!("traceparent: {TRACE}");
    let all = BTreeSet::from([trace, "x-tenant: acme".to_owned()]);
    assert_eq!(*seen.calls.lock(), [all.clone(), all]);
}

#[tokio::test]
async fn what_is_too_much_to_carry_is_refused_before_anything_is_written() {
    let world = World::with(definition());
    let seen = Seen { participants: world.participants.clone(), calls: Arc::default(), wrong: Arc::default() };
    let process = open(&world, &seen).await;
    let status = ask(&process, "tea", &metadata(&[("x-tenant", &"x".repeat(3000))])).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert_eq!(process.coordinator.finished("tea").await.unwrap_err().reason, "UNKNOWN_SAGA");
}
