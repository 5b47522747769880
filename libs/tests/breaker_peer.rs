//! A peer's whole stack against real servers over loopback.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use libs::{
    breaker::{CircuitOpen, Config, Reason, Registry, State, service::BreakerService},
    rpc::{
        client::{Peer, PeerOptions, Peers},
        deadline,
    },
};
use proto::breaker::v1::{
    CircuitState, ListBreakersRequest, ListBreakersResponse, Override, ResetBreakerRequest, SetOverrideRequest,
    WatchBreakersRequest, WatchBreakersResponse,
    breaker_command_service_client::BreakerCommandServiceClient,
    breaker_query_service_client::BreakerQueryServiceClient,
    breaker_query_service_server::{BreakerQueryService, BreakerQueryServiceServer},
};
use tokio::{net::TcpListener, time::Instant};
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::{
    Code, Request, Response, Status,
    transport::{Server, server::Router},
};

const MS: Duration = Duration::from_millis(1);

/// Answers with the code it is told, or hangs.
#[derive(Clone, Default)]
struct Moody {
    code: Arc<AtomicI32>,
    calls: Arc<AtomicUsize>,
}

const HANG: i32 = -1;

#[tonic::async_trait]
impl BreakerQueryService for Moody {
    async fn list_breakers(&self, _: Request<ListBreakersRequest>) -> Result<Response<ListBreakersResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match self.code.load(Ordering::SeqCst) {
            0 => Ok(Response::new(ListBreakersResponse::default())),
            HANG => std::future::pending().await,
            code => Err(Status::new(Code::from_i32(code), "moody")),
        }
    }

    type WatchBreakersStream = std::pin::Pin<Box<dyn Stream<Item = Result<WatchBreakersResponse, Status>> + Send>>;

    async fn watch_breakers(
        &self,
        _: Request<WatchBreakersRequest>,
    ) -> Result<Response<Self::WatchBreakersStream>, Status> {
        let first = tokio_stream::once(Ok(WatchBreakersResponse::default()));
        Ok(Response::new(match self.code.load(Ordering::SeqCst) {
            HANG => Box::pin(first.chain(tokio_stream::pending())),
            code => Box::pin(first.chain(tokio_stream::once(Err(Status::new(Code::from_i32(code), "moody"))))),
        }))
    }
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

fn eager() -> PeerOptions {
    PeerOptions::saga().breaker(Config::builder().consecutive_failures(3).probes(1, 1).build().unwrap())
}

fn peer(address: SocketAddr, options: &PeerOptions) -> (Peer, Registry) {
    let registry = Registry::new();
    let address = format!("http://{address}");
    let peers = Peers::new(registry.clone(), &[("moody", &*address)], Vec::new()).unwrap();
    (peers.connect_with("moody", options).unwrap(), registry)
}

async fn list(peer: &Peer) -> Result<(), Status> {
    BreakerQueryServiceClient::new(peer.clone()).list_breakers(ListBreakersRequest::default()).await.map(drop)
}

#[tokio::test]
async fn a_peer_that_keeps_failing_is_left_alone_and_says_so() {
    let moody = Moody::default();
    moody.code.store(Code::Internal as i32, Ordering::SeqCst);
    let address = serve(Server::builder().add_service(BreakerQueryServiceServer::new(moody.clone()))).await;
    let (peer, registry) = peer(address, &eager());
    for _ in 0..3 {
        assert_eq!(list(&peer).await.unwrap_err().code(), Code::Internal);
    }
    let refused = list(&peer).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "circuit open: moody"));
    let open = CircuitOpen::from_status(&refused).unwrap();
    assert_eq!((&*open.breaker, open.reason), ("moody", Reason::Open));
    assert!(open.retry_after >= Duration::from_secs(4), "{open:?}");
    assert_eq!(moody.calls.load(Ordering::SeqCst), 3, "a refused call is not sent");
    assert_eq!(registry.get("moody").unwrap().snapshot().totals.rejected, 1);
}

#[tokio::test]
async fn timely_refusals_keep_it_closed() {
    let moody = Moody::default();
    moody.code.store(Code::FailedPrecondition as i32, Ordering::SeqCst);
    let address = serve(Server::builder().add_service(BreakerQueryServiceServer::new(moody))).await;
    let (peer, _) = peer(address, &eager());
    for _ in 0..20 {
        assert_eq!(list(&peer).await.unwrap_err().code(), Code::FailedPrecondition);
    }
    assert_eq!((peer.breaker().state(), peer.breaker().snapshot().totals.success), (State::Closed, 20));
}

