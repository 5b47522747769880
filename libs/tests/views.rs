//! The read side on real SQLite files: every event counts once, whatever is repeated, parked or restarted.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod squeamish;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::StreamExt as _;
use libs::{
    cqrs::{
        Board, Column, Documents, Log, PageOrder, PageQuery, Projection, ProjectionError, Projections, ReadSide, Views,
        events_of_kind,
    },
    journal::{
        AggregateId, Cause, Change, Decided, Entry, Event, Journal, Loaded, Location, NewEvent, OpenError, Table,
        sql::{Transaction, Value},
    },
    refusal::Refusal,
    rpc::deadline,
};
use opentelemetry::{KeyValue, metrics::MeterProvider as _};
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, SdkMeterProvider,
    data::{self, AggregatedMetrics, MetricData},
};
use prost::Message as _;
use proto::projections::v1::{
    ListProjectionsRequest, RebuildProjectionsRequest, RebuildProjectionsResponse, ResumeProjectionRequest,
    projection_command_service_server::ProjectionCommandService as _,
    projection_query_service_server::ProjectionQueryService as _,
};
use sha2::{Digest as _, Sha256};
use squeamish::{SEEN, Squeamish};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tonic::{Request, metadata::MetadataMap};

static SUMS: Table = Table {
    name: "sums",
    create: &[
        "CREATE TABLE IF NOT EXISTS sums (id TEXT PRIMARY KEY, position INTEGER, document BLOB, parity INTEGER)",
        "CREATE INDEX IF NOT EXISTS sums_position ON sums (position)",
    ],
    columns: &["id", "position", "document", "parity"],
    key: 1,
    fixed: &[],
};

/// More than any query waits for in a test that passes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sums what was added to each counter; the document is the sum.
struct Sums;

impl Projection for Sums {
    const NAME: &'static str = "sums";
    const TABLES: &'static [&'static Table] = &[&SUMS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        sum_up(&SUMS, events, transaction, |sum| sum % 2).await
    }
}

/// Sums the counters up in a table whose last column is made of the sum.
async fn sum_up<V: Into<Value>>(
    table: &'static Table,
    events: &[Event],
    transaction: &mut Transaction<'_>,
    column: fn(i64) -> V,
) -> Result<(), ProjectionError> {
    let mut sums = Documents::<i64>::load(transaction, table, events.iter().map(|e| e.id.as_str())).await?;
    for event in events {
        let amount: i64 = std::str::from_utf8(&event.payload).unwrap().parse().unwrap();
        sums.update(&event.id, event.position, |sum| *sum += amount);
    }
    sums.save(transaction, |sum| vec![column(*sum).into()]).await
}

async fn journal(folder: &TempDir) -> Journal {
    Journal::open(database::location(folder.path(), "test"), &[]).await.unwrap()
}

/// Adds to a counter and answers the position.
async fn add(journal: &Journal, name: &str, amount: i64) -> i64 {
    write(journal, "counter", name, amount.to_string().into_bytes()).await
}

/// Writes an event and answers its position.
async fn write(journal: &Journal, kind: &'static str, name: &str, payload: Vec<u8>) -> i64 {
    let id = AggregateId::new(kind, name);
    let aggregate = id.clone();
    let decide = move |_: &Loaded<'_>| {
        let event = NewEvent { name: "Added", payload: payload.into() };
        let change = Change { aggregate, state: None, version: 1, events: vec![event] };
        Decided { changes: vec![change], ..Decided::default() }
    };
    let cause = Cause::default();
    let entry = Entry { request: None, aggregates: vec![id], cause, decide: Box::new(decide), size: 10 };
    journal.submit(entry).await.unwrap().position
}

/// Views of which one can't fold `poison`, those beside it, where they are shown, and what mends the one.
async fn squeamish_views(
    folder: &TempDir,
    journal: &Journal,
    beside: fn(Projections) -> Projections,
) -> (ReadSide, Board, Arc<AtomicBool>) {
    let squeamish = Squeamish::default();
    let mended = Arc::clone(&squeamish.mended);
    let location = database::location(folder.path(), "test").views();
    let projections = beside(Projections::new().with(squeamish));
    let views = Views::open(location, Log::of(journal), &projections).await.unwrap();
    let (read, board) = (views.read_side("test", PATIENCE), Board::default());
    views.show_on(&board, "test");
    tokio::spawn(async { views.run().await.unwrap() });
    (read, board, mended)
}

/// Opens views once those before them have let go of the file: they may be in the midst of a fold, which nobody cuts off.
async fn opened(location: Location, log: Log, projections: Projections) -> Views {
    let open = async {
        loop {
            match Views::open(location.clone(), log.clone(), &projections).await {
                Err(OpenError::InUse { .. }) => tokio::task::yield_now().await,
                opened => break opened.unwrap(),
            }
        }
    };
    tokio::time::timeout(PATIENCE, open).await.expect("they let go")
}

async fn views(folder: &TempDir, log: Log, projections: Projections) -> (ReadSide, tokio::task::JoinHandle<()>) {
    let views = opened(database::location(folder.path(), "test").views(), log, projections).await;
    let read = views.read_side("test", PATIENCE);
    (read, tokio::spawn(async { views.run().await.unwrap() }))
}

fn token(position: i64) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert("consistency-token", format!("test:{position:x}").parse().unwrap());
    metadata
}

async fn sum(read: &ReadSide, id: &str) -> Option<i64> {
    read.document(&SUMS, id).await.unwrap()
}

#[tokio::test]
async fn a_query_with_the_token_of_a_write_sees_it() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (read, _) = views(&folder, Log::of(&journal), Projections::new().with(Sums)).await;
    for round in 1..=50 {
        let position = add(&journal, "a", 2).await;
        read.wait_for_token(&token(position)).await.unwrap();
        assert_eq!(sum(&read, "a").await, Some(2 * round));
    }
}

#[tokio::test]
async fn a_token_from_the_future_is_unavailable_after_the_wait() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (read, _) = views(&folder, Log::of(&journal), Projections::new().with(Sums)).await;
    // Only now: the pool's own time-out must not pass while the files are opened.
    tokio::time::pause();
    let refusal = read.wait_for_token(&token(1_000)).await.unwrap_err();
    assert_eq!((refusal.code, &*refusal.reason), (tonic::Code::Unavailable, "NOT_CAUGHT_UP"));
    assert!(refusal.retry_after.is_some());
}

#[tokio::test]
async fn a_caller_with_less_time_than_the_wait_is_told_to_come_again_before_it_is_over() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (read, _) = views(&folder, Log::of(&journal), Projections::new().with(Sums)).await;
    tokio::time::pause();
    for millis in [5, 300] {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(millis);
        let metadata = token(1_000);
        let waits = deadline::scope(deadline, read.wait_for_token(&metadata));
        let refusal = tokio::time::timeout_at(deadline, waits).await.expect("in time").unwrap_err();
        assert_eq!((refusal.code, &*refusal.reason), (tonic::Code::Unavailable, "NOT_CAUGHT_UP"));
        assert!(refusal.retry_after.is_some());
    }
}

