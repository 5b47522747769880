//! The write side and the read side in one process: commands a second by how many wait together, one hot aggregate beside ten
//! thousand, and how fast a projection folds what was written.
//!
//! Every figure is the median of the rounds; each round checks what it wrote.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark: its output is its purpose")]

use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use libs::{
    cqrs::{Documents, Log, Projection, ProjectionError, Projections, Views},
    journal::{
        AggregateId, Cause, Change, Decided, Entry, Event, Journal, Loaded, NewEvent, Outcome, RequestKey, Role, Table,
        sql::Transaction,
    },
};

const ROUNDS: usize = 5;

static COUNTS: Table = Table {
    name: "counts",
    create: &["CREATE TABLE IF NOT EXISTS counts (id TEXT PRIMARY KEY, position INTEGER, document BLOB)"],
    columns: &["id", "position", "document"],
    key: 1,
};

struct Counts;

impl Projection for Counts {
    const NAME: &'static str = "counts";
    const TABLES: &'static [&'static Table] = &[&COUNTS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let mut counts = Documents::<i64>::load(transaction, &COUNTS, events.iter().map(|e| e.id.as_str())).await?;
        for event in events {
            counts.update(&event.id, event.position, |count| *count += 1);
        }
        counts.save(transaction, |_| Vec::new()).await
    }
}

/// A command as a service's: keyed, one aggregate of about 100 bytes, one event of about 100 bytes, a reply.
fn command(number: usize, aggregates: usize, run: &str) -> Entry {
    let id = AggregateId::new("counter", format!("counter-{}", number % aggregates));
    let (aggregate, key) = (id.clone(), format!("bench.v1.Bench/{run}-{number}"));
    let decide = move |loaded: &Loaded<'_>| {
        let version = loaded.aggregate("counter", &aggregate.id).map_or(0, |stored| stored.version) + 1;
        let state = vec![7_u8; 100].into();
        let event = NewEvent { name: "Counted", payload: vec![9_u8; 100].into() };
        let change = Change { aggregate, state: Some(state), version, events: vec![event] };
        Decided { reply: vec![1_u8; 20].into(), changes: vec![change], ..Decided::default() }
    };
    Entry {
        request: Some(RequestKey { key, hash: [3; 32], role: Role::Action }),
        aggregates: vec![id],
        cause: Cause::default(),
        decide: Box::new(decide),
        size: 400,
    }
}

async fn write(journal: &Journal, run: &str, commands: usize, in_flight: usize, aggregates: usize) -> f64 {
    let begin = Instant::now();
    let done = stream::iter(0..commands)
        .map(|number| journal.submit(command(number, aggregates, run)))
        .buffer_unordered(in_flight)
        .filter(|answer| {
            let done = matches!(answer, Ok(committed) if committed.outcome == Outcome::Done);
            async move { done }
        })
        .count()
        .await;
    assert_eq!(done, commands, "every command is done, once");
    commands as f64 / begin.elapsed().as_secs_f64()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    // `cargo bench` passes flags of its own.
    let folder = tempfile::TempDir::new().unwrap();
    let journal = Journal::open(&folder.path().join("bench.db"), &[]).await.unwrap();
    println!("commands/s on SQLite, WAL, synchronous=FULL (both read back), medians of {ROUNDS}");
    println!("{:>10} {:>12} {:>12} {:>16}", "in flight", "10,000 ids", "1 hot id", "commands/commit");
    for (in_flight, commands) in [(1, 1_000), (8, 8_000), (32, 20_000), (256, 40_000)] {
        let (mut spread, mut hot) = (Vec::new(), Vec::new());
        let before = journal.stats();
        for round in 0..ROUNDS {
            spread.push(write(&journal, &format!("s{in_flight}-{round}"), commands, in_flight, 10_000).await);
            hot.push(write(&journal, &format!("h{in_flight}-{round}"), commands, in_flight, 1).await);
        }
        let after = journal.stats();
        let batch = (after.entries - before.entries) as f64 / (after.commits - before.commits) as f64;
        println!("{in_flight:>10} {:>12.0} {:>12.0} {batch:>16.1}", median(spread), median(hot));
    }

    let events = *journal.head().borrow();
    let projections = Projections::new().with(Counts);
    let views = Views::open(&folder.path().join("views.db"), Log::of(&journal), &projections).await.unwrap();
    let read = views.read_side("bench", Duration::ZERO);
    let begin = Instant::now();
    views.catch_up(|_, _| ()).await.unwrap();
    let folded = events as f64 / begin.elapsed().as_secs_f64();
    let hot: Option<i64> = read.document(&COUNTS, "counter-0").await.unwrap();
    assert!(hot.is_some_and(|count| count > 0), "the view holds what was folded");
    println!("events/s folded by one projection from zero: {folded:.0} ({events} events)");
}
