//! A peer's whole stack against real servers over loopback.
#![cfg(feature = "rpc")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod breaker_support;
mod clock;

use std::{sync::atomic::Ordering, time::Duration};

use breaker_support::{HANG, Moody, PATIENCE, eager, list, patient, peer_at, peer_in, serve, unheard};
use clock::{becomes, soon, stop_the_clock};
use libs::{
    breaker::{Cause, CircuitOpen, Config, Reason, Registry, State, service::BreakerService},
    rpc::{
        client::{PeerOptions, Peers},
        deadline,
    },
};
use proto::breaker::v1::{
    CircuitState, ListBreakersRequest, OpenCause, Override, ResetBreakerRequest, SetOverrideRequest,
    WatchBreakersRequest, breaker_command_service_client::BreakerCommandServiceClient,
    breaker_query_service_client::BreakerQueryServiceClient,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::{Instant, advance, timeout},
};
use tonic::{Code, Status, transport::Server};
use tonic_types::StatusExt as _;

const MS: Duration = Duration::from_millis(1);

#[tokio::test]
async fn a_peer_that_keeps_failing_is_left_alone_and_says_so() {
    let moody = Moody::serve().await;
    moody.set(Code::Internal as i32);
    let registry = Registry::new();
    let peer = peer_in(&registry, &moody.uri, &eager());
    for _ in 0..3 {
        assert_eq!(list(&peer).await.unwrap_err().code(), Code::Internal);
    }
    let refused = list(&peer).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "circuit open: moody"));
    let open = CircuitOpen::from_status(&refused).unwrap();
    assert_eq!((&*open.breaker, open.reason), ("moody", Reason::Open));
    assert!(open.retry_after > PATIENCE / 4, "{open:?}");
    assert_eq!(moody.calls.load(Ordering::SeqCst), 3, "a refused call is not sent");
    assert_eq!(registry.get("moody").unwrap().snapshot().totals.rejected.sum(), 1);
}

#[tokio::test]
async fn a_method_that_fails_can_be_left_alone_by_itself() {
    let moody = Moody::serve().await;
    let registry = Registry::new();
    let peer = peer_in(&registry, &moody.uri, &eager().breaker_per_method(10));
    moody.set(Code::Internal as i32);
    for _ in 0..3 {
        assert_eq!(list(&peer).await.unwrap_err().code(), Code::Internal);
    }
    let refused = CircuitOpen::from_status(&list(&peer).await.unwrap_err()).unwrap();
    assert_eq!(&*refused.breaker, "moody/breaker.v1.BreakerQueryService/ListBreakers");
    moody.set(0);
    let mut client = BreakerQueryServiceClient::new(peer.clone());
    client.watch_breakers(WatchBreakersRequest::default()).await.unwrap();
    assert_eq!(peer.breaker().snapshot().totals.rejected.sum(), 0);
}

