//! Sagas on a real journal, with participants that answer as told: taken in order, undone in reverse, found again after a crash.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod operations;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use libs::{
    journal::{AggregateId, Cause, Change, Decided, Entry, Journal, NewEvent, OpenError, Outcome},
    refusal::Refusal,
    rpc::verdict::Verdict,
    saga::{
        Attempt, Compensated, Coordinator, Definition, LocalWork, Operation, Options, Retry, TABLES, Transport, fold,
    },
};
use operations::operations;
use prost::Message as _;
use proto::saga::v1::{Saga, SagaPhase, SagaTransition, StepState};
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::{Status, metadata::MetadataMap};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

operations! {
    Reserve "/reserve" undone by Release;
    Release "/release";
    Charge "/charge" undone by Refund;
    Refund "/refund";
    Ship "/ship";
}

fn number(bytes: &Bytes) -> i64 {
    i64::decode(bytes.clone()).unwrap()
}

fn local(name: &'static str, state: String) -> LocalWork {
    let id = AggregateId::new("order", name);
    let aggregate = id.clone();
    LocalWork {
        aggregates: vec![id],
        decide: Box::new(move |loaded| {
            let version = loaded.aggregate("order", name).unwrap().version + 1;
            let event = NewEvent { name: "Ended", payload: Bytes::new() };
            let change = Change { aggregate, state: Some(state.into()), version, events: vec![event] };
            Ok(Decided { changes: vec![change], ..Decided::default() })
        }),
    }
}

/// reserve → charge → ship → complete, as the example's; each reply feeds the next request.
fn definition() -> Arc<Definition> {
    let mut saga = Definition::builder::<i64>("test", 1);
    let quick = Retry { initial: Duration::from_millis(1), most: Duration::from_millis(5), ..Retry::default() };
    // Who is silent is so for as long as this takes.
    let hour = Duration::from_secs(3600);
    let reserved = saga.compensatable::<Reserve>("reserve", |input, _| Ok(*input), |undo| undo.reply.unwrap_or(-1));
    saga.retry(quick).attempt_timeout(hour);
    let charged = saga.compensatable::<Charge>(
        "charge",
        move |_, replies| replies.get(reserved),
        |undo| undo.reply.unwrap_or(-1),
    );
    saga.retry(quick).attempt_timeout(hour);
    saga.pivot::<Ship>("ship", move |_, replies| replies.get(charged));
    saga.retry(quick).attempt_timeout(hour);
    saga.retriable_local("complete", |_, _| Ok(local("o", "completed".to_owned())));
    saga.on_compensated(|_, reason| Ok(local("o", format!("rejected: {} {}", reason.step, reason.reason))));
    saga.build().unwrap()
}

/// What a participant is told to answer.
#[derive(Clone, Copy, Debug)]
enum Say {
    Done,
    Refused,
    Lost,
    Silent,
    Cancelled,
    /// Whoever carries the call breaks down.
    Breaks,
}

