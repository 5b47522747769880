//! What waits for the committer is bounded, and what is slow, large or broken is told of: on a real database.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;

use std::{future::Future, pin::Pin, sync::mpsc, time::Duration};

use libs::{
    cqrs::{CommandSide, Method},
    journal::{
        AggregateId, Cause, Change, Committed, Decided, Entry, Journal, Loaded, NewEvent, Outcome, RequestKey, Role,
        SubmitError, events_after,
    },
    refusal::{Refusal, Violations},
};
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, SdkMeterProvider,
    data::{AggregatedMetrics, MetricData},
};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tonic::{Code, Status, metadata::MetadataMap};

/// The most that wait, and the most that one may hold.
const MOST_WAITING: usize = 4096;
const LARGE: usize = 8 << 20;
/// As many of the large ones may wait.
const MOST_LARGE: usize = 8;

static NOTE: Method = Method { name: "test.v1.NoteCommandService/Note", compensates: false };

async fn open(folder: &TempDir) -> Journal {
    Journal::open(database::location(folder.path(), "test"), &[]).await.unwrap()
}

/// Notes something.
fn note(size: usize) -> Entry {
    let aggregate = AggregateId::new("note", "a");
    let events = vec![NewEvent { name: "Noted", payload: "x".into() }];
    let change = Change { aggregate, state: None, version: 1, events };
    let decide = Box::new(move |_: &Loaded<'_>| Decided { changes: vec![change], ..Decided::default() });
    Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size }
}

fn keyed(key: &str, size: usize) -> Entry {
    Entry {
        request: Some(RequestKey { key: key.to_owned(), hash: [7; 32], other_hash: None, role: Role::Action }),
        ..note(size)
    }
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<Committed, SubmitError>> + Send + 'a>>;

/// An entry that is being decided for as long as its gate is closed; nothing else is meanwhile.
struct Held<'a> {
    gate: mpsc::Sender<()>,
    answer: Answer<'a>,
}

impl<'a> Held<'a> {
    async fn begin(journal: &'a Journal) -> Self {
        let (gate, opened) = mpsc::channel();
        let (begun, has_begun) = oneshot::channel();
        let Entry { decide, .. } = note(10);
        let decide = Box::new(move |loaded: &Loaded<'_>| {
            begun.send(()).unwrap();
            opened.recv().unwrap();
            decide(loaded)
        });
        let answer = taken(journal, Entry { decide, ..note(10) }).unwrap();
        has_begun.await.unwrap();
        Self { gate, answer }
    }

    async fn let_go(self) -> Result<Committed, SubmitError> {
        self.gate.send(()).unwrap();
        self.answer.await
    }
}

/// Hands an entry over: it waits then, or was refused at once.
fn taken(journal: &Journal, entry: Entry) -> Result<Answer<'_>, SubmitError> {
    let mut answer: Answer<'_> = Box::pin(journal.submit(entry));
    match futures::FutureExt::now_or_never(&mut answer) {
        None => Ok(answer),
        Some(refused) => Err(refused.unwrap_err()),
    }
}

/// Hands over as many as are taken, and no more than one over `most`.
fn fill(journal: &Journal, size: usize, most: usize) -> (Vec<Answer<'_>>, Option<SubmitError>) {
    let mut waiting = Vec::new();
    while waiting.len() <= most {
        match taken(journal, note(size)) {
            Ok(answer) => waiting.push(answer),
            Err(refused) => return (waiting, Some(refused)),
        }
    }
    (waiting, None)
}

async fn command(side: &CommandSide, id: &str, request: String) -> Result<(), Status> {
    let accepted = side.accept(&NOTE, &MetadataMap::new(), &request, id, Violations::default()).await?;
    let decide = |_: &libs::cqrs::State<'_>| Err(Refusal::not_found("NOTHING", "there is nothing"));
    side.submit::<()>(accepted, Vec::new(), decide).await.map(|_| ())
}