#[tokio::test]
async fn a_query_without_a_token_never_waits_and_says_how_far_its_answer_is() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let gate = Arc::new(Semaphore::new(0));
    let projections = Projections::new().with(Held { gate: Arc::clone(&gate) });
    let (read, _) = views(&folder, Log::of(&journal), projections).await;
    let position = add(&journal, "a", 1).await;
    let ask = |metadata: MetadataMap| {
        let request = Request::from_parts(metadata, tonic::Extensions::default(), ());
        let answer = read.answer(request, |read, ()| async move { Ok(sum(&read, "a").await) });
        async {
            let answer = answer.await.unwrap();
            (answer.metadata().get("read-position").unwrap().to_str().unwrap().to_owned(), answer.into_inner())
        }
    };
    let mut patient = Box::pin(ask(token(position)));
    assert!(futures::poll!(&mut patient).is_pending(), "with a token it waits");
    // The projector stands at the gate, and stays there.
    let at_once = tokio::time::timeout(PATIENCE / 2, ask(MetadataMap::new())).await;
    let goes_on_waiting = futures::poll!(&mut patient).is_pending();
    gate.add_permits(1);
    assert_eq!((at_once, goes_on_waiting), (Ok(("0".to_owned(), None)), true));
    assert_eq!(patient.await, ("1".to_owned(), Some(1)));
}

#[tokio::test]
async fn views_go_on_after_a_restart_and_rebuild_to_the_same() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (read, running) = views(&folder, Log::of(&journal), Projections::new().with(Sums)).await;
    let position = add(&journal, "a", 1).await;
    read.wait_for_token(&token(position)).await.unwrap();
    running.abort();
    let _ = running.await;

    let position = add(&journal, "a", 2).await;
    let (read, _) = views(&folder, Log::of(&journal), Projections::new().with(Sums)).await;
    read.wait_for_token(&token(position)).await.unwrap();
    assert_eq!(sum(&read, "a").await, Some(3));

    let beside = database::location(folder.path(), "beside");
    let rebuilt = Views::open(beside, Log::of(&journal), &Projections::new().with(Sums)).await.unwrap();
    let read = rebuilt.read_side("test", Duration::ZERO);
    let mut told = Vec::new();
    rebuilt.catch_up(|done, all| told.push((done, all))).await.unwrap();
    assert_eq!((sum(&read, "a").await, told), (Some(3), vec![(2, 2)]));
}

#[tokio::test]
async fn views_that_have_caught_up_are_one_whole_file() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let position = add(&journal, "a", 7).await;
    let (made, moved) = (folder.path().join("made.db"), folder.path().join("moved.db"));
    let views = Views::open(&*made, Log::of(&journal), &Projections::new().with(Sums)).await.unwrap();
    views.catch_up(|_, _| {}).await.unwrap();
    std::fs::rename(&made, &moved).unwrap();
    let views = Views::open(&*moved, Log::of(&journal), &Projections::new().with(Sums)).await.unwrap();
    let read = views.read_side("test", Duration::ZERO);
    assert_eq!((read.position(), sum(&read, "a").await), (position, Some(7)));
}

#[tokio::test]
async fn a_log_of_another_process_is_followed_too() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let log = Log::open(journal.location()).unwrap();
    let (read, _) = views(&folder, log, Projections::new().with(Sums)).await;
    let position = add(&journal, "a", 7).await;
    read.wait_for_token(&token(position)).await.unwrap();
    assert_eq!(sum(&read, "a").await, Some(7));
}

#[tokio::test]
async fn a_projection_that_meets_poison_is_parked_and_the_others_go_on() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    for (name, amount) in [("a", 1), ("poison", 5), ("b", 2)] {
        add(&journal, name, amount).await;
    }
    let projections = Projections::new().with(Squeamish::default()).with(Sums);
    let (read, _) = views(&folder, Log::of(&journal), projections).await;
    let position = add(&journal, "a", 10).await;
    read.wait_for_token(&token(position)).await.unwrap();
    assert_eq!((sum(&read, "a").await, sum(&read, "poison").await), (Some(11), Some(5)));
    // What came before the poison was folded, what came after was not.
    let seen = |id: &'static str| read.document::<i64>(&SEEN, id);
    assert_eq!((seen("a").await.unwrap(), seen("b").await.unwrap()), (Some(1), None));
}

/// Counts what was said, by its author.
struct Quotes;

impl Projection for Quotes {
    const NAME: &'static str = "quotes";
    const TABLES: &'static [&'static Table] = &[&SEEN];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let quotes = events_of_kind::<String>("quote", events)?;
        let mut seen = Documents::<i64>::load(transaction, &SEEN, quotes.iter().map(|(event, _)| &event.id)).await?;
        for (event, said) in quotes {
            seen.update(&event.id, event.position, |count| *count += i64::from(!said.is_empty()));
        }
        seen.save(transaction, |_| Vec::new()).await
    }
}

/// A version that doesn't know what happened would pass it for good, and count wrong for ever.
#[tokio::test]
async fn an_event_of_which_this_version_knows_nothing_parks_its_projection() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let location = database::location(folder.path(), "test").views();
    let views = Views::open(location, Log::of(&journal), &Projections::new().with(Quotes)).await.unwrap();
    let (read, board) = (views.read_side("test", PATIENCE), Board::default());
    views.show_on(&board, "test");
    tokio::spawn(async { views.run().await.unwrap() });
    // One is said, one says nothing, one has a field more than is known here, and one has fields that aren't known alone.
    let said = "yes".to_owned().encode_to_vec();
    let more = [&*said, b"\x12\x01x"].concat();
    for payload in [said, Vec::new(), more, b"\x12\x01x".to_vec()] {
        write(&journal, "quote", "ann", payload).await;
    }
    let standing = async || {
        let all = board.service("test").list_projections(Request::new(ListProjectionsRequest {})).await.unwrap();
        all.into_inner().projections.remove(0)
    };
    becomes(async || standing().await.position >= 4 || standing().await.parked.is_some()).await;
    let parked = standing().await.parked.expect("it stands still");
    assert!(parked.position == 4 && parked.error.contains("a newer version"), "{parked:?}");
    assert_eq!(read.document::<i64>(&SEEN, "ann").await.unwrap(), Some(2), "what it knows of is counted");
}

/// Panics at `poison`.
struct Startled;

impl Projection for Startled {
    const NAME: &'static str = "startled";
    const TABLES: &'static [&'static Table] = &[&SEEN];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let mut seen = Documents::<i64>::load(transaction, &SEEN, events.iter().map(|event| &event.id)).await?;
        for event in events {
            assert_ne!(event.id, "poison", "nobody thought of it");
            seen.update(&event.id, event.position, |count| *count += 1);
        }
        seen.save(transaction, |_| Vec::new()).await
    }
}

