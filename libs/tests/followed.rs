//! What is told of a service whose events are followed: each reason why none come once, and nothing of streams that end in order.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod lines;
mod squeamish;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt as _;
use libs::{
    breaker::Registry,
    cqrs::{Log, Outgoing, Projections, Views},
    refusal::Refusal,
    rpc::client::{Peer, PeerOptions, Peers},
};
use lines::Lines;
use proto::events::v1::{
    SubscribeRequest, SubscribeResponse,
    event_service_server::{EventService, EventServiceServer},
};
use squeamish::Squeamish;
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What becomes of a subscription.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// It is accepted, and ends in order.
    Drained,
    Out,
    Shorter,
    /// It is accepted, and nothing happens.
    Quiet,
}

/// Has no events.
#[derive(Clone)]
struct Scripted(Arc<Mutex<VecDeque<Turn>>>);

#[tonic::async_trait]
impl EventService for Scripted {
    type SubscribeStream = Outgoing<SubscribeResponse>;

    async fn subscribe(&self, _: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let nothing = futures::stream::iter([Ok(SubscribeResponse::default())]);
        match self.0.lock().unwrap().pop_front().unwrap_or(Turn::Quiet) {
            Turn::Drained => {
                let draining = Refusal::unavailable("DRAINING", "call again", Duration::ZERO).into_status("source");
                Ok(Response::new(nothing.chain(futures::stream::iter([Err(draining)])).boxed()))
            }
            Turn::Out => Err(Status::unavailable("not now")),
            Turn::Shorter => Err(Refusal::precondition("AHEAD_OF_LOG", "the log ends at 0").into_status("source")),
            Turn::Quiet => Ok(Response::new(nothing.chain(futures::stream::pending()).boxed())),
        }
    }
}

async fn peer(turns: &Arc<Mutex<VecDeque<Turn>>>) -> Peer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let service = EventServiceServer::new(Scripted(Arc::clone(turns)));
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
    let peers = Peers::new(Registry::new(), &[("source", &*uri)], Vec::new()).unwrap();
    peers.connect_with("source", &PeerOptions::stream()).unwrap()
}

#[tokio::test]
async fn each_reason_why_no_events_come_is_told_once_and_that_it_is_over_though_none_come() {
    let (lines, _kept) = Lines::keep();
    let folder = TempDir::new().unwrap();
    let turns: Arc<Mutex<VecDeque<Turn>>> = Arc::default();
    let log = Log::of_service(peer(&turns).await, &[]);
    let location = database::location(folder.path(), "views");
    let views = Views::open(location, log, &Projections::new().with(Squeamish::default())).await.unwrap();
    let until = async |what: &str, mut holds: Box<dyn FnMut() -> bool>| {
        let waits = async {
            while !holds() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, waits).await.unwrap_or_else(|_| panic!("never {what}: {:?}", lines.that_say("events come")));
    };
    let over = |times: usize| {
        let lines = lines.clone();
        Box::new(move || lines.that_say("events come again").len() == times)
    };
    // More than a circuit bears: that it is open is no reason of its own.
    turns.lock().unwrap().extend([Turn::Drained, Turn::Drained]);
    turns.lock().unwrap().extend([Turn::Out; 12]);
    turns.lock().unwrap().extend([Turn::Shorter; 3]);
    let running = tokio::spawn(views.run());
    until("over", over(1)).await;
    let told = |why: &str| lines.that_say("no events come").iter().filter(|line| line.contains(why)).count();
    assert_eq!(["UNAVAILABLE", "FAILED_PRECONDITION"].map(told), [1, 1], "{:?}", lines.that_say("no events come"));
    assert_eq!(lines.that_say("no events come").len(), 2, "{:?}", lines.that_say("no events come"));
    running.abort();
}