/// Participants that follow a script by path, and say Done when it has run out. Every call is noted.
#[derive(Clone, Default)]
struct Participants {
    script: Arc<Mutex<VecDeque<(&'static str, Say)>>>,
    calls: Arc<Mutex<Vec<(&'static str, i64)>>>,
}

impl Participants {
    fn told(script: &[(&'static str, Say)]) -> Self {
        Self { script: Arc::new(Mutex::new(script.iter().copied().collect())), ..Self::default() }
    }

    fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().iter().map(|(path, _)| *path).collect()
    }

    /// Waits for a call.
    async fn called(&self, path: &'static str) {
        let called = async {
            while !self.calls().contains(&path) {
                tokio::task::yield_now().await;
            }
        };
        assert!(timeout(PATIENCE, called).await.is_ok(), "after {PATIENCE:?} nobody has called {path}");
    }
}

impl Transport for Participants {
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Result<(Bytes, MetadataMap), Status>> {
        let request = number(&attempt.request);
        self.calls.lock().unwrap().push((attempt.path, request));
        let mut script = self.script.lock().unwrap();
        let say = match script.iter().position(|(path, _)| *path == attempt.path) {
            Some(at) => script.remove(at).unwrap().1,
            None => Say::Done,
        };
        Box::pin(async move {
            match say {
                Say::Done => {
                    let mut metadata = MetadataMap::new();
                    Verdict::Applied.write_to(&mut metadata);
                    Ok(((request + 1).encode_to_vec().into(), metadata))
                }
                Say::Refused => {
                    let mut status = Refusal::precondition("NO", "refused").into_status("peer");
                    Verdict::Rejected.write_to(status.metadata_mut());
                    Err(status)
                }
                Say::Lost => Err(Status::unavailable("lost")),
                Say::Silent => std::future::pending().await,
                Say::Cancelled => {
                    let mut status = Refusal::precondition("GONE", "it was compensated").into_status("peer");
                    Verdict::Cancelled.write_to(status.metadata_mut());
                    Err(status)
                }
                Say::Breaks => panic!("the wire is cut"),
            }
        })
    }
}

async fn journal(folder: &TempDir) -> Journal {
    Journal::open(database::location(folder.path(), "test"), TABLES).await.unwrap()
}

fn coordinator(journal: &Journal, participants: &Participants) -> Coordinator {
    Coordinator::new(journal.clone(), [definition()], participants.clone(), Options::default()).unwrap()
}

async fn start(journal: &Journal, coordinator: &Coordinator) {
    let coordinator = coordinator.clone();
    let decide = move |loaded: &libs::journal::Loaded<'_>| coordinator.start("test", "s-1", &10_i64, loaded).unwrap();
    let (cause, aggregates) = (Cause::default(), Vec::new());
    let entry = Entry { request: None, aggregates, cause, decide: Box::new(decide), size: 10 };
    assert_eq!(journal.submit(entry).await.unwrap().outcome, Outcome::Done);
}

async fn order(journal: &Journal) -> String {
    let order = journal.aggregate(&AggregateId::new("order", "o")).await.unwrap();
    String::from_utf8(order.state.to_vec()).unwrap()
}

fn states(saga: &Saga) -> Vec<StepState> {
    saga.steps.iter().map(|step| step.state()).collect()
}

#[tokio::test]
async fn a_saga_takes_its_steps_in_order_and_feeds_replies_on() {
    let folder = TempDir::new().unwrap();
    let (journal, participants) = (journal(&folder).await, Participants::default());
    let coordinator = coordinator(&journal, &participants);
    start(&journal, &coordinator).await;
    let saga = coordinator.finished("s-1").await.unwrap();
    assert_eq!((saga.phase(), saga.version), (SagaPhase::Completed, 4), "{saga:?}");
    assert_eq!(*participants.calls.lock().unwrap(), [("/reserve", 10), ("/charge", 11), ("/ship", 12)]);
    assert_eq!(order(&journal).await, "completed");
    assert_eq!(coordinator.live(), 0);
}

#[tokio::test]
async fn a_refusal_undoes_what_was_done_in_reverse_and_not_what_was_refused() {
    let folder = TempDir::new().unwrap();
    for (refused, calls) in [
        ("/reserve", vec!["/reserve"]),
        ("/charge", vec!["/reserve", "/charge", "/release"]),
        ("/ship", vec!["/reserve", "/charge", "/ship", "/refund", "/release"]),
    ] {
        let folder = TempDir::new_in(folder.path()).unwrap();
        let (journal, participants) = (journal(&folder).await, Participants::told(&[(refused, Say::Refused)]));
        let coordinator = coordinator(&journal, &participants);
        start(&journal, &coordinator).await;
        let saga = coordinator.finished("s-1").await.unwrap();
        assert_eq!(saga.phase(), SagaPhase::Compensated, "{saga:?}");
        assert_eq!(participants.calls(), calls);
        assert_eq!(order(&journal).await, format!("rejected: {} NO", &refused[1..]));
    }
}

#[tokio::test]
async fn a_lost_reply_is_asked_for_again_with_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let script = [("/charge", Say::Lost), ("/charge", Say::Lost), ("/ship", Say::Lost)];
    let (journal, participants) = (journal(&folder).await, Participants::told(&script));
    let coordinator = coordinator(&journal, &participants);
    start(&journal, &coordinator).await;
    let saga = coordinator.finished("s-1").await.unwrap();
    assert_eq!(saga.phase(), SagaPhase::Completed);
    assert_eq!(saga.steps.iter().map(|step| step.attempts).collect::<Vec<_>>(), [1, 3, 2, 1]);
    assert!(participants.calls.lock().unwrap().iter().filter(|(path, _)| *path == "/charge").all(|(_, n)| *n == 11));
}

#[test]
fn a_crash_at_any_point_is_taken_up_where_the_log_ends() {
    for script in [vec![], vec![("/charge", Say::Refused)], vec![("/ship", Say::Refused)]] {
        for silent in ["/reserve", "/charge", "/ship", "/refund", "/release"] {
            let folder = TempDir::new().unwrap();
            let path = database::location(folder.path(), "test");
            // The first life ends while the participant is silent: the runtime is dropped with everything in it.
            let mut before = vec![(silent, Say::Silent)];
            before.extend(script.clone());
            let participants = Participants::told(&before);
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                let journal = Journal::open(&path, TABLES).await.unwrap();
                let coordinator = coordinator(&journal, &participants);
                start(&journal, &coordinator).await;
                // Either the silent call is reached, or the saga ends without it.
                tokio::select! {
                    _ = coordinator.finished("s-1") => {}
                    () = participants.called(silent) => {}
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(5));

            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                let open = async {
                    loop {
                        match Journal::open(&path, TABLES).await {
                            // The first life's committer is ending its last batch.
                            Err(OpenError::InUse { .. }) => tokio::task::yield_now().await,
                            opened => break opened.unwrap(),
                        }
                    }
                };
                let journal = timeout(PATIENCE, open).await.expect("the first life lets go");
                let coordinator = coordinator(&journal, &participants);
                coordinator.recover().await.unwrap();
                let saga = coordinator.finished("s-1").await.unwrap();
                let refused = !script.is_empty();
                let expected = if refused { SagaPhase::Compensated } else { SagaPhase::Completed };
                assert_eq!(saga.phase(), expected, "{silent} {script:?} {saga:?}");
                assert_eq!(order(&journal).await.starts_with("rejected"), refused);
                assert_eq!(coordinator.recover().await.unwrap(), 0, "nothing is left open");
            });
        }
    }
}

