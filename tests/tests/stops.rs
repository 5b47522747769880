//! Programs that are told to stop before they are done, and servers that run out of files.

use std::{process::Stdio, time::Duration};

use anyhow::Context as _;
use tests::{Shop, program};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn what_is_to_be_done_once_ends_when_it_is_told_to_and_says_that_it_is_not_done() -> anyhow::Result<()> {
    let shop = Shop::new()?;
    // It takes connections and says nothing.
    let database = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("postgres://me@{}/db", database.local_addr()?);
    for word in ["migrate", "rebuild"] {
        let mut command = program::command("inventory", shop.folder())?;
        command.args([word, "--database-url", &url]).stdout(Stdio::null()).stderr(Stdio::piped());
        let program = command.spawn()?;
        let _connection = timeout(PATIENCE, database.accept()).await.context("it never asks its database")??;
        program::signal(&program, "TERM").await?;
        let ended = timeout(PATIENCE, program.wait_with_output()).await.context("it does not end")??;
        let said = String::from_utf8(ended.stderr)?;
        let last = said.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: told to stop") && last.contains(word), "{said}");
        // Who waits for it to be done must not go on.
        assert_eq!(ended.status.code(), Some(1), "{word}");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_without_files_for_connections_says_so_once_a_second_and_serves_on() -> anyhow::Result<()> {
    let mut shop = Shop::new()?;
    let server = shop.inventory();
    let few = ["sh", "-c", "ulimit -n 64; exec \"$0\" \"$@\""].map(str::to_owned);
    server.spawn_under(&few)?;
    server.serving().await?;
    let address = server.address();
    let start = Instant::now();
    let mut connections = Vec::new();
    for _ in 0..64 {
        connections.push(TcpStream::connect(&address).await?);
    }
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
    // The channel from before has its connection.
    let mut health = HealthClient::new(Endpoint::from_shared(server.uri())?.connect_lazy());
    let serves = async {
        while health.check(HealthCheckRequest::default()).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, serves).await.context("it takes no more connections")
}
