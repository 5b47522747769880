//! Retries, bounds and several addresses: the rest of a peer's stack, over loopback.
#![allow(clippy::unwrap_used, reason = "a test")]

mod breaker_support;

use std::{sync::atomic::Ordering, time::Duration};

use breaker_support::{HANG, Moody, eager, list, peer_at, serve};
use libs::{
    breaker::{CircuitOpen, Config, State},
    rpc::{
        client::{PeerOptions, Retry},
        shed::ShedLayer,
    },
};
use proto::breaker::v1::{
    WatchBreakersRequest, breaker_query_service_client::BreakerQueryServiceClient,
    breaker_query_service_server::BreakerQueryServiceServer,
};
use tokio::net::TcpListener;
use tonic::{Code, transport::Server};
use tonic_types::StatusExt as _;
use tower::Layer as _;

const MS: Duration = Duration::from_millis(1);

fn quick_retry() -> Retry {
    Retry::new().backoff(MS, MS)
}

#[tokio::test]
async fn a_call_that_may_be_made_twice_is_tried_again() {
    let moody = Moody::serve().await;
    moody.fail_next(2, Code::Unavailable);
    let peer = peer_at(&moody.uri, &PeerOptions::query().retry(quick_retry()));
    list(&peer).await.unwrap();
    assert_eq!(moody.calls.load(Ordering::SeqCst), 3);
    assert_eq!(moody.previous_attempts.load(Ordering::SeqCst), 2, "the server is told");
    assert_eq!(peer.breaker().snapshot().totals.failure, 2, "the breaker sees attempts");
}

#[tokio::test]
async fn a_sagas_channel_sends_each_call_once() {
    let moody = Moody::serve().await;
    moody.fail_next(1, Code::Unavailable);
    let peer = peer_at(&moody.uri, &PeerOptions::saga());
    assert_eq!(list(&peer).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(moody.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_another_attempt_does_not_help_is_not_tried_again() {
    for code in [Code::InvalidArgument, Code::ResourceExhausted, Code::Internal] {
        let moody = Moody::serve().await;
        moody.fail_next(1, code);
        let peer = peer_at(&moody.uri, &PeerOptions::query().retry(quick_retry()));
        assert_eq!(list(&peer).await.unwrap_err().code(), code);
        assert_eq!(moody.calls.load(Ordering::SeqCst), 1, "{code:?}");
    }
}

#[tokio::test]
async fn a_server_that_pushes_back_is_obeyed() {
    let moody = Moody::serve().await;
    moody.fail_next(1, Code::Unavailable);
    *moody.pushback.lock() = Some("-1");
    let peer = peer_at(&moody.uri, &PeerOptions::query().retry(quick_retry()));
    assert_eq!(list(&peer).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(moody.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_breakers_refusal_is_final() {
    let moody = Moody::serve().await;
    moody.set(Code::Unavailable as i32);
    let options = PeerOptions::query().retry(quick_retry());
    let breaker = Config::builder().consecutive_failures(2).build().unwrap();
    let peer = peer_at(&moody.uri, &options.breaker(breaker));
    let refused = list(&peer).await.unwrap_err();
    assert!(CircuitOpen::from_status(&refused).is_some(), "{refused:?}");
    assert_eq!(moody.calls.load(Ordering::SeqCst), 2);
    assert_eq!(peer.breaker().snapshot().totals.rejected, 1);
}

#[tokio::test]
async fn an_outage_is_not_made_worse_by_retries() {
    let moody = Moody::serve().await;
    moody.set(Code::Unavailable as i32);
    let never = Config::builder().consecutive_failures(1_000_000).failure_rate(None).build().unwrap();
    let peer = peer_at(&moody.uri, &PeerOptions::query().retry(quick_retry()).breaker(never));
    for _ in 0..100 {
        list(&peer).await.unwrap_err();
    }
    let sent = moody.calls.load(Ordering::SeqCst);
    assert!((100..=120).contains(&sent), "{sent} sent for 100 calls");
}

#[tokio::test]
async fn calls_beyond_the_bound_are_refused_and_a_place_is_free_when_a_body_ends() {
    let moody = Moody::serve().await;
    moody.set(HANG);
    let peer = peer_at(&moody.uri, &eager().most_calls(1));
    let mut client = BreakerQueryServiceClient::new(peer.clone());
    let stream = client.watch_breakers(WatchBreakersRequest::default()).await.unwrap();
    moody.set(0);
    let full = list(&peer).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert_eq!(peer.breaker().snapshot().totals.overload, 0, "the peer has no part in it");
    drop(stream);
    list(&peer).await.unwrap();
}

#[tokio::test]
async fn a_dead_address_among_two_is_passed_over_after_three_failures() {
    let moody = Moody::serve().await;
    let dead = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let peer = peer_at(&format!("{},{dead}", moody.uri), &PeerOptions::saga());
    let mut failed = 0;
    for _ in 0..400 {
        failed += usize::from(list(&peer).await.is_err());
    }
    assert_eq!(failed, 3);
    assert_eq!(peer.breaker().state(), State::Closed);
}

#[tokio::test]
async fn with_most_addresses_out_all_are_tried() {
    let moody = Moody::serve().await;
    moody.set(Code::Unavailable as i32);
    let peer = peer_at(
        &[&*moody.uri; 3].join(","),
        &PeerOptions::saga().breaker(Config::builder().consecutive_failures(1_000).failure_rate(None).build().unwrap()),
    );
    for _ in 0..50 {
        let status = list(&peer).await.unwrap_err();
        assert_eq!(status.message(), "moody", "nobody is left alone when all are down");
    }
    moody.set(0);
    list(&peer).await.unwrap();
}

#[tokio::test]
async fn an_overloaded_server_sheds_calls_and_breakers_rest_as_long_as_it_says() {
    let moody = Moody::default();
    moody.set(HANG);
    let shed = ShedLayer::new("moody", 2, Duration::from_secs(20));
    let service = shed.layer(BreakerQueryServiceServer::new(moody.clone()));
    let address = serve(Server::builder().add_service(service)).await;
    let breaker = Config::builder().min_calls(3).build().unwrap();
    let peer = peer_at(&format!("http://{address}"), &PeerOptions::saga().breaker(breaker));
    let working: Vec<_> = (0..2)
        .map(|_| {
            tokio::spawn({
                let peer = peer.clone();
                async move { list(&peer).await }
            })
        })
        .collect();
    while shed.free() > 0 {
        tokio::task::yield_now().await;
    }
    for _ in 0..3 {
        let status = list(&peer).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.get_details_error_info().unwrap().reason, "OVERLOADED");
    }
    let totals = peer.breaker().snapshot().totals;
    assert_eq!((totals.overload, totals.failure), (3, 0));
    let open = CircuitOpen::from_status(&list(&peer).await.unwrap_err()).unwrap();
    assert!(open.retry_after > Duration::from_secs(15), "{open:?}");
    working.iter().for_each(tokio::task::JoinHandle::abort);
}
