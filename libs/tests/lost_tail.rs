//! A log that has lost its last events, and the views with it, while a process goes on: as after a failover to a server that had not come
//! so far. Runs where `TEST_POSTGRES` names one; what is published, where `TEST_NATS` names that server's program as well.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod broker;
mod database;
mod schema;
mod squeamish;

use std::time::Duration;

use broker::Broker;
use futures::StreamExt as _;
use libs::{
    cqrs::{Board, JetStream, Log, Outbox, Projections, ReadSide, Views, ViewsError},
    journal::{Journal, Location},
    refusal::Refusal,
};
use proto::{
    events::v1::{SubscribeRequest, event_service_server::EventService as _},
    projections::v1::{ListProjectionsRequest, projection_query_service_server::ProjectionQueryService as _},
};
use schema::{PATIENCE, Schema, note};
use sqlx::{AssertSqlSafe, Executor as _};
use squeamish::{SEEN, Squeamish};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Request, metadata::MetadataMap};

/// Notes this, each in an event of its own.
async fn note_all(journal: &Journal, keys: &[&str]) -> i64 {
    let mut position = 0;
    for key in keys {
        position = journal.submit(note(key)).await.unwrap().position;
    }
    position
}

/// Loses all that came after a position, in the log and in the views over it.
async fn lose_after(schema: &Schema, position: i64) {
    let sql = format!(
        "BEGIN;
        DELETE FROM events WHERE position > {position};
        DELETE FROM requests WHERE key <> 'first';
        DELETE FROM aggregates WHERE id <> 'first';
        DELETE FROM seen WHERE position > {position};
        UPDATE checkpoints SET position = {position};
        COMMIT"
    );
    schema.connect().await.execute(AssertSqlSafe(sql)).await.unwrap();
}

/// Loses what was folded after a position.
async fn lose_folds_after(schema: &Schema, position: i64) {
    let sql = format!(
        "BEGIN;
        DELETE FROM seen WHERE position > {position};
        UPDATE checkpoints SET position = {position};
        COMMIT"
    );
    schema.connect().await.execute(AssertSqlSafe(sql)).await.unwrap();
}

/// Views over a log that count what was noted, and where they are shown.
async fn views(schema: &Schema, log: Log) -> (ReadSide, Board, JoinHandle<Result<(), ViewsError>>) {
    let location = Location::Postgres { url: schema.url.clone(), schema: schema.name.clone() };
    let views = Views::open(location, log, &Projections::new().with(Squeamish::default())).await.unwrap();
    let (read, board) = (views.read_side("test", PATIENCE), Board::default());
    views.show_on(&board, "test");
    (read, board, tokio::spawn(views.run()))
}

async fn count(read: &ReadSide, id: &str) -> Option<i64> {
    read.document(&SEEN, id).await.unwrap()
}

async fn becomes(holds: impl AsyncFn() -> bool) {
    let waits = async {
        while !holds().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waits).await.expect("it never comes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_go_back_with_a_log_that_has_lost_its_last_events() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    // One that writes the log itself, and one that reads alone.
    let own = views(&schema, Log::of(&journal)).await;
    let beside = views(&schema, Log::open(journal.location()).unwrap()).await;
    let lost = note_all(&journal, &["first", "second", "third", "fourth"]).await;
    for (read, ..) in [&own, &beside] {
        read.wait_for_position(lost).await.unwrap();
    }

    lose_after(&schema, 1).await;
    // The next one will be at a position that was passed.
    for (read, board, _) in [&own, &beside] {
        becomes(async || read.position() == 1).await;
        // The end that is shown is the one that there is.
        becomes(async || shown(board).await == (1, 1)).await;
    }
    let again = note_all(&journal, &["again"]).await;
    assert!(again < lost);
    let mut token = MetadataMap::new();
    token.insert("consistency-token", format!("test:{again:x}").parse().unwrap());
    for (read, board, _) in [&own, &beside] {
        read.wait_for_token(&token).await.unwrap();
        assert_eq!((count(read, "again").await, count(read, "second").await), (Some(1), None));
        becomes(async || shown(board).await == (again, again)).await;
    }
}

/// As where a server takes over that has all events, and not what was folded last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_that_have_lost_what_was_folded_last_have_it_again() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    let (read, board, _following) = views(&schema, Log::of(&journal)).await;
    let head = note_all(&journal, &["first", "second", "third"]).await;
    read.wait_for_position(head).await.unwrap();
    lose_folds_after(&schema, 1).await;
    becomes(async || count(&read, "third").await == Some(1)).await;
    assert_eq!(count(&read, "second").await, Some(1));
    becomes(async || shown(&board).await == (head, head)).await;

    // And where there is news before that is seen.
    lose_folds_after(&schema, 1).await;
    let head = note_all(&journal, &["fourth"]).await;
    becomes(async || count(&read, "fourth").await == Some(1) && count(&read, "second").await == Some(1)).await;
    becomes(async || shown(&board).await == (head, head)).await;
}

/// How far a projection is that is not parked, and its log.
async fn shown(board: &Board) -> (i64, i64) {
    let service = board.service("test");
    let shown = service.list_projections(Request::new(ListProjectionsRequest {})).await.unwrap().into_inner();
    let shown = &shown.projections[0];
    assert_eq!(shown.parked, None);
    (shown.position, shown.head)
}