#[tokio::test]
async fn a_projection_that_panics_is_parked_and_the_others_go_on() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    for (name, amount) in [("a", 1), ("poison", 5), ("b", 2)] {
        add(&journal, name, amount).await;
    }
    let location = database::location(folder.path(), "test").views();
    let projections = Projections::new().with(Startled).with(Sums);
    let views = Views::open(location, Log::of(&journal), &projections).await.unwrap();
    let (read, board) = (views.read_side("test", PATIENCE), Board::default());
    views.show_on(&board, "test");
    tokio::spawn(async { views.run().await.unwrap() });
    let position = add(&journal, "a", 10).await;
    read.wait_for_token(&token(position)).await.unwrap();
    assert_eq!((sum(&read, "a").await, sum(&read, "poison").await), (Some(11), Some(5)));
    assert_eq!(read.document::<i64>(&SEEN, "a").await.unwrap(), Some(1), "what came before it is folded");
    let all = board.service("test").list_projections(Request::new(ListProjectionsRequest {})).await.unwrap();
    let parked = all.into_inner().projections[0].parked.clone().unwrap();
    assert!(
        parked.position == 2 && parked.error.contains("panicked: ") && parked.error.contains("nobody thought"),
        "{parked:?}"
    );
}

/// Adds one to a counter so many times, at once.
async fn add_many(journal: &Journal, times: u64) -> i64 {
    let id = AggregateId::new("counter", "many");
    let aggregate = id.clone();
    let decide = move |_: &Loaded<'_>| {
        let events = vec![NewEvent { name: "Added", payload: "1".into() }; times as usize];
        let change = Change { aggregate, state: None, version: times, events };
        Decided { changes: vec![change], ..Decided::default() }
    };
    let cause = Cause::default();
    let entry = Entry { request: None, aggregates: vec![id], cause, decide: Box::new(decide), size: 10 };
    journal.submit(entry).await.unwrap().position
}

/// Waits until something holds.
async fn becomes(holds: impl AsyncFn() -> bool) {
    let waits = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.expect("it comes");
}

/// Waits until a board shows its first projection as (position, head).
async fn shows(board: &Board, expected: (i64, i64)) -> Result<(), String> {
    let service = board.service("test");
    let shows = async {
        loop {
            let all = service.list_projections(Request::new(ListProjectionsRequest {})).await.unwrap().into_inner();
            if (all.projections[0].position, all.projections[0].head) == expected {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, shows).await.map_err(|_| format!("not {expected:?}: {board:?}"))
}

#[tokio::test]
async fn how_far_a_log_is_that_another_process_writes_is_shown_before_it_is_folded_and_while_all_are_parked() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    // Not all in one batch, and few in the last: those are folded one by one where one of them parks.
    let head = add_many(&journal, 4_100).await;
    let show = async |projections: Projections, name: &str| {
        let (log, board) = (Log::open(journal.location()).unwrap(), Board::default());
        let location = database::location(folder.path(), name).views();
        let views = Views::open(location, log, &projections).await.unwrap();
        views.show_on(&board, "test");
        (board, tokio::spawn(async { views.run().await.unwrap() }))
    };
    // Not even the first batch comes through.
    let gate = Arc::new(Semaphore::new(0));
    let (board, _) = show(Projections::new().with(Held { gate: Arc::clone(&gate) }), "held").await;
    let shown = shows(&board, (0, head)).await;
    gate.add_permits(1);
    shown.unwrap();

    let head = add(&journal, "poison", 1).await;
    let (board, _) = show(Projections::new().with(Squeamish::default()), "parked").await;
    shows(&board, (head - 1, head)).await.unwrap();
    add_many(&journal, 7).await;
    shows(&board, (head - 1, head + 7)).await.unwrap();
}

static SMALL: Table = Table {
    name: "small",
    create: &["CREATE TABLE IF NOT EXISTS small (
        id TEXT PRIMARY KEY,
        position INTEGER,
        document BLOB,
        sum INTEGER CHECK (sum < 5)
    )"],
    columns: &["id", "position", "document", "sum"],
    key: 1,
    fixed: &[],
};

/// Sums, in a table that takes no large ones.
struct Small;

impl Projection for Small {
    const NAME: &'static str = "small";
    const TABLES: &'static [&'static Table] = &[&SMALL];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        sum_up(&SMALL, events, transaction, |sum| sum).await
    }
}

#[tokio::test]
async fn a_projection_whose_table_refuses_a_row_is_parked_and_the_others_go_on() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    for (name, amount) in [("a", 1), ("large", 5), ("b", 2)] {
        add(&journal, name, amount).await;
    }
    let (read, _) = views(&folder, Log::of(&journal), Projections::new().with(Small).with(Sums)).await;
    let position = add(&journal, "a", 10).await;
    read.wait_for_token(&token(position)).await.unwrap();
    assert_eq!((sum(&read, "a").await, sum(&read, "large").await), (Some(11), Some(5)));
    let small = |id: &'static str| read.document::<i64>(&SMALL, id);
    assert_eq!((small("a").await.unwrap(), small("b").await.unwrap()), (Some(1), None));
}

/// Finds the server without room, so many times.
struct Crowded(AtomicI64);

impl Projection for Crowded {
    const NAME: &'static str = "crowded";
    const TABLES: &'static [&'static Table] = &[&SUMS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        if self.0.fetch_sub(1, Ordering::SeqCst) > 0 {
            let full = "DO $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '53100'; END $$";
            transaction.execute(full, Vec::new()).await?;
        }
        Sums.project(events, transaction).await
    }
}

#[tokio::test]
async fn a_server_that_can_do_nothing_just_now_is_no_events_fault_and_parks_nobody() {
    if std::env::var_os("TEST_POSTGRES").is_none() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    // More than what parks a projection at its poison.
    let projections = Projections::new().with(Crowded(AtomicI64::new(8)));
    let (read, _) = views(&folder, Log::of(&journal), projections).await;
    let position = add(&journal, "a", 1).await;
    read.wait_for_token(&token(position)).await.unwrap();
    assert_eq!(sum(&read, "a").await, Some(1));
}

#[tokio::test]
async fn a_parked_projection_is_shown_and_goes_on_when_it_is_told_to() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (read, board, mended) = squeamish_views(&folder, &journal, |squeamish| squeamish.with(Sums)).await;
    for (name, amount) in [("a", 1), ("poison", 5), ("b", 2)] {
        add(&journal, name, amount).await;
    }
    read.wait_for_token(&token(3)).await.unwrap();
    let service = board.service("test");
    let standing = async |name: &str| {
        let all = service.list_projections(Request::new(ListProjectionsRequest {})).await.unwrap().into_inner();
        all.projections.into_iter().find(|projection| projection.name == name).unwrap()
    };
    let resume = async |name: &str| {
        let request = ResumeProjectionRequest { name: name.to_owned() };
        service.resume_projection(Request::new(request)).await
    };
    // Whoever asks to see a write sees it or is told why not; the other view shows it.
    let asked = read.wait_for_token(&token(3)).await.unwrap();
    let refusal = asked.document::<i64>(&SEEN, "a").await.unwrap_err();
    assert_eq!((refusal.code, &*refusal.reason), (tonic::Code::Unavailable, "NOT_CAUGHT_UP"));
    assert!(refusal.message.contains("seen is parked at 1"), "{refusal:?}");
    assert_eq!(sum(&asked, "poison").await, Some(5));
    let before = read.wait_for_token(&token(1)).await.unwrap();
    assert_eq!(before.document::<i64>(&SEEN, "a").await.unwrap(), Some(1), "that write it has seen");
    assert_eq!(read.document::<i64>(&SEEN, "a").await.unwrap(), Some(1), "without a token it says what it knows");

    let parked = standing("squeamish").await;
    assert_eq!((parked.position, parked.head, &*parked.source), (1, 3, "test"));
    let at = parked.parked.unwrap();
    assert!(at.position == 2 && at.error.contains("poison"), "{at:?}");
    assert_eq!((standing("sums").await.position, standing("sums").await.parked), (3, None));

    // Told to try what can't be done yet, it parks again; the metric says so all the while.
    let exporter = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
    board.observe(&provider.meter("test"));
    resume("squeamish").await.unwrap();
    becomes(async || standing("squeamish").await.parked.is_some()).await;
    let observed = || {
        exporter.reset();
        provider.force_flush().unwrap();
        let metric = |name, projection| observed(&exporter, name, projection);
        let of = |projection| (metric("projection.lag", projection), metric("projection.parked", projection));
        (of("squeamish"), of("sums"))
    };
    assert_eq!(observed(), ((2, 1), (0, 0)), "two events behind and parked; none behind and not");

    mended.store(true, Ordering::SeqCst);
    resume("squeamish").await.unwrap();
    becomes(async || standing("squeamish").await.position >= 3).await;
    assert_eq!(standing("squeamish").await.parked, None);
    assert_eq!(observed(), ((0, 0), (0, 0)));
    let asked = read.wait_for_token(&token(3)).await.unwrap();
    let seen = |id: &'static str| asked.document::<i64>(&SEEN, id);
    assert_eq!((seen("poison").await.unwrap(), seen("b").await.unwrap()), (Some(1), Some(1)));
    assert_eq!(sum(&read, "a").await, Some(1), "the other one's events count once all the same");

    let unknown = resume("no-such").await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    assert!(unknown.message().contains("squeamish, sums"), "{unknown}");
}

