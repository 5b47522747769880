//! The disk is full, or fails to sync: the service ends rather than guess, says why in a line, and whatever was answered is there at the
//! next start. strace has the system calls fail. Runs where `TEST_STRACE` names it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use proto::{
    inventory::v1::{
        AddStockRequest, GetStockRequest, ListStockRequest,
        inventory_command_service_client::InventoryCommandServiceClient,
        inventory_query_service_client::InventoryQueryServiceClient,
    },
    order::v1::{Order, OrderState, PlaceOrderRequest, order_command_service_client::OrderCommandServiceClient},
};
use tempfile::TempDir;
use tests::{
    Server, Shop,
    facts::Facts,
    invariants,
    shop::{self, usd},
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Request, Status};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// What SQLite says of a sync that failed, and of nothing else.
const FSYNC: &str = "disk I/O error (SQLite's code 1034)";

async fn add(server: &Server, sku: &str) -> Result<String, Status> {
    let (request_id, unit_price) = (sku.to_owned(), Some(usd(1)));
    let request = AddStockRequest { request_id, sku: sku.to_owned(), quantity: 1, unit_price };
    let added = InventoryCommandServiceClient::new(server.channel()).add_stock(request).await?;
    let token = added.metadata().get("consistency-token").and_then(|token| token.to_str().ok());
    Ok(token.unwrap_or_default().to_owned())
}

/// Starts a service where a system call fails from the so manieth time on in each thread, and asks it for one thing after another until it
/// ends. Answers what it has answered.
async fn use_up<T>(
    server: &mut Server,
    strace: &str,
    failure: &str,
    ask: impl AsyncFn(&Server, String) -> Result<T, Status>,
) -> anyhow::Result<Vec<String>> {
    use_up_in(server, strace, &[], failure, ask).await
}

/// The same where only calls fail that these words of strace's choose.
async fn use_up_in<T>(
    server: &mut Server,
    strace: &str,
    only: &[String],
    failure: &str,
    ask: impl AsyncFn(&Server, String) -> Result<T, Status>,
) -> anyhow::Result<Vec<String>> {
    let (call, _) = failure.split_once(':').context("CALL:error=…:when=…")?;
    let words =
        ["-D", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &format!("inject={failure}")];
    let mut words: Vec<String> = std::iter::once(strace).chain(words).map(str::to_owned).collect();
    words.extend_from_slice(only);
    server.spawn_under(&words)?;
    let mut answered = Vec::new();
    // One that stays up and refuses would be asked for ever.
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        ensure!(Instant::now() < deadline, "{failure}: it still runs after {PATIENCE:?}\n{}", server.log_end());
        if let Some(status) = server.has_ended()? {
            break status;
        }
        let id = format!("{}-{}", failure.replace(|c: char| !c.is_ascii_alphanumeric(), "-"), answered.len());
        let answer = timeout(PATIENCE, ask(server, id.clone())).await;
        match answer.with_context(|| format!("{failure}: no answer"))? {
            Ok(_) => answered.push(id),
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
        ensure!(answered.len() < 10_000, "{failure}: it never fails");
    };
    ensure!(status.code() == Some(1), "{failure}: {status}\n{}", server.log_end());
    Ok(answered)
}

