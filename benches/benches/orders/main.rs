//! Durable orders a second over real gRPC, the four services as processes, beside the same calls bare: the same messages between
//! as many processes, and nothing stored. Both in one run, in turn, so that the ratio holds when the machine's speed drifts.
//!
//! After each durable round every order's end is read back from the query side, and the books must balance.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark: its output is its purpose")]

use std::time::Duration;

use anyhow::Context as _;
use benches::{
    bare, books, disk,
    load::{self, End, Front},
    syncs,
};
use clap::{
    Parser,
    builder::{PossibleValuesParser, TypedValueParser},
};
use mimalloc::MiMalloc;
use tests::{Shop, facts::Facts};
use tokio::time::sleep;

/// The services' own, for the bare ones too.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// How many orders are under way, and how many are placed for a figure.
const ROWS: [(usize, u64); 4] = [(1, 400), (16, 4_000), (64, 10_000), (256, 20_000)];
const ROUNDS: usize = 3;

/// Durable orders a second, beside the same calls bare.
#[derive(Debug, Parser)]
struct Words {
    /// Only the rows with so many in flight.
    #[arg(value_parser = rows())]
    only: Vec<usize>,
    /// What `cargo bench` says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn rows() -> impl TypedValueParser<Value = usize> {
    PossibleValuesParser::new(ROWS.map(|(row, _)| row.to_string())).try_map(|row| row.parse())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("bare") {
        return bare::serve(std::env::args().skip(2)).await;
    }
    let words = Words::parse();
    let processors = std::thread::available_parallelism()?;
    println!(
        "orders a second: reserve, charge, ship, complete; 4 processes on {processors} processors, medians of {ROUNDS} rounds in turn"
    );
    println!("an order is seven commits, one after the other; a sync of this disk alone: {}\n", disk::sync().await?);
    let (durable, bare) = (Shop::start_quietly().await?, bare::start().await?);
    load::prepare(&durable).await?;
    let (to_durable, to_bare) = (Front::Grpc(durable.clients().order), Front::Grpc(bare.channel()));
    println!(
        "{:>9} {:>11} {:>9} {:>6} {:>17} {:>17}",
        "in flight", "durable/s", "bare/s", "ratio", "durable p50/p99", "bare p50/p99"
    );
    let mut placed = 0;
    for (in_flight, orders) in ROWS.into_iter().filter(|(row, _)| words.only.is_empty() || words.only.contains(row)) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(load::place(&to_durable, End::Completed, in_flight, orders).await?);
            theirs.push(load::place(&to_bare, End::Completed, in_flight, orders).await?);
            placed += orders;
        }
        let (ours, theirs) = (load::median(ours), load::median(theirs));
        println!(
            "{in_flight:>9} {:>11.0} {:>9.0} {:>6.2} {:>17} {:>17}",
            ours.rate,
            theirs.rate,
            ours.rate / theirs.rate,
            ours.latencies(),
            theirs.latencies()
        );
    }
    drop(bare);
    let clients = durable.clients();
    books::balance(Duration::from_secs(20), placed, 0, async || Facts::read(&clients).await).await?;
    println!("\nend states: {placed} of {placed} orders COMPLETED, sagas too, and the books balance");
    report(durable, placed).await
}

/// What it cost: commits from the services' own last words, syncs from the kernel.
async fn report(mut shop: Shop, placed: u64) -> anyhow::Result<()> {
    let syncs = count_syncs(&mut shop).await;
    for server in shop.servers_mut() {
        server.terminate().await?;
        server.ended().await?;
        let log = server.log();
        let opened = log.lines().find(|line| line.contains("database open")).context("no word of the database")?;
        println!("{}: {}", server.name(), opened.split_once("database open").map_or(opened, |(_, rest)| rest).trim());
    }
    let told: Vec<Option<u64>> = shop.servers_mut().iter().map(|server| committed(&server.log())).collect();
    match told.into_iter().sum::<Option<u64>>() {
        Some(commits) => {
            println!("commits per order over the whole run, all four databases: {:.2}", commits as f64 / placed as f64);
        }
        None => println!("commits per order: not told by every service"),
    }
    match syncs {
        Ok(syncs) => println!("syncs per order at 256 in flight, all four processes (strace): {syncs:.2}"),
        Err(why) => println!("syncs per order: not counted: {why}"),
    }
    Ok(())
}

const TRACED: u64 = 5_000;

/// Syncs per order at 256 in flight.
async fn count_syncs(shop: &mut Shop) -> anyhow::Result<f64> {
    let processes: Vec<u32> = shop.servers_mut().iter().filter_map(|server| server.id()).collect();
    let front = Front::Grpc(shop.clients().order);
    let work = async { load::place(&front, End::Completed, 256, TRACED).await.map(drop) };
    Ok(syncs::count(&processes, shop.folder(), work).await? as f64 / TRACED as f64)
}

/// The `commits=` of the line that a closing journal logs.
fn committed(log: &str) -> Option<u64> {
    let line = log.lines().rfind(|line| line.contains("journal closed"))?;
    let (_, rest) = line.split_once("commits=")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Starts the shop with logs that cost nothing in between.
trait Quietly: Sized {
    async fn start_quietly() -> anyhow::Result<Self>;
}

impl Quietly for Shop {
    async fn start_quietly() -> anyhow::Result<Self> {
        let mut shop = Self::new()?;
        for server in shop.servers_mut() {
            server.flag("--log-format", "text");
            server.start().await?;
        }
        sleep(Duration::from_millis(200)).await;
        Ok(shop)
    }
}