#[tokio::test]
async fn a_watcher_of_a_parked_view_sees_it_go_on_and_nobody_is_told_more_than_it_has_seen() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (read, board, mended) = squeamish_views(&folder, &journal, |squeamish| squeamish).await;
    let mut changes = Box::pin(read.follow::<i64>(&SEEN, Vec::new(), 0));
    for (name, amount) in [("a", 1), ("poison", 5), ("b", 2)] {
        add(&journal, name, amount).await;
    }
    assert_eq!(changes.next().await.unwrap().unwrap(), (1, 1));
    let service = board.service("test");
    let parked = async || {
        let all = service.list_projections(Request::new(ListProjectionsRequest {})).await.unwrap().into_inner();
        all.projections[0].parked.is_some()
    };
    becomes(parked).await;
    read.wait_for_token(&token(1)).await.unwrap();
    assert_eq!(read.position(), 1);
    assert!(futures::poll!(changes.next()).is_pending());

    mended.store(true, Ordering::SeqCst);
    let request = ResumeProjectionRequest { name: "squeamish".to_owned() };
    service.resume_projection(Request::new(request)).await.unwrap();
    for position in [2, 3] {
        let change = tokio::time::timeout(PATIENCE, changes.next()).await.expect("it goes on");
        assert_eq!(change.unwrap().unwrap(), (position, 1));
    }
}

#[tokio::test]
async fn a_watcher_is_told_of_a_view_that_catches_up_with_the_others_though_nothing_more_comes() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (read, board, mended) = squeamish_views(&folder, &journal, |squeamish| squeamish.with(Sums)).await;
    for (name, amount) in [("a", 1), ("poison", 5), ("b", 2)] {
        add(&journal, name, amount).await;
    }
    // The others are at the end, so going on alone brings the views no further.
    read.wait_for_token(&token(3)).await.unwrap();
    let mut changes = Box::pin(read.follow::<i64>(&SEEN, Vec::new(), 0));
    assert_eq!(changes.next().await.unwrap().unwrap(), (1, 1));
    assert!(futures::poll!(changes.next()).is_pending());

    mended.store(true, Ordering::SeqCst);
    let request = ResumeProjectionRequest { name: "squeamish".to_owned() };
    board.service("test").resume_projection(Request::new(request)).await.unwrap();
    for position in [2, 3] {
        let change = tokio::time::timeout(PATIENCE, changes.next()).await.expect("it is told");
        assert_eq!(change.unwrap().unwrap(), (position, 1));
    }
}

/// What a gauge says of a projection over the events of `test`.
fn observed(exporter: &InMemoryMetricExporter, name: &str, projection: &str) -> i64 {
    let exported = exporter.get_finished_metrics().unwrap();
    let metrics = exported.iter().flat_map(|exported| exported.scope_metrics()).flat_map(|scope| scope.metrics());
    let is_wanted = |attributes: Vec<(&str, String)>| {
        attributes.contains(&("projection.name", projection.to_owned()))
            && attributes.contains(&("projection.source", "test".to_owned()))
    };
    let attribute = |pair: &KeyValue| (pair.key.as_str().to_owned(), pair.value.to_string());
    let mut found = metrics.filter(|metric| metric.name() == name).flat_map(|metric| match metric.data() {
        AggregatedMetrics::I64(MetricData::Gauge(gauge)) => {
            let point =
                |point: &data::GaugeDataPoint<i64>| (point.attributes().map(attribute).collect(), point.value());
            gauge.data_points().map(point).collect::<Vec<(Vec<_>, i64)>>()
        }
        AggregatedMetrics::U64(MetricData::Gauge(gauge)) => {
            let point = |point: &data::GaugeDataPoint<u64>| {
                (point.attributes().map(attribute).collect(), i64::try_from(point.value()).unwrap())
            };
            gauge.data_points().map(point).collect()
        }
        _ => panic!("{name} is no gauge"),
    });
    let of = |attributes: &[(String, String)]| is_wanted(attributes.iter().map(|(k, v)| (&**k, v.clone())).collect());
    found.find(|(attributes, _)| of(attributes)).unwrap().1
}

#[tokio::test]
async fn pages_are_stable_while_rows_come_in() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (read, _) = views(&folder, Log::of(&journal), Projections::new().with(Sums)).await;
    let mut position = 0;
    for (at, name) in ["b", "d", "f", "h"].into_iter().enumerate() {
        position = add(&journal, name, at as i64).await;
    }
    read.wait_for_token(&token(position)).await.unwrap();
    let page = |token: String| {
        let read = read.clone();
        async move {
            let order = PageOrder::Ascending(Column::Text("id"));
            let query = PageQuery { page_size: 2, page_token: &token, filter: Vec::new(), order };
            read.page::<i64>(&SUMS, query).await.unwrap()
        }
    };
    let first = page(String::new()).await;
    assert_eq!(first.items, [0, 1]);
    let position = add(&journal, "a", 100).await;
    read.wait_for_token(&token(position)).await.unwrap();
    let second = page(first.next_page_token).await;
    assert_eq!((second.items, second.next_page_token), (vec![2, 3], String::new()));

    let order = PageOrder::Descending(Column::Int("position"));
    let filter = vec![("parity", Value::from(1_i64))];
    let odd = read.page::<i64>(&SUMS, PageQuery { page_size: 0, page_token: "", filter, order }).await.unwrap();
    assert_eq!(odd.items, [3, 1]);
}

/// Sums what was added to each counter, with a text beside it: the larger the sum, the earlier in order.
struct Labels;