/// The line that a service left with, since its log was so long. The log is that of every start: what an earlier failure left there says
/// nothing of this one.
fn last_words(server: &Server, before: usize) -> String {
    let log = server.log();
    log[before..].lines().rfind(|line| line.starts_with("error: ")).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_disk_that_is_full_or_fails_loses_nothing_that_was_answered() -> anyhow::Result<()> {
    let Ok(strace) = std::env::var("TEST_STRACE") else {
        eprintln!("skipped: needs strace, and TEST_STRACE names none (tests/strace.sh)");
        return Ok(());
    };
    let folder = TempDir::new()?;
    let mut server = Server::new("inventory", folder.path())?;
    let mut answered = Vec::new();
    for (failures, says) in [
        (
            ["pwrite64:error=ENOSPC:when=20+", "pwrite64:error=ENOSPC:when=57+", "pwrite64:error=ENOSPC:when=300+"],
            "full",
        ),
        // A sync that failed is not asked for again: the next one would say that all is well. (The second is the folder's, which SQLite passes over.)
        (["fdatasync:error=EIO:when=1", "fdatasync:error=EIO:when=7", "fdatasync:error=EIO:when=30"], FSYNC),
    ] {
        for failure in failures {
            let before = server.log().len();
            let ask = async |server: &Server, id: String| add(server, &id).await;
            answered.extend(use_up(&mut server, &strace, failure, ask).await?);
            let last = last_words(&server, before);
            ensure!(last.contains(says), "{failure}: {last}\n{}", server.log_end());

            server.start().await?;
            let token = add(&server, &format!("after-{}", answered.len())).await?;
            let mut request = Request::new(ListStockRequest { page_size: 1000, ..ListStockRequest::default() });
            request.metadata_mut().insert("consistency-token", token.parse()?);
            let listed = InventoryQueryServiceClient::new(server.channel()).list_stock(request).await?.into_inner();
            for sku in &answered {
                let there = listed.stock.iter().any(|stock| stock.sku == *sku && stock.added == 1);
                ensure!(there, "{failure}: {sku} was answered and is gone");
            }
            server.kill().await?;
        }
    }
    ensure!(answered.len() > 50, "hardly anything was answered: {}", answered.len());
    Ok(())
}

/// The log of a database takes what is written, and the database itself fails when that is copied into it: SQLite by itself says nothing.
#[tokio::test]
async fn a_disk_that_fails_when_the_log_is_copied_into_the_database_loses_nothing_that_was_answered()
-> anyhow::Result<()> {
    let Ok(strace) = std::env::var("TEST_STRACE") else {
        eprintln!("skipped: needs strace, and TEST_STRACE names none (tests/strace.sh)");
        return Ok(());
    };
    let folder = TempDir::new()?;
    let mut server = Server::new("inventory", folder.path())?;
    server.start().await?;
    server.terminate().await?;
    server.ended().await?;
    let database = folder.path().join("inventory.db").display().to_string();
    let before = server.log().len();
    let ask = async |server: &Server, id: String| {
        let skus: Vec<String> = (0..8).map(|at| format!("{id}-{at}")).collect();
        try_join_all(skus.iter().map(|sku| add(server, sku))).await
    };
    let only = ["-P".to_owned(), database];
    let answered = use_up_in(&mut server, &strace, &only, "fdatasync:error=EIO:when=1", ask).await?;
    let last = last_words(&server, before);
    ensure!(last.contains(FSYNC), "{last}\n{}", server.log_end());
    server.start().await?;
    let token = add(&server, "after").await?;
    for id in [answered.first(), answered.last()].into_iter().flatten() {
        let sku = format!("{id}-7");
        let mut request = Request::new(GetStockRequest { sku: sku.clone() });
        request.metadata_mut().insert("consistency-token", token.parse()?);
        let stock = InventoryQueryServiceClient::new(server.channel()).get_stock(request).await;
        ensure!(stock.is_ok(), "{sku} was answered and is gone");
    }
    Ok(())
}

/// The coordinator's disk, with sagas under way: each order that it answered comes to its end once there is room again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_whose_disk_is_full_loses_no_saga_that_it_began() -> anyhow::Result<()> {
    let Ok(strace) = std::env::var("TEST_STRACE") else {
        eprintln!("skipped: needs strace, and TEST_STRACE names none (tests/strace.sh)");
        return Ok(());
    };
    let mut shop = Shop::new()?;
    try_join_all(shop.participants_mut().map(Server::start)).await?;
    shop.stock("tea", 10_000, 3).await?;
    shop.deposit("ann", 100_000).await?;
    let place = async |server: &Server, id: String| {
        // Some are turned back by shipping, after the charge.
        let region = if id.ends_with('3') { "AQ" } else { "CH" };
        let request = PlaceOrderRequest { wait_for_completion: false, ..shop::order(&id, region) };
        OrderCommandServiceClient::new(server.channel()).place_order(request).await
    };
    let mut answered = Vec::new();
    for failure in ["pwrite64:error=ENOSPC:when=60+", "pwrite64:error=ENOSPC:when=401+", "fdatasync:error=EIO:when=40"]
    {
        let before = shop.order().log().len();
        answered.extend(use_up(shop.order(), &strace, failure, &place).await?);
        let last = last_words(shop.order(), before);
        ensure!(last.contains("full") || last.contains("disk I/O error"), "{failure}: {last}");
        shop.order().start().await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let facts = Facts::read(&shop.clients()).await?;
            let ended = |id: &&String| {
                let is_final = |order: &&Order| order.state() != OrderState::Pending && order.order_id == **id;
                facts.orders.iter().any(|order| is_final(&order))
            };
            let open: Vec<&String> = answered.iter().filter(|id| !ended(id)).collect();
            let differences = invariants::differences(&facts);
            if open.is_empty() && differences.is_empty() {
                break;
            }
            ensure!(Instant::now() < deadline, "{failure}: {open:?} have not ended; {}", differences.join("\n"));
            sleep(Duration::from_millis(50)).await;
        }
        shop.order().kill().await?;
    }
    ensure!(answered.len() > 20, "hardly anything was answered: {}", answered.len());
    Ok(())
}
