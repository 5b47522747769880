//! A service that is found at one address, whatever becomes of its log: it may be out, and come back with another one.
#![allow(dead_code, clippy::unwrap_used, reason = "for tests, and not every one does all of it")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _};
use libs::{
    breaker::Registry,
    cqrs::{Board, Log, Outbox, Outgoing},
    journal::Journal,
    rpc::client::{Peer, PeerOptions, Peers},
};
use proto::{
    events::v1::{
        SubscribeRequest, SubscribeResponse,
        event_service_server::{EventService, EventServiceServer},
    },
    projections::v1::{RebuildProjectionsRequest, projection_command_service_server::ProjectionCommandService as _},
};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where the service is asked, which says now what it has.
pub(crate) struct Desk {
    pub(crate) peer: Peer,
    outbox: watch::Sender<Option<Outbox>>,
    asked: Arc<AtomicUsize>,
}

impl Desk {
    /// One where nobody is.
    pub(crate) async fn open() -> Self {
        let ((outbox, has), asked) = (watch::channel(None), Arc::<AtomicUsize>::default());
        let clerk = EventServiceServer::new(Clerk { outbox: has, asked: Arc::clone(&asked) });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(Server::builder().add_service(clerk).serve_with_incoming(TcpListenerStream::new(listener)));
        let peers = Peers::new(Registry::new(), &[("source", &*uri)], Vec::new()).unwrap();
        let peer = peers.connect_with("source", &PeerOptions::stream()).unwrap();
        Self { peer, outbox, asked }
    }

    /// From now on this is its log. Who is being told of another one hears no more.
    pub(crate) fn has(&self, journal: &Journal) {
        self.tells(Log::of(journal));
    }

    /// The same, as some version of the service reads it.
    pub(crate) fn tells(&self, log: Log) {
        self.outbox.send_replace(Some(Outbox::new("source", log)));
    }

    /// From now on it is out.
    pub(crate) fn is_out(&self) {
        self.outbox.send_replace(None);
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

struct Clerk {
    outbox: watch::Receiver<Option<Outbox>>,
    asked: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl EventService for Clerk {
    type SubscribeStream = Outgoing<SubscribeResponse>;

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut has = self.outbox.clone();
        let outbox = has.borrow_and_update().clone().ok_or_else(|| Status::unavailable("it is stopped"))?;
        let told = outbox.subscribe(request).await?.into_inner();
        Ok(Response::new(told.take_until(async move { has.changed().await }).boxed()))
    }
}

/// Has views over the service that run made anew by word.
pub(crate) async fn made_anew(board: &Board) {
    let request = Request::new(RebuildProjectionsRequest { source: "source".to_owned() });
    let told = board.service("test").rebuild_projections(request).await.unwrap().into_inner();
    let ended = timeout(PATIENCE, told.try_collect::<Vec<_>>()).await;
    ended.expect("they end").expect("they are made anew");
}