static LABELS: Table = Table {
    name: "labels",
    create: &["CREATE TABLE IF NOT EXISTS labels (id TEXT PRIMARY KEY, position INTEGER, document BLOB, label TEXT)"],
    columns: &["id", "position", "document", "label"],
    key: 1,
    fixed: &[],
};

impl Projection for Labels {
    const NAME: &'static str = "labels";
    const TABLES: &'static [&'static Table] = &[&LABELS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        sum_up(&LABELS, events, transaction, |sum| format!("label {}", 9 - sum)).await
    }
}

#[tokio::test]
async fn a_listing_by_a_text_that_is_no_id_goes_on() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (read, _) = views(&folder, Log::of(&journal), Projections::new().with(Labels)).await;
    let mut position = 0;
    for (at, name) in ["a", "b", "c"].into_iter().enumerate() {
        position = add(&journal, name, at as i64).await;
    }
    read.wait_for_token(&token(position)).await.unwrap();
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let order = PageOrder::Ascending(Column::Text("label"));
        let query = PageQuery { page_size: 1, page_token: &page_token, filter: Vec::new(), order };
        let page = read.page::<i64>(&LABELS, query).await.unwrap();
        found.extend(page.items);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found, [2, 1, 0]);
}

/// As somebody makes one who reads this program: its check is no secret.
fn forged(column: &str, last: &[u8]) -> String {
    let hash = Sha256::new().chain_update(format!("sums Ascending({column:?}) [] ")).chain_update(last).finalize();
    URL_SAFE_NO_PAD.encode([last, &hash[..8]].concat())
}

#[tokio::test]
async fn a_page_token_that_was_made_by_hand_is_refused_and_asks_the_database_nothing() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    add(&journal, "a", 1).await;
    let location = database::location(folder.path(), "test").views();
    let views = Views::open(location, Log::of(&journal), &Projections::new().with(Sums)).await.unwrap();
    let read = views.read_side("test", PATIENCE);
    views.catch_up(|_, _| {}).await.unwrap();
    let page = async |column: Column, last: &[u8]| {
        let (Column::Text(name) | Column::Int(name)) = column;
        let order = PageOrder::Ascending(column);
        let query = PageQuery { page_size: 2, page_token: &forged(name, last), filter: Vec::new(), order };
        read.page::<i64>(&SUMS, query).await
    };
    let (by_id, by_position) = (Column::Text("id"), Column::Int("position"));
    let number = [b"i".as_slice(), &0_i64.to_be_bytes()].concat();
    for (column, last) in [(by_position, b"ta".as_slice()), (by_id, &number), (by_id, b"ta\0b")] {
        let refused = page(column, last).await.unwrap_err();
        assert_eq!(refused.violations.first().map(|wrong| &*wrong.field), Some("page_token"), "{refused:?}");
    }
    assert_eq!(page(by_id, b"tA").await.unwrap().items, [1], "it is made as the others are");
    assert_eq!(page(by_position, &number).await.unwrap().items, [1]);
}

/// A document of so many KiB for each counter.
struct Large;

impl Projection for Large {
    const NAME: &'static str = "large";
    const TABLES: &'static [&'static Table] = &[&SEEN];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let mut seen = Documents::<String>::load(transaction, &SEEN, events.iter().map(|event| &event.id)).await?;
        for event in events {
            let size: usize = std::str::from_utf8(&event.payload).unwrap().parse().unwrap();
            seen.update(&event.id, event.position, |document| *document = "x".repeat(size << 10));
        }
        seen.save(transaction, |_| Vec::new()).await
    }
}

#[tokio::test]
async fn a_page_of_large_documents_ends_before_it_is_too_large_for_a_message_and_none_is_left_out() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (read, _) = views(&folder, Log::of(&journal), Projections::new().with(Large)).await;
    let mut position = 0;
    for (name, size) in [("a", 700), ("b", 700), ("c", 700), ("d", 3_000), ("e", 1), ("f", 1)] {
        position = add(&journal, name, size).await;
    }
    read.wait_for_token(&token(position)).await.unwrap();
    let all = async |read: &ReadSide| {
        let (mut pages, mut page_token) = (Vec::new(), String::new());
        loop {
            let order = PageOrder::Ascending(Column::Text("id"));
            let query = PageQuery { page_size: 1000, page_token: &page_token, filter: Vec::new(), order };
            let page = read.page::<String>(&SEEN, query).await.unwrap();
            pages.push(page.items.iter().map(|document| document.len() >> 10).collect::<Vec<_>>());
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return pages;
            }
        }
    };
    assert_eq!(all(&read).await, [vec![700, 700], vec![700], vec![3_000], vec![1, 1]]);
    let read = read.answering_at_most(1 << 20);
    assert_eq!(all(&read).await, [vec![700], vec![700], vec![700], vec![3_000], vec![1, 1]]);
}

#[tokio::test]
async fn a_follower_sees_every_last_change_and_resumes_by_position() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (read, _) = views(&folder, Log::of(&journal), Projections::new().with(Sums)).await;
    let mut all = Box::pin(read.follow::<i64>(&SUMS, Vec::new(), 0));
    add(&journal, "a", 1).await;
    assert_eq!(all.next().await.unwrap(), Ok((1, 1)));
    add(&journal, "b", 5).await;
    assert_eq!(all.next().await.unwrap(), Ok((2, 5)));
    drop(all);
    let position = add(&journal, "a", 1).await;
    read.wait_for_token(&token(position)).await.unwrap();
    let mut resumed = Box::pin(read.follow::<i64>(&SUMS, Vec::new(), 2));
    assert_eq!(resumed.next().await.unwrap(), Ok((3, 2)));
}

#[tokio::test]
async fn a_watch_from_beyond_the_log_is_refused_after_the_wait() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let location = database::location(folder.path(), "test").views();
    let views = Views::open(location, Log::of(&journal), &Projections::new().with(Sums)).await.unwrap();
    let (read, impatient) = (views.read_side("test", PATIENCE), views.read_side("test", Duration::ZERO));
    tokio::spawn(views.run());
    let position = add(&journal, "a", 1).await;
    read.wait_for_token(&token(position)).await.unwrap();
    let mut changes = Box::pin(impatient.follow::<i64>(&SUMS, Vec::new(), 99_999));
    let refused = tokio::time::timeout(PATIENCE, changes.next()).await.expect("it is not silent");
    let refusal = refused.unwrap().unwrap_err();
    assert_eq!((refusal.code, &*refusal.reason), (tonic::Code::FailedPrecondition, "AHEAD_OF_LOG"));
    assert!(refusal.message.contains("the log ends at 1") && refusal.message.contains("watch from 0"), "{refusal}");
    assert_eq!(refusal.metadata["head"], "1");
    assert!(changes.next().await.is_none());
}

