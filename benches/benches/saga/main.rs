//! Sagas a second over real gRPC, reserve, charge, ship: ours on SQLite and on PostgreSQL, and other engines with the same participants,
//! each in turn with the same calls bare, so that the ratio holds when the machine's speed drifts. Load generator and participants
//! run on the same processors. After each engine every order's end is read back from the participants and from the engine's own store,
//! and the books must balance. At the end, how 100,000 sagas under way get over SIGKILL.
//!
//! PostgreSQL is the server that `BENCH_POSTGRES` names, the other engines run in the program that `SAGA_PEERS` names, Restate's server
//! is the program that `RESTATE_SERVER` names: `./just bench saga` sets all three. What is missing is said and left out.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark: its output is its purpose")]

mod engines;
mod flight;
mod peer;
mod postgres;
mod restate;
mod rounds;
mod subject;

use std::env;

use anyhow::bail;
use benches::{bare, disk};
use clap::{Parser, builder::PossibleValuesParser};
use mimalloc::MiMalloc;
use tokio::signal::unix::{SignalKind, signal};

use crate::{engines::Engine, rounds::Rounds, subject::Subject};

/// The services' own, for the bare ones too.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Sagas a second, and what becomes of those under way when the process is killed.
#[derive(Debug, Parser)]
struct Words {
    /// Only these.
    #[arg(value_parser = PossibleValuesParser::new(Engine::ALL.map(Engine::name).into_iter().chain([FLIGHT])))]
    only: Vec<String>,
    /// So many times fewer orders: to see that it runs, not to measure.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    fewer: u64,
    /// How many sagas are under way when the process is killed.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    flight: u64,
    /// What `cargo bench` says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Words {
    fn asks_for(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// What is measured of ours alone: sagas under way when the process is killed.
const FLIGHT: &str = "flight";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if env::args().nth(1).as_deref() == Some("bare") {
        return bare::serve(env::args().skip(2)).await;
    }
    let words = Words::parse();
    let mut terminated = signal(SignalKind::terminate())?;
    // Whoever is under way is dropped: its processes and its folder go with it.
    tokio::select! {
        ended = run(&words) => ended,
        _ = tokio::signal::ctrl_c() => bail!("stopped"),
        _ = terminated.recv() => bail!("stopped"),
    }
}

async fn run(words: &Words) -> anyhow::Result<()> {
    let processors = std::thread::available_parallelism()?;
    println!(
        "sagas a second: reserve, charge, ship (pivot), done; {processors} processors, load generator and participants included"
    );
    println!(
        "medians of {} rounds, in turn with the same calls bare, from process to process, nothing stored",
        rounds::ROUNDS
    );
    println!("refused: the customer can't pay; the step before the pivot is refused, and the reservation undone");
    println!("ours is seven commits, one after the other; a sync of this disk alone: {}\n", disk::sync().await?);
    let mut told = Vec::new();
    for engine in Engine::ALL {
        if words.asks_for(engine.name()) {
            match engine.start().await? {
                Ok(subject) => match measured(subject, engine, words.fewer).await {
                    Ok(line) => told.push(line),
                    // Another engine's failure is its own.
                    Err(why) if !engine.is_ours() => println!("{}: given up: {why:#}\n", engine.name()),
                    Err(why) => return Err(why),
                },
                Err(why) => println!("{}: not measured: {why}\n", engine.name()),
            }
        }
    }
    if !told.is_empty() {
        println!("in one look, sagas/s at 64 and 256 in flight (÷ bare)\n{}", Rounds::HEADING);
        told.iter().for_each(|line| println!("{line}"));
    }
    if words.asks_for(FLIGHT) {
        println!();
        flight::measure(words.flight).await?;
    }
    Ok(())
}

/// Measures one engine to its end, and answers its line in the table.
async fn measured(mut subject: Subject, engine: Engine, fewer: u64) -> anyhow::Result<String> {
    println!("{}: {}", engine.name(), subject.about);
    let bare = bare::start().await?;
    let rounds = Rounds::run(&mut subject, &bare, engine.rows(), fewer).await?;
    drop(bare);
    let verified = subject.end().await?;
    println!("end states: {verified}\n");
    Ok(rounds.line(engine.name()))
}