#[tokio::test]
async fn a_cancel_before_the_pivot_turns_back_and_after_it_is_refused() {
    let folder = TempDir::new().unwrap();
    let (journal, participants) = (journal(&folder).await, Participants::told(&[("/charge", Say::Silent)]));
    let coordinator = coordinator(&journal, &participants);
    start(&journal, &coordinator).await;
    participants.called("/charge").await;
    let cancelled = coordinator.cancel("s-1", "ann", "changed my mind").await.unwrap();
    let saga = coordinator.finished("s-1").await.unwrap();
    assert_eq!(saga.phase(), SagaPhase::Compensated);
    // The charge's outcome was unknown: it is undone too.
    assert_eq!(participants.calls(), ["/reserve", "/charge", "/refund", "/release"]);
    // One that has ended already is read as it is stored, and its history is the log's.
    assert!(cancelled.history.iter().any(|entry| entry.actor == "ann" && entry.detail == "changed my mind"));
    let refusal = coordinator.cancel("s-1", "ann", "again").await.unwrap_err();
    assert_eq!(refusal.reason, "SAGA_CLOSED");

    let folder = TempDir::new().unwrap();
    let journal = self::journal(&folder).await;
    let participants = Participants::told(&[("/ship", Say::Silent)]);
    let coordinator = self::coordinator(&journal, &participants);
    start(&journal, &coordinator).await;
    participants.called("/ship").await;
    let refusal = coordinator.cancel("s-1", "ann", "too late").await.unwrap_err();
    assert_eq!(refusal.reason, "PAST_PIVOT");
    assert_eq!(coordinator.cancel("s-2", "ann", "who?").await.unwrap_err().reason, "UNKNOWN_SAGA");
}