#[tokio::test]
async fn a_watch_from_where_another_replica_is_waits_for_this_one() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let gate = Arc::new(Semaphore::new(0));
    let location = database::location(folder.path(), "test").views();
    let projections = Projections::new().with(Held { gate: Arc::clone(&gate) });
    let views = Views::open(location, Log::of(&journal), &projections).await.unwrap();
    let (read, impatient) = (views.read_side("test", PATIENCE), views.read_side("test", Duration::ZERO));
    tokio::spawn(views.run());
    add(&journal, "a", 1).await;
    let mut changes = Box::pin(read.follow::<i64>(&SUMS, Vec::new(), 1));
    assert!(futures::poll!(changes.next()).is_pending(), "it waits for the views");
    // The log does go so far: whoever can't wait is not told to begin anew.
    let refusal = impatient.wait_for_position(1).await.unwrap_err();
    assert_eq!((refusal.code, &*refusal.reason), (tonic::Code::Unavailable, "NOT_CAUGHT_UP"));
    assert!(refusal.retry_after.is_some());
    gate.add_permits(1);
    add(&journal, "a", 4).await;
    assert_eq!(changes.next().await.unwrap(), Ok((2, 5)));
}

#[tokio::test]
async fn a_watcher_who_leaves_a_change_untaken_is_dropped_and_can_resume() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (read, _) = views(&folder, Log::of(&journal), Projections::new().with(Sums)).await;
    let mut position = 0;
    for name in ["a", "b", "c"] {
        position = add(&journal, name, 1).await;
    }
    read.wait_for_token(&token(position)).await.unwrap();
    let watch = async |after: i64| {
        let query = |read: &ReadSide, ()| Ok(read.follow::<i64>(&SUMS, Vec::new(), after).boxed());
        let response = read.stream(Request::new(()), query).await.unwrap();
        assert!(response.metadata().contains_key("read-position"));
        response.into_inner()
    };
    // Within half a minute, and beyond it. No longer than that: the pool's own time-out must not pass while the views are read.
    let pass = async |seconds: u64| {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
    };
    let mut changes = watch(0).await;
    assert_eq!(changes.next().await.unwrap().unwrap(), (1, 1));
    pass(15).await;
    assert_eq!(changes.next().await.unwrap().unwrap(), (2, 1));
    pass(31).await;
    let dropped = changes.next().await.unwrap().unwrap_err();
    let refusal = libs::refusal::Refusal::from_status(&dropped);
    assert_eq!((dropped.code(), &*refusal.reason), (tonic::Code::ResourceExhausted, "SLOW_WATCHER"));
    assert!(changes.next().await.is_none());
    assert_eq!(watch(2).await.next().await.unwrap().unwrap(), (3, 1));
}

#[tokio::test]
async fn what_a_watcher_has_not_taken_is_read_when_it_does_where_documents_are_large() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (read, _) = views(&folder, Log::of(&journal), Projections::new().with(Large)).await;
    for at in 0..40 {
        add(&journal, &format!("id-{at:02}"), 60).await;
    }
    read.wait_for_token(&token(40)).await.unwrap();
    let mut changes = Box::pin(read.follow::<String>(&SEEN, Vec::new(), 0));
    assert_eq!(changes.next().await.unwrap().unwrap().0, 1);
    let position = add(&journal, "id-20", 1).await;
    read.wait_for_token(&token(position)).await.unwrap();
    // Had the watch held it, it would be told as it was as well.
    let rest: Vec<i64> = changes.take(39).map(|change| change.unwrap().0).collect().await;
    assert_eq!(rest, (2..=41).filter(|at| *at != 21).collect::<Vec<_>>());
}

/// Changes so many documents by each event.
struct Many(i64);

impl Projection for Many {
    const NAME: &'static str = "many";
    const TABLES: &'static [&'static Table] = &[&SUMS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let ids = |event: &Event| (0..self.0).map(|at| format!("{} {at}", event.id)).collect::<Vec<_>>();
        let mut sums = Documents::<i64>::load(transaction, &SUMS, events.iter().flat_map(ids)).await?;
        for event in events {
            for id in ids(event) {
                sums.update(&id, event.position, |sum| *sum = event.position);
            }
        }
        sums.save(transaction, |_| vec![0.into()]).await
    }
}

#[tokio::test]
async fn a_follower_that_leaves_in_the_midst_of_an_event_misses_none_of_its_changes() {
    // As many as one look has, and more.
    for each in [100, 256, 257, 600] {
        let folder = TempDir::new().unwrap();
        let journal = journal(&folder).await;
        let (read, _) = views(&folder, Log::of(&journal), Projections::new().with(Many(each))).await;
        let mut position = 0;
        for name in ["a", "b", "c", "d", "e"] {
            position = add(&journal, name, 1).await;
        }
        read.wait_for_token(&token(position)).await.unwrap();
        let each = usize::try_from(each).unwrap();
        let expected: Vec<i64> = (1..=5).flat_map(|position| vec![position; each]).collect();
        for leaves in [1, 50, each - 1, each, 250, 256, 257, 3 * each - 1, 5 * each - 1, 5 * each] {
            let leave = tokio::time::timeout(
                PATIENCE,
                read.follow::<i64>(&SUMS, Vec::new(), 0).take(leaves).collect::<Vec<_>>(),
            );
            let first = leave.await.expect("so many come");
            let mut seen: Vec<i64> = first.iter().map(|change| change.as_ref().unwrap().1).collect();
            let (reached, _) = first.last().unwrap().as_ref().unwrap();
            let whole = seen.iter().filter(|of| *of <= reached).count();
            assert_eq!(whole, usize::try_from(*reached).unwrap() * each, "all up to there");
            assert_eq!(
                *reached,
                i64::try_from(leaves / each).unwrap(),
                "the last document of an event says that it is"
            );
            seen.retain(|of| of <= reached);
            let rest = read.follow::<i64>(&SUMS, Vec::new(), *reached).take(5 * each - seen.len());
            let rest = tokio::time::timeout(PATIENCE, rest.collect::<Vec<_>>()).await.expect("the rest comes");
            seen.extend(rest.iter().map(|change| change.as_ref().unwrap().1));
            assert_eq!(seen, expected, "left after {leaves}");
        }
    }
}

#[tokio::test]
async fn views_made_anew_in_place_are_the_same_and_are_never_seen_half_made() {
    if !database::has_server() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (read, _) = views(&folder, Log::of(&journal), Projections::new().with(Sums)).await;
    let mut position = 0;
    for _ in 0..20 {
        position = add(&journal, "a", 2).await;
    }
    read.wait_for_token(&token(position)).await.unwrap();
    let others = Projections::new().with(Squeamish::default());
    let others = Views::open(journal.location().views(), Log::of(&journal), &others).await.unwrap();
    others.catch_up(|_, _| {}).await.unwrap();
    // Those that are made anew wait until somebody has read beside them.
    let gate = Arc::new(Semaphore::new(0));
    let projections = Projections::new().with(Held { gate: Arc::clone(&gate) });
    let anew = Views::open(journal.location().views(), Log::of(&journal), &projections).await.unwrap();
    let mut seen = Vec::new();
    let mut rebuilding = Box::pin(anew.rebuild(|_, _| {}));
    loop {
        tokio::select! {
            rebuilt = &mut rebuilding => break rebuilt.unwrap(),
            sum = sum(&read, "a") => {
                seen.push(sum);
                gate.add_permits(1);
            }
        }
    }
    assert!(!seen.is_empty() && seen.iter().all(|sum| *sum == Some(40)), "{seen:?}");
    assert_eq!(sum(&read, "a").await, Some(40));
    // Other views of the schema, such as those over another service's events, are not begun again.
    let mut folded = Vec::new();
    let others = Projections::new().with(Squeamish::default());
    let others = Views::open(journal.location().views(), Log::of(&journal), &others).await.unwrap();
    others.catch_up(|done, all| folded.push((done, all))).await.unwrap();
    assert!(folded.is_empty(), "{folded:?}");
    // And the replica that was folding goes on from there.
    let position = add(&journal, "a", 2).await;
    read.wait_for_token(&token(position)).await.unwrap();
    assert_eq!(sum(&read, "a").await, Some(42));
}

