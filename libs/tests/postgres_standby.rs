//! What becomes of a batch whose server is gone in the midst of its commit, and of views over it, where a standby has the commit and is to
//! take over. Runs where `TEST_POSTGRES_BIN` names the server's programs.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod schema;
mod squeamish;
mod standby;

use futures::StreamExt as _;
use libs::{
    cqrs::{Log, Projections, Views},
    journal::{Journal, Location, Outcome},
};
use schema::{PATIENCE, note, noted};
use sqlx::Executor as _;
use squeamish::{SEEN, Squeamish};
use standby::{Pair, session, until};
use tokio::time::timeout;

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
    let asked = "EXISTS (SELECT FROM pg_stat_activity
        WHERE application_name = 'trellis test' AND query LIKE '%pg_xact_status(%')";
    tokio::select! {
        early = &mut submitted => panic!("answered by what the standby had replayed: {early:?}"),
        () = until(&mut standby, asked) => {}
    }
    standby.execute("SELECT pg_promote()").await.unwrap();

    let answer = timeout(PATIENCE, submitted).await.expect("an answer").unwrap();
    assert_eq!(answer.map(|done| done.outcome), Ok(Outcome::Done), "it was committed");
    assert_eq!(journal.submit(note("shipped")).await.unwrap().outcome, Outcome::Replayed);
    assert_eq!(noted(&journal).await, ["before", "shipped"]);
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
    assert_eq!(told().await.unwrap(), 1);
    until(&mut standby, "EXISTS (SELECT FROM test.checkpoints WHERE position = 1)").await;
    standby.execute("SELECT pg_wal_replay_pause()").await.unwrap();
    until(&mut standby, "pg_get_wal_replay_pause_state() = 'paused'").await;
    journal.submit(note("shipped")).await.unwrap();
    assert_eq!(told().await.unwrap(), 2);

    pair.fail_over();
    let asked = "EXISTS (SELECT FROM pg_stat_activity
        WHERE application_name LIKE 'trellis%' AND query LIKE 'SELECT pg_is_in_recovery()%')";
    tokio::select! {
        ended = told() => panic!("told of what the standby had replayed: {ended:?}"),
        () = until(&mut standby, asked) => {}
    }
    standby.execute("SELECT pg_promote()").await.unwrap();
    until(&mut standby, "NOT pg_is_in_recovery()").await;
    timeout(PATIENCE, async { while journal.submit(note("after")).await.is_err() {} }).await.unwrap();
    assert_eq!(timeout(PATIENCE, told()).await.expect("it goes on").unwrap(), 3);
}
