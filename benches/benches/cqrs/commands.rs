//! Commands through a journal: each keyed, on one aggregate, with one event and a reply.

use std::time::Instant;

use benches::figures::median;
use futures::{StreamExt as _, stream};
use libs::journal::{AggregateId, Cause, Change, Decided, Entry, Journal, Loaded, NewEvent, Outcome, RequestKey, Role};

use crate::ROUNDS;

/// How many are in flight, and how many are done for a figure.
pub(crate) const SQLITE: [(usize, usize); 4] = [(1, 1_000), (8, 8_000), (32, 20_000), (256, 40_000)];
pub(crate) const POSTGRES: [(usize, usize); 4] = [(1, 400), (8, 3_000), (32, 10_000), (256, 20_000)];

/// A command as a service's: keyed, one aggregate of about 100 bytes, one event of about 100 bytes, a reply.
pub(crate) fn command(number: usize, aggregates: usize, run: &str) -> Entry {
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
        request: Some(RequestKey { key, hash: [3; 32], other_hash: None, role: Role::Action }),
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

pub(crate) async fn table(store: &str, journal: &Journal, rows: &[(usize, usize)]) {
    println!("\ncommands/s on {store}, medians of {ROUNDS}");
    println!("{:>10} {:>12} {:>12} {:>8} {:>16}", "in flight", "10,000 ids", "1 hot id", "hot/all", "commands/commit");
    for &(in_flight, commands) in rows {
        let (mut spread, mut hot) = (Vec::new(), Vec::new());
        let before = journal.stats();
        for round in 0..ROUNDS {
            spread.push(write(journal, &format!("s{in_flight}-{round}"), commands, in_flight, 10_000).await);
            hot.push(write(journal, &format!("h{in_flight}-{round}"), commands, in_flight, 1).await);
        }
        let after = journal.stats();
        let batch = (after.entries - before.entries) as f64 / (after.commits - before.commits) as f64;
        let (spread, hot) = (median(spread, |rate| *rate), median(hot, |rate| *rate));
        println!("{in_flight:>10} {spread:>12.0} {hot:>12.0} {:>8.2} {batch:>16.1}", hot / spread);
    }
}
