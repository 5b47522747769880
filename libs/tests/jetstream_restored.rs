//! A log that is another one since a backup was put back, by a real NATS server: what was read of the one that was lost is in nobody's way.
//! Runs where `TEST_NATS` names the server's program.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod broker;
mod database;
mod desk;
mod lines;
mod streamed;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::message::PublishMessage;
use broker::Broker;
use desk::made_anew;
use futures::TryStreamExt as _;
use libs::{
    cqrs::{Board, Event, Projection, ProjectionError, ReadSide, Views},
    journal::{Table, sql::Transaction},
};
use lines::Lines;
use prost::Message as _;
use proto::events::v1 as pb;
use streamed::{PATIENCE, Running, SEEN, STREAM, Seen, Source, at_once, operator, shown, until};
use tokio::time::{sleep, timeout};

/// Of ten events the views want the first three. Four are in the backup.
const LOST: &[&str] = &["thing", "thing", "thing", "other", "other", "other", "other", "other", "other", "other"];
const RESTORED: &[&str] = &["thing", "thing", "thing", "other"];

/// A source of what will be lost, all of it published.
async fn to_be_lost(broker: &Broker) -> Source {
    let mut source = Source::start().await;
    let board = source.publish(broker).await;
    for kind in LOST {
        source.happen(kind, 100).await;
    }
    until("all is published", || async { shown(&board).await.position == 10 }).await;
    source
}

/// Puts the backup back as it is to be done: the stream is filled anew with what is left.
async fn restored(source: &mut Source, broker: &Broker) {
    source.restore(RESTORED, 100).await;
    operator(broker).await.delete_stream(STREAM).await.unwrap();
    let board = source.publish(broker).await;
    until("what is left is published", || async { shown(&board).await.position == 4 }).await;
}

/// The source goes on: what the views want comes in the places of what they had passed over, and behind them.
async fn goes_on(source: &mut Source) {
    for _ in 5..=11 {
        source.happen("thing", 100).await;
    }
}

/// Views that run, and where they are shown.
async fn followed(source: &Source, broker: &Broker) -> (ReadSide, Board, Running) {
    running(source.open(broker, "reader", at_once()).await)
}

fn running(views: Views) -> (ReadSide, Board, Running) {
    let (read, board) = (views.read_side("source", PATIENCE), Board::default());
    views.show_on(&board, "source");
    (read, board, Running(tokio::spawn(views.run())))
}

/// Waits until all who read the stream have passed ten positions.
async fn passed(broker: &Broker) {
    let context = operator(broker).await;
    until("it has passed all", || async {
        let Ok(stream) = context.get_stream(STREAM).await else { return false };
        let readers: Vec<_> = stream.consumers().try_collect().await.unwrap_or_default();
        !readers.is_empty() && readers.iter().all(|reader| reader.ack_floor.stream_sequence == 10)
    })
    .await;
}

