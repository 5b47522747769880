//! What becomes of a batch whose server is gone in the midst of its commit, and of views over it, where a standby has the commit and is to
//! take over. Runs where `TEST_POSTGRES_BIN` names the server's programs.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod schema;
mod squeamish;
mod standby;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::StreamExt as _;
use libs::{
    cqrs::{Board, Log, Outbox, Projection, ProjectionError, Projections, Views},
    journal::{Event, Journal, Location, Outcome, Table, head_of_primary, sql::Transaction},
};
use proto::{
    events::v1::{SubscribeRequest, event_service_server::EventService as _},
    projections::v1::{ListProjectionsRequest, projection_query_service_server::ProjectionQueryService as _},
};
use schema::{PATIENCE, note, noted};
use sqlx::Executor as _;
use squeamish::{SEEN, Squeamish};
use standby::{Pair, session, strand, until};
use tokio::{sync::Semaphore, time::timeout};
use tonic::Request;

/// How it is asked what became of a commit.
const FATE: &str = "pg_xact_status(";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_a_standby_has_yet_to_replay_is_known_once_it_is_promoted() {
    let Some(pair) = Pair::start().await else { return };
    let url = format!("{}&options[synchronous_commit]=remote_apply", pair.url());
    let journal = Journal::open(Location::Postgres { url, schema: "test".to_owned() }, &[]).await.unwrap();
    assert_eq!(journal.submit(note("before")).await.unwrap().outcome, Outcome::Done);
    let (mut primary, mut standby) = (session(pair.primary).await, session(pair.standby).await);
    standby.execute("SELECT pg_wal_replay_pause()").await.unwrap();
    until(&mut standby, "pg_get_wal_replay_pause_state() = 'paused'").await;

    let mut submitted = tokio::spawn({
        let journal = journal.clone();
        async move { journal.submit(note("shipped")).await }
    });
    until(&mut primary, "EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')").await;
    until(&mut primary, "(SELECT flush_lsn = pg_current_wal_flush_lsn() FROM pg_stat_replication)").await;
    pair.fail_over();
    tokio::select! {
        early = &mut submitted => panic!("answered by what the standby had replayed: {early:?}"),
        () = pair.until_asked(FATE) => {}
    }
    standby.execute("SELECT pg_promote()").await.unwrap();

    let answer = timeout(PATIENCE, submitted).await.expect("an answer").unwrap();
    assert_eq!(answer.map(|done| done.outcome), Ok(Outcome::Done), "it was committed");
    assert_eq!(journal.submit(note("shipped")).await.unwrap().outcome, Outcome::Replayed);
    assert_eq!(noted(&journal).await, ["before", "shipped"]);
}

/// It takes no writes, and no event is to blame for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_has_yet_to_be_promoted_parks_no_view() {
    let Some(pair) = Pair::start().await else { return };
    let location = Location::Postgres { url: pair.url(), schema: "test".to_owned() };
    let journal = Journal::open(&location, &[]).await.unwrap();
    let views =
        Views::open(&location, Log::of(&journal), &Projections::new().with(Squeamish::default())).await.unwrap();
    let (read, board) = (views.read_side("test", PATIENCE), Board::default());
    views.show_on(&board, "test");
    for key in ["first", "second"] {
        journal.submit(note(key)).await.unwrap();
    }
    let mut standby = session(pair.standby).await;
    until(&mut standby, "EXISTS (SELECT FROM test.events WHERE position = 2)").await;
    pair.fail_over();
    tokio::spawn(views.run());
    let shown = async || {
        let asked = board.service("test").list_projections(Request::new(ListProjectionsRequest {})).await.unwrap();
        asked.into_inner().projections.remove(0)
    };
    // Often enough to have tried the batch and each event.
    for _ in 0..2 {
        until(&mut standby, TRIED).await;
        until(&mut standby, &format!("NOT {TRIED}")).await;
    }
    assert_eq!(shown().await.parked, None);
    standby.execute("SELECT pg_promote()").await.unwrap();
    timeout(PATIENCE, read.wait_for_position(2)).await.expect("it goes on").unwrap();
}

/// Somebody's turn to fold is under way.
const TRIED: &str = "EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')";

/// Waits until one more batch has begun to be folded.
async fn begins(began: &Semaphore) {
    timeout(PATIENCE, began.acquire()).await.expect("it begins").unwrap().forget();
}

/// Counts, when it may.
struct Gated {
    counts: Squeamish,
    began: Arc<Semaphore>,
    may: Arc<Semaphore>,
}