fn reason(answer: Result<(), Status>) -> (Code, String, Option<Duration>) {
    let status = answer.unwrap_err();
    let refusal = Refusal::from_status(&status);
    (refusal.code, refusal.reason.into_owned(), refusal.retry_after)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_finds_the_queue_full_is_refused_at_once_and_all_others_are_committed() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let side = CommandSide::new("test", journal.clone());
    let held = Held::begin(&journal).await;
    let (waiting, refused) = fill(&journal, 10, MOST_WAITING);
    assert_eq!((waiting.len(), refused), (MOST_WAITING, Some(SubmitError::Full)));
    // What is refused leaves no bytes behind in what is counted.
    for _ in 0..20 {
        assert_eq!(taken(&journal, keyed("refused", LARGE)).err(), Some(SubmitError::Full));
    }
    let (code, why, retry_after) = reason(command(&side, "one", "x".to_owned()).await);
    assert_eq!((code, &*why), (Code::ResourceExhausted, "COMMAND_QUEUE_FULL"));
    assert!(retry_after.is_some_and(|after| !after.is_zero()), "it says when to come again");

    held.let_go().await.unwrap();
    for answer in waiting {
        assert_eq!(answer.await.unwrap().outcome, Outcome::Done);
    }
    let last = MOST_WAITING as i64 + 1;
    assert_eq!(*journal.head().borrow(), last, "nothing of what was refused is written");
    // Nor are their keys known.
    assert_eq!(journal.submit(keyed("refused", LARGE)).await.unwrap().outcome, Outcome::Done);
    assert_eq!(reason(command(&side, "one", "another".to_owned()).await).1, "NOTHING");
    let events = events_after(journal.reader(), last, 10).await.unwrap();
    assert_eq!(events.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_that_wait_are_bounded_however_few_hold_them() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    for round in 1..=3 {
        let held = Held::begin(&journal).await;
        let (waiting, refused) = fill(&journal, LARGE, MOST_LARGE);
        assert_eq!((waiting.len(), refused), (MOST_LARGE, Some(SubmitError::Full)), "round {round}");
        assert_eq!(taken(&journal, note(1)).err(), Some(SubmitError::Full));
        // Work that was admitted before has its place.
        let mut admitted: Answer<'_> = Box::pin(journal.submit_admitted(note(LARGE)));
        assert!(futures::poll!(&mut admitted).is_pending());
        held.let_go().await.unwrap();
        for answer in waiting.into_iter().chain([admitted]) {
            assert_eq!(answer.await.unwrap().outcome, Outcome::Done);
        }
    }
}

#[tokio::test]
async fn a_command_that_is_too_large_is_refused_and_its_neighbour_is_not() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let (large, neighbour) = tokio::join!(journal.submit(note(LARGE + 1)), journal.submit(note(LARGE)));
    assert_eq!((large, neighbour.unwrap().outcome), (Err(SubmitError::TooLarge), Outcome::Done));
    let side = CommandSide::new("test", journal.clone());
    let (large, neighbour) =
        tokio::join!(command(&side, "large", "x".repeat(LARGE + 1)), command(&side, "small", "x".to_owned()));
    assert_eq!(reason(large), (Code::InvalidArgument, "COMMAND_TOO_LARGE".to_owned(), None));
    assert_eq!(reason(neighbour), (Code::NotFound, "NOTHING".to_owned(), None));
    assert_eq!(*journal.head().borrow(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_that_holds_up_the_others_is_counted() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let exporter = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
    CommandSide::new("test", journal.clone()).observe(&provider.meter("test"));
    let held = Held::begin(&journal).await;
    // Time that passes is what it is about.
    std::thread::sleep(Duration::from_millis(15));
    held.let_go().await.unwrap();
    assert_eq!(journal.stats().slow_decisions, 1);
    provider.force_flush().unwrap();
    assert_eq!(counted(&exporter, "journal.slow_decisions"), 1);
    assert_eq!(counted(&exporter, "journal.entries"), journal.stats().entries);
}

fn counted(exporter: &InMemoryMetricExporter, name: &str) -> u64 {
    let exported = exporter.get_finished_metrics().unwrap();
    let scopes = exported.iter().flat_map(|exported| exported.scope_metrics());
    let metric = scopes.flat_map(|scope| scope.metrics()).find(|metric| metric.name() == name).unwrap();
    let AggregatedMetrics::U64(MetricData::Sum(sum)) = metric.data() else { panic!("{name} is no counter") };
    sum.data_points().map(|point| point.value()).sum()
}
