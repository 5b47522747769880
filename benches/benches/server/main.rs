//! What the server around a surface costs: the same unary call by tonic alone, through our whole stack, and through it with traces and
//! metrics exported, in one run, in turn. And how long each service takes to serve, and what memory it has.
#![allow(clippy::print_stdout, reason = "a benchmark: its output is its purpose")]

mod start;

use std::process::ExitCode;

use anyhow::Context as _;
use benches::{
    again::Again,
    figures::median,
    stock::{self, Bare, ask},
};
use libs::{
    cli::{BoxError, Program, Serve, Store},
    service::App,
};
use mimalloc::MiMalloc;
use proto::inventory::v1::inventory_query_service_server::InventoryQueryServiceServer;
use tests::collector::Collector;
use tokio::runtime::Runtime;

/// The services' own, for the bare one too.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// How many calls are in flight, and how many are made for a figure.
const ROWS: [(usize, usize); 3] = [(1, 5_000), (16, 50_000), (64, 100_000)];
const ROUNDS: usize = 5;

/// A service that does nothing but answer.
#[derive(Debug)]
enum Stack {}

impl Program for Stack {
    const NAME: &'static str = "inventory";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const PORT: u16 = 50051;
    const ABOUT: &'static str = "Answers at once.";

    async fn assemble(app: &mut App, _: &Serve) -> Result<(), BoxError> {
        app.add(InventoryQueryServiceServer::new(Bare));
        Ok(())
    }

    async fn migrate(_: &Store) -> Result<(), BoxError> {
        Ok(())
    }

    async fn rebuild(_: &Store) -> Result<(), BoxError> {
        Ok(())
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let first = words.next();
    if first.as_deref() == Some("serve") {
        return libs::cli::run::<Stack>();
    }
    let ended = Runtime::new().context("a runtime").and_then(|runtime| {
        runtime.block_on(async {
            if first.as_deref() == Some("bare") {
                return stock::serve_bare(words).await;
            }
            stacks().await?;
            start::table().await
        })
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

async fn stacks() -> anyhow::Result<()> {
    let collector = Collector::start().await?;
    // But for the spans of calls, which cost what they cost in a service.
    let quiet = ("RUST_LOG", "warn,libs::rpc=info");
    let told = [quiet, ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.uri())];
    let bare = Again::start(["bare"], &[]).await?;
    let whole = Again::start(["serve", "--listen"], &[quiet]).await?;
    let metrics = Again::start(["serve", "--listen"], &[told[0], told[1], ("OTEL_TRACES_EXPORTER", "none")]).await?;
    let traced = Again::start(["serve", "--listen"], &told).await?;
    let subjects = [("bare tonic", &bare), ("the stack", &whole), ("metrics", &metrics), ("and traces", &traced)];
    let processors = std::thread::available_parallelism()?;
    println!(
        "unary calls a second over gRPC, {processors} processors, caller and collector included; medians of {ROUNDS} rounds in turn"
    );
    print!("{:>9}", "in flight");
    for (name, _) in subjects {
        print!(" {name:>12} {:>5}", "ratio");
    }
    println!();
    for (in_flight, calls) in ROWS {
        let mut rates = subjects.map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for ((_, server), rates) in subjects.iter().zip(&mut rates) {
                rates.push(ask(&server.channel(), in_flight, calls).await?);
            }
        }
        let rates = rates.map(|rates| median(rates, |rate| *rate));
        print!("{in_flight:>9}");
        for rate in rates {
            print!(" {rate:>12.0} {:>5.2}", rate / rates[0]);
        }
        println!();
    }
    Ok(())
}
