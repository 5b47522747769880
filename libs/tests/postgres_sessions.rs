//! What becomes of those who need a session while the way to the server is troubled. Runs where `TEST_POSTGRES` names one.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod schema;

use std::time::{Duration, Instant};

use futures::future::{join_all, pending};
use libs::journal::{Journal, Location, Outcome};
use schema::{PATIENCE, Schema, note};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

/// A way to the server, and who has a say in it. Whenever that says something, the links that there are fall silent, and nobody is told;
/// those that are made from then on are as silent where it says true.
async fn way(schema: &Schema) -> (Location, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = listener.local_addr().unwrap();
    let (before, server) = schema.url.split_once('@').unwrap();
    let (server, name) = server.split_once('/').unwrap();
    let url = format!("{before}@{near}/{name}?sslmode=disable");
    let (server, silence) = (server.to_owned(), watch::Sender::new(false));
    let silent = silence.clone();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let (mut far, mut silent) = (TcpStream::connect(&server).await.unwrap(), silent.subscribe());
            tokio::spawn(async move {
                if *silent.borrow_and_update() {
                    return pending().await;
                }
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => {}
                    // Both ends stay open.
                    _ = silent.changed() => pending().await,
                }
            });
        }
    });
    (Location::Postgres { url, schema: schema.name.clone() }, silence)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_died_silently_while_they_were_idle_cost_a_second_in_all() {
    let Some(schema) = Schema::new() else { return };
    let (location, silence) = way(&schema).await;
    let journal = Journal::open(location, &[]).await.unwrap();
    let reader = journal.reader();
    let member = journal.join().await.unwrap().unwrap();
    for round in 0..2 {
        // All the sessions that there may be.
        let slowly = || reader.fetch("SELECT pg_sleep(0.2)::text", Vec::new());
        for read in join_all((0..4).map(|_| slowly())).await {
            read.unwrap();
        }
        let commits = (0..3).map(|at| journal.submit(note(&format!("before {round} {at}"))));
        let (commits, beat) = tokio::join!(join_all(commits), member.beat());
        assert!(beat.is_ok() && commits.iter().all(Result::is_ok));
        // After which a session is asked whether it is still there.
        sleep(Duration::from_millis(1_100)).await;
        silence.send_replace(false);

        let began = Instant::now();
        let after = format!("after {round}");
        let read = async { reader.fetch("SELECT 1::bigint", Vec::new()).await };
        let (submitted, beat, read) = tokio::join!(journal.submit(note(&after)), member.beat(), read);
        assert_eq!(submitted.map(|committed| committed.outcome), Ok(Outcome::Done));
        assert!(beat.is_ok() && read.is_ok(), "{beat:?} {read:?}");
        assert!(began.elapsed() < Duration::from_secs(3), "it took {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_outlasts_a_server_that_lets_nobody_in_for_a_while() {
    let Some(schema) = Schema::new() else { return };
    let (location, silence) = way(&schema).await;
    let journal = Journal::open(location, &[]).await.unwrap();
    sleep(Duration::from_millis(1_100)).await;
    silence.send_replace(true);
    let submitted = tokio::spawn(async move { journal.submit(note("patient")).await });
    // For longer than a session is waited for.
    sleep(Duration::from_secs(6)).await;
    silence.send_replace(false);
    let answer = timeout(PATIENCE, submitted).await.expect("an answer").unwrap();
    assert_eq!(answer.map(|committed| committed.outcome), Ok(Outcome::Done));
}
