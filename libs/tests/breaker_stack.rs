//! Retries, bounds and several addresses: the rest of a peer's stack, over loopback.
#![cfg(feature = "rpc")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod breaker_support;
mod clock;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use breaker_support::{HANG, Moody, PATIENCE, eager, list, patient, peer_at, peer_in, serve, unheard};
use bytes::Bytes;
use clock::{becomes, soon, stop_the_clock};
use libs::{
    breaker::{CircuitOpen, Class, Classes, Config, Override, Reason, Registry, State},
    refusal::Refusal,
    rpc::{
        client::{PeerOptions, Retry},
        shed::ShedLayer,
    },
};
use proto::breaker::v1::{
    WatchBreakersRequest, breaker_query_service_client::BreakerQueryServiceClient,
    breaker_query_service_server::BreakerQueryServiceServer,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    time::advance,
};
use tonic::{Code, Status, transport::Server};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::Layer as _;

const MS: Duration = Duration::from_millis(1);

fn quick_retry() -> Retry {
    Retry::new().backoff(MS, MS)
}

/// A query's channel that tries again.
fn trying(retry: Retry) -> PeerOptions {
    patient(PeerOptions::query().retry(retry))
}

#[tokio::test]
async fn a_call_that_may_be_made_twice_is_tried_again() {
    let moody = Moody::serve().await;
    moody.fail_next(2, Code::Unavailable);
    let peer = peer_at(&moody.uri, &trying(quick_retry()));
    list(&peer).await.unwrap();
    assert_eq!(moody.calls.load(Ordering::SeqCst), 3);
    assert_eq!(moody.previous_attempts.load(Ordering::SeqCst), 2, "the server is told");
    assert_eq!(peer.breaker().snapshot().totals.failure, 2, "the breaker sees attempts");
}