async fn rebuilt(views: Views) {
    timeout(PATIENCE, views.rebuild(|_, _| {})).await.expect("it ends").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_went_another_way_after_a_restored_backup_is_not_published_behind_the_old_one() {
    let Some(broker) = Broker::start() else { return };
    let mut source = to_be_lost(&broker).await;
    // The same kinds of events at the same positions; it has passed what was published.
    source.restore(LOST, 100).await;
    source.write(2, 100).await;
    let board = source.publish(&broker).await;
    until("it is told", || async { shown(&board).await.parked.is_some() }).await;
    let parked = shown(&board).await.parked.unwrap();
    assert!(parked.error.contains("message 10 is another event than the log's"), "{}", parked.error);
    assert!(parked.error.contains("nats stream rm trellis-source"), "{}", parked.error);

    operator(&broker).await.delete_stream(STREAM).await.unwrap();
    until("all is published anew", || async { shown(&board).await.position == 12 }).await;
    // Who goes on publishing the log that the stream is of is let to.
    let board = source.publish(&broker).await;
    source.write(1, 100).await;
    until("it goes on", || async { shown(&board).await.position == 13 }).await;
    assert_eq!(shown(&board).await.parked, None);
}

/// Who wants one of the two kinds would pass over the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_was_left_empty_stands_for_no_event_of_another_kind() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    let board = source.publish(&broker).await;
    source.happen("thing", 100).await;
    source.happen("other", 2 << 20).await;
    until("all is published", || async { shown(&board).await.position == 2 }).await;
    source.restore(&["thing"], 100).await;
    source.happen("thing", 100).await;
    source.happen("thing", 100).await;
    let board = source.publish(&broker).await;
    until("it is told", || async { shown(&board).await.parked.is_some() }).await;
    let parked = shown(&board).await.parked.unwrap();
    assert!(parked.error.contains("message 2 is another event than the log's"), "{}", parked.error);
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn that_a_stream_is_of_a_longer_log_is_told_once_however_that_log_grows() {
    let Some(broker) = Broker::start() else { return };
    let (lines, _kept) = Lines::keep();
    let mut source = to_be_lost(&broker).await;
    source.restore(RESTORED, 100).await;
    let board = source.publish(&broker).await;
    for end in 4..=6 {
        let why = format!("it ends at 10 and the log at {end}");
        until("it is shown", || async { shown(&board).await.parked.is_some_and(|parked| parked.error.contains(&why)) })
            .await;
        source.happen("thing", 100).await;
    }
    let told = lines.that_say("it ends at 10");
    assert!(told.len() == 1 && told[0].contains("events are not published"), "{told:?}");
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
    // A log that ends before the old views do, and a stream without anything.
    source.restore(RESTORED, 100).await;
    operator(&broker).await.delete_stream(STREAM).await.unwrap();
    let views = source.open(&broker, "reader", at_once()).await;
    let read = views.read_side("test", PATIENCE);
    rebuilt(views).await;
    for (id, expected) in &source.expected {
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
    source.restore(RESTORED, 100).await;
    let views = source.open(&broker, "reader", at_once()).await;
    let error = timeout(PATIENCE, views.rebuild(|_, _| {})).await.expect("it ends").unwrap_err().to_string();
    assert!(error.contains("nats stream rm trellis-source"), "{error}");

    operator(&broker).await.delete_stream(STREAM).await.unwrap();
    let views = source.open(&broker, "reader", at_once()).await;
    let read = views.read_side("test", PATIENCE);
    rebuilt(views).await;
    assert_eq!(read.document::<String>(&SEEN, "id-5").await.unwrap(), None, "of the log that was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_that_are_empty_are_not_made_anew_to_go_on_with_the_copy_of_a_log_that_was_lost_either() {
    let Some(broker) = Broker::start() else { return };
    let mut source = to_be_lost(&broker).await;
    source.restore(RESTORED, 100).await;
    let views = source.open(&broker, "reader", at_once()).await;
    let error = timeout(PATIENCE, views.rebuild(|_, _| {})).await.expect("it ends").unwrap_err().to_string();
    assert!(error.contains("nats stream rm trellis-source"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_are_not_made_anew_while_nobody_knows_what_the_stream_holds_that_they_go_on_with() {
    let Some(mut broker) = Broker::start() else { return };
    let mut source = to_be_lost(&broker).await;
    let (read, _, runs) = followed(&source, &broker).await;
    source.check(&read).await;
    drop((read, runs));
    broker.kill();
    source.restore(RESTORED, 100).await;
    let views = source.open(&broker, "reader", at_once()).await;
    let read = views.read_side("test", PATIENCE);
    let error = timeout(PATIENCE, views.rebuild(|_, _| {})).await.expect("it ends").unwrap_err().to_string();
    assert!(error.contains("does not say where trellis-source ends"), "{error}");
    assert!(error.contains("make them anew once it can be asked"), "{error}");
    assert_eq!(read.position(), 3, "the old ones");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_over_a_log_that_has_outgrown_the_copy_of_a_lost_one_take_nothing_from_that() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    let board = source.publish(&broker).await;
    // So large that the service tells of a few at a time.
    let size = 100_000;
    for _ in 1..=15 {
        source.happen("thing", size).await;
    }
    let (read, _, runs) = followed(&source, &broker).await;
    source.check(&read).await;
    drop((read, runs));
    for _ in 16..=40 {
        source.happen("thing", size).await;
    }
    until("all is published", || async { shown(&board).await.position == 40 }).await;

    // From before where the old stream ends, the new log has nothing more that the views want.
    let is_wanted = |position| position <= 15 || position % 2 == 0 && position < 35;
    let kinds: Vec<_> = (1..=60).map(|position| if is_wanted(position) { "thing" } else { "other" }).collect();
    source.restore(&kinds, size).await;
    let board = source.publish(&broker).await;
    until("it is told", || async { shown(&board).await.parked.is_some() }).await;
    rebuilt(source.open(&broker, "reader", at_once()).await).await;
    let (read, _, _runs) = followed(&source, &broker).await;
    let context = operator(&broker).await;
    until("all that the stream holds is read", || async {
        let stream = context.get_stream(STREAM).await.unwrap();
        let readers: Vec<_> = stream.consumers().try_collect().await.unwrap_or_default();
        readers.iter().any(|reader| reader.num_pending == 0)
    })
    .await;
    context.delete_stream(STREAM).await.unwrap();
    until("all is published anew", || async { shown(&board).await.position == 60 }).await;
    source.happen("thing", size).await;
    source.check(&read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_that_were_made_anew_want_what_comes_in_the_place_of_what_they_had_passed_over() {
    let Some(broker) = Broker::start() else { return };
    let mut source = to_be_lost(&broker).await;
    let (read, board, _runs) = followed(&source, &broker).await;
    passed(&broker).await;
    restored(&mut source, &broker).await;
    made_anew(&board).await;
    goes_on(&mut source).await;
    source.check(&read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_wants_what_comes_in_the_place_of_what_it_had_passed_over_once_another_has_made_the_views_anew() {
    let Some(broker) = Broker::start() else { return };
    if !database::has_server() {
        return;
    }
    let mut source = to_be_lost(&broker).await;
    let (read, _, _runs) = followed(&source, &broker).await;
    passed(&broker).await;
    restored(&mut source, &broker).await;
    rebuilt(source.open(&broker, "reader", at_once()).await).await;
    goes_on(&mut source).await;
    source.check(&read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_had_passed_over_what_was_lost_reads_a_stream_that_is_filled_anew_from_where_its_views_are() {
    let Some(broker) = Broker::start() else { return };
    let mut source = to_be_lost(&broker).await;
    let (read, _, _runs) = followed(&source, &broker).await;
    passed(&broker).await;
    // The log is longer again before anybody sees that the stream was ever shorter.
    source.restore(RESTORED, 100).await;
    goes_on(&mut source).await;
    operator(&broker).await.delete_stream(STREAM).await.unwrap();
    source.publish(&broker).await;
    source.check(&read).await;
}

/// Can't fold the fourth event until it is mended.
struct Squeamish {
    mended: Arc<AtomicBool>,
}

impl Projection for Squeamish {
    const NAME: &'static str = Seen::NAME;
    const TABLES: &'static [&'static Table] = Seen::TABLES;

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        if !self.mended.load(Ordering::SeqCst) && events.iter().any(|event| event.position == 4) {
            let source = <i64 as prost::Message>::decode(&[255_u8][..]).unwrap_err();
            return Err(ProjectionError::Decode { what: "the fourth".to_owned(), source });
        }
        at_once().project(events, transaction).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_of_a_lost_log_while_all_were_parked_is_not_folded_into_views_that_were_made_anew() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    let published = source.publish(&broker).await;
    for _ in 1..=6 {
        source.happen("thing", 100).await;
    }
    until("all is published", || async { shown(&published).await.position == 6 }).await;
    let mended = Arc::<AtomicBool>::default();
    let views = source.open(&broker, "reader", Squeamish { mended: Arc::clone(&mended) }).await;
    let (read, board, _runs) = running(views);
    until("it is parked", || async { shown(&board).await.parked.is_some() }).await;

    source.restore(&["thing"; 3], 100).await;
    operator(&broker).await.delete_stream(STREAM).await.unwrap();
    source.publish(&broker).await;
    mended.store(true, Ordering::SeqCst);
    made_anew(&board).await;
    // At the fourth place is nothing now that is wanted, and nothing is at the sixth.
    source.happen("other", 100).await;
    source.happen("thing", 100).await;
    source.check(&read).await;
}

#[tokio::test]
async fn who_had_passed_over_what_the_broker_has_lost_as_well_goes_on_from_where_its_views_are() {
    let Some(mut broker) = Broker::start() else { return };
    let (lines, _kept) = Lines::keep();
    let mut source = Source::start().await;
    let board = source.publish(&broker).await;
    for kind in RESTORED {
        source.happen(kind, 100).await;
    }
    until("what is in the backup is published", || async { shown(&board).await.position == 4 }).await;
    if let Some(relay) = source.relay.take() {
        relay.abort();
    }
    broker.kill();
    let early = broker.remember();
    broker.go_on();
    // What the log has no more: its own events must be those that stay in the stream.
    let context = operator(&broker).await;
    for (position, kind) in (1..).zip(LOST).skip(RESTORED.len()) {
        let event = pb::Event { position, kind: (*kind).to_owned(), ..pb::Event::default() };
        let message =
            PublishMessage::build().message_id(format!("source:{position}")).payload(event.encode_to_vec().into());
        context.send_publish(format!("trellis.source.{kind}"), message).await.unwrap().await.unwrap();
    }
    let (read, _, _runs) = followed(&source, &broker).await;
    passed(&broker).await;
    broker.kill();
    broker.give_back(&early);
    broker.go_on();
    until("it is told", || async { !lines.that_say("the stream ends before 10").is_empty() }).await;
    source.publish(&broker).await;
    goes_on(&mut source).await;
    source.check(&read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_waits_for_what_the_stream_leaves_out_goes_on_once_another_has_made_the_views_anew() {
    let Some(broker) = Broker::start() else { return };
    if !database::has_server() {
        return;
    }
    let mut source = Source::start().await;
    let board = source.publish(&broker).await;
    source.write(10, 100).await;
    let (read, _, _runs) = followed(&source, &broker).await;
    source.check(&read).await;
    source.desk.is_out();
    let asked = source.desk.asked();
    source.happen("thing", 2 << 20).await;
    until("its place is published", || async { shown(&board).await.position == 11 }).await;
    until("the service is asked for it", || async { source.desk.asked() > asked }).await;

    restored(&mut source, &broker).await;
    rebuilt(source.open(&broker, "reader", at_once()).await).await;
    // Fewer than there were, so that the log stays shorter than what was read.
    for position in 5..=7 {
        source.happen("thing", 100).await;
        let seen = async {
            let id = format!("id-{}", position % 7);
            while read.document::<String>(&SEEN, &id).await.unwrap().as_ref() != source.expected.get(&id) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(PATIENCE, seen).await.is_ok(), "{position} never came: it is at {}", read.position());
    }
}
