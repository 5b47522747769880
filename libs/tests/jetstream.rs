//! Events by a real NATS server that is killed, loses what it had, and repeats and reorders what it sends: the views end as if each
//! had come once. Runs where `TEST_NATS` names the server's program.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod broker;
mod database;
mod desk;
mod lines;
mod streamed;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_nats::{
    header::NATS_MESSAGE_ID,
    jetstream::{
        self,
        consumer::{AckPolicy, pull},
        stream,
    },
};
use broker::Broker;
use futures::StreamExt as _;
use libs::cqrs::{Board, JetStream, Log};
use lines::Lines;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, SdkMeterProvider,
    data::{AggregatedMetrics, MetricData},
};
use prost::Message as _;
use proto::events::v1 as pb;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use streamed::{PATIENCE, Running, STREAM, Seen, Source, at_once, connect, operator, shown, slowly, until};
use tokio::{
    net::TcpSocket,
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_counts_once_and_in_order_whoever_is_killed() {
    let Some(mut broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    let mut random = StdRng::seed_from_u64(7);
    source.publish(&broker).await;
    // A second one publishes the same, and a third reads all the while.
    let twin = tokio::spawn(connect(&broker).await.relay("source", Log::of(&source.journal)).run());
    let (steady, _runs) = source.views(&broker, "steady", at_once()).await;
    for round in 0..12 {
        source.write(random.random_range(20..60), 100).await;
        // Killed at any moment: between receiving, folding, committing and acknowledging.
        let (_, killed) = source.views(&broker, "killed", at_once()).await;
        sleep(Duration::from_millis(random.random_range(1..80))).await;
        drop(killed);
        match round % 4 {
            1 => {
                broker.kill();
                source.write(20, 100).await;
                broker.go_on();
            }
            2 => drop(source.publish(&broker).await),
            _ => {}
        }
    }
    let (read, _runs) = source.views(&broker, "killed", at_once()).await;
    source.check(&read).await;
    source.check(&steady).await;
    twin.abort();

    // What the stream holds is the log: the same number of messages, and one at each position.
    let stream = operator(&broker).await.get_stream(STREAM).await.unwrap();
    let all = u64::try_from(source.written).unwrap();
    until("all is published", || async { stream.get_info().await.is_ok_and(|info| info.state.messages == all) }).await;
    let state = stream.get_info().await.unwrap().state;
    assert_eq!((state.messages, state.first_sequence, state.last_sequence), (all, 1, all));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broker_loses_it_gets_again_and_nobody_counts_it_twice() {
    let Some(mut broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    let board = source.publish(&broker).await;
    source.write(50, 100).await;
    until("50 are published", || async { shown(&board).await.position == 50 }).await;
    // Asked now: who publishes comes back with the server, and begins at once.
    let stream = operator(&broker).await.get_stream(STREAM).await.unwrap();
    assert_eq!(stream.get_info().await.unwrap().state.messages, 50);
    let (read, _runs) = source.views(&broker, "reader", at_once()).await;
    source.check(&read).await;
    broker.kill();
    let early = broker.remember();
    broker.go_on();
    source.write(50, 100).await;
    source.check(&read).await;
    until("100 are published", || async { shown(&board).await.position == 100 }).await;
    // The power fails, and what was acknowledged last had not reached the disk.
    broker.kill();
    broker.give_back(&early);
    broker.go_on();
    let stream = operator(&broker).await.get_stream(STREAM).await.unwrap();
    until("they are published again", || async {
        stream.get_info().await.is_ok_and(|info| info.state.messages == 100)
    })
    .await;
    source.write(50, 100).await;
    source.check(&read).await;
    let (read, _runs) = source.views(&broker, "late", at_once()).await;
    source.check(&read).await;

    // An operator takes the stream away: it is filled anew.
    operator(&broker).await.delete_stream(STREAM).await.unwrap();
    source.write(20, 100).await;
    source.check(&read).await;
    let (read, _runs) = source.views(&broker, "last", at_once()).await;
    source.check(&read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_stream_does_not_hold_the_service_is_asked_for() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    // The operator's stream keeps the last ten.
    let config = stream::Config {
        name: STREAM.to_owned(),
        subjects: vec!["trellis.source.>".to_owned()],
        max_messages: 10,
        ..stream::Config::default()
    };
    operator(&broker).await.create_stream(config).await.unwrap();
    let board = source.publish(&broker).await;
    source.write(100, 100).await;
    until("100 are published", || async { shown(&board).await.position == 100 }).await;
    let (read, _runs) = source.views(&broker, "late", at_once()).await;
    source.check(&read).await;
    // And of what is too large for a message, the stream keeps the place.
    source.write(3, 2 << 20).await;
    source.write(20, 100).await;
    source.check(&read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_from_the_midst_of_the_stream_the_service_is_asked_for() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    let board = source.publish(&broker).await;
    source.write(700, 100).await;
    until("700 are published", || async { shown(&board).await.position == 700 }).await;
    let stream = operator(&broker).await.get_stream(STREAM).await.unwrap();
    // More than the service sends at a time lie between the first holes and the last.
    for position in (2..6).chain([50, 52, 640]) {
        stream.delete_message(position).await.unwrap();
    }
    let (read, _runs) = source.views(&broker, "reader", at_once()).await;
    source.check(&read).await;
    source.write(20, 100).await;
    source.check(&read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_publishes_and_who_reads_go_on_behind_a_last_message_that_was_deleted() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    let board = source.publish(&broker).await;
    source.write(20, 100).await;
    until("20 are published", || async { shown(&board).await.position == 20 }).await;
    source.relay.take().unwrap().abort();
    let stream = operator(&broker).await.get_stream(STREAM).await.unwrap();
    for position in 15..=20 {
        stream.delete_message(position).await.unwrap();
    }
    let (read, _runs) = source.views(&broker, "reader", at_once()).await;
    source.check(&read).await;
    let board = source.publish(&broker).await;
    source.write(20, 100).await;
    until("40 are published", || async { shown(&board).await.position == 40 }).await;
    assert_eq!(shown(&board).await.parked, None);
    source.check(&read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_again_and_in_another_order_is_passed_over() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    source.publish(&broker).await;
    source.write(200, 100).await;
    let context = operator(&broker).await;
    // A server that is told to repeat what is not acknowledged within an instant, to readers that take far longer.
    let config = pull::Config {
        durable_name: Some("slow".to_owned()),
        ack_policy: AckPolicy::All,
        ack_wait: Duration::from_millis(20),
        ..pull::Config::default()
    };
    until("the stream is there", || async { context.get_stream(STREAM).await.is_ok() }).await;
    context.get_stream(STREAM).await.unwrap().create_consumer(config).await.unwrap();
    let (read, _runs) = source.views(&broker, "slow", slowly(150)).await;
    let stream = context.get_stream(STREAM).await.unwrap();
    let came_again = || async {
        let info = stream.consumer_info("slow").await.unwrap();
        info.delivered.consumer_sequence.saturating_sub(info.delivered.stream_sequence) > 100
    };
    let comes_again = async {
        loop {
            source.write(20, 100).await;
            if database::is_shared() || came_again().await {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, comes_again).await.expect("something comes twice");
    source.write(20, 100).await;
    source.check(&read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_is_told_of_what_is_committed_and_no_sooner() {
    let Some(broker) = Broker::start() else { return };
    if database::is_shared() {
        // Replicas have names that nobody knows.
        return;
    }
    let mut source = Source::start().await;
    source.publish(&broker).await;
    source.write(10, 100).await;
    let (read, _runs) = source.views(&broker, "reader", slowly(20)).await;
    let context = operator(&broker).await;
    let mut floor = 0;
    let follows = async {
        for _ in 0..20 {
            source.write(10, 100).await;
            // What nobody asked for is not acknowledged either.
            let last = if source.written % 3 == 0 { source.written - 1 } else { source.written };
            // The next ten come once it is told of these, so that there is something to see, however fast the disk is.
            while floor < last {
                if let Ok(stream) = context.get_stream(STREAM).await
                    && let Ok(info) = stream.consumer_info("reader").await
                {
                    floor = i64::try_from(info.ack_floor.stream_sequence).unwrap();
                    // What nobody asked for has no place in the views.
                    let committed = read.position();
                    assert!(floor <= committed + 1, "acknowledged to {floor}, committed to {committed}");
                }
                sleep(Duration::from_millis(1)).await;
            }
        }
    };
    let followed = timeout(PATIENCE, follows).await;
    assert!(followed.is_ok(), "acknowledged to {floor} of {}", source.written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_something_else_is_left_alone_and_told_of() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    let board = source.publish(&broker).await;
    let (read, _runs) = source.views(&broker, "reader", at_once()).await;
    let context = operator(&broker).await;
    // The second reads as an event: of another aggregate than what happens next.
    let event = pb::Event { position: 14, kind: "thing".to_owned(), id: "id-1".to_owned(), ..pb::Event::default() };
    for (next, foreign) in [(5, b"not an event".to_vec()), (14, event.encode_to_vec())] {
        source.write(4, 100).await;
        source.check(&read).await;
        until("all is published", || async { shown(&board).await.position == source.written }).await;
        context.publish("trellis.source.thing", foreign.into()).await.unwrap().await.unwrap();
        source.write(1, 100).await;
        assert_eq!(source.written, next);
        until("it is told", || async { shown(&board).await.parked.is_some() }).await;
        let parked = shown(&board).await.parked.unwrap();
        assert!(parked.error.contains(&format!("somebody else published message {next}")), "{}", parked.error);
        assert!(parked.error.contains("nats stream rm trellis-source"), "{}", parked.error);
        // The service has that event; the views don't believe the stream.
        until("it is folded", || async { read.position() >= next }).await;

        source.write(4, 100).await;
        context.delete_stream(STREAM).await.unwrap();
        source.check(&read).await;
        until("it is well again", || async { shown(&board).await.parked.is_none() }).await;
        until("all is published", || async { shown(&board).await.position == source.written }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_else_takes_away_comes_again() {
    let Some(broker) = Broker::start() else { return };
    if database::is_shared() {
        // Replicas have names that nobody knows.
        return;
    }
    let mut source = Source::start().await;
    source.publish(&broker).await;
    source.write(11, 100).await;
    let (read, _runs) = source.views(&broker, "reader", at_once()).await;
    source.check(&read).await;
    let stream = operator(&broker).await.get_stream(STREAM).await.unwrap();
    // It has the reader's name, takes a message, and says that all is well.
    let consumer: jetstream::consumer::PullConsumer = stream.get_consumer("reader").await.unwrap();
    let mut thief = tokio::spawn(async move {
        let message = consumer.stream().messages().await.unwrap().next().await.unwrap().unwrap();
        message.ack().await.unwrap();
    });
    // The server gives to one and to the other in turn, and the last that it gives is taken away.
    let theft = async {
        loop {
            match timeout(Duration::from_millis(100), &mut thief).await {
                Ok(ended) => return ended.expect("it takes one"),
                Err(_) => source.write(1, 100).await,
            }
        }
    };
    timeout(PATIENCE, theft).await.expect("the server gives it a message");
    source.check(&read).await;
}

#[tokio::test]
async fn that_a_stream_ends_before_what_was_read_is_told_until_it_has_it_again() {
    let Some(broker) = Broker::start() else { return };
    let (lines, _kept) = Lines::keep();
    let mut source = Source::start().await;
    source.publish(&broker).await;
    source.write(10, 100).await;
    let (read, _runs) = source.views(&broker, "reader", at_once()).await;
    source.check(&read).await;
    if let Some(relay) = source.relay.take() {
        relay.abort();
    }
    operator(&broker).await.delete_stream(STREAM).await.unwrap();
    until("it is told", || async { !lines.that_say("the stream ends before 10").is_empty() }).await;
    source.publish(&broker).await;
    until("it is over", || async { !lines.that_say("events come again").is_empty() }).await;
    assert_eq!(lines.that_say("the stream ends before").len(), 1);
    source.write(1, 100).await;
    source.check(&read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_a_long_stream_is_shown_its_end_before_coming_there() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    let published = source.publish(&broker).await;
    source.write(2_000, 10).await;
    until("all is published", || async { shown(&published).await.position == 2_000 }).await;
    let gate = Arc::new(Semaphore::new(0));
    let views = source.open(&broker, "reader", Seen { gate: Some(Arc::clone(&gate)), ..at_once() }).await;
    let board = Board::default();
    views.show_on(&board, "source");
    let _runs = Running(tokio::spawn(views.run()));
    until("its end is shown", || async { shown(&board).await.head > 0 }).await;
    let first = shown(&board).await;
    gate.add_permits(1);
    assert!(first.head == 2_000 && first.position < 2_000, "{first:?}");
    until("it comes there", || async { shown(&board).await.position == 2_000 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_the_log_is_that_another_process_writes_is_shown_before_it_is_published() {
    let Some(mut broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    source.write(1_000, 10).await;
    let log = Log::open(database::location(source.folder.path(), "source")).unwrap();
    let (relay, board) = (connect(&broker).await.relay("source", log), Board::default());
    relay.show_on(&board);
    let relay = tokio::spawn(relay.run());
    until("its end is shown", || async { shown(&board).await.head > 0 }).await;
    assert_eq!(shown(&board).await.head, 1_000);
    until("all is published", || async { shown(&board).await.position == 1_000 }).await;
    broker.kill();
    source.write(600, 10).await;
    until("the new end is shown", || async { shown(&board).await.head == 1_600 }).await;
    assert_eq!(shown(&board).await.position, 1_000);
    relay.abort();
}

/// The lags that are observed on a board.
fn lags(board: &Board) -> Vec<i64> {
    let exporter = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
    board.observe(&provider.meter("test"));
    provider.force_flush().unwrap();
    let exported = exporter.get_finished_metrics().unwrap();
    let metrics = exported.iter().flat_map(|exported| exported.scope_metrics()).flat_map(|scope| scope.metrics());
    let lags = metrics.filter(|metric| metric.name() == "projection.lag").flat_map(|metric| match metric.data() {
        AggregatedMetrics::I64(MetricData::Gauge(lags)) => lags.data_points().map(|point| point.value()).collect(),
        _ => Vec::new(),
    });
    lags.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_begins_to_publish_while_the_broker_is_out_does_not_claim_that_nothing_was() {
    let Some(mut broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    source.write(100, 10).await;
    let board = source.publish(&broker).await;
    until("all is published", || async { shown(&board).await.position == 100 }).await;
    broker.kill();
    let board = source.publish(&broker).await;
    until("it is told, and the log's end is shown", || async {
        let projection = shown(&board).await;
        projection.parked.is_some() && projection.head == 100
    })
    .await;
    let projection = shown(&board).await;
    assert_eq!((projection.position, projection.parked.map(|parked| parked.position)), (0, Some(0)));
    assert_eq!(lags(&board), [0; 0], "nobody knows how far it is");

    broker.go_on();
    until("its end is read", || async { shown(&board).await.position == 100 }).await;
    until("it goes on", || async { shown(&board).await.parked.is_none() }).await;
    assert_eq!(lags(&board), [0]);
    broker.kill();
    source.write(1, 10).await;
    until("it is out again", || async { shown(&board).await.parked.is_some_and(|parked| parked.position == 101) })
        .await;
    until("the new end is shown", || async { lags(&board) == [1] }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_reader_does_not_take_waits_at_the_broker() {
    const LARGE: usize = 64 << 10;
    let Some(broker) = Broker::start() else { return };
    if database::is_shared() {
        // Replicas have names that nobody knows.
        return;
    }
    let mut source = Source::start().await;
    let board = source.publish(&broker).await;
    source.write(600, LARGE).await;
    until("600 are published", || async { shown(&board).await.position == 600 }).await;
    let gate = Arc::new(Semaphore::new(0));
    let (read, _runs) = source.views(&broker, "reader", Seen { gate: Some(Arc::clone(&gate)), ..at_once() }).await;
    let context = operator(&broker).await;
    let sent = async || match context.get_stream(STREAM).await.unwrap().consumer_info("reader").await {
        Ok(info) => info.num_ack_pending,
        Err(_) => 0,
    };
    until("the reader takes some", || async { sent().await > 0 }).await;
    let (mut most, mut quiet) = (0, 0);
    while quiet < 20 {
        sleep(Duration::from_millis(50)).await;
        let now = sent().await;
        quiet = if now == most { quiet + 1 } else { 0 };
        most = now;
    }
    // Or the test would not end whose folds wait for it.
    gate.add_permits(1);
    assert!(most * LARGE <= 17 << 20, "{most} messages of 64 KiB are out");
    source.check(&read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_larger_than_what_a_reader_holds_comes_all_the_same() {
    let Some(broker) = Broker::start_with("max_payload: 16MB") else { return };
    let mut source = Source::start().await;
    let board = source.publish(&broker).await;
    for size in [100, 9 << 20, 15 << 20, 100] {
        source.happen("thing", size).await;
    }
    until("all are published", || async { shown(&board).await.position == 4 }).await;
    source.desk.is_out();
    let (read, _runs) = source.views(&broker, "reader", at_once()).await;
    source.check(&read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_who_publish_one_stands_back() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    let client = async_nats::connect(broker.url()).await.unwrap();
    let mut messages = client.subscribe("trellis.source.>").await.unwrap();
    client.flush().await.unwrap();
    let begun = Instant::now();
    let board = source.publish(&broker).await;
    let (twin, twins) = (connect(&broker).await.relay("source", Log::of(&source.journal)), Board::default());
    twin.show_on(&twins);
    let twin = tokio::spawn(twin.run());
    for _ in 0..200 {
        source.write(1, 100).await;
        let written = u64::try_from(source.written).unwrap();
        until("it is published", || async {
            let stream = operator(&broker).await.get_stream(STREAM).await;
            stream.is_ok_and(|stream| stream.cached_info().state.messages == written)
        })
        .await;
    }
    for board in [board, twins] {
        until("both know", || async { shown(&board).await.position == 200 }).await;
    }
    twin.abort();
    let (mut published, mut doubles) = (BTreeSet::new(), 0);
    while published.len() < 200 {
        let message = timeout(PATIENCE, messages.next()).await.expect("all were published").unwrap();
        let id = message.headers.unwrap().get(NATS_MESSAGE_ID).unwrap().to_string();
        doubles += u64::from(!published.insert(id));
    }
    // Who stands back comes back each second, and may be second again.
    let seconds = begun.elapsed().as_secs();
    assert!(doubles < 20 + 2 * seconds, "{doubles} of 200 events were published twice in {seconds} s");
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn a_stream_that_takes_no_more_is_told_of_once_until_it_does() {
    let Some(broker) = Broker::start() else { return };
    let (lines, _keeping) = Lines::keep();
    let mut source = Source::start().await;
    // The operator's stream keeps what came first.
    let config = |max_messages| stream::Config {
        name: STREAM.to_owned(),
        subjects: vec!["trellis.source.>".to_owned()],
        max_messages,
        discard: stream::DiscardPolicy::New,
        ..stream::Config::default()
    };
    let context = operator(&broker).await;
    context.create_stream(config(5)).await.unwrap();
    source.write(10, 100).await;
    let board = source.publish(&broker).await;
    let is_full = "maximum messages exceeded";
    until("it is told", || async { shown(&board).await.parked.is_some_and(|parked| parked.error.contains(is_full)) })
        .await;
    // Long enough for some tries more.
    sleep(Duration::from_secs(3)).await;
    assert_eq!(lines.that_say("events are published again"), [""; 0]);
    // A broker that is too slow to answer is another reason, and it is told anew after that.
    let told = lines.that_say("events are not published");
    assert!(told.iter().any(|line| line.contains(is_full)), "{told:?}");
    assert!(told.windows(2).all(|told| told[0] != told[1]), "{told:?}");
    let projection = shown(&board).await;
    assert_eq!((projection.position, projection.parked.map(|parked| parked.position)), (5, Some(6)));
    context.update_stream(config(100)).await.unwrap();
    until("all is published", || async { shown(&board).await.position == 10 }).await;
    assert_eq!(shown(&board).await.parked, None);
    assert_eq!(lines.that_say("events are published again").len(), 1);
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn why_a_broker_is_not_reached_is_told_once() {
    let (lines, _keeping) = Lines::keep();
    // Nobody listens there, nor will for as long as it is held.
    let held = TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobodys = held.local_addr().unwrap();
    let _trying = JetStream::connect(&format!("nats://{nobodys}"), "test", None).await.unwrap();
    let told = || lines.that_say("the broker is not reached");
    until("it is told", || async { !told().is_empty() }).await;
    // Long enough for some tries more.
    sleep(Duration::from_secs(2)).await;
    let told = told();
    assert!(told.len() == 1 && told[0].starts_with("WARN") && told[0].contains("IO error"), "{told:?}");
}
