//! What a PostgreSQL server may come to while orders are placed: stopped in its tracks, and left without room. Each test starts one of its
//! own, where `TEST_POSTGRES_BIN` names its programs.

use std::{sync::atomic::Ordering, time::Duration};

use anyhow::{Context as _, ensure};
use proto::inventory::v1::{
    AddStockRequest, ListStockRequest, inventory_command_service_client::InventoryCommandServiceClient,
    inventory_query_service_client::InventoryQueryServiceClient,
};
use rand::RngExt as _;
use tempfile::TempDir;
use tests::{
    Server, Shop, chaos,
    load::Load,
    postgres::{Postgres, Small},
    shop::usd,
    wish::Wish,
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Customers who order at the same time.
const CUSTOMERS: u64 = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_in_its_tracks_under_load_loses_nothing_and_doubles_nothing() -> anyhow::Result<()> {
    let Some(postgres) = Postgres::start()? else { return Ok(()) };
    let mut shop = Shop::new()?;
    for server in shop.servers_mut() {
        server.keep_in(&postgres.url());
        server.start().await?;
    }
    Wish::prepare(&shop).await?;
    let load = Load::begin(&shop.clients(), CUSTOMERS, rand::random());
    for stop in 1..=3 {
        // However slow the machine, there is something to lose each time.
        let busy = async {
            while load.counts().orders.load(Ordering::Relaxed) < stop * 10 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, busy).await.context("no orders are accepted")?;
        sleep(Duration::from_millis(rand::rng().random_range(0..500))).await;
        postgres.stop_at_once()?;
        sleep(Duration::from_millis(rand::rng().random_range(0..300))).await;
        postgres.go_on()?;
    }
    let (orders, _) = chaos::settle(load, &shop.clients()).await?;
    ensure!(orders.len() >= 30, "only {} orders: nothing is proved", orders.len());
    for server in shop.servers_mut() {
        server.running()?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_without_room_for_its_tables_loses_nothing_and_recovers() -> anyhow::Result<()> {
    runs_out_of_room(Small::Data).await
}

#[tokio::test]
async fn a_server_without_room_for_its_log_loses_nothing_and_recovers() -> anyhow::Result<()> {
    runs_out_of_room(Small::Log).await
}

async fn runs_out_of_room(small: Small) -> anyhow::Result<()> {
    let Some(postgres) = Postgres::start_on(small)? else { return Ok(()) };
    let folder = TempDir::new()?;
    let mut server = Server::new("inventory", folder.path())?;
    server.keep_in(&postgres.url());
    server.start().await?;
    let mut answered = 0;
    while answered < 20 {
        add(&server, answered).await?;
        answered += 1;
    }
    postgres.fill_disk()?;

    // What fits is answered. Without room for tables each is refused then, and told what to do; without room for its log the server falls,
    // and what became of the commit that it fell in is asked until it is back.
    let mut refused = 0;
    while refused < 10 {
        ensure!(answered < 20_000, "it never runs out of room");
        let added = tokio::select! {
            added = timeout(PATIENCE, add(&server, answered)) => added.context("no answer")?,
            () = fallen(&postgres) => break,
        };
        match added {
            Ok(_) => answered += 1,
            Err(status) => {
                says_what_to_do(&status)?;
                refused += 1;
            }
        }
    }
    let said = if small == Small::Data { server.log() } else { postgres.log() };
    ensure!(said.contains("No space left on device"), "nobody says why: {said}");

    postgres.make_room()?;
    let goes_on = async {
        loop {
            if !postgres.runs()? {
                // It couldn't even recover.
                postgres.go_on()?;
            }
            match add(&server, answered).await {
                Ok(token) => return anyhow::Ok(token),
                Err(status) => says_what_to_do(&status)?,
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let token = timeout(PATIENCE, goes_on).await.context("it never recovers")??;
    server.running()?;
    let stock = timeout(PATIENCE, listed(&server, &token)).await.context("the views never have it")??;
    let mut wanted: Vec<String> = (0..=answered).map(|at| format!("sku-{at:05}")).collect();
    wanted.sort();
    ensure!(stock == wanted, "{} were answered, {} are there", wanted.len(), stock.len());
    Ok(())
}

/// Waits until the server has fallen.
async fn fallen(postgres: &Postgres) {
    while !postgres.log().contains("PANIC") {
        sleep(Duration::from_millis(20)).await;
    }
}

/// Adds one unit of the so manieth SKU, and answers the token to read it by.
async fn add(server: &Server, at: usize) -> Result<String, Status> {
    let sku = format!("sku-{at:05}");
    let request = AddStockRequest { request_id: sku.clone(), sku, quantity: 1, unit_price: Some(usd(1)) };
    let added = InventoryCommandServiceClient::new(server.channel()).add_stock(request).await?;
    let token = added.metadata().get("consistency-token").and_then(|token| token.to_str().ok());
    Ok(token.unwrap_or_default().to_owned())
}

fn says_what_to_do(status: &Status) -> anyhow::Result<()> {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str()).unwrap_or_default();
    ensure!((status.code(), reason) == (Code::Unavailable, "DATABASE_UNAVAILABLE"), "{status:?}");
    ensure!(status.message().contains("nothing was written: try again"), "{status:?}");
    ensure!(details.retry_info().is_some_and(|retry| retry.retry_delay.is_some()), "{status:?}");
    Ok(())
}

/// Every SKU with one unit of it.
async fn listed(server: &Server, token: &str) -> anyhow::Result<Vec<String>> {
    let (mut skus, mut page_token) = (Vec::new(), String::new());
    loop {
        let mut request = Request::new(ListStockRequest { page_size: 1000, page_token });
        request.metadata_mut().insert("consistency-token", token.parse()?);
        let page = match InventoryQueryServiceClient::new(server.channel()).list_stock(request).await {
            Ok(page) => page.into_inner(),
            // The views are behind as long as they had no room either.
            Err(status) if status.code() == Code::Unavailable => return Box::pin(listed(server, token)).await,
            Err(status) => return Err(status.into()),
        };
        skus.extend(page.stock.into_iter().filter(|stock| stock.added == 1).map(|stock| stock.sku));
        if page.next_page_token.is_empty() {
            skus.sort();
            return Ok(skus);
        }
        page_token = page.next_page_token;
    }
}