#[tokio::test]
async fn a_peer_that_is_forced_open_is_not_called_whatever_breakers_its_methods_have() {
    let moody = Moody::serve().await;
    let peer = peer_at(&moody.uri, &eager().breaker_per_method(10));
    list(&peer).await.unwrap();
    peer.breaker().set_override(libs::breaker::Override::ForcedOpen);
    let refused = CircuitOpen::from_status(&list(&peer).await.unwrap_err()).unwrap();
    assert_eq!((&*refused.breaker, refused.reason), ("moody", Reason::ForcedOpen));
    peer.breaker().set_override(libs::breaker::Override::None);
    list(&peer).await.unwrap();
    assert_eq!(moody.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_method_that_is_met_later_goes_by_the_rules_that_its_peer_was_told() {
    let moody = Moody::serve().await;
    moody.set(Code::Internal as i32);
    let peer = peer_at(&moody.uri, &eager().breaker_per_method(10));
    let one = Config::builder().consecutive_failures(1).open_for(PATIENCE, 1, PATIENCE).build().unwrap();
    peer.breaker().reconfigure(one).unwrap();
    assert_eq!(list(&peer).await.unwrap_err().code(), Code::Internal);
    let refused = CircuitOpen::from_status(&list(&peer).await.unwrap_err()).unwrap();
    assert_eq!(&*refused.breaker, "moody/breaker.v1.BreakerQueryService/ListBreakers");
}

#[tokio::test]
async fn a_stream_that_is_to_last_is_judged_apart_from_calls() {
    let moody = Moody::serve().await;
    let registry = Registry::new();
    let (calls, streams) =
        (peer_in(&registry, &moody.uri, &eager()), peer_in(&registry, &moody.uri, &PeerOptions::stream()));
    moody.set(Code::Internal as i32);
    for _ in 0..3 {
        assert_eq!(list(&calls).await.unwrap_err().code(), Code::Internal);
    }
    assert_eq!((&**streams.breaker().name(), streams.breaker().state()), ("moody/streams", State::Closed));
    assert_eq!(calls.breaker().state(), State::Open);
}

#[tokio::test]
async fn queries_are_judged_apart_from_a_sagas_calls_and_so_is_each_address() {
    let moody = Moody::serve().await;
    let registry = Registry::new();
    let twice = [&*moody.uri; 2].join(",");
    let config = Config::builder().consecutive_failures(3).open_for(PATIENCE, 1, PATIENCE).build().unwrap();
    let asks = patient(PeerOptions::query().breaker(config));
    let (steps, queries) = (peer_in(&registry, &twice, &eager()), peer_in(&registry, &twice, &asks));
    moody.set(Code::Internal as i32);
    for _ in 0..3 {
        assert_eq!(list(&queries).await.unwrap_err().code(), Code::Internal);
    }
    assert_eq!(queries.breaker().state(), State::Open);
    moody.set(0);
    list(&steps).await.unwrap();
    let address = moody.uri.trim_start_matches("http://");
    let failed = |name: &str| registry.get(name).unwrap().snapshot().totals.failure;
    assert_eq!((failed("moody"), failed(&format!("moody/{address}"))), (0, 0));
    assert_eq!((failed("moody.queries"), failed(&format!("moody.queries/{address}"))), (3, 3));
}

#[tokio::test]
async fn timely_refusals_keep_it_closed() {
    let moody = Moody::serve().await;
    moody.set(Code::FailedPrecondition as i32);
    let peer = peer_at(&moody.uri, &eager());
    for _ in 0..20 {
        assert_eq!(list(&peer).await.unwrap_err().code(), Code::FailedPrecondition);
    }
    assert_eq!((peer.breaker().state(), peer.breaker().snapshot().totals.success), (State::Closed, 20));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_hangs_ends_by_the_deadline_and_trips_it() {
    let stopped = stop_the_clock();
    let moody = Moody::serve().await;
    moody.set(HANG);
    let peer = peer_at(&moody.uri, &eager().timeout(500 * MS));
    for call in 1..=3 {
        let hears = async {
            becomes(|| moody.calls.load(Ordering::SeqCst) == call).await;
            advance(500 * MS).await;
        };
        let (ended, ()) = soon(async { tokio::join!(list(&peer), hears) }).await;
        assert_eq!(ended.unwrap_err().code(), Code::DeadlineExceeded);
    }
    assert_eq!(peer.breaker().state(), State::Open);
    drop(stopped);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_hangs_after_its_headers_ends_by_the_deadline() {
    let stopped = stop_the_clock();
    let moody = Moody::serve().await;
    moody.set(HANG);
    let peer = peer_at(&moody.uri, &eager().timeout(1000 * MS));
    for _ in 0..3 {
        let mut client = BreakerQueryServiceClient::new(peer.clone());
        let mut stream = client.watch_breakers(WatchBreakersRequest::default()).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        let (ended, ()) = soon(async { tokio::join!(stream.message(), advance(1000 * MS)) }).await;
        assert_eq!(ended.unwrap_err().code(), Code::DeadlineExceeded);
    }
    assert_eq!(peer.breaker().state(), State::Open);
    drop(stopped);
}

#[tokio::test]
async fn an_error_in_trailers_after_a_message_counts() {
    let moody = Moody::serve().await;
    moody.set(Code::DataLoss as i32);
    let peer = peer_at(&moody.uri, &eager());
    for _ in 0..3 {
        let mut client = BreakerQueryServiceClient::new(peer.clone());
        let mut stream = client.watch_breakers(WatchBreakersRequest::default()).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        assert_eq!(stream.message().await.unwrap_err().code(), Code::DataLoss);
    }
    assert_eq!(peer.breaker().state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn the_inherited_deadline_holds_when_it_is_earlier_and_a_passed_one_sends_nothing() {
    let stopped = stop_the_clock();
    let moody = Moody::serve().await;
    moody.set(HANG);
    let peer = peer_at(&moody.uri, &eager());
    let started = Instant::now();
    let hears = async {
        becomes(|| moody.calls.load(Ordering::SeqCst) == 1).await;
        advance(1000 * MS).await;
    };
    let called = deadline::scope(started + 1000 * MS, list(&peer));
    let (ended, ()) = soon(async { tokio::join!(called, hears) }).await;
    assert_eq!(ended.unwrap_err().code(), Code::DeadlineExceeded);
    // Far less than its own.
    let told = moody.timeouts.lock().last().copied().flatten();
    assert!(told.is_some_and(|told| told <= 1000 * MS), "{told:?}");

    let calls = moody.calls.load(Ordering::SeqCst);
    let status = deadline::scope(started, list(&peer)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(moody.calls.load(Ordering::SeqCst), calls);
    assert_eq!(peer.breaker().snapshot().totals.failure, 1, "what was not sent is not the peer's fault");
    drop(stopped);
}

#[tokio::test]
async fn nobody_listening_is_unavailable_and_a_black_hole_ends_by_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // It accepts, and never says a word of HTTP/2.
    let silent = peer_at(&format!("http://{address}"), &eager().timeout(50 * MS));
    assert_eq!(list(&silent).await.unwrap_err().code(), Code::DeadlineExceeded);
    let (_held, address) = unheard();
    let gone = peer_at(&format!("http://{address}"), &eager());
    assert_eq!(list(&gone).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(gone.breaker().snapshot().totals.failure, 1);
}

#[tokio::test]
async fn breakers_are_listed_watched_and_steered_over_grpc() {
    let moody = Moody::serve().await;
    let registry = Registry::new();
    let moody = peer_in(&registry, &moody.uri, &eager());
    let service = BreakerService::new("operator", registry);
    let operator = serve(Server::builder().add_service(service.queries()).add_service(service.commands())).await;
    let operator = peer_at(&format!("http://{operator}"), &eager());
    let mut queries = BreakerQueryServiceClient::new(operator.clone());
    let mut commands = BreakerCommandServiceClient::new(operator);

    list(&moody).await.unwrap();
    let listed = queries.list_breakers(ListBreakersRequest::default()).await.unwrap().into_inner().breakers;
    assert_eq!((listed.len(), &*listed[0].name, listed[0].state()), (1, "moody", CircuitState::Closed));
    assert_eq!(listed[0].totals.unwrap().success, 1);
    let none = ListBreakersRequest { name_prefix: "x".into() };
    assert!(queries.list_breakers(none).await.unwrap().into_inner().breakers.is_empty());

    let mut watched = queries.watch_breakers(WatchBreakersRequest::default()).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().breaker.unwrap().state(), CircuitState::Closed);
    let open = SetOverrideRequest { name: "moody".into(), r#override: Override::ForcedOpen.into() };
    commands.set_override(open).await.unwrap();
    let changed = watched.message().await.unwrap().unwrap().breaker.unwrap();
    assert_eq!((changed.r#override(), changed.generation), (Override::ForcedOpen, 1));
    let refused = CircuitOpen::from_status(&list(&moody).await.unwrap_err()).unwrap();
    assert_eq!(refused.reason, Reason::ForcedOpen);

    let lift = SetOverrideRequest { name: "moody".into(), r#override: 0 };
    commands.set_override(lift).await.unwrap();
    commands.reset_breaker(ResetBreakerRequest { name: "moody".into() }).await.unwrap();
    list(&moody).await.unwrap();

    let unknown = commands.reset_breaker(ResetBreakerRequest { name: "nobody".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(unknown.get_details_error_info().unwrap().domain, "trellis.operator");
    let violations = |status: Status| -> Vec<String> {
        assert_eq!(status.code(), Code::InvalidArgument);
        let bad = status.get_details_bad_request().unwrap().field_violations;
        bad.into_iter().map(|violation| violation.field).collect()
    };
    let override_of = |name: &str, over| SetOverrideRequest { name: name.into(), r#override: over };
    assert_eq!(violations(commands.set_override(override_of("moody", 99)).await.unwrap_err()), ["override"]);
    assert_eq!(violations(commands.set_override(override_of("", 1)).await.unwrap_err()), ["name"]);
    assert_eq!(violations(commands.set_override(override_of("", 99)).await.unwrap_err()), ["name", "override"]);
    assert_eq!(violations(commands.reset_breaker(ResetBreakerRequest::default()).await.unwrap_err()), ["name"]);
}

#[tokio::test]
async fn an_operator_sees_why_a_circuit_opened_and_whom_it_refused() {
    let moody = Moody::serve().await;
    moody.set(Code::Internal as i32);
    let registry = Registry::new();
    let peer = peer_in(&registry, &moody.uri, &eager());
    for _ in 0..4 {
        list(&peer).await.unwrap_err();
    }
    let refused = CircuitOpen::from_status(&list(&peer).await.unwrap_err()).unwrap();
    assert_eq!(refused.cause, Some(Cause::Consecutive));
    let service = BreakerService::new("operator", registry);
    let operator = serve(Server::builder().add_service(service.queries())).await;
    let mut queries = BreakerQueryServiceClient::new(peer_at(&format!("http://{operator}"), &eager()));
    let listed = queries.list_breakers(ListBreakersRequest::default()).await.unwrap().into_inner().breakers;
    assert_eq!(listed[0].last_open_cause(), OpenCause::ConsecutiveFailures);
    let totals = listed[0].totals.unwrap();
    assert_eq!((totals.failure, totals.rejected, totals.rejections.unwrap().open), (3, 2, 2));
    assert!(totals.open_time.is_some());
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_is_told_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let peers = Peers::new(Registry::new(), &[("moody", &*address)], Vec::new()).unwrap().trust("");
    let peer = peers.connect_with("moody", &PeerOptions::stream().connect_timeout(PATIENCE)).unwrap();
    let server = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let hello = socket.read(&mut [0; 1 << 12]).await.unwrap();
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let mut said = Vec::new();
        socket.read_to_end(&mut said).await.unwrap();
        (hello, said)
    };
    let (asked, told) = tokio::join!(list(&peer), timeout(PATIENCE, server));
    assert_eq!(asked.unwrap_err().code(), Code::Unavailable);
    let (hello, said) = told.expect("an end");
    assert!(hello > 0);
    assert!(matches!(&*said, [0x15, _, _, 0, 2, 2, _]), "a fatal alert: {said:?}");
}

#[tokio::test]
async fn peers_are_known_by_name() {
    let defaults = [("inventory", "http://localhost:50051"), ("payment", "http://localhost:50052")];
    let peers = |given: &str| Peers::new(Registry::new(), &defaults, vec![given.parse().unwrap()]);
    assert_eq!(peers("payment=http://elsewhere:1").unwrap().addresses("payment")[0].host(), Some("elsewhere"));
    let unknown = peers("parcels=http://elsewhere:1").unwrap_err();
    assert_eq!(unknown.to_string(), "there is no peer \"parcels\" here; the peers are: inventory, payment");
    let undeclared = peers("payment=http://elsewhere:1").unwrap().connect("parcels").unwrap_err();
    let says =
        "peer \"parcels\" is called but not declared: add it to the program's PEERS, which has: inventory, payment";
    assert_eq!(undeclared.to_string(), says);
    let secure = peers("payment=https://elsewhere:1").unwrap();
    let error = secure.connect("payment").unwrap_err();
    assert!(error.to_string().contains("--tls-ca"), "{error}");
}
