//! GetStock over gRPC: who asks for it under load, and tonic alone that answers it.

use std::{net::SocketAddr, pin::Pin, time::Instant};

use anyhow::Context as _;
use futures::{Stream, future::try_join_all};
use proto::{
    google::r#type::Money,
    inventory::v1::{
        GetStockRequest, GetStockResponse, ListStockRequest, ListStockResponse, Stock, WatchStockRequest,
        WatchStockResponse,
        inventory_query_service_client::InventoryQueryServiceClient,
        inventory_query_service_server::{InventoryQueryService, InventoryQueryServiceServer},
    },
};
use tonic::{Request, Response, Status, transport::Channel};

/// How many SKUs are asked for in turn.
pub const SKUS: usize = 1_000;

/// Asks for the stock of `sku-0` and those after it, so many at a time, and answers how many were answered a second.
///
/// # Errors
/// When one is not answered, or with another SKU.
pub async fn ask(channel: &Channel, in_flight: usize, queries: usize) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let workers = (0..in_flight).map(|worker| {
        let mut client = InventoryQueryServiceClient::new(channel.clone());
        tokio::spawn(async move {
            for number in (worker..queries).step_by(in_flight) {
                let sku = format!("sku-{}", number % SKUS);
                let answer = client.get_stock(GetStockRequest { sku: sku.clone() }).await?.into_inner();
                anyhow::ensure!(answer.stock.is_some_and(|stock| stock.sku == sku), "another SKU");
            }
            anyhow::Ok(())
        })
    });
    for done in try_join_all(workers).await? {
        done?;
    }
    Ok(queries as f64 / begin.elapsed().as_secs_f64())
}

/// The ceiling: tonic alone, with an answer of the same size.
///
/// # Errors
/// When it can't listen.
pub async fn serve_bare(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let address: SocketAddr = arguments.next().context("no address")?.parse()?;
    let service = InventoryQueryServiceServer::new(Bare);
    Ok(tonic::transport::Server::builder().add_service(service).serve(address).await?)
}

/// Has a unit of everything.
#[derive(Clone, Copy, Debug)]
pub struct Bare;

type Watched = Pin<Box<dyn Stream<Item = Result<WatchStockResponse, Status>> + Send>>;

#[tonic::async_trait]
impl InventoryQueryService for Bare {
    type WatchStockStream = Watched;

    async fn get_stock(&self, request: Request<GetStockRequest>) -> Result<Response<GetStockResponse>, Status> {
        let unit_price = Some(Money { currency_code: "USD".to_owned(), units: 1, nanos: 0 });
        let stock = Stock { sku: request.into_inner().sku, available: 1, unit_price, ..Stock::default() };
        Ok(Response::new(GetStockResponse { stock: Some(stock) }))
    }

    async fn list_stock(&self, _: Request<ListStockRequest>) -> Result<Response<ListStockResponse>, Status> {
        Err(Status::unimplemented("not part of the benchmark"))
    }

    async fn watch_stock(&self, _: Request<WatchStockRequest>) -> Result<Response<Watched>, Status> {
        Err(Status::unimplemented("not part of the benchmark"))
    }
}
