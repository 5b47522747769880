//! How long a service takes from its start until it serves, and how much memory it holds.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use benches::{figures::median, memory::resident};
use tests::{Server, Shop, shop};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

const ROUNDS: usize = 5;
/// How many orders are placed between the two looks at the memory.
const ORDERS: usize = 1_000;

pub(crate) async fn table() -> anyhow::Result<()> {
    let mut starts = Shop::NAMES.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        // On fresh data: the databases are made too.
        let mut shop = Shop::new()?;
        for (server, starts) in shop.servers_mut().iter_mut().zip(&mut starts) {
            starts.push(begin(server).await?);
        }
    }
    let mut shop = Shop::start().await?;
    let rest = memory(&mut shop)?;
    shop.stock("tea", 1_000_000, 1).await?;
    shop.deposit("ann", 1_000_000).await?;
    for number in 0..ORDERS {
        shop.clients().order_commands().place_order(shop::order(&format!("order-{number}"), "CH")).await?;
    }
    let after = memory(&mut shop)?;
    println!(
        "\n{:>10} {:>18} {:>14} {:>22}",
        "service",
        "start to SERVING",
        "memory",
        format!("after {ORDERS} orders")
    );
    for (at, (name, starts)) in Shop::NAMES.into_iter().zip(starts).enumerate() {
        let start = median(starts, Duration::as_secs_f64).as_secs_f64() * 1_000.0;
        println!("{name:>10} {start:>15.0} ms {:>11.1} MB {:>19.1} MB", rest[at], after[at]);
    }
    Ok(())
}

/// Starts a server, and answers how long it took until it said so.
async fn begin(server: &mut Server) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    server.spawn()?;
    let mut health = HealthClient::new(server.channel());
    loop {
        server.running()?;
        match health.check(HealthCheckRequest::default()).await {
            Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => return Ok(begin.elapsed()),
            _ => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// What each process has in memory, in MB.
fn memory(shop: &mut Shop) -> anyhow::Result<[f64; Shop::NAMES.len()]> {
    let mut all = [0.0; Shop::NAMES.len()];
    for (server, memory) in shop.servers_mut().iter().zip(&mut all) {
        *memory = resident(server.id().context("it runs")?)? as f64 / 1e6;
    }
    Ok(all)
}
