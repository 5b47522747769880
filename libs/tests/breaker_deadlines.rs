//! The deadline of a call: what of it a server sees, and that it ends what nothing else would.
#![cfg(feature = "rpc")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod breaker_support;
mod clock;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use breaker_support::{HANG, Moody, PATIENCE, eager, list, patient, peer_at};
use bytes::Bytes;
use clock::{becomes, soon, stop_the_clock};
use http::{HeaderMap, Response};
use libs::{
    breaker::{Class, Classes, Registry, State},
    rpc::{
        client::{PeerOptions, Peers, Retry},
        deadline,
    },
};
use proto::breaker::v1::{
    ListBreakersRequest, WatchBreakersRequest, breaker_query_service_client::BreakerQueryServiceClient,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Notify,
    time::{Instant, advance, timeout},
};
use tonic::{Code, Request, Status};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_server_is_told_the_earlier_of_the_callers_deadline_and_the_inherited_one() {
    let stopped = stop_the_clock();
    let moody = Moody::serve().await;
    let told = |moody: &Moody| std::mem::take(&mut *moody.timeouts.lock())[0].unwrap();
    let peer = peer_at(&moody.uri, &eager().timeout(40 * SECOND));
    list(&peer).await.unwrap();
    assert!((30 * SECOND..=40 * SECOND).contains(&told(&moody)), "a call's own, when there is no other");
    for (inherited, earlier) in [(20 * SECOND, 20 * SECOND), (60 * SECOND, 40 * SECOND)] {
        deadline::scope(Instant::now() + inherited, list(&peer)).await.unwrap();
        let told = told(&moody);
        assert!((earlier / 2..=earlier).contains(&told), "{told:?} of {inherited:?} inherited");
    }
    // A timeout that the call carries is in the place of the channel's, and of an inherited one only when it is earlier.
    for (carried, earlier) in [(10 * SECOND, 10 * SECOND), (60 * SECOND, 20 * SECOND)] {
        let mut request = Request::new(ListBreakersRequest::default());
        request.set_timeout(carried);
        let mut client = BreakerQueryServiceClient::new(peer.clone());
        deadline::scope(Instant::now() + 20 * SECOND, client.list_breakers(request)).await.unwrap();
        let told = told(&moody);
        assert!((earlier / 2..=earlier).contains(&told), "{told:?} of {carried:?} carried");
    }
    drop(stopped);
}

#[tokio::test]
async fn a_further_attempt_is_told_what_is_left() {
    let moody = Moody::serve().await;
    moody.fail_next(2, Code::Unavailable);
    let retry = Retry::new().backoff(20 * MS, 20 * MS);
    let peer = peer_at(&moody.uri, &patient(PeerOptions::query().retry(retry)));
    deadline::scope(Instant::now() + 40 * SECOND, list(&peer)).await.unwrap();
    let told: Vec<_> = moody.timeouts.lock().iter().map(|told| told.unwrap()).collect();
    let [first, second, third] = *told else { panic!("{told:?}") };
    assert!(first <= 40 * SECOND && second < first && third < second, "{told:?}");
}