#[tokio::test]
async fn a_sagas_channel_sends_each_call_once() {
    let moody = Moody::serve().await;
    moody.fail_next(1, Code::Unavailable);
    let peer = peer_at(&moody.uri, &patient(PeerOptions::saga()));
    assert_eq!(list(&peer).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(moody.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_another_attempt_does_not_help_is_not_tried_again() {
    for code in [Code::InvalidArgument, Code::ResourceExhausted, Code::Internal] {
        let moody = Moody::serve().await;
        moody.fail_next(1, code);
        let peer = peer_at(&moody.uri, &trying(quick_retry()));
        assert_eq!(list(&peer).await.unwrap_err().code(), code);
        assert_eq!(moody.calls.load(Ordering::SeqCst), 1, "{code:?}");
    }
}

#[tokio::test]
async fn a_server_that_pushes_back_is_obeyed() {
    let moody = Moody::serve().await;
    moody.fail_next(1, Code::Unavailable);
    *moody.pushback.lock() = Some("-1");
    let peer = peer_at(&moody.uri, &trying(quick_retry()));
    assert_eq!(list(&peer).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(moody.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_breakers_refusal_is_final() {
    let moody = Moody::serve().await;
    moody.set(Code::Unavailable as i32);
    let options = trying(quick_retry());
    let breaker = Config::builder().consecutive_failures(2).open_for(PATIENCE, 1, PATIENCE).build().unwrap();
    let peer = peer_at(&moody.uri, &options.breaker(breaker));
    let refused = list(&peer).await.unwrap_err();
    assert!(CircuitOpen::from_status(&refused).is_some(), "{refused:?}");
    assert_eq!(moody.calls.load(Ordering::SeqCst), 2);
    assert_eq!(peer.breaker().snapshot().totals.rejected.sum(), 1);
}

#[tokio::test]
async fn a_refusal_passed_on_by_a_peer_is_final_and_not_the_peers_fault() {
    let refusal =
        CircuitOpen { breaker: "behind".into(), reason: Reason::Open, cause: None, retry_after: MS, generation: 1 };
    let mut full = ErrorDetails::with_error_info("BULKHEAD_FULL", libs::breaker::DOMAIN, HashMap::new());
    full.set_retry_info(Some(100 * MS));
    let full = Status::with_error_details(Code::ResourceExhausted, "too many calls", full);
    for status in [refusal.into_status(), full] {
        let moody = Moody::serve().await;
        moody.fail_next(10, status.code());
        *moody.failure.lock() = Some(status.clone());
        let retry = quick_retry().codes([Code::Unavailable, Code::ResourceExhausted]);
        let peer = peer_at(&moody.uri, &trying(retry));
        assert_eq!(list(&peer).await.unwrap_err().code(), status.code());
        assert_eq!(moody.calls.load(Ordering::SeqCst), 1, "{status:?}");
        let totals = peer.breaker().snapshot().totals;
        assert_eq!((totals.neutral, totals.failure, totals.overload), (1, 0, 0), "{status:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_one_request_alone_says_nothing_of_the_peer_and_is_not_tried_again() {
    let behind = Refusal::unavailable("NOT_CAUGHT_UP", "the views are at 5 and the token is at 9: try again", MS);
    let crowded = Refusal::exhausted("LOCK_QUEUE_FULL", "too many sagas wait for sku/tea: try again", MS);
    for refusal in [behind, crowded] {
        let moody = Moody::serve().await;
        moody.fail_next(60, refusal.code);
        *moody.failure.lock() = Some(refusal.clone().into_status("moody"));
        let peer = peer_at(&moody.uri, &trying(quick_retry()));
        for _ in 0..60 {
            assert_eq!(list(&peer).await.unwrap_err().code(), refusal.code);
        }
        let shown = peer.breaker().snapshot();
        assert_eq!((shown.state, shown.totals.neutral), (State::Closed, 60), "{refusal:?}");
        assert_eq!(moody.calls.load(Ordering::SeqCst), 60, "{refusal:?}");
    }
    // Of others nobody knows what they mean by it.
    let moody = Moody::serve().await;
    let foreign = ErrorDetails::with_error_info("NOT_CAUGHT_UP", "example.org", HashMap::new());
    moody.fail_next(3, Code::Unavailable);
    *moody.failure.lock() = Some(Status::with_error_details(Code::Unavailable, "", foreign));
    let peer = peer_at(&moody.uri, &trying(quick_retry()));
    list(&peer).await.unwrap_err();
    assert_eq!(peer.breaker().snapshot().totals.failure, 3);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_when_to_try_again_is_not_asked_sooner() {
    let stopped = stop_the_clock();
    let moody = Moody::serve().await;
    moody.fail_next(1, Code::Unavailable);
    let away = Refusal::unavailable("DATABASE_UNAVAILABLE", "the database can't be reached", 1_000 * MS);
    *moody.failure.lock() = Some(away.into_status("moody"));
    let peer = peer_at(&moody.uri, &trying(quick_retry()));
    let begun = tokio::time::Instant::now();
    let waits = async {
        becomes(|| peer.breaker().snapshot().totals.failure == 1).await;
        while moody.calls.load(Ordering::SeqCst) < 2 {
            advance(100 * MS).await;
            for _ in 0..1_000 {
                tokio::task::yield_now().await;
            }
        }
        begun.elapsed()
    };
    let (answer, second) = soon(async { tokio::join!(list(&peer), waits) }).await;
    answer.unwrap();
    assert!(second >= 1_000 * MS, "{second:?}");
    drop(stopped);
}

#[tokio::test]
async fn an_attempt_may_take_for_ever() {
    let moody = Moody::serve().await;
    let peer = peer_at(&moody.uri, &trying(quick_retry().attempt_timeout(Duration::MAX)));
    list(&peer).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_refuses_one_request_or_passes_a_refusal_on_as_it_is_probed_has_answered() {
    let open =
        CircuitOpen { breaker: "behind".into(), reason: Reason::Open, cause: None, retry_after: MS, generation: 1 };
    let behind = Refusal::unavailable("NOT_CAUGHT_UP", "the views are at 5 and the token is at 9: try again", MS);
    for refusal in [open.into_status(), behind.into_status("moody")] {
        let stopped = stop_the_clock();
        let moody = Moody::serve().await;
        let breaker = Config::builder().consecutive_failures(3).open_for(PATIENCE, 1, PATIENCE).build().unwrap();
        let peer = peer_at(&moody.uri, &patient(PeerOptions::saga().breaker(breaker)));
        moody.set(Code::Unavailable as i32);
        for _ in 0..3 {
            soon(list(&peer)).await.unwrap_err();
        }
        assert_eq!(peer.breaker().state(), State::Open);
        // It is back, and answers no more than that.
        *moody.failure.lock() = Some(refusal.clone());
        advance(PATIENCE * 2).await;
        for _ in 0..15 {
            soon(list(&peer)).await.unwrap_err();
        }
        assert_eq!(
            (peer.breaker().state(), peer.breaker().snapshot().totals.opened),
            (State::Closed, 1),
            "{refusal:?}"
        );
        drop(stopped);
    }
}

/// A raw HTTP/2 server that turns the first calls away unseen, then answers well.
async fn turning_away(calls: usize, how: Unseen) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let number = seen.fetch_add(1, Ordering::SeqCst);
                    match how {
                        Unseen::Refused if number < calls => respond.send_reset(h2::Reason::REFUSED_STREAM),
                        Unseen::Reset if number < calls => respond.send_reset(h2::Reason::INTERNAL_ERROR),
                        _ => answer_well(&mut respond),
                    }
                }
            });
        }
    });
    (address, counted)
}

#[derive(Clone, Copy)]
enum Unseen {
    Refused,
    /// Not unseen at all.
    Reset,
}

fn answer_well(respond: &mut h2::server::SendResponse<Bytes>) {
    let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut stream = respond.send_response(head, false).unwrap();
    stream.send_data(Bytes::from_static(b"\0\0\0\0\0"), false).unwrap();
    stream.send_trailers([("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect()).unwrap();
}

#[tokio::test]
async fn a_call_that_nobody_worked_on_is_sent_again_once_whatever_the_retries_allow() {
    for (turned_away, how, sent, well) in
        [(1, Unseen::Refused, 2, true), (2, Unseen::Refused, 2, false), (1, Unseen::Reset, 1, false)]
    {
        let (address, seen) = turning_away(turned_away, how).await;
        let options = trying(quick_retry().attempts(1));
        let peer = peer_at(&format!("http://{address}"), &options);
        let result = list(&peer).await;
        assert_eq!((result.is_ok(), seen.load(Ordering::SeqCst)), (well, sent), "{result:?}");
    }
    // Whether a saga's call is sent is for the saga's log to say.
    let (address, seen) = turning_away(1, Unseen::Refused).await;
    list(&peer_at(&format!("http://{address}"), &patient(PeerOptions::saga()))).await.unwrap_err();
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_given_up_and_another_made() {
    let stopped = stop_the_clock();
    let moody = Moody::serve().await;
    moody.fail_next(1, Code::Ok);
    moody.failing.1.store(HANG, Ordering::SeqCst);
    let peer = peer_at(&moody.uri, &trying(quick_retry().attempt_timeout(500 * MS)));
    // So long an attempt may take, and then so long the next one is waited for.
    let hangs = async |calls: usize| {
        becomes(|| moody.calls.load(Ordering::SeqCst) == calls).await;
        let failures = peer.breaker().snapshot().totals.failure;
        advance(500 * MS).await;
        becomes(|| peer.breaker().snapshot().totals.failure > failures).await;
        advance(2 * MS).await;
    };
    let (answer, ()) = soon(async { tokio::join!(list(&peer), hangs(1)) }).await;
    answer.unwrap();
    assert_eq!(moody.calls.load(Ordering::SeqCst), 2);
    let totals = peer.breaker().snapshot().totals;
    assert_eq!((totals.failure, totals.success), (1, 1), "the breaker knows that it hung");
    // All that hang end the call, each counted against the tokens.
    moody.set(HANG);
    let all_hang = async {
        for calls in 3..=5 {
            hangs(calls).await;
        }
    };
    let (answer, ()) = soon(async { tokio::join!(list(&peer), all_hang) }).await;
    let status = answer.unwrap_err();
    assert_eq!((status.code(), moody.calls.load(Ordering::SeqCst)), (Code::DeadlineExceeded, 5));
    drop(stopped);
}

#[tokio::test]
async fn a_server_that_restarts_costs_a_query_nothing() {
    let moody = Moody::default();
    // Held between two lives too, so that nobody else is given the port.
    let held = TcpSocket::new_v4().unwrap();
    held.set_reuseaddr(true).unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = held.local_addr().unwrap();
    let peer = peer_at(&format!("http://{address}"), &patient(PeerOptions::query()));
    for life in 1..=3 {
        let listener = TcpListener::bind(address).await.unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let router = Server::builder().add_service(BreakerQueryServiceServer::new(moody.clone()));
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let served = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async { drop(stopped.await) }));
        for _ in 0..3 {
            list(&peer).await.unwrap();
        }
        assert_eq!(moody.calls.load(Ordering::SeqCst), 3 * life);
        // It says GOAWAY, and its connections end.
        stop.send(()).unwrap();
        served.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn one_method_can_be_judged_otherwise_than_the_rest() {
    let path = "/breaker.v1.BreakerQueryService/ListBreakers";
    let strict = Classes::default().with(Code::NotFound, Class::Failure);
    for options in [eager(), eager().breaker_per_method(4)] {
        let moody = Moody::serve().await;
        moody.set(Code::NotFound as i32);
        let peer = peer_at(&moody.uri, &options.method_classes(path, strict));
        for _ in 0..3 {
            assert_eq!(list(&peer).await.unwrap_err().code(), Code::NotFound);
        }
        assert!(CircuitOpen::from_status(&list(&peer).await.unwrap_err()).is_some());
    }
    let moody = Moody::serve().await;
    moody.set(Code::NotFound as i32);
    let peer = peer_at(&moody.uri, &eager().method_classes("/some.Other/Method", strict));
    for _ in 0..10 {
        assert_eq!(list(&peer).await.unwrap_err().code(), Code::NotFound);
    }
    assert_eq!(peer.breaker().snapshot().totals.success, 10);
}

#[tokio::test]
async fn one_method_can_be_judged_otherwise_at_each_of_several_addresses() {
    let strict = Classes::default().with(Code::NotFound, Class::Failure);
    for (path, not_found) in [("/breaker.v1.BreakerQueryService/ListBreakers", 3), ("/some.Other/Method", 20)] {
        let (moody, well) = (Moody::serve().await, Moody::serve().await);
        moody.set(Code::NotFound as i32);
        let options = patient(PeerOptions::saga().ejection(out_for_long())).method_classes(path, strict);
        let peer = peer_at(&format!("{},{}", moody.uri, well.uri), &options);
        let mut failed = 0;
        for _ in 0..40 {
            failed += usize::from(list(&peer).await.is_err());
        }
        assert_eq!(failed, not_found, "{path}");
    }
}

#[tokio::test]
async fn details_can_tell_what_the_code_does_not() {
    let database_is_gone =
        |status: &Status| (status.get_details_error_info()?.reason == "DATABASE_GONE").then_some(Class::Failure);
    let moody = Moody::serve().await;
    let peer = peer_at(&moody.uri, &eager().judge(database_is_gone));
    moody.set(Code::FailedPrecondition as i32);
    for _ in 0..3 {
        assert_eq!(list(&peer).await.unwrap_err().code(), Code::FailedPrecondition);
    }
    assert_eq!(peer.breaker().snapshot().totals.success, 3, "the code's class holds where the judge says nothing");
    let details = ErrorDetails::with_error_info("DATABASE_GONE", "example.org", HashMap::new());
    *moody.failure.lock() = Some(Status::with_error_details(Code::FailedPrecondition, "no database", details));
    for _ in 0..3 {
        list(&peer).await.unwrap_err();
    }
    assert_eq!(peer.breaker().state(), State::Open);
}

#[tokio::test]
async fn an_outage_is_not_made_worse_by_retries() {
    let moody = Moody::serve().await;
    moody.set(Code::Unavailable as i32);
    let never = Config::builder().consecutive_failures(1_000_000).failure_rate(None).build().unwrap();
    let peer = peer_at(&moody.uri, &trying(quick_retry()).breaker(never));
    for _ in 0..100 {
        list(&peer).await.unwrap_err();
    }
    let sent = moody.calls.load(Ordering::SeqCst);
    assert!((100..=120).contains(&sent), "{sent} sent for 100 calls");
}

#[tokio::test]
async fn a_peer_that_is_out_takes_no_retries_from_another_with_the_same_options() {
    let (out, well) = (Moody::serve().await, Moody::serve().await);
    out.set(Code::Unavailable as i32);
    let options = trying(quick_retry());
    let (unlucky, other) = (peer_at(&out.uri, &options), peer_at(&well.uri, &options));
    for _ in 0..10 {
        list(&unlucky).await.unwrap_err();
    }
    well.fail_next(2, Code::Unavailable);
    list(&other).await.unwrap();
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

/// An address is out for longer than any machine takes over a test, so that nobody looks whether it is back.
fn out_for_long() -> Config {
    let hour = Duration::from_secs(3600);
    Config::builder().consecutive_failures(3).open_for(hour, 1, hour).build().unwrap()
}

#[tokio::test]
async fn a_dead_address_among_two_is_passed_over_after_three_failures() {
    let moody = Moody::serve().await;
    let (_held, dead) = unheard();
    let options = patient(PeerOptions::saga().ejection(out_for_long()));
    let peer = peer_at(&format!("{},http://{dead}", moody.uri), &options);
    let mut failed = 0;
    for _ in 0..400 {
        failed += usize::from(list(&peer).await.is_err());
    }
    assert_eq!(failed, 3);
    assert_eq!(peer.breaker().state(), State::Closed);
}

#[tokio::test]
async fn an_address_that_is_forced_open_is_not_called_however_few_are_left() {
    let (a, b, c) = (Moody::serve().await, Moody::serve().await, Moody::serve().await);
    let registry = Registry::new();
    let never = Config::builder().consecutive_failures(1_000).failure_rate(None).build().unwrap();
    let options = patient(PeerOptions::saga().breaker(never).ejection(out_for_long()));
    let peer = peer_in(&registry, &[&*a.uri, &b.uri, &c.uri].join(","), &options);
    let force = |moody: &Moody, over| {
        let address = moody.uri.trim_start_matches("http://");
        registry.get(&format!("moody/{address}")).unwrap().set_override(over);
    };
    let calls = |moody: &Moody| moody.calls.swap(0, Ordering::SeqCst);

    force(&a, Override::ForcedOpen);
    force(&b, Override::ForcedOpen);
    for _ in 0..30 {
        list(&peer).await.unwrap();
    }
    assert_eq!([&a, &b, &c].map(calls), [0, 0, 30]);

    // Those that are left fail, so all of them are tried, and none that an operator keeps out.
    force(&b, Override::None);
    b.set(Code::Unavailable as i32);
    c.set(Code::Unavailable as i32);
    for _ in 0..30 {
        assert_eq!(list(&peer).await.unwrap_err().message(), "moody");
    }
    let [none, others @ ..] = [&a, &b, &c].map(calls);
    assert_eq!((none, others.iter().sum::<usize>()), (0, 30), "{others:?}");

    force(&b, Override::ForcedOpen);
    force(&c, Override::ForcedOpen);
    let refused = CircuitOpen::from_status(&list(&peer).await.unwrap_err()).unwrap();
    assert_eq!(refused.reason, Reason::ForcedOpen);
    assert!(refused.breaker.starts_with("moody/127.0.0.1:"), "{refused:?}");
    assert_eq!([&a, &b, &c].map(calls), [0; 3]);
    assert_eq!(peer.breaker().snapshot().totals.neutral, 1, "the peer was not asked");
}

#[tokio::test]
async fn with_most_addresses_out_all_are_tried() {
    let moody = Moody::serve().await;
    moody.set(Code::Unavailable as i32);
    let peer = peer_at(
        &[&*moody.uri; 3].join(","),
        &patient(
            PeerOptions::saga()
                .breaker(Config::builder().consecutive_failures(1_000).failure_rate(None).build().unwrap()),
        ),
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
    let shed = ShedLayer::new("moody", 2, Duration::from_secs(50));
    let service = shed.layer(BreakerQueryServiceServer::new(moody.clone()));
    let address = serve(Server::builder().add_service(service)).await;
    let breaker = Config::builder().min_calls(3).count_window(10).build().unwrap();
    let peer = peer_at(&format!("http://{address}"), &patient(PeerOptions::saga().breaker(breaker)));
    let working: Vec<_> = (0..2)
        .map(|_| {
            tokio::spawn({
                let peer = peer.clone();
                async move { list(&peer).await }
            })
        })
        .collect();
    let taken = async {
        while shed.free() > 0 {
            tokio::task::yield_now().await;
        }
    };
    let taken = tokio::time::timeout(Duration::from_secs(60), taken).await;
    assert!(taken.is_ok(), "{} places are still free after a minute", shed.free());
    for _ in 0..3 {
        let status = list(&peer).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.get_details_error_info().unwrap().reason, "OVERLOADED");
    }
    let totals = peer.breaker().snapshot().totals;
    assert_eq!((totals.overload, totals.failure), (3, 0));
    let open = CircuitOpen::from_status(&list(&peer).await.unwrap_err()).unwrap();
    // Of fifty seconds some have passed since. A circuit that opens by itself does so for six at the most.
    assert!(open.retry_after > Duration::from_secs(10), "{open:?}");
    working.iter().for_each(tokio::task::JoinHandle::abort);
}