impl Projection for Gated {
    const NAME: &'static str = Squeamish::NAME;
    const TABLES: &'static [&'static Table] = Squeamish::TABLES;

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        self.began.add_permits(1);
        // A server ends the turn of who says nothing in the midst of it.
        let permit = loop {
            match timeout(Duration::from_secs(1), self.may.acquire()).await {
                Ok(permit) => break permit.unwrap(),
                Err(_) => drop(transaction.fetch("SELECT 1", Vec::new()).await?),
            }
        };
        permit.forget();
        self.counts.project(events, transaction).await
    }
}

/// A fold comes after its events in what a server has yet to replay, and after others that were written meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_has_the_log_and_has_yet_to_replay_a_fold_is_waited_for() {
    let Some(pair) = Pair::start().await else { return };
    let location = Location::Postgres { url: pair.url(), schema: "test".to_owned() };
    let journal = Journal::open(&location, &[]).await.unwrap();
    let (began, may) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let gated = Gated { counts: Squeamish::default(), began: Arc::clone(&began), may: Arc::clone(&may) };
    let views = Views::open(&location, Log::of(&journal), &Projections::new().with(gated)).await.unwrap();
    let read = views.read_side("test", PATIENCE);
    tokio::spawn(views.run());
    let followed = read.follow::<i64>(&SEEN, Vec::new(), 0);
    let mut followed = std::pin::pin!(followed);
    let mut told = async || followed.next().await.unwrap().map(|(position, _)| position);
    let mut standby = session(pair.standby).await;

    journal.submit(note("first")).await.unwrap();
    begins(&began).await;
    journal.submit(note("second")).await.unwrap();
    until(&mut standby, "EXISTS (SELECT FROM test.events WHERE position = 2)").await;
    standby.execute("SELECT pg_wal_replay_pause()").await.unwrap();
    until(&mut standby, "pg_get_wal_replay_pause_state() = 'paused'").await;
    may.add_permits(1);
    assert_eq!(timeout(PATIENCE, told()).await.expect("it is told").unwrap(), 1);
    // What is folded next is not committed.
    begins(&began).await;
    pair.fail_over();
    may.add_permits(Semaphore::MAX_PERMITS >> 1);
    for _ in 0..2 {
        until(&mut standby, TRIED).await;
        until(&mut standby, &format!("NOT {TRIED}")).await;
    }
    standby.execute("SELECT pg_promote()").await.unwrap();
    assert_eq!(timeout(PATIENCE, told()).await.expect("it goes on").unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_has_yet_to_replay_what_it_has_is_not_taken_for_a_log_that_has_lost_it() {
    let Some(pair) = Pair::start().await else { return };
    let location = Location::Postgres { url: pair.url(), schema: "test".to_owned() };
    let journal = Journal::open(&location, &[]).await.unwrap();
    let views =
        Views::open(&location, Log::of(&journal), &Projections::new().with(Squeamish::default())).await.unwrap();
    let read = views.read_side("test", PATIENCE);
    tokio::spawn(views.run());
    let followed = read.follow::<i64>(&SEEN, Vec::new(), 0);
    let mut followed = std::pin::pin!(followed);
    let mut told = async || followed.next().await.unwrap().map(|(position, _)| position);
    let mut standby = session(pair.standby).await;

    journal.submit(note("before")).await.unwrap();
    assert_eq!(timeout(PATIENCE, told()).await.expect("it is told").unwrap(), 1);
    until(&mut standby, "EXISTS (SELECT FROM test.checkpoints WHERE position = 1)").await;
    standby.execute("SELECT pg_wal_replay_pause()").await.unwrap();
    until(&mut standby, "pg_get_wal_replay_pause_state() = 'paused'").await;
    journal.submit(note("shipped")).await.unwrap();
    assert_eq!(timeout(PATIENCE, told()).await.expect("it is told").unwrap(), 2);

    pair.fail_over();
    tokio::select! {
        ended = told() => panic!("told of what the standby had replayed: {ended:?}"),
        () = pair.until_asked(": SELECT pg_is_in_recovery()") => {}
    }
    // Another service that was told of both goes on after them.
    let request = SubscribeRequest { after_position: 2, kinds: Vec::new() };
    let mut stretches =
        Outbox::new("test", Log::of(&journal)).subscribe(Request::new(request)).await.unwrap().into_inner();
    let next = tokio::spawn(async move { stretches.next().await });
    // Nor does either of them connect to it all the time, for each answer of a standby costs a session.
    let before = pair.came.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let came = pair.came.load(Ordering::SeqCst) - before;
    assert!(came < 40, "{came} connections in 3 s");
    standby.execute("SELECT pg_promote()").await.unwrap();
    until(&mut standby, "NOT pg_is_in_recovery()").await;
    timeout(PATIENCE, async { while journal.submit(note("after")).await.is_err() {} }).await.unwrap();
    assert_eq!(timeout(PATIENCE, told()).await.expect("it goes on").unwrap(), 3);
    let stretch = timeout(PATIENCE, next).await.expect("it is told").unwrap().unwrap().unwrap();
    assert_eq!((stretch.after_position, stretch.position), (2, 3));
}

/// A process that is begun after the failover has seen neither log nor views before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_goes_on_after_what_a_standby_has_yet_to_replay_is_not_told_of_another_log() {
    let Some(pair) = Pair::start().await else { return };
    let location = Location::Postgres { url: pair.url(), schema: "test".to_owned() };
    let projections = Projections::new().with(Squeamish::default());
    let journal = Journal::open(&location, &[]).await.unwrap();
    let views = Views::open(&location, Log::of(&journal), &projections).await.unwrap();
    let read = views.read_side("test", Duration::from_millis(100));
    journal.submit(note("before")).await.unwrap();
    let mut standby = session(pair.standby).await;
    until(&mut standby, "EXISTS (SELECT FROM test.events WHERE position = 1)").await;
    standby.execute("SELECT pg_wal_replay_pause()").await.unwrap();
    until(&mut standby, "pg_get_wal_replay_pause_state() = 'paused'").await;
    journal.submit(note("shipped")).await.unwrap();

    pair.fail_over();
    let refused = async || read.wait_for_position(2).await.unwrap_err();
    assert_eq!(refused().await.reason, "NOT_CAUGHT_UP", "it may have more to replay");
    standby.execute("SELECT pg_promote()").await.unwrap();
    until(&mut standby, "NOT pg_is_in_recovery()").await;
    assert_eq!(refused().await.reason, "NOT_CAUGHT_UP", "the log has it");
    let ahead = read.wait_for_position(3).await.unwrap_err();
    assert_eq!(ahead.reason, "AHEAD_OF_LOG", "{ahead:?}");
}

