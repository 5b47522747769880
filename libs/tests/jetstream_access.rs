//! Whom a NATS server lets in, and that nobody else is told how. Runs where `TEST_NATS` names the server's program, as far as it needs
//! one.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod broker;
mod database;
mod desk;
mod lines;
mod streamed;

use std::time::Duration;

use broker::Broker;
use libs::cqrs::{Board, JetStream, Log};
use lines::Lines;
use streamed::{Source, shown, until};
use tokio::{net::TcpSocket, time::sleep};
use tracing::Level;

/// A server's address as whoever is typed there reaches it.
fn as_whom(who: &str, broker: &Broker) -> String {
    broker.url().replace("://", &format!("://{who}@"))
}

/// Publishes some events there.
async fn publish(jetstream: &JetStream) {
    let mut source = Source::start().await;
    source.write(3, 100).await;
    let (relay, board) = (jetstream.relay("source", Log::of(&source.journal)), Board::default());
    relay.show_on(&board);
    tokio::spawn(relay.run());
    until("all is published", || async { shown(&board).await.position == 3 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_typed_before_the_host_is_let_in() {
    let cases = [
        ("users = [{user: me, password: secret}]", "me:secret"),
        ("users = [{user: \"a me\", password: \"@/w%rd:1,\"}]", "a%20me:%40%2Fw%25rd%3A1%2C"),
        ("token: \"a secret\"", "a%20secret"),
    ];
    for (let_in, who) in cases {
        let Some(broker) = Broker::start_with(&format!("authorization {{{let_in}}}")) else { return };
        publish(&JetStream::connect(&as_whom(who, &broker), "test", None).await.unwrap()).await;
    }
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn that_a_broker_lets_nobody_in_by_that_password_is_told_once() {
    let Some(broker) = Broker::start_with("authorization {users = [{user: me, password: secret}]}") else { return };
    let (lines, _keeping) = Lines::keep();
    let _trying = JetStream::connect(&as_whom("me:former", &broker), "test", None).await.unwrap();
    let told = || lines.that_say("the broker");
    until("it is told", || async { !told().is_empty() }).await;
    // Long enough for some tries more.
    sleep(Duration::from_secs(2)).await;
    let told = told();
    assert!(told.len() == 1 && told[0].starts_with("WARN"), "{told:?}");
    assert!(told[0].contains("is not reached") && told[0].contains("authorization violation"), "{told:?}");
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn whoever_connects_writes_no_password_down() {
    let (lines, _keeping) = Lines::keep_of(&["async_nats", "libs"], Level::TRACE);
    for who in ["me:secret", "secret"] {
        // Nobody listens there, nor will for as long as it is held.
        let held = TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let nobodys = held.local_addr().unwrap();
        let _trying = JetStream::connect(&format!("nats://{who}@{nobodys}"), "test", None).await.unwrap();
        let port = nobodys.port().to_string();
        let tried = || lines.that_say("connection attempt failed").iter().any(|line| line.contains(&port));
        until("it is tried, and where is told", || async { tried() }).await;
        assert_eq!(lines.that_say("secret"), [""; 0]);
    }
}

#[tokio::test]
async fn whose_servers_let_in_others_is_no_broker() {
    let wrong = ["nats://me:secret@a,nats://b", "nats://me:secret@a,nats://you:secret@b", "nats://secret@a,nats://c@b"];
    for servers in wrong {
        let line = JetStream::connect(servers, "test", None).await.expect_err(servers).to_string();
        assert!(line.contains("user and password") && !line.contains("secret"), "{servers}: {line}");
    }
    let line = JetStream::connect("nats://me:%FFsecret@a", "test", None).await.expect_err("no text").to_string();
    assert!(line.contains("UTF-8") && !line.contains("secret"), "{line}");
    for right in ["nats://a,nats://b", "nats://me:se%63ret@127.0.0.1:1,nats://me:secret@127.0.0.1:2"] {
        JetStream::connect(right, "test", None).await.unwrap();
    }
}
