//! A server whose answers are chosen, and peers that call it.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, reason = "shared by tests, each of which uses some")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use libs::{
    breaker::{Config, Registry},
    rpc::{
        client::{Peer, PeerOptions, Peers},
        deadline::grpc_timeout,
    },
};
use parking_lot::Mutex;
use proto::breaker::v1::{
    ListBreakersRequest, ListBreakersResponse, WatchBreakersRequest, WatchBreakersResponse,
    breaker_query_service_client::BreakerQueryServiceClient,
    breaker_query_service_server::{BreakerQueryService, BreakerQueryServiceServer},
};
use tokio::net::{TcpListener, TcpSocket};
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::{
    Code, Request, Response, Status,
    transport::{Server, server::Router},
};

/// Never answers.
pub const HANG: i32 = -1;

/// Far more than anything here takes: a call that is to be answered, or a circuit that is to stay open, for however slow the machine is.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Answers with the code it is told, or hangs.
#[derive(Clone, Debug, Default)]
pub struct Moody {
    pub uri: String,
    pub code: Arc<AtomicI32>,
    /// So many calls more fail, with the code beside.
    pub failing: Arc<(AtomicUsize, AtomicI32)>,
    pub calls: Arc<AtomicUsize>,
    pub previous_attempts: Arc<AtomicUsize>,
    /// The timeouts that calls carried.
    pub timeouts: Arc<Mutex<Vec<Option<Duration>>>>,
    pub pushback: Arc<Mutex<Option<&'static str>>>,
    /// What failing calls end with, instead of the bare code.
    pub failure: Arc<Mutex<Option<Status>>>,
}

impl Moody {
    /// Serves one that answers well.
    pub async fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let moody = Self { uri: format!("http://{}", listener.local_addr().unwrap()), ..Self::default() };
        let router = Server::builder().add_service(BreakerQueryServiceServer::new(moody.clone()));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        moody
    }

    pub fn set(&self, code: i32) {
        self.code.store(code, Ordering::SeqCst);
    }

    pub fn fail_next(&self, calls: usize, code: Code) {
        self.failing.1.store(code as i32, Ordering::SeqCst);
        self.failing.0.store(calls, Ordering::SeqCst);
    }

    fn mood(&self) -> i32 {
        let fewer = |left: usize| left.checked_sub(1);
        match self.failing.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer) {
            Ok(_) => self.failing.1.load(Ordering::SeqCst),
            Err(_) => self.code.load(Ordering::SeqCst),
        }
    }

    fn status(&self, code: i32) -> Status {
        if let Some(status) = self.failure.lock().clone() {
            return status;
        }
        let mut status = Status::new(Code::from_i32(code), "moody");
        if let Some(pushback) = *self.pushback.lock() {
            status.metadata_mut().insert("grpc-retry-pushback-ms", pushback.parse().unwrap());
        }
        status
    }
}

#[tonic::async_trait]
impl BreakerQueryService for Moody {
    async fn list_breakers(
        &self,
        request: Request<ListBreakersRequest>,
    ) -> Result<Response<ListBreakersResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let previous = request.metadata().get("grpc-previous-rpc-attempts");
        let previous = previous.map_or(0, |value| value.to_str().unwrap().parse().unwrap());
        self.previous_attempts.store(previous, Ordering::SeqCst);
        self.timeouts.lock().push(grpc_timeout(request.metadata().as_ref()));
        match self.mood() {
            0 => Ok(Response::new(ListBreakersResponse::default())),
            HANG => std::future::pending().await,
            code => Err(self.status(code)),
        }
    }

    type WatchBreakersStream = std::pin::Pin<Box<dyn Stream<Item = Result<WatchBreakersResponse, Status>> + Send>>;

    async fn watch_breakers(
        &self,
        _: Request<WatchBreakersRequest>,
    ) -> Result<Response<Self::WatchBreakersStream>, Status> {
        let first = tokio_stream::once(Ok(WatchBreakersResponse::default()));
        Ok(Response::new(match self.mood() {
            0 => Box::pin(first),
            HANG => Box::pin(first.chain(tokio_stream::pending())),
            code => Box::pin(first.chain(tokio_stream::once(Err(self.status(code))))),
        }))
    }
}

/// Serves on a free port.
pub async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

/// An address where nobody listens, and nobody else will for as long as the socket is held.
pub fn unheard() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// A saga channel whose breaker opens after three failures in a row, and stays so for longer than a test takes.
pub fn eager() -> PeerOptions {
    let config = Config::builder().consecutive_failures(3).probes(1, 1).open_for(PATIENCE, 1, PATIENCE);
    patient(PeerOptions::saga().breaker(config.build().unwrap()))
}

/// The same options for a call that is answered in the end, by whatever machine.
pub fn patient(options: PeerOptions) -> PeerOptions {
    options.timeout(PATIENCE).connect_timeout(PATIENCE)
}

/// A peer named "moody" at the addresses.
pub fn peer_at(uris: &str, options: &PeerOptions) -> Peer {
    peer_in(&Registry::new(), uris, options)
}

pub fn peer_in(registry: &Registry, uris: &str, options: &PeerOptions) -> Peer {
    Peers::new(registry.clone(), &[("moody", uris)], Vec::new()).unwrap().connect_with("moody", options).unwrap()
}

pub async fn list(peer: &Peer) -> Result<(), Status> {
    BreakerQueryServiceClient::new(peer.clone()).list_breakers(ListBreakersRequest::default()).await.map(drop)
}
