//! A name that stands for several servers: calls go to all of them, and to those that come instead of one that is gone.
#![cfg(feature = "rpc")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod breaker_support;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use breaker_support::{Moody, list, patient};
use libs::{
    breaker::{Config, Registry},
    rpc::client::{Peer, PeerOptions, Peers},
};
use parking_lot::Mutex;
use proto::breaker::v1::breaker_query_service_server::BreakerQueryServiceServer;
use tokio::{net::TcpListener, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, transport::Server};

/// A server on 127.0.0.NUMBER.
async fn pod(number: u8, port: u16) -> (Moody, SocketAddr) {
    let listener = TcpListener::bind((IpAddr::V4(Ipv4Addr::new(127, 0, 0, number)), port)).await.unwrap();
    let (moody, address) = (Moody::default(), listener.local_addr().unwrap());
    let router = Server::builder().add_service(BreakerQueryServiceServer::new(moody.clone()));
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    (moody, address)
}

fn peer_by_name(registry: &Registry, addresses: &Arc<Mutex<Vec<SocketAddr>>>, options: &PeerOptions) -> Peer {
    let addresses = Arc::clone(addresses);
    let port = addresses.lock()[0].port();
    let peers = Peers::new(registry.clone(), &[("pods", &format!("http://pods.example:{port}"))], Vec::new()).unwrap();
    let lookup = move |host: String, _| {
        assert_eq!(host, "pods.example");
        let found = addresses.lock().clone();
        Box::pin(std::future::ready(Ok(found))) as futures::future::BoxFuture<'static, _>
    };
    peers.looked_up_by(Arc::new(lookup)).connect_with("pods", options).unwrap()
}

/// Calls until all of them have been called.
async fn until_all_are_called(peer: &Peer, pods: &[&Moody]) {
    let before: Vec<_> = pods.iter().map(|pod| pod.calls.load(Ordering::SeqCst)).collect();
    let all = async {
        while pods.iter().zip(&before).any(|(pod, before)| pod.calls.load(Ordering::SeqCst) == *before) {
            let _ = list(peer).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(60), all).await.expect("all of them are called");
}

#[tokio::test]
async fn a_name_stands_for_all_its_servers_and_those_that_come_later() {
    let (one, first) = pod(1, 0).await;
    let (two, second) = pod(2, first.port()).await;
    let addresses = Arc::new(Mutex::new(vec![first, second]));
    let registry = Registry::new();
    let never = Config::builder().consecutive_failures(1_000_000).failure_rate(None).build().unwrap();
    let peer = peer_by_name(&registry, &addresses, &patient(PeerOptions::saga().breaker(never)));
    until_all_are_called(&peer, &[&one, &two]).await;

    // One is out, and another comes elsewhere: found without waiting for the usual lookup.
    two.set(Code::Unavailable as i32);
    let (three, third) = pod(3, first.port()).await;
    *addresses.lock() = vec![first, third];
    until_all_are_called(&peer, &[&one, &three]).await;
    let shown: Vec<_> = registry.list("pods/").iter().map(|breaker| breaker.name().to_string()).collect();
    assert!(shown.contains(&format!("pods/{third}")), "{shown:?}");
    let calls = two.calls.load(Ordering::SeqCst);
    until_all_are_called(&peer, &[&one, &three]).await;
    assert_eq!(two.calls.load(Ordering::SeqCst), calls, "who is gone is not called");
}
