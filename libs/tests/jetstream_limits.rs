//! What an operator's stream on a real NATS server takes and what not, and what stays of it when it is deleted to be filled anew. Runs where
//! `TEST_NATS` names the server's program.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod broker;
mod database;
mod desk;
mod lines;
mod streamed;

use std::time::Duration;

use async_nats::jetstream::stream::{self, StorageType};
use broker::Broker;
use lines::Lines;
use streamed::{STREAM, Source, at_once, operator, shown, until};
use tokio::time::{Instant, sleep};

/// How an operator has made the stream.
fn by_hand() -> stream::Config {
    let subjects = vec!["trellis.source.>".to_owned()];
    stream::Config { name: STREAM.to_owned(), subjects, ..stream::Config::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_larger_than_a_message_of_the_stream_may_be_is_in_no_later_ones_way() {
    const MOST: i32 = 64 << 10;
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    let config = stream::Config { max_message_size: MOST, ..by_hand() };
    operator(&broker).await.create_stream(config).await.unwrap();
    let board = source.publish(&broker).await;
    let (read, _runs) = source.views(&broker, "reader", at_once()).await;
    // By far, by no more than what comes beside its payload, and not at all.
    let most = usize::try_from(MOST).unwrap();
    for size in [100 << 10, most, most - 40, most - 600, 100] {
        source.happen("thing", size).await;
    }
    until("all are published", || async { shown(&board).await.position == 5 }).await;
    assert_eq!(shown(&board).await.parked, None);
    source.check(&read).await;
    let stream = operator(&broker).await.get_stream(STREAM).await.unwrap();
    assert!(stream.get_raw_message(1).await.unwrap().payload.is_empty());
    assert!(stream.get_raw_message(4).await.unwrap().payload.len() > most - 600, "what has room is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_nobody_here_wants_a_place_without_an_event_holds_nobody_up() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    let board = source.publish(&broker).await;
    source.happen("other", 2 << 20).await;
    source.happen("thing", 100).await;
    until("both are published", || async { shown(&board).await.position == 2 }).await;
    source.desk.is_out();
    let (read, _runs) = source.views(&broker, "reader", at_once()).await;
    source.check(&read).await;
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn a_stream_that_was_deleted_is_made_again_as_it_was() {
    let Some(broker) = Broker::start() else { return };
    let (lines, _kept) = Lines::keep();
    let mut source = Source::start().await;
    let context = operator(&broker).await;
    let description = |text: &str| Some(format!("Ask Ann.{text}"));
    let config = stream::Config {
        description: description(" Old forms: thing.Happened=9"),
        max_messages: 1_000,
        max_age: Duration::from_secs(3_600),
        storage: StorageType::Memory,
        ..by_hand()
    };
    let made = context.create_stream(config).await.unwrap().cached_info().config.clone();
    let board = source.publish(&broker).await;
    source.write(10, 100).await;
    until("all is published", || async { shown(&board).await.position == 10 }).await;
    let (read, _runs) = source.views(&broker, "reader", at_once()).await;
    source.check(&read).await;
    assert_eq!(lines.that_say("the stream is made"), [""; 0]);

    context.delete_stream(STREAM).await.unwrap();
    source.write(10, 100).await;
    source.check(&read).await;
    until("all is published anew", || async {
        context.get_stream(STREAM).await.is_ok_and(|stream| stream.cached_info().state.last_sequence == 20)
    })
    .await;
    // Of old forms it tells as it is told: those that nobody knows of any more are gone with it.
    let made = stream::Config { description: description(""), ..made };
    assert_eq!(context.get_stream(STREAM).await.unwrap().cached_info().config, made);
    let told = lines.that_say("the stream is made");
    assert!(told.iter().any(|line| line.contains("replicas=1") && line.contains("kept=3600s")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_always_has_something_to_read_knows_how_the_stream_was_changed_meanwhile() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    source.publish(&broker).await;
    source.write(10, 100).await;
    let (read, _runs) = source.views(&broker, "reader", at_once()).await;
    source.check(&read).await;
    let context = operator(&broker).await;
    let config = context.get_stream(STREAM).await.unwrap().cached_info().config.clone();
    context.update_stream(stream::Config { max_messages: 1_000, ..config }).await.unwrap();
    // Longer than from one look to the next.
    let changed = Instant::now();
    while changed.elapsed() < Duration::from_secs(7) {
        source.write(1, 100).await;
        sleep(Duration::from_millis(20)).await;
    }
    source.check(&read).await;
    source.relay.take().unwrap().abort();
    context.delete_stream(STREAM).await.unwrap();
    until("the reader makes it again", || async { context.get_stream(STREAM).await.is_ok() }).await;
    assert_eq!(context.get_stream(STREAM).await.unwrap().cached_info().config.max_messages, 1_000);
}
