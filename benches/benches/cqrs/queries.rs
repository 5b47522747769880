//! Queries over gRPC: the inventory service on SQLite, beside a bare tonic server that answers the same; and how long a query waits
//! for the command before it.

use std::time::Instant;

use anyhow::Context as _;
use benches::{
    again::Again,
    figures::{latencies, median},
    stock::{SKUS, ask},
};
use hdrhistogram::Histogram;
use proto::{
    google::r#type::Money,
    inventory::v1::{
        AddStockRequest, GetStockRequest, inventory_command_service_client::InventoryCommandServiceClient,
        inventory_query_service_client::InventoryQueryServiceClient,
    },
};
use tests::Server;
use tonic::{Request, transport::Channel};

const ROWS: [(usize, usize); 3] = [(1, 2_000), (16, 20_000), (64, 40_000)];
const ROUNDS: usize = 5;
const WAITS: usize = 500;

pub(crate) async fn table() -> anyhow::Result<()> {
    let folder = tempfile::TempDir::new()?;
    let mut inventory = Server::new("inventory", folder.path())?;
    inventory.start().await?;
    prepare(inventory.channel()).await?;
    let bare = Again::start(["bare"], &[]).await?;
    println!("\nqueries/s, GetStock over gRPC, medians of {ROUNDS} rounds in turn");
    println!("{:>10} {:>12} {:>12} {:>8}", "in flight", "inventory", "bare tonic", "ratio");
    for (in_flight, queries) in ROWS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(ask(&inventory.channel(), in_flight, queries).await?);
            theirs.push(ask(&bare.channel(), in_flight, queries).await?);
        }
        let (ours, theirs) = (median(ours, |rate| *rate), median(theirs, |rate| *rate));
        println!("{in_flight:>10} {ours:>12.0} {theirs:>12.0} {:>8.2}", ours / theirs);
    }
    read_ones_own_writes(inventory.channel()).await
}

fn add(number: usize, id: String) -> AddStockRequest {
    let unit_price = Some(Money { currency_code: "USD".to_owned(), units: 1, nanos: 0 });
    AddStockRequest { request_id: id, sku: format!("sku-{number}"), quantity: 1, unit_price }
}

async fn prepare(channel: Channel) -> anyhow::Result<()> {
    let mut commands = InventoryCommandServiceClient::new(channel.clone());
    let mut last = None;
    for number in 0..SKUS {
        last = Some(commands.add_stock(add(number, format!("first-{number}"))).await?);
    }
    // So that every query that follows finds all of it.
    let mut request = Request::new(GetStockRequest { sku: "sku-0".to_owned() });
    let token = last.context("there are some")?.metadata().get("consistency-token").context("a token")?.clone();
    request.metadata_mut().insert("consistency-token", token);
    InventoryQueryServiceClient::new(channel).get_stock(request).await?;
    Ok(())
}

/// A command, then a query that carries its token, one after the other.
async fn read_ones_own_writes(channel: Channel) -> anyhow::Result<()> {
    let mut commands = InventoryCommandServiceClient::new(channel.clone());
    let mut queries = InventoryQueryServiceClient::new(channel);
    let mut waited = Histogram::<u64>::new(3)?;
    for number in 0..WAITS {
        let answer = commands.add_stock(add(number, format!("second-{number}"))).await?;
        let token = answer.metadata().get("consistency-token").context("a token")?.clone();
        let mut request = Request::new(GetStockRequest { sku: format!("sku-{number}") });
        request.metadata_mut().insert("consistency-token", token);
        let begin = Instant::now();
        let stock = queries.get_stock(request).await?.into_inner().stock.context("a stock")?;
        waited.record(u64::try_from(begin.elapsed().as_micros())?)?;
        anyhow::ensure!(stock.available == 2, "it does not show what was written: {stock:?}");
    }
    println!("\na query for one's own write, alone, p50/p99: {}", latencies(&waited));
    Ok(())
}
