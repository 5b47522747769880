//! Connections that are too many.

use proto::inventory::v1::{GetStockRequest, inventory_query_service_client::InventoryQueryServiceClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::transport::Endpoint;

use crate::{
    clock::soon,
    lines::Lines,
    shelf::{Served, flags},
};

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