/// An address at which a connection is neither made nor refused: one waits to be accepted, and there is room for no other. It stays so
/// as long as what comes with it is held.
async fn black_hole() -> (SocketAddr, (TcpListener, TcpStream)) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let waiting = TcpStream::connect(address).await.unwrap();
    (address, (listener, waiting))
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_never_comes_about_is_given_up_at_the_deadline() {
    let stopped = stop_the_clock();
    let (address, held) = black_hole().await;
    for options in [eager(), PeerOptions::query()] {
        // Whatever a connection may take: the deadline is earlier.
        let peer = peer_at(&format!("http://{address}"), &options.timeout(50 * MS).connect_timeout(600 * SECOND));
        let (ended, ()) = soon(async { tokio::join!(list(&peer), advance(50 * MS)) }).await;
        assert_eq!(ended.unwrap_err().code(), Code::DeadlineExceeded);
        assert_eq!(peer.breaker().snapshot().totals.failure, 1, "and its breaker knows");
    }
    drop((held, stopped));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_its_caller_keeps_is_judged_as_one_that_the_server_tells_of() {
    let stopped = stop_the_clock();
    let moody = Moody::serve().await;
    moody.set(HANG);
    let well = Classes::default().with(Code::DeadlineExceeded, Class::Success);
    let says = |status: &Status| (status.code() == Code::DeadlineExceeded).then_some(Class::Success);
    for options in [eager().classes(well), eager().judge(says)] {
        let peer = peer_at(&moody.uri, &options.timeout(100 * MS));
        // Connected by then, and so asked before the deadline.
        for calls in 1..=5 {
            let before = moody.calls.load(Ordering::SeqCst);
            let passes = async {
                becomes(|| moody.calls.load(Ordering::SeqCst) > before).await;
                advance(100 * MS).await;
            };
            let (ended, ()) = soon(async { tokio::join!(list(&peer), passes) }).await;
            assert_eq!(ended.unwrap_err().code(), Code::DeadlineExceeded);
            let totals = peer.breaker().snapshot().totals;
            assert_eq!((totals.success, totals.failure), (calls, 0));
        }
        let mut stream = BreakerQueryServiceClient::new(peer.clone());
        let mut stream = soon(stream.watch_breakers(WatchBreakersRequest::default())).await.unwrap().into_inner();
        soon(stream.message()).await.unwrap().unwrap();
        advance(100 * MS).await;
        assert_eq!(soon(stream.message()).await.unwrap_err().code(), Code::DeadlineExceeded);
        assert_eq!(peer.breaker().snapshot().totals.success, 6, "a stream's end, too");
    }
    drop(stopped);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_was_stopped_itself_does_not_blame_its_peer() {
    let stopped = stop_the_clock();
    for (slept, state) in [(600 * SECOND, State::Closed), (9 * SECOND, State::Open)] {
        let moody = Moody::serve().await;
        moody.set(HANG);
        let peer = peer_at(&moody.uri, &PeerOptions::saga().timeout(5 * SECOND));
        let sleeps = async {
            becomes(|| moody.calls.load(Ordering::SeqCst) == 20).await;
            advance(slept).await;
        };
        let calls = futures::future::join_all((0..20).map(|_| list(&peer)));
        let (ended, ()) = soon(async { tokio::join!(calls, sleeps) }).await;
        assert!(ended.iter().all(Result::is_err));
        assert_eq!(peer.breaker().state(), state, "{slept:?}");
    }
    drop(stopped);
}

#[tokio::test]
async fn a_tls_handshake_that_nobody_answers_is_given_up_as_a_connection_is() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // It accepts, and says nothing.
    let peers =
        Peers::new(Registry::new(), &[("moody", &*format!("https://{address}"))], Vec::new()).unwrap().trust("");
    let peer = peers.connect_with("moody", &PeerOptions::stream().connect_timeout(50 * MS)).unwrap();
    let mut client = BreakerQueryServiceClient::new(peer.clone());
    let watched = timeout(PATIENCE, client.watch_breakers(WatchBreakersRequest::default())).await;
    assert_eq!(watched.expect("an end").unwrap_err().code(), Code::Unavailable);
    assert_eq!(peer.breaker().snapshot().totals.failure, 1);
}

/// A raw HTTP/2 server that says when it is asked, and CANCELLED when it is told to.
struct Canceller {
    address: SocketAddr,
    asked: Arc<Notify>,
    cancel: Arc<Notify>,
}

impl Canceller {
    async fn serve(in_headers: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, cancel) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let server = Self { address, asked: Arc::clone(&asked), cancel: Arc::clone(&cancel) };
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((_, respond))) = connection.accept().await {
                let (asked, cancel) = (Arc::clone(&asked), Arc::clone(&cancel));
                tokio::spawn(async move {
                    asked.notify_one();
                    cancel.notified().await;
                    say_cancelled(respond, in_headers);
                });
            }
        });
        server
    }
}

fn say_cancelled(mut respond: h2::server::SendResponse<Bytes>, in_headers: bool) {
    let cancelled = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "1".parse().unwrap())]);
    let mut head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    if in_headers {
        head.headers_mut().extend(cancelled);
        respond.send_response(head, true).unwrap();
    } else {
        let mut stream = respond.send_response(head, false).unwrap();
        stream.send_data(Bytes::from_static(b"\0\0\0\0\0"), false).unwrap();
        stream.send_trailers(cancelled).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cancels_when_the_deadline_is_there_means_it_and_is_to_blame() {
    let stopped = stop_the_clock();
    for in_headers in [true, false] {
        for (after, code, failed) in [(500 * MS, Code::Cancelled, 0), (996 * MS, Code::DeadlineExceeded, 1)] {
            let server = Canceller::serve(in_headers).await;
            let peer = peer_at(&format!("http://{}", server.address), &eager().timeout(SECOND));
            let called = Instant::now();
            let call = tokio::spawn({
                let peer = peer.clone();
                async move { list(&peer).await }
            });
            server.asked.notified().await;
            advance(after).await;
            server.cancel.notify_one();
            let status = call.await.unwrap().unwrap_err();
            assert_eq!(called.elapsed(), after, "no timer of the caller's has ended it");
            let totals = peer.breaker().snapshot().totals;
            assert_eq!((status.code(), totals.failure, totals.neutral), (code, failed, 1 - failed), "{in_headers}");
        }
    }
    drop(stopped);
}
