//! The committer: one a database, the only one in its process who writes.
//!
//! It takes all that waits, reads what the batch needs, decides in memory, writes set by set, commits once, then answers
//! all. What it reads and writes is the same on every database; how is in [`sqlite`] and [`postgres`].

mod apart;
mod codes;
mod gather;
mod postgres;
#[cfg(test)]
#[cfg_attr(not(feature = "saga"), allow(dead_code, reason = "only sagas are simulated"))]
mod simulated;
mod sqlite;
mod unanswered;

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::oneshot;

#[cfg(test)]
pub(super) use self::simulated::Committer as SimulatedCommitter;
pub(super) use self::{
    postgres::{Committer as PostgresCommitter, Tail},
    sqlite::Committer as SqliteCommitter,
};
use super::{
    batch::{self, Ended, World, Writes},
    entry::{Aggregate, AggregateId, Committed, Entry, Forgotten, Role, Row, SubmitError, Table},
    losses::Losses,
    requests::{Known, REQUESTS},
    sql::{Error, Record, Value},
    unreadable,
};
use crate::told::Told;

/// The most entries in a batch, and about the most bytes.
const MOST_ENTRIES: usize = 256;
pub(super) const MOST_BYTES: usize = 8 << 20;
/// From when on a decision is told of: all others of its batch, and those that wait, wait for it.
const SLOW: Duration = Duration::from_millis(10);

pub(super) static AGGREGATES: Table = Table {
    name: "aggregates",
    create: &["CREATE TABLE IF NOT EXISTS aggregates (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        version INTEGER,
        state BLOB,
        PRIMARY KEY (kind, id)
    ) WITHOUT ROWID"],
    columns: &["kind", "id", "version", "state"],
    key: 2,
    fixed: &[],
};

/// An entry and who waits for it.
pub(super) struct Waiting {
    pub(super) entry: Entry,
    pub(super) answer: oneshot::Sender<Result<Committed, SubmitError>>,
}

/// What the committer counts.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) commits: AtomicU64,
    pub(super) entries: AtomicU64,
    pub(super) forgotten: AtomicU64,
    pub(super) slow_decisions: AtomicU64,
    pub(super) losses: Losses,
    /// About how many bytes wait, those of the batch that is gathering included.
    bytes_waiting: AtomicUsize,
    told_of_slow: Told,
    told_of_unreadable: Told,
    told_of_unwritable: Told,
    told_of_apart: Told,
    told_of_retry: Told,
    /// Batches that were refused since that was told of.
    refused: AtomicU64,
    told_of_refusal: Told,
}

/// Decides a batch on what was read for it. `head` is the last position given out so far.
fn decide_all(
    world: &mut World,
    head: &mut i64,
    now_micros: i64,
    batch: &mut Vec<Waiting>,
    counters: &Counters,
) -> (Writes, Vec<Answer>) {
    let mut writes = Writes::default();
    let decide = |Waiting { entry, answer }| {
        if let Some(row) = world.unreadable_to(&entry) {
            counters.could_not_read(&row, &entry.cause.request);
            return (Ended::refused(SubmitError::Unreadable, entry.cause.request), answer);
        }
        let ended = batch::decide(world, &mut writes, head, now_micros, entry);
        if let Some(error) = &ended.unfit {
            counters.could_not_write(error, &ended.request);
        }
        if ended.took >= SLOW {
            counters.was_slow(&ended);
        }
        (ended, answer)
    };
    let ended = batch.drain(..).map(decide).collect();
    (writes, ended)
}

/// What became of an entry, and who waits for it.
type Answer = (Ended, oneshot::Sender<Result<Committed, SubmitError>>);

impl Counters {
    /// Counts an entry's bytes among those that wait, and answers how many those are then.
    pub(super) fn waits(&self, bytes: usize) -> usize {
        self.bytes_waiting.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    /// These bytes wait no more: they were refused, or taken for a batch.
    pub(super) fn waits_no_more(&self, bytes: usize) {
        self.bytes_waiting.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts a decision that held up the others, and tells of it, unless one was told of just now.
    fn was_slow(&self, ended: &Ended) {
        let slow_decisions = self.slow_decisions.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.told_of_slow.is_due() {
            return;
        }
        let Ended { request, took, .. } = ended;
        let took_ms = took.as_secs_f64() * 1_000.0;
        tracing::warn!(request, took_ms, slow_decisions, "a slow decision: all other commands waited for it");
    }

    /// Tells a person of a row that can't be read, unless one was told of just now.
    pub(super) fn could_not_read(&self, row: &unreadable::Row<'_>, request: &str) {
        if self.told_of_unreadable.is_due() {
            let unreadable::Row { table, key, why } = row;
            tracing::error!(
                table,
                key,
                error = why,
                request,
                "a row can't be read: who names it is refused. If a newer program wrote it, start that one; else mend the row from a backup"
            );
        }
    }

    /// Tells a person of a batch of which nothing was written, and of those since one was told of, unless one was told of just now.
    fn refused(&self, error: &Error) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if self.told_of_refusal.is_due() {
            let batches = self.refused.swap(0, Ordering::Relaxed);
            tracing::warn!(%error, batches, "a batch was not committed; nothing of it was written");
        }
    }

    /// Tells everybody in a batch what became of it, once that is durable.
    fn answer(&self, ended: Vec<Answer>) {
        self.entries.fetch_add(ended.len() as u64, Ordering::Relaxed);
        for (Ended { result, on_commit, .. }, answer) in ended {
            on_commit.into_iter().for_each(|tell| tell());
            // Whoever asked may have left: what was decided holds all the same.
            let _ = answer.send(result);
        }
    }

    /// The log has lost what it ended with, as after a failover to a server that had not come so far. Whoever has told of more in it finds
    /// out by the count.
    fn lost_tail(&self, ended: i64, ends: i64) {
        self.losses.add();
        tracing::warn!(
            ended,
            ends,
            "the log has lost its last events, as after a failover to a server that had not come so far: what was answered since may be gone"
        );
    }

    /// A transaction is durable, and so many stored answers are gone with it.
    fn committed(&self, forgotten: u64) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.forgotten.fetch_add(forgotten, Ordering::Relaxed);
    }

