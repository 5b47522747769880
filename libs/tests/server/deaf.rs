//! Clients that ask for more than a socket holds and read none of it. There is always room in their HTTP/2 windows: what fills up is TCP.

use std::{
    io::{self, Write as _},
    net,
    time::Duration,
};

use libs::cli::Serve;
use proto::inventory::v1::{GetStockRequest, WatchStockRequest};
use tokio::time::{advance, pause, resume, sleep, timeout};

use crate::{
    raw::{PATIENCE, Raw},
    shelf::{FLOOD, Served, flags},
};

/// More than any test takes.
const NEVER: Duration = Duration::from_secs(60 * 60);
const WINDOW: u32 = (1 << 31) - 1;

/// A server's flags under which it has no reason to leave such a client.
fn unbounded() -> Serve {
    let mut flags = flags();
    flags.limits.keepalive = NEVER;
    flags.limits.max_connection_age = NEVER;
    flags.limits.max_deadline = Duration::from_millis(20);
    flags.limits.drain_timeout = Duration::from_millis(20);
    flags
}

/// The socket of a client to which all is sent that it takes, and which has stopped reading.
async fn deaf(served: &Served) -> net::TcpStream {
    let client = Raw::connect(served, WINDOW).await;
    let message = WatchStockRequest { sku: FLOOD.to_owned(), ..WatchStockRequest::default() };
    client.ask("WatchStock", &message, &[]).await;
    client.stop().await
}

/// A ping, without which a client may never be told that the other end is closed.
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0deafdeaf";

/// How the client is told that its connection is over, though it reads nothing. Meanwhile it says this again and again.
async fn told(mut socket: net::TcpStream, says: &[u8]) -> io::ErrorKind {
    let over = async {
        loop {
            let told = socket.take_error().expect("a socket").map_or_else(|| socket.write(says), Err);
            match told.map_err(|error| error.kind()) {
                Err(kind) if kind != io::ErrorKind::WouldBlock => return kind,
                _ => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(PATIENCE, over).await.expect("its connection lives on")
}

#[tokio::test]
async fn a_client_that_stops_reading_is_given_up_as_one_that_is_gone() {
    let mut flags = unbounded();
    // Time enough to begin.
    flags.limits.keepalive = Duration::from_millis(500);
    flags.limits.keepalive_timeout = Duration::from_millis(500);
    let served = Served::start(&flags).await;
    // Nor does the system go on offering what it was to be sent.
    assert_eq!(told(deaf(&served).await, b"").await, io::ErrorKind::ConnectionReset);
    served.get("tea").await.expect("others are served on");
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_off_soon_after_its_connections_age() {
    let mut flags = unbounded();
    // Time enough to begin, on any machine. No connection becomes twice as old.
    flags.limits.max_connection_age = PATIENCE;
    let served = Served::start(&flags).await;
    let client = deaf(&served).await;
    pause();
    advance(2 * PATIENCE).await;
    resume();
    told(client, PING).await;
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_off_by_a_server_that_ends() {
    let served = Served::start(&unbounded()).await;
    let client = deaf(&served).await;
    served.stop().await.expect("no panic").expect("an orderly end");
    told(client, PING).await;
}

#[tokio::test]
async fn a_client_that_stopped_reading_once_it_was_answered_does_not_keep_a_server_from_ending() {
    let mut flags = unbounded();
    flags.limits.drain_timeout = NEVER;
    let served = Served::start(&flags).await;
    let client = Raw::connect(&served, WINDOW).await;
    let mut answer = client.ask("GetStock", &GetStockRequest::default(), &[]).await.into_body();
    while let Some(data) = answer.data().await {
        data.expect("all of it");
    }
    let _stream = client.ask("WatchStock", &WatchStockRequest::default(), &[]).await;
    let _silent = client.stop().await;
    let ended = timeout(PATIENCE, served.stop()).await.expect("nothing is in flight");
    ended.expect("no panic").expect("an orderly end");
}
