//! Callers that are too many, or one that wants too much of what needs no place.

use std::net::SocketAddr;

use futures::channel::mpsc::{UnboundedSender, unbounded};
use proto::inventory::v1::{GetStockRequest, inventory_query_service_client::InventoryQueryServiceClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_client::ServerReflectionClient,
};

use crate::{
    clock::soon,
    lines::Lines,
    reason,
    shelf::{Served, flags},
};

/// What a connection has of calls that need no place, and a server of reflection.
const PASSES: usize = 16;

/// A client's connection of its own.
async fn connected(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URI");
    endpoint.connect().await.expect("a place")
}

async fn watch(of: &Channel) -> Result<Streaming<HealthCheckResponse>, Status> {
    HealthClient::new(of.clone()).watch(HealthCheckRequest::default()).await.map(tonic::Response::into_inner)
}

/// A stream of reflection that is asked nothing, and what ends it when it is dropped.
async fn reflect(
    of: &Channel,
) -> Result<(Streaming<ServerReflectionResponse>, UnboundedSender<ServerReflectionRequest>), Status> {
    let (ask, asked) = unbounded();
    let answers = ServerReflectionClient::new(of.clone()).server_reflection_info(asked).await?;
    Ok((answers.into_inner(), ask))
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn a_connection_over_as_many_as_allowed_is_closed_before_its_greeting_and_one_has_a_place_that_another_left() {
    let (lines, _keeping) = Lines::keep();
    let mut flags = flags();
    flags.limits.max_connections = 2;
    let served = Served::start(&flags).await;
    let mut silent = TcpStream::connect(served.address).await.expect("taken");
    served.get("tea").await.expect("taken");
    let mut third = TcpStream::connect(served.address).await.expect("the system takes it");
    // It may be closed before this is sent.
    let _ = third.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let said = soon(third.read_u8()).await;
    assert!(said.is_err(), "it is greeted: {said:?}");
    served.get("tea").await.expect("those that are there go on");
    let told = lines.that_say("too many connections");
    let says = ["WARN", "service=\"shelf\"", "client=127.0.0.1", "open=2", "refused=1"];
    assert!(told.len() == 1 && says.iter().all(|said| told[0].contains(said)), "{told:?}");

    silent.shutdown().await.expect("it was there");
    drop(silent);
    let endpoint = Endpoint::from_shared(format!("http://{}", served.address)).expect("a URI");
    let asked_anew = async || {
        let mut client = InventoryQueryServiceClient::new(endpoint.connect_lazy());
        client.get_stock(GetStockRequest { sku: "tea".to_owned() }).await
    };
    // Until the server has seen that the other has gone.
    soon(async { while asked_anew().await.is_err() {} }).await;
}

#[tokio::test]
async fn a_connection_has_so_many_calls_at_a_time_that_need_no_place_and_no_more() {
    let served = Served::start(&flags()).await;
    let (one, other) = (connected(served.address).await, connected(served.address).await);
    let mut watching = Vec::new();
    for _ in 0..PASSES {
        watching.push(watch(&one).await.expect("a place"));
    }
    let refused = watch(&one).await.map(|_| "it is answered").expect_err("one more than a connection has");
    assert_eq!((refused.code(), &*reason(&refused)), (Code::ResourceExhausted, "OVERLOADED"));
    let mut client = InventoryQueryServiceClient::new(one.clone());
    client.get_stock(GetStockRequest { sku: "tea".to_owned() }).await.expect("those are none of it");
    watch(&other).await.expect("another connection is none of it");

    watching.pop();
    soon(async { while watch(&one).await.is_err() {} }).await;
}

#[tokio::test]
async fn a_server_has_so_many_streams_of_reflection_at_a_time_on_however_many_connections() {
    let served = Served::start(&flags()).await;
    let mut reflecting = Vec::new();
    for _ in 0..PASSES {
        let of = connected(served.address).await;
        reflecting.push((reflect(&of).await.expect("a place"), of));
    }
    let last = connected(served.address).await;
    let refused = reflect(&last).await.map(|_| "it is answered").expect_err("one more than a server has");
    assert_eq!((refused.code(), &*reason(&refused)), (Code::ResourceExhausted, "OVERLOADED"));
    watch(&last).await.expect("health is none of it");

    reflecting.pop();
    soon(async { while reflect(&last).await.is_err() {} }).await;
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn a_server_that_may_not_open_as_many_files_as_it_may_have_connections_says_so_as_it_starts() {
    let (lines, _keeping) = Lines::keep();
    let mut flags = flags();
    flags.limits.max_connections = u32::MAX;
    let served = Served::start(&flags).await;
    served.get("tea").await.expect("it serves all the same");
    let told = lines.that_say("--max-connections");
    let says = ["WARN", "service=\"shelf\"", "max_connections=4294967295", "open_files="];
    assert!(told.len() == 1 && says.iter().all(|said| told[0].contains(said)), "{told:?}");
}