/// How often a second the log is read, of so many at least.
async fn asked(schema: &Schema, time: Duration) -> i64 {
    const SCANS: &str =
        "SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = 'events'";
    let mut server = schema.connect().await;
    let mut scans =
        async || sqlx::query_scalar::<_, i64>(SCANS).bind(&schema.name).fetch_one(&mut server).await.unwrap();
    let (began, before) = (Instant::now(), scans().await);
    sleep(time).await;
    let asked = scans().await - before;
    // A session says what it did once a second.
    asked / i64::try_from(began.elapsed().as_secs() + 1).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_of_a_log_that_has_lost_its_last_events_waits_for_the_next_without_asking_all_the_time() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    views(&schema, Log::of(&journal)).await;
    note_all(&journal, &["first", "second", "third"]).await;
    lose_after(&schema, 1).await;
    let outbox = Outbox::new("test", Log::of(&journal));
    let request = SubscribeRequest { after_position: 1, kinds: Vec::new() };
    let mut stretches = outbox.subscribe(Request::new(request)).await.unwrap().into_inner();
    assert_eq!(stretches.next().await.unwrap().unwrap().head, 1);
    let told = tokio::spawn(async move { stretches.next().await.unwrap().unwrap() });

    let asked = asked(&schema, Duration::from_secs(3)).await;
    assert!(asked < 250, "the log was asked {asked} times a second");
    let again = note_all(&journal, &["again"]).await;
    assert_eq!(timeout(PATIENCE, told).await.unwrap().unwrap().position, again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_of_a_log_that_has_lost_its_last_events_wait_for_the_next_as_any_that_have_nothing_to_do() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    let (read, ..) = views(&schema, Log::of(&journal)).await;
    let lost = note_all(&journal, &["first", "second", "third"]).await;
    read.wait_for_position(lost).await.unwrap();
    lose_after(&schema, 1).await;
    becomes(async || read.position() == 1).await;
    sleep(Duration::from_secs(1)).await;
    let asked = asked(&schema, Duration::from_secs(4)).await;
    // As those ask, it is 50.
    assert!(asked < 80, "the log was asked {asked} times a second");
    let again = note_all(&journal, &["again"]).await;
    read.wait_for_position(again).await.unwrap();
    assert_eq!(count(&read, "again").await, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_a_log_that_has_lost_its_last_events_ends_with_it() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    let (read, _, following) = views(&schema, Log::of(&journal)).await;
    let lost = note_all(&journal, &["first", "second", "third"]).await;
    read.wait_for_position(lost).await.unwrap();
    lose_after(&schema, 1).await;
    becomes(async || read.position() == 1).await;
    let outbox = Outbox::new("test", Log::of(&journal));
    let request = SubscribeRequest { after_position: 1, kinds: Vec::new() };
    let stretches = outbox.subscribe(Request::new(request)).await.unwrap().into_inner();
    journal.close();
    journal.ended().await.unwrap();
    timeout(PATIENCE, following).await.expect("the views end").unwrap().unwrap();
    assert_eq!(timeout(PATIENCE, stretches.count()).await.expect("what is told ends"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_service_that_was_told_of_what_is_lost_is_told_that_it_is() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    views(&schema, Log::of(&journal)).await;
    let lost = note_all(&journal, &["first", "second", "third", "fourth"]).await;
    let outbox = Outbox::new("test", Log::of(&journal));
    let request = SubscribeRequest { after_position: lost, kinds: Vec::new() };
    let mut stretches = outbox.subscribe(Request::new(request)).await.unwrap().into_inner();
    assert_eq!(stretches.next().await.unwrap().unwrap().head, lost);

    lose_after(&schema, 1).await;
    let told = timeout(PATIENCE, stretches.next()).await.expect("it is told").unwrap().unwrap_err();
    let refusal = Refusal::from_status(&told);
    assert_eq!((told.code(), &*refusal.reason), (Code::FailedPrecondition, "AHEAD_OF_LOG"), "{told:?}");
    assert!(stretches.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_with_what_is_lost_is_not_gone_on_with() {
    let (Some(schema), Some(broker)) = (Schema::new(), Broker::start()) else { return };
    let journal = schema.open().await;
    views(&schema, Log::of(&journal)).await;
    let jetstream = JetStream::connect(&broker.url(), "test", None).await.unwrap();
    let (board, relay) = (Board::default(), jetstream.relay("test", Log::of(&journal)));
    relay.show_on(&board);
    tokio::spawn(relay.run());
    let service = board.service("test");
    let shown = async || {
        let shown = service.list_projections(Request::new(ListProjectionsRequest {})).await.unwrap().into_inner();
        shown.projections.into_iter().next().unwrap()
    };
    let lost = note_all(&journal, &["first", "second", "third", "fourth"]).await;
    becomes(async || shown().await.position == lost).await;

    lose_after(&schema, 1).await;
    becomes(async || shown().await.parked.is_some()).await;
    let why = shown().await.parked.unwrap().error;
    assert!(why.contains("is not a copy of this log"), "{why}");
}

/// Whoever holds in memory what came of the lost events must not go on from that, however far the log is by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_written_what_a_log_has_lost_finds_out_before_it_writes_more() {
    let Some(schema) = Schema::new() else { return };
    let (one, two) = (schema.open().await, schema.open().await);
    let _following = views(&schema, Log::of(&one)).await;
    note_all(&one, &["first", "second"]).await;
    note_all(&two, &["third"]).await;
    note_all(&one, &["fourth"]).await;
    note_all(&two, &["fifth"]).await;
    assert_eq!((one.losses().count(), two.losses().count()), (0, 0), "nothing is lost where others write too");

    lose_after(&schema, 1).await;
    assert_eq!(note_all(&two, &["again", "and again", "and once more", "at last"]).await, 5);
    assert_eq!(two.losses().count(), 1);
    note_all(&one, &["on"]).await;
    assert_eq!(one.losses().count(), 1, "another event is where its last one was");
    note_all(&one, &["and on"]).await;
    assert_eq!((one.losses().count(), two.losses().count()), (1, 1), "once each");
}