#[tokio::test]
async fn a_peer_that_hangs_ends_by_the_deadline_and_trips_it() {
    let moody = Moody::default();
    moody.code.store(HANG, Ordering::SeqCst);
    let address = serve(Server::builder().add_service(BreakerQueryServiceServer::new(moody))).await;
    let (peer, _) = peer(address, &eager().timeout(50 * MS));
    for _ in 0..3 {
        assert_eq!(list(&peer).await.unwrap_err().code(), Code::DeadlineExceeded);
    }
    assert_eq!(peer.breaker().state(), State::Open);
}

#[tokio::test]
async fn a_stream_that_hangs_after_its_headers_ends_by_the_deadline() {
    let moody = Moody::default();
    moody.code.store(HANG, Ordering::SeqCst);
    let address = serve(Server::builder().add_service(BreakerQueryServiceServer::new(moody))).await;
    let (peer, _) = peer(address, &eager().timeout(50 * MS));
    for _ in 0..3 {
        let mut client = BreakerQueryServiceClient::new(peer.clone());
        let mut stream = client.watch_breakers(WatchBreakersRequest::default()).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        assert_eq!(stream.message().await.unwrap_err().code(), Code::DeadlineExceeded);
    }
    assert_eq!(peer.breaker().state(), State::Open);
}

#[tokio::test]
async fn an_error_in_trailers_after_a_message_counts() {
    let moody = Moody::default();
    moody.code.store(Code::DataLoss as i32, Ordering::SeqCst);
    let address = serve(Server::builder().add_service(BreakerQueryServiceServer::new(moody))).await;
    let (peer, _) = peer(address, &eager());
    for _ in 0..3 {
        let mut client = BreakerQueryServiceClient::new(peer.clone());
        let mut stream = client.watch_breakers(WatchBreakersRequest::default()).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        assert_eq!(stream.message().await.unwrap_err().code(), Code::DataLoss);
    }
    assert_eq!(peer.breaker().state(), State::Open);
}

#[tokio::test]
async fn the_inherited_deadline_holds_when_it_is_earlier_and_a_passed_one_sends_nothing() {
    let moody = Moody::default();
    moody.code.store(HANG, Ordering::SeqCst);
    let address = serve(Server::builder().add_service(BreakerQueryServiceServer::new(moody.clone()))).await;
    let (peer, _) = peer(address, &eager());
    let started = Instant::now();
    let status = deadline::scope(started + 50 * MS, list(&peer)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(started.elapsed() < Duration::from_secs(5));

    let calls = moody.calls.load(Ordering::SeqCst);
    let status = deadline::scope(started, list(&peer)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(moody.calls.load(Ordering::SeqCst), calls);
    assert_eq!(peer.breaker().snapshot().totals.failure, 1, "what was not sent is not the peer's fault");
}

#[tokio::test]
async fn nobody_listening_is_unavailable_and_a_black_hole_ends_by_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // It accepts, and never says a word of HTTP/2.
    let (silent, _) = peer(address, &eager().timeout(50 * MS));
    assert_eq!(list(&silent).await.unwrap_err().code(), Code::DeadlineExceeded);
    drop(listener);
    let (gone, _) = peer(address, &eager());
    assert_eq!(list(&gone).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(gone.breaker().snapshot().totals.failure, 1);
}

#[tokio::test]
async fn breakers_are_listed_watched_and_steered_over_grpc() {
    let moody = Moody::default();
    let address = serve(Server::builder().add_service(BreakerQueryServiceServer::new(moody))).await;
    let (moody, registry) = peer(address, &eager());
    let service = BreakerService::new(registry);
    let operator = serve(Server::builder().add_service(service.queries()).add_service(service.commands())).await;
    let (operator, _) = peer(operator, &eager());
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
    let wrong = SetOverrideRequest { name: "moody".into(), r#override: 99 };
    assert_eq!(commands.set_override(wrong).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn peers_are_known_by_name() {
    let defaults = [("inventory", "http://localhost:50051"), ("payment", "http://localhost:50052")];
    let peers = |given: &str| Peers::new(Registry::new(), &defaults, vec![given.parse().unwrap()]);
    assert_eq!(peers("payment=http://elsewhere:1").unwrap().address("payment").unwrap().host(), Some("elsewhere"));
    let unknown = peers("parcels=http://elsewhere:1").unwrap_err();
    assert_eq!(unknown.to_string(), "there is no peer \"parcels\" here; the peers are: inventory, payment");
    let secure = peers("payment=https://elsewhere:1").unwrap();
    let error = secure.connect("payment").unwrap_err();
    assert!(error.to_string().contains("--tls-ca"), "{error}");
}
