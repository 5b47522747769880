//! Clients that ask for more than a socket holds and read none of it. There is always room in their HTTP/2 windows: what fills up is TCP.

use std::{
    io::{self, Write as _},
    net,
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use libs::cli::Serve;
use prost::Message as _;
use proto::inventory::v1::WatchStockRequest;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::shelf::{FLOOD, Served, flags};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
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
    let socket = TcpStream::connect(served.address).await.expect("taken").into_std().expect("a socket");
    let heard = TcpStream::from_std(socket.try_clone().expect("another handle")).expect("a socket");
    let mut http = h2::client::Builder::new();
    http.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let (calls, connection) = http.handshake::<_, Bytes>(heard).await.expect("HTTP/2");
    let reads = tokio::spawn(connection);
    let request =
        http::Request::post(format!("http://{}/inventory.v1.InventoryQueryService/WatchStock", served.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
    let (answer, mut body) = calls.ready().await.expect("ready").send_request(request, false).expect("sent");
    let message = WatchStockRequest { sku: FLOOD.to_owned(), ..WatchStockRequest::default() }.encode_to_vec();
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(message.len().try_into().expect("short"));
    framed.extend(message);
    body.send_data(framed.freeze(), true).expect("sent");
    answer.await.expect("an answer has begun");
    // The socket stays open: the other handle is here.
    reads.abort();
    let _ = reads.await;
    socket
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
    // Time enough to begin.
    flags.limits.max_connection_age = Duration::from_secs(1);
    let served = Served::start(&flags).await;
    told(deaf(&served).await, PING).await;
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_off_by_a_server_that_ends() {
    let served = Served::start(&unbounded()).await;
    let client = deaf(&served).await;
    served.stop().await.expect("no panic").expect("an orderly end");
    told(client, PING).await;
}
