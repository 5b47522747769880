//! Servers that run out of files.

use std::time::Duration;

use anyhow::Context as _;
use tests::Shop;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_server_without_files_for_connections_says_so_once_a_second_and_serves_on() -> anyhow::Result<()> {
    let mut shop = Shop::new()?;
    let server = shop.inventory();
    let few = ["sh", "-c", "ulimit -n 64; exec \"$0\" \"$@\""].map(str::to_owned);
    server.spawn_under(&few)?;
    server.serving().await?;
    let address = server.address();
    let mut connections = Vec::new();
    for _ in 0..64 {
        connections.push(TcpStream::connect(&address).await?);
    }
    let start = Instant::now();
    let told = |log: &str| log.matches("can't accept a connection").count();
    let often = async {
        while told(&server.log()) < 3 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, often).await.context("it is never told")?;
    // However slow this machine is, there is no more than a line a second.
    let lines = told(&server.log());
    let seconds = start.elapsed().as_secs();
    assert!(lines as u64 <= seconds + 2, "{lines} lines in {seconds} s");
    drop(connections);
    server.serving().await
}