    fn told(&self) {
        let (commits, entries) = (self.commits.load(Ordering::Relaxed), self.entries.load(Ordering::Relaxed));
        tracing::info!(commits, entries, "journal closed");
    }
}

/// What became of a batch that was to be written.
enum Written {
    /// It is durable, and so many stored answers are gone.
    Durable(u64),
    /// Nothing of it was written.
    Nothing(Error),
}

/// The rows that a batch comes to, a set a table.
struct Sets {
    aggregates: Vec<Vec<Value>>,
    events: Vec<Vec<Value>>,
    requests: Vec<Vec<Value>>,
    rows: Vec<Row>,
    forgotten: Vec<Forgotten>,
    /// The aggregates among them.
    changed: Vec<AggregateId>,
}

impl Sets {
    fn of(world: &World, writes: Writes, now_micros: i64) -> Self {
        let Writes { aggregates: mut changed, requests, events, rows, forgotten } = writes;
        changed.sort_unstable();
        changed.dedup();
        let aggregate_row = |id: &AggregateId| {
            world.aggregates.get(id).map(|aggregate| {
                let version = i64::try_from(aggregate.version).unwrap_or(i64::MAX);
                vec![Value::Text(id.kind.into()), (*id.id).into(), version.into(), aggregate.state.clone().into()]
            })
        };
        let known = |key: &String| world.requests.get(key).map(|known| known.row(key, now_micros));
        Self {
            aggregates: changed.iter().filter_map(aggregate_row).collect(),
            events: events.into_iter().map(|event| event.row(now_micros)).collect(),
            requests: requests.iter().filter_map(known).collect(),
            rows,
            forgotten,
            changed,
        }
    }
}

impl Aggregate {
    /// Reads its row.
    pub(super) fn read(record: &Record) -> Result<Self, Error> {
        Ok(Self { version: record.int(2)?.unsigned_abs(), state: record.blob(3)? })
    }
}

impl World {
    fn learn_requests(&mut self, records: &[Record]) -> Result<(), Error> {
        for record in records {
            match Known::read(record) {
                Ok((key, known)) => _ = self.requests.insert(key, known),
                Err(error) => self.unreadable.put_aside(&REQUESTS, record, error)?,
            }
        }
        Ok(())
    }

    fn learn_aggregates(&mut self, kinds: &[&'static str], records: &[Record]) -> Result<(), Error> {
        for record in records {
            let kind = record.text(0)?;
            if let Some(kind) = kinds.iter().find(|known| **known == kind) {
                match Aggregate::read(record) {
                    Ok(aggregate) => _ = self.aggregates.insert(AggregateId::new(kind, record.text(1)?), aggregate),
                    Err(error) => self.unreadable.put_aside(&AGGREGATES, record, error)?,
                }
            }
        }
        Ok(())
    }
}

/// The keys that a batch names, each once, as they are looked up.
struct Named {
    requests: Vec<Vec<Value>>,
    /// Those that the cache doesn't hold.
    aggregates: Vec<Vec<Value>>,
    kinds: Vec<&'static str>,
    cached: HashMap<AggregateId, Aggregate>,
}

impl Named {
    fn of(batch: &[Waiting], cached: impl Fn(&AggregateId) -> Option<Aggregate>) -> Self {
        let look = cached;
        let mut keys: HashSet<&str> = HashSet::new();
        let mut ids: HashSet<&AggregateId> = HashSet::new();
        for Waiting { entry, .. } in batch {
            if let Some(request) = &entry.request {
                keys.insert(&request.key);
                if let Role::Compensation { action, .. } = &request.role {
                    keys.insert(action);
                }
            }
            ids.extend(&entry.aggregates);
        }
        let mut cached = HashMap::with_capacity(ids.len());
        ids.retain(|id| match look(id) {
            Some(aggregate) => {
                cached.insert((*id).clone(), aggregate);
                false
            }
            None => true,
        });
        let mut kinds: Vec<&'static str> = ids.iter().map(|id| id.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        Self {
            requests: keys.into_iter().map(|key| vec![key.into()]).collect(),
            aggregates: ids.into_iter().map(|id| vec![id.kind.into(), (*id.id).into()]).collect(),
            kinds,
            cached,
        }
    }
}

/// The wall clock, in microseconds since 1970.
fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