/// It is one that was the primary, as a rule, and a name is slower than a failover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_led_to_a_standby_leaves_it_once_the_way_leads_to_the_primary() {
    let Some(pair) = Pair::start().await else { return };
    let location = Location::Postgres { url: pair.url(), schema: "test".to_owned() };
    let journal = Journal::open(&location, &[]).await.unwrap();
    let member = journal.join().await.unwrap().unwrap();
    journal.submit(note("before")).await.unwrap();
    let (mut primary, mut standby) = (session(pair.primary).await, session(pair.standby).await);
    until(&mut standby, "EXISTS (SELECT FROM test.members) AND EXISTS (SELECT FROM test.events)").await;

    strand(&pair, &mut primary).await;
    for _ in 0..2 {
        assert!(member.beat().await.is_err(), "it takes no writes");
        assert_eq!(head_of_primary(journal.reader()).await.unwrap(), None, "it may have more to replay");
    }
    pair.lead_to(pair.primary);
    member.beat().await.unwrap();
    assert_eq!(head_of_primary(journal.reader()).await.unwrap(), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_not_asked_after_at_a_standby_once_the_way_leads_to_the_primary() {
    let Some(pair) = Pair::start().await else { return };
    let url = format!("{}&options[synchronous_commit]=remote_apply", pair.url());
    let journal = Journal::open(Location::Postgres { url, schema: "test".to_owned() }, &[]).await.unwrap();
    journal.submit(note("before")).await.unwrap();
    let (mut primary, mut standby) = (session(pair.primary).await, session(pair.standby).await);
    standby.execute("SELECT pg_wal_replay_pause()").await.unwrap();
    until(&mut standby, "pg_get_wal_replay_pause_state() = 'paused'").await;
    let submitted = tokio::spawn({
        let journal = journal.clone();
        async move { journal.submit(note("waits")).await }
    });
    until(&mut primary, "EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')").await;
    strand(&pair, &mut primary).await;
    pair.until_asked(FATE).await;
    pair.lead_to(pair.primary);
    standby.execute("SELECT pg_wal_replay_resume()").await.unwrap();
    let answer = timeout(PATIENCE, submitted).await.expect("an answer").unwrap();
    assert_eq!(answer.map(|done| done.outcome), Ok(Outcome::Done), "it was committed");
}
