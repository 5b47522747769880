//! The power fails: of what was not synced, the disk holds any sectors. Whatever was answered before is there, and the service starts. Runs
//! where `TEST_STRACE` names strace, which records what the service asks of its disk.

use std::path::Path;

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use proto::inventory::v1::{
    AddStockRequest, GetStockRequest, inventory_command_service_client::InventoryCommandServiceClient,
    inventory_query_service_client::InventoryQueryServiceClient,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use tests::{
    Server,
    disk::{Recording, now},
    shop::usd,
};
use tonic::{Code, transport::Channel};

/// Commands that wait together, and how often.
const TOGETHER: usize = 4;
const TIMES: usize = 40;
/// How often the power fails.
const FAILURES: usize = 25;

/// Adds stock under a SKU of its own, and answers the SKU and when it was told that this is done.
async fn add(channel: Channel, number: usize) -> anyhow::Result<(String, f64)> {
    let sku = format!("sku-{number}");
    let request = AddStockRequest { request_id: sku.clone(), sku: sku.clone(), quantity: 1, unit_price: Some(usd(1)) };
    InventoryCommandServiceClient::new(channel).add_stock(request).await?;
    Ok((sku, now()))
}

/// What inventory asked of its disk, and when.
struct Recorded {
    /// From its first start on.
    recording: Recording,
    serving: f64,
    /// What it answered, and when.
    answered: Vec<(String, f64)>,
    /// When it was told to leave.
    leaving: f64,
}

async fn record(folder: &Path, strace: &str) -> anyhow::Result<Recorded> {
    let file = folder.join("record");
    let mut server = Server::new("inventory", folder)?;
    server.spawn_under(&Recording::words(strace, &file))?;
    server.serving().await?;
    let (serving, mut answered) = (now(), Vec::new());
    for time in 0..TIMES {
        let together = (0..TOGETHER).map(|at| add(server.channel(), time * TOGETHER + at));
        answered.extend(try_join_all(together).await?);
    }
    let leaving = now();
    server.terminate().await?;
    server.ended().await?;
    Ok(Recorded { recording: Recording::of_ended(&file).await?, serving, answered, leaving })
}

/// Starts inventory on what the disk holds, and answers which of the SKUs are missing.
async fn missing(
    recording: &Recording,
    folder: &Path,
    end: usize,
    skus: &[&str],
    random: &mut StdRng,
) -> anyhow::Result<Vec<String>> {
    let disk = TempDir::new()?;
    recording.lay(folder, end, disk.path(), random)?;
    let mut server = Server::new("inventory", disk.path())?;
    server.start().await?;
    // Its views have seen what came before this.
    let mut request =
        AddStockRequest { request_id: "last".to_owned(), sku: "last".to_owned(), ..AddStockRequest::default() };
    (request.quantity, request.unit_price) = (1, Some(usd(1)));
    let added = InventoryCommandServiceClient::new(server.channel()).add_stock(request).await?;
    let token = added.metadata().get("consistency-token").context("no token")?.clone();
    let mut missing = Vec::new();
    for sku in skus {
        let mut request = tonic::Request::new(GetStockRequest { sku: (*sku).to_owned() });
        request.metadata_mut().insert("consistency-token", token.clone());
        match InventoryQueryServiceClient::new(server.channel()).get_stock(request).await {
            Ok(stock) => ensure!(stock.get_ref().stock.as_ref().is_some_and(|stock| stock.added == 1), "{stock:?}"),
            Err(status) if status.code() == Code::NotFound => missing.push((*sku).to_owned()),
            Err(status) => return Err(status.into()),
        }
    }
    Ok(missing)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_outlives_the_power() -> anyhow::Result<()> {
    let Ok(strace) = std::env::var("TEST_STRACE") else {
        eprintln!("skipped: needs strace, and TEST_STRACE names none (tests/strace.sh)");
        return Ok(());
    };
    let folder = TempDir::new()?;
    let Recorded { recording, serving, answered, leaving } = record(folder.path(), &strace).await?;
    let begin = (0..recording.len()).find(|at| recording.time(*at) > serving).context("nothing was asked")?;
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..FAILURES {
        let end = random.random_range(begin..recording.len());
        let before = recording.time(end);
        let skus: Vec<&str> = answered.iter().filter(|(_, at)| *at < before).map(|(sku, _)| &**sku).collect();
        let missing = missing(&recording, folder.path(), end, &skus, &mut random)
            .await
            .with_context(|| format!("seed {seed}, power lost at {end} of {}", recording.len()))?;
        ensure!(
            missing.is_empty(),
            "seed {seed}, power lost at {end}: of {} answered, {missing:?} are gone",
            skus.len()
        );
    }

    // The same without the syncs of the log at each commit, as `synchronous=NORMAL` would have it: the database opens, and the test must
    // see what it lacks. Whoever leaves in order has the disk take all, so the power fails before.
    let recording = recording.without_syncs_at_commits("inventory.db-wal");
    let end = (0..recording.len()).rfind(|at| recording.time(*at) < leaving).context("nothing was asked")?;
    let skus: Vec<&str> = answered.iter().map(|(sku, _)| &**sku).collect();
    let missing = missing(&recording, folder.path(), end, &skus, &mut random).await;
    let missing = missing.with_context(|| format!("seed {seed}, without syncs at commits"))?;
    ensure!(!missing.is_empty(), "seed {seed}: nothing is missing without syncs at commits");
    Ok(())
}
