//! A log that is another one since a backup was put back, by a real NATS server: what was read of the one that was lost is in nobody's way.
//! Runs where `TEST_NATS` names the server's program.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod broker;
mod database;
mod streamed;

use std::time::Duration;

use broker::Broker;
use libs::{
    cqrs::{Log, Projections, Views},
    journal::OpenError,
};
use streamed::{PATIENCE, SEEN, STREAM, Source, at_once, connect, operator, shown, until};
use tokio::time::{sleep, timeout};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_went_another_way_after_a_restored_backup_is_not_published_behind_the_old_one() {
    let Some(broker) = Broker::start() else { return };
    let mut lost = Source::start().await;
    lost.publish(&broker).await;
    lost.write(10, 100).await;
    until("all is published", || async {
        operator(&broker).await.get_stream(STREAM).await.is_ok_and(|s| s.cached_info().state.last_sequence == 10)
    })
    .await;
    if let Some(relay) = lost.relay.take() {
        relay.abort();
    }
    // The same kinds of events at the same positions; it has passed what was published.
    let mut restored = Source::start().await;
    restored.write(12, 100).await;
    let board = restored.publish(&broker).await;
    until("it is told", || async { shown(&board).await.parked.is_some() }).await;
    let parked = shown(&board).await.parked.unwrap();
    assert!(parked.error.contains("message 10 is another event than the log's"), "{}", parked.error);
    assert!(parked.error.contains("nats stream rm trellis-source"), "{}", parked.error);

    operator(&broker).await.delete_stream(STREAM).await.unwrap();
    until("all is published anew", || async { shown(&board).await.position == 12 }).await;
    // Who goes on publishing the log that the stream is of is let to.
    let board = restored.publish(&broker).await;
    restored.write(1, 100).await;
    until("it goes on", || async { shown(&board).await.position == 13 }).await;
    assert_eq!(shown(&board).await.parked, None);
}

/// The views over a source, by its stream, where its log is another one now.
async fn reopened(broker: &Broker, source: &Source, restored: &Source) -> Views {
    let location = database::location(source.folder.path(), "reader");
    loop {
        let (jetstream, peer) = (connect(broker).await, restored.peer.clone());
        let log = Log::of_stream(jetstream, peer, &["thing"], "reader", database::is_shared());
        match Views::open(location.clone(), log, &Projections::new().with(at_once())).await {
            Err(OpenError::InUse { .. }) => sleep(Duration::from_millis(10)).await,
            opened => break opened.unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_are_made_anew_to_where_the_log_ends_and_not_the_stream() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    source.publish(&broker).await;
    source.write(10, 100).await;
    let (read, runs) = source.views(&broker, "reader", at_once()).await;
    source.check(&read).await;
    drop((read, runs));
    if let Some(relay) = source.relay.take() {
        relay.abort();
    }
    operator(&broker).await.delete_stream(STREAM).await.unwrap();
    // A log that ends before the old views do, and a stream without anything.
    let mut restored = Source::start().await;
    restored.write(4, 100).await;
    let views = reopened(&broker, &source, &restored).await;
    let read = views.read_side("test", PATIENCE);
    timeout(PATIENCE, views.rebuild(|_, _| {})).await.expect("it ends").unwrap();
    for (id, expected) in &restored.expected {
        assert_eq!(read.document::<String>(&SEEN, id).await.unwrap().as_ref(), Some(expected));
    }
    assert_eq!(read.document::<String>(&SEEN, "id-5").await.unwrap(), None, "of the log that was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_are_not_made_anew_to_go_on_with_the_copy_of_a_log_that_was_lost() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    source.publish(&broker).await;
    source.write(10, 100).await;
    let (read, runs) = source.views(&broker, "reader", at_once()).await;
    source.check(&read).await;
    drop((read, runs));
    if let Some(relay) = source.relay.take() {
        relay.abort();
    }
    let mut restored = Source::start().await;
    restored.write(4, 100).await;
    let views = reopened(&broker, &source, &restored).await;
    let error = timeout(PATIENCE, views.rebuild(|_, _| {})).await.expect("it ends").unwrap_err().to_string();
    assert!(error.contains("nats stream rm trellis-source"), "{error}");

    operator(&broker).await.delete_stream(STREAM).await.unwrap();
    let views = reopened(&broker, &source, &restored).await;
    let read = views.read_side("test", PATIENCE);
    timeout(PATIENCE, views.rebuild(|_, _| {})).await.expect("it ends").unwrap();
    assert_eq!(read.document::<String>(&SEEN, "id-5").await.unwrap(), None, "of the log that was lost");
}