#[tokio::test]
async fn views_of_a_log_that_went_further_are_refused_and_can_be_made_anew_of_the_one_that_is_there() {
    let folder = TempDir::new().unwrap();
    let lost = journal(&folder).await;
    let restored = Journal::open(database::location(folder.path(), "restored"), &[]).await.unwrap();
    for _ in 0..5 {
        add(&lost, "a", 1).await;
    }
    for _ in 0..3 {
        add(&restored, "a", 10).await;
    }
    let open = async |journal: &Journal| {
        let location = database::location(folder.path(), "test").views();
        opened(location, Log::of(journal), Projections::new().with(Sums)).await
    };
    open(&lost).await.catch_up(|_, _| {}).await.unwrap();
    let refused = tokio::time::timeout(PATIENCE, open(&restored).await.run()).await.expect("it ends");
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("the views are at 5 and the log ends at 3"), "{refused}");

    let rebuilt = tokio::time::timeout(PATIENCE, open(&restored).await.rebuild(|_, _| {})).await;
    rebuilt.expect("it ends").unwrap();
    let views = open(&restored).await;
    let read = views.read_side("test", PATIENCE);
    tokio::spawn(async { views.run().await.unwrap() });
    let position = add(&restored, "a", 10).await;
    read.wait_for_token(&token(position)).await.unwrap();
    assert_eq!((position, sum(&read, "a").await), (4, Some(40)));
}

/// As [`Sums`], but who folds the first event waits until it may.
struct Held {
    gate: Arc<Semaphore>,
}

