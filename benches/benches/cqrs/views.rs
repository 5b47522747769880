//! A projection: from zero, and behind a journal under full load.

use std::time::{Duration, Instant};

use benches::figures::latencies;
use futures::{StreamExt as _, stream};
use hdrhistogram::Histogram;
use libs::{
    cqrs::{Documents, Log, Projection, ProjectionError, Projections, Views},
    journal::{Event, Journal, Location, Table, sql::Transaction},
};
use tokio::time::sleep;

use crate::commands::command;

/// How many commands the projection is kept behind, so many in flight.
const COMMANDS: usize = 60_000;
const IN_FLIGHT: usize = 256;

static COUNTS: Table = Table {
    name: "counts",
    create: &["CREATE TABLE IF NOT EXISTS counts (id TEXT PRIMARY KEY, position INTEGER, document BLOB)"],
    columns: &["id", "position", "document"],
    key: 1,
    fixed: &[],
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

pub(crate) async fn table(journal: &Journal, location: Location) {
    let projections = Projections::new().with(Counts);
    let open = || Views::open(&location, Log::of(journal), &projections);
    let events = *journal.head().borrow();
    let views = open().await.unwrap();
    let read = views.read_side("bench", Duration::ZERO);
    let begin = Instant::now();
    views.catch_up(|_, _| ()).await.unwrap();
    let folded = events as f64 / begin.elapsed().as_secs_f64();
    let hot: Option<i64> = read.document(&COUNTS, "counter-0").await.unwrap();
    assert!(hot.is_some_and(|count| count > 0), "the view holds what was folded");
    println!("events/s folded from zero: {folded:.0} ({events} events)");

    let views = open().await.unwrap();
    let read = views.read_side("bench", Duration::ZERO);
    let projector = tokio::spawn(views.run());
    let begin = Instant::now();
    let last = events + i64::try_from(COMMANDS).unwrap();
    let seen = {
        let read = read.clone();
        tokio::spawn(async move {
            let mut seen = Vec::new();
            while seen.last().is_none_or(|(_, position)| *position < last) {
                seen.push((Instant::now(), read.position()));
                sleep(Duration::from_millis(1)).await;
            }
            seen
        })
    };
    let committed: Vec<(Instant, i64)> = stream::iter(0..COMMANDS)
        .map(|number| async move {
            let committed = journal.submit(command(number, 10_000, "lag")).await.unwrap();
            (Instant::now(), committed.position)
        })
        .buffer_unordered(IN_FLIGHT)
        .collect()
        .await;
    let rate = COMMANDS as f64 / begin.elapsed().as_secs_f64();
    let seen = seen.await.unwrap();
    let mut lag = Histogram::<u64>::new(3).unwrap();
    for (at, position) in committed {
        let (folded, _) = seen[seen.partition_point(|(_, seen)| *seen < position)];
        lag.record(u64::try_from(folded.saturating_duration_since(at).as_micros()).unwrap()).unwrap();
    }
    projector.abort();
    println!("lag behind {rate:.0} commands/s, p50/p99: {}", latencies(&lag));
}
