//! The write side and the read side: commands a second by how many wait together, one hot aggregate beside ten thousand, on SQLite and
//! on PostgreSQL, beside what other crates do there; how fast a projection folds, how far it lags under full load; queries over gRPC beside bare tonic.
//!
//! Rates of commands and queries are medians of rounds, each of which checks what it wrote; a fold, a lag and a wait are of one. PostgreSQL
//! is the server that `BENCH_POSTGRES` names, and the other crates run in the program that `CQRS_PEERS` names: `./just bench cqrs` sets both.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark: its output is its purpose")]

mod commands;
mod peers;
mod queries;
mod views;

use std::env;

use libs::journal::{Journal, Location};
use mimalloc::MiMalloc;

/// The services' own.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const ROUNDS: usize = 5;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // `cargo bench` passes flags of its own.
    let mut words = env::args().skip(1);
    if words.next().as_deref() == Some("bare") {
        return benches::stock::serve_bare(words).await;
    }
    let folder = tempfile::TempDir::new()?;
    let sqlite = Location::Sqlite(folder.path().join("bench.db"));
    let journal = Journal::open(&sqlite, &[]).await?;
    commands::table("SQLite, WAL, synchronous=FULL (both read back)", &journal, &commands::SQLITE).await;
    views::table(&journal, sqlite.views()).await;
    match env::var("BENCH_POSTGRES") {
        Ok(url) => {
            // Before ours: of what ours leaves there the server still has to clean up.
            peers::table(&url).await?;
            let postgres = Location::Postgres { url: url.clone(), schema: "bench".to_owned() };
            let journal = Journal::open(&postgres, &[]).await?;
            commands::table("PostgreSQL, fsync on (read back)", &journal, &commands::POSTGRES).await;
            views::table(&journal, postgres.views()).await;
        }
        Err(_) => println!("\nPostgreSQL: not measured, BENCH_POSTGRES names no server (./just bench cqrs starts one)"),
    }
    queries::table().await
}