impl Projection for Held {
    const NAME: &'static str = "sums";
    const TABLES: &'static [&'static Table] = &[&SUMS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        if events.iter().any(|event| event.position == 1) {
            drop(self.gate.acquire().await.unwrap());
        }
        Sums.project(events, transaction).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_views_go_on_while_new_ones_are_made_and_outlive_what_comes_to_nothing() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let gate = Arc::new(Semaphore::new(1));
    let begin = async || {
        let location = database::location(folder.path(), "test").views();
        let views =
            opened(location, Log::of(&journal), Projections::new().with(Held { gate: Arc::clone(&gate) })).await;
        let (read, board) = (views.read_side("test", PATIENCE), Board::default());
        views.show_on(&board, "test");
        (read, board.service("test"), tokio::spawn(async { views.run().await.unwrap() }))
    };
    let anew = || Request::new(RebuildProjectionsRequest { source: "test".to_owned() });
    let (read, service, running) = begin().await;
    let position = add(&journal, "a", 1).await;
    read.wait_for_token(&token(position)).await.unwrap();

    // New ones are under way, and don't get on: whoever reads and writes sees nothing of it.
    gate.acquire().await.unwrap().forget();
    let mut stretches = service.rebuild_projections(anew()).await.unwrap().into_inner();
    for round in 2..=20 {
        let position = add(&journal, "a", 1).await;
        read.wait_for_token(&token(position)).await.unwrap();
        assert_eq!(sum(&read, "a").await, Some(round));
    }
    assert!(futures::FutureExt::now_or_never(stretches.next()).is_none(), "it has not begun");
    gate.add_permits(1);
    // They have what came meanwhile too, although the log was shorter when they were begun.
    let told: Vec<_> = stretches.map(|stretch| stretch.unwrap()).collect().await;
    let RebuildProjectionsResponse { position, head } = told.last().unwrap();
    assert_eq!((*position, *head), (20, 20));
    assert_eq!(sum(&read, "a").await, Some(20));

    // Killed in the midst of it, all is as it was, and what is left of it is in nobody's way.
    gate.acquire().await.unwrap().forget();
    let stretches = service.rebuild_projections(anew()).await.unwrap().into_inner();
    let position = add(&journal, "a", 1).await;
    read.wait_for_token(&token(position)).await.unwrap();
    running.abort();
    let _ = running.await;
    drop(stretches);
    // A process that is killed has no thread left. Here the fold that waits is on one that outlives its task.
    gate.add_permits(1);
    let gone = async {
        while Arc::strong_count(&gate) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it comes to its end");
    let (read, service, _running) = begin().await;
    let position = add(&journal, "a", 1).await;
    read.wait_for_token(&token(position)).await.unwrap();
    assert_eq!(sum(&read, "a").await, Some(22));
    let told: Vec<_> = service.rebuild_projections(anew()).await.unwrap().into_inner().collect().await;
    assert!(told.iter().all(Result::is_ok), "{told:?}");
    assert_eq!(sum(&read, "a").await, Some(22));
    let position = add(&journal, "a", 1).await;
    read.wait_for_token(&token(position)).await.unwrap();
    assert_eq!(sum(&read, "a").await, Some(23));
}

/// A view that was not there before. When it begins, something happens, and then it waits until it may go on.
struct Newcomer {
    journal: Journal,
    gate: Arc<Semaphore>,
}

impl Projection for Newcomer {
    const NAME: &'static str = "newcomer";
    const TABLES: &'static [&'static Table] = &[&SEEN];

    async fn project(&self, events: &[Event], _: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        if events.iter().any(|event| event.position == 1) {
            add(&self.journal, "a", 5).await;
        } else {
            drop(self.gate.acquire().await.unwrap());
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_do_not_wait_for_a_view_that_begins() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let head = add_many(&journal, 3 * 4096).await;
    let location = || database::location(folder.path(), "test").views();
    let sums = Projections::new().with(Sums);
    Views::open(location(), Log::of(&journal), &sums).await.unwrap().catch_up(|_, _| {}).await.unwrap();

    let gate = Arc::new(Semaphore::new(0));
    let projections = sums.with(Newcomer { journal: journal.clone(), gate: Arc::clone(&gate) });
    let views = Views::open(location(), Log::of(&journal), &projections).await.unwrap();
    let (read, board) = (views.read_side("test", PATIENCE), Board::default());
    views.show_on(&board, "test");
    tokio::spawn(async { views.run().await.unwrap() });
    let token = token(head + 1);
    // What happens while it has folded a batch of three.
    let asked = read.wait_for_token(&token).await;
    let answers = match &asked {
        Ok(asked) => Ok((sum(asked, "a").await, asked.document::<i64>(&SEEN, "a").await.unwrap_err())),
        Err(refusal) => Err(refusal),
    };
    gate.add_permits(1);
    let (sum, refusal) = answers.unwrap();
    assert_eq!((sum, &*refusal.reason), (Some(5), "NOT_CAUGHT_UP"));
    assert!(refusal.message.contains("seen is catching up at 4096"), "{refusal}");
    let caught_up = async {
        while read.wait_for_token(&token).await.unwrap().document::<i64>(&SEEN, "a").await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, caught_up).await.expect("it comes up to them");
}

/// As [`Sums`] of events of any size, and remembers how large the batches were that it was handed.
struct Weighed(Arc<Mutex<Vec<usize>>>);

impl Projection for Weighed {
    const NAME: &'static str = "weighed";
    const TABLES: &'static [&'static Table] = &[&SUMS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        self.0.lock().unwrap().push(events.iter().map(|event| event.payload.len()).sum());
        let mut seen = Documents::<i64>::load(transaction, &SUMS, ["large", "small"]).await?;
        for event in events {
            seen.update(if event.payload.len() < 10 { "small" } else { "large" }, event.position, |count| *count += 1);
        }
        seen.save(transaction, |_| vec![0.into()]).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_events_are_folded_a_few_at_a_time() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    // Small ones tell nothing of those that follow them.
    add_many(&journal, 1000).await;
    let large = vec![NewEvent { name: "Added", payload: vec![b'0'; 128 << 10].into() }; 20];
    let mut head = 0;
    for at in 0..20 {
        let aggregate = AggregateId::new("counter", format!("large {at}"));
        let change = Change { aggregate, state: None, version: 20, events: large.clone() };
        let decide = Box::new(|_: &Loaded<'_>| Decided { changes: vec![change], ..Decided::default() });
        let entry = Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size: 10 };
        head = journal.submit(entry).await.unwrap().position;
    }
    // What was written last is not in memory there.
    let log = Log::open(database::location(folder.path(), "test")).unwrap();
    let batches = Arc::new(Mutex::new(Vec::new()));
    let (read, _) = views(&folder, log, Projections::new().with(Weighed(Arc::clone(&batches)))).await;
    read.wait_for_position(head).await.unwrap();
    assert_eq!((sum(&read, "small").await, sum(&read, "large").await), (Some(1000), Some(400)));
    let batches = batches.lock().unwrap();
    assert!(batches.iter().all(|bytes| *bytes < 10 << 20) && batches.len() < 10, "{batches:?}");
}

/// As [`Sums`], and takes its time for each event.
struct Slow;

impl Projection for Slow {
    const NAME: &'static str = "slow";
    const TABLES: &'static [&'static Table] = &[&SUMS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        tokio::time::sleep(Duration::from_millis(10) * u32::try_from(events.len()).unwrap()).await;
        Sums.project(events, transaction).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_longer_to_fold_than_a_server_leaves_a_turn_is_folded_in_several() {
    if !database::has_server() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    // Together they take longer than 4 s, after which the server ends the session.
    let head = add_many(&journal, 450).await;
    let location = database::location(folder.path(), "test").views();
    let slow = || Projections::new().with(Slow);
    let (read, following) = views(&folder, Log::of(&journal), slow()).await;
    read.wait_for_position(head).await.unwrap();
    assert_eq!(sum(&read, "many").await, Some(450));
    following.abort();
    let anew = Views::open(location, Log::of(&journal), &slow()).await.unwrap();
    tokio::time::timeout(PATIENCE, anew.rebuild(|_, _| {})).await.expect("it ends").unwrap();
    assert_eq!(sum(&read, "many").await, Some(450));
}

/// As [`Sums`], times what is right today.
struct Scaled {
    factor: Arc<AtomicI64>,
}

impl Projection for Scaled {
    const NAME: &'static str = "sums";
    const TABLES: &'static [&'static Table] = &[&SUMS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let factor = self.factor.load(Ordering::SeqCst);
        let mut sums = Documents::<i64>::load(transaction, &SUMS, events.iter().map(|e| e.id.as_str())).await?;
        for event in events {
            let amount: i64 = std::str::from_utf8(&event.payload).unwrap().parse().unwrap();
            sums.update(&event.id, event.position, |sum| *sum += amount * factor);
        }
        sums.save(transaction, |sum| vec![(sum % 2).into()]).await
    }
}

/// What there is of views that are made anew: files, or schemas on a server.
async fn beside(folder: &TempDir, journal: &Journal) -> Vec<String> {
    let Location::Postgres { schema, .. } = journal.location() else {
        let names = std::fs::read_dir(folder.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        return names.filter(|name| name.contains("anew")).collect();
    };
    let named = "SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname, $1)";
    let found = journal.reader().fetch(named, vec![format!("{schema}_anew").into()]).await.unwrap();
    found.iter().map(|found| found.text(0).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_are_made_anew_while_they_are_read_and_written() {
    let folder = TempDir::new().unwrap();
    let journal = journal(&folder).await;
    let (factor, mended) = (Arc::new(AtomicI64::new(1)), Arc::new(AtomicBool::new(true)));
    let squeamish = Squeamish { mended: Arc::clone(&mended) };
    let projections = Projections::new().with(Scaled { factor: Arc::clone(&factor) }).with(squeamish);
    let location = database::location(folder.path(), "test").views();
    let views = Views::open(location, Log::of(&journal), &projections).await.unwrap();
    let read = views.read_side("test", PATIENCE);
    let board = Board::default();
    views.show_on(&board, "test");
    tokio::spawn(async { views.run().await.unwrap() });
    let service = board.service("test");
    let rebuild = |source: &str| {
        let request = Request::new(RebuildProjectionsRequest { source: source.to_owned() });
        service.rebuild_projections(request)
    };
    add(&journal, "poison", 1).await;
    let mut position = 0;
    for _ in 0..40 {
        position = add(&journal, "a", 1).await;
    }
    read.wait_for_token(&token(position)).await.unwrap();

    factor.store(2, Ordering::SeqCst);
    let mut told = Vec::new();
    let mut stretches = rebuild("test").await.unwrap().into_inner();
    while let Some(stretch) = stretches.next().await {
        let RebuildProjectionsResponse { position, head } = stretch.unwrap();
        told.push((position, head));
        // Seen whole: as it was, or as it is.
        assert!(matches!(sum(&read, "a").await, Some(40 | 80)));
        add(&journal, "b", 1).await;
    }
    assert_eq!(told.last(), Some(&(position, position)));
    assert_eq!(sum(&read, "a").await, Some(80));
    let position = add(&journal, "a", 1).await;
    read.wait_for_token(&token(position)).await.unwrap();
    assert_eq!(sum(&read, "a").await, Some(82));

    // One that comes to nothing changes nothing.
    factor.store(5, Ordering::SeqCst);
    mended.store(false, Ordering::SeqCst);
    let refused = rebuild("test").await.unwrap().into_inner().collect::<Vec<_>>().await;
    let refused = refused.into_iter().last().unwrap().unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Aborted);
    assert!(refused.message().contains("are as they were"), "{refused:?}");
    assert_eq!(beside(&folder, &journal).await, [""; 0], "the room that it took");
    let position = add(&journal, "b", 1).await;
    read.wait_for_token(&token(position)).await.unwrap();
    assert_eq!(sum(&read, "a").await, Some(82));
    let unknown = rebuild("elsewhere").await.err().unwrap();
    assert_eq!(
        (unknown.code(), Refusal::from_status(&unknown).reason.as_ref()),
        (tonic::Code::NotFound, "UNKNOWN_SOURCE")
    );
    assert!(unknown.message().ends_with("there are: test"), "{unknown}");
    let empty = rebuild("").await.err().unwrap();
    let violations = Refusal::from_status(&empty).violations;
    assert_eq!((empty.code(), &*violations[0].field), (tonic::Code::InvalidArgument, "source"));
}
