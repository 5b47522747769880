//! What a reader makes of a look at a real NATS server's stream while nothing comes. Runs where `TEST_NATS` names the server's program.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod broker;
mod database;
mod desk;
mod lines;
mod streamed;

use std::time::Duration;

use async_nats::jetstream::{AckKind, Message, consumer::PullConsumer};
use broker::Broker;
use futures::{StreamExt as _, TryStreamExt as _};
use lines::Lines;
use streamed::{PATIENCE, STREAM, Source, at_once, operator};
use tokio::time::timeout;

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn an_event_that_is_on_its_way_at_a_look_is_waited_for() {
    let Some(broker) = Broker::start() else { return };
    let (lines, _kept) = Lines::keep();
    let mut source = Source::start().await;
    source.publish(&broker).await;
    source.write(10, 100).await;
    let (read, _runs) = source.views(&broker, "reader", at_once()).await;
    source.check(&read).await;
    let context = operator(&broker).await;
    let stream = context.get_stream(STREAM).await.unwrap();
    let names: Vec<String> = stream.consumer_names().try_collect().await.unwrap();
    let made = stream.consumer_info(&names[0]).await.unwrap().created;

    // Somebody else has the reader's name and asks for one: the server gives to one and to the other in turn.
    let consumer: PullConsumer = stream.get_consumer(&names[0]).await.unwrap();
    let mut other = tokio::spawn(async move {
        let mut messages = consumer.batch().max_messages(1).expires(PATIENCE).messages().await.unwrap();
        messages.next().await.unwrap().unwrap()
    });
    let held = async {
        loop {
            source.happen("thing", 100).await;
            loop {
                match timeout(Duration::from_millis(10), &mut other).await {
                    Ok(held) => return held.unwrap(),
                    Err(_) if read.position() == source.written => break,
                    Err(_) => {}
                }
            }
        }
    };
    let held: Message = timeout(PATIENCE, held).await.expect("the server gives it a message");
    // Nobody looks now but who reads.
    source.relay.take().unwrap().abort();
    let mut looks = context.client().subscribe(format!("$JS.API.STREAM.INFO.{STREAM}")).await.unwrap();
    let looked = async {
        looks.next().await;
        // What was asked is answered before that comes.
        held.ack_with(AckKind::Nak(None)).await.unwrap();
    };
    timeout(PATIENCE, looked).await.expect("the reader looks");
    source.check(&read).await;
    assert_eq!(lines.that_say("no events come"), [""; 0]);
    assert_eq!(stream.consumer_info(&names[0]).await.unwrap().created, made, "it is not made anew");
}