#[tokio::test]
async fn a_refused_compensation_waits_for_an_operator_who_may_retry_or_skip() {
    for skip in [false, true] {
        let folder = TempDir::new().unwrap();
        let script = [("/ship", Say::Refused), ("/refund", Say::Refused)];
        let (journal, participants) = (journal(&folder).await, Participants::told(&script));
        let coordinator = coordinator(&journal, &participants);
        start(&journal, &coordinator).await;
        let stuck = until(&journal, SagaPhase::Stuck).await;
        assert_eq!(states(&stuck)[1], StepState::Compensating);
        let step = |saga: &Saga| saga.reason.as_ref().map(|reason| reason.step.clone());
        assert_eq!(step(&stuck).as_deref(), Some("charge"), "why it is STUCK");
        if skip {
            let op = libs::rpc::verdict::Op::Compensation;
            coordinator.skip("s-1", "charge", op, true, "bob", "refunded by hand").await.unwrap();
        } else {
            coordinator.retry("s-1", "bob", "the ledger is mended").await.unwrap();
        }
        let saga = coordinator.finished("s-1").await.unwrap();
        assert_eq!(saga.phase(), SagaPhase::Compensated);
        assert_eq!(step(&saga).as_deref(), Some("ship"), "why it turned back");
        let refunds = participants.calls().iter().filter(|path| **path == "/refund").count();
        assert_eq!(refunds, if skip { 1 } else { 2 });
        assert_eq!(participants.calls().last(), Some(&"/release"));
    }
}

/// Waits until the saga is in a phase.
async fn until(journal: &Journal, phase: SagaPhase) -> Saga {
    let comes = async {
        loop {
            let events = libs::journal::events_after(journal.reader(), 0, 100).await.unwrap();
            let mut saga = Saga::default();
            for event in events.into_iter().filter(|event| event.kind == "saga") {
                fold(&mut saga, SagaTransition::decode(event.payload).unwrap());
            }
            if saga.phase() == phase {
                return saga;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, comes).await.unwrap_or_else(|_| panic!("after {PATIENCE:?} it is not {phase:?}"))
}

#[tokio::test]
async fn what_took_effect_when_it_was_tried_again_is_undone_although_it_was_cancelled_before() {
    let folder = TempDir::new().unwrap();
    let script = [("/charge", Say::Cancelled), ("/ship", Say::Refused)];
    let (journal, participants) = (journal(&folder).await, Participants::told(&script));
    let coordinator = coordinator(&journal, &participants);
    start(&journal, &coordinator).await;
    until(&journal, SagaPhase::Stuck).await;
    coordinator.retry("s-1", "bob", "the tombstone is removed").await.unwrap();
    let saga = coordinator.finished("s-1").await.unwrap();
    assert_eq!(saga.phase(), SagaPhase::Compensated);
    assert_eq!(participants.calls(), ["/reserve", "/charge", "/charge", "/ship", "/refund", "/release"]);
}

#[tokio::test]
async fn a_transport_that_panics_parks_its_saga_which_goes_on_when_an_operator_says_so() {
    let folder = TempDir::new().unwrap();
    let (journal, participants) = (journal(&folder).await, Participants::told(&[("/charge", Say::Breaks)]));
    let coordinator = coordinator(&journal, &participants);
    start(&journal, &coordinator).await;
    let refused = async {
        loop {
            // Who waited while it was driven is told to ask again.
            match coordinator.finished("s-1").await.unwrap_err() {
                refusal if refusal.reason == "SAGA_NOT_DRIVEN" => tokio::task::yield_now().await,
                refusal => return refusal,
            }
        }
    };
    assert_eq!(timeout(PATIENCE, refused).await.expect("it is parked").reason, "SAGA_PARKED");
    coordinator.retry("s-1", "bob", "the wire is mended").await.unwrap();
    assert_eq!(coordinator.finished("s-1").await.unwrap().phase(), SagaPhase::Completed);
}
