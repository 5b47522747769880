//! The committer: one a database, the only one who writes.
//!
//! It takes all that waits, reads what the batch needs, decides in memory, writes set by set, commits once, then answers
//! all. There is no timer: while one batch is being synced the next one gathers.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    batch::{self, Ended, World, Writes},
    entry::{Aggregate, AggregateId, Committed, Entry, Role, SubmitError, Table},
    log::EVENTS,
    requests::{Known, REQUESTS},
    sql::{self, Statements, Value, Write},
    sqlite::Writer,
};

/// The most entries in a batch, and about the most bytes.
const MOST_ENTRIES: usize = 256;
pub(super) const MOST_BYTES: usize = 8 << 20;

pub(super) static AGGREGATES: Table = Table {
    name: "aggregates",
    create: &["CREATE TABLE IF NOT EXISTS aggregates (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        version INTEGER NOT NULL,
        state BLOB NOT NULL,
        PRIMARY KEY (kind, id)
    ) WITHOUT ROWID"],
    columns: &["kind", "id", "version", "state"],
    key: 2,
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
}

/// The committer's side of the journal.
pub(super) struct Committer {
    pub(super) writer: Writer,
    pub(super) cache: Cache,
    pub(super) waiting: mpsc::Receiver<Waiting>,
    pub(super) head: watch::Sender<i64>,
    pub(super) counters: Arc<Counters>,
}

impl Committer {
    /// Commits until the journal is closed and nothing waits, or until the database fails.
    ///
    /// # Errors
    /// The database's error. It must end the process: what a failed commit left on disk is found out by opening it again.
    pub(super) async fn run(mut self) -> Result<(), sqlx::Error> {
        let mut batch = Vec::with_capacity(MOST_ENTRIES);
        while let Some(first) = self.waiting.recv().await {
            let mut size = first.entry.size;
            batch.push(first);
            while batch.len() < MOST_ENTRIES && size < MOST_BYTES {
                let Ok(next) = self.waiting.try_recv() else { break };
                size += next.entry.size;
                batch.push(next);
            }
            self.commit(&mut batch).await?;
        }
        let (commits, entries) = (&self.counters.commits, &self.counters.entries);
        let (commits, entries) = (commits.load(Ordering::Relaxed), entries.load(Ordering::Relaxed));
        self.writer.close().await;
        tracing::info!(commits, entries, "journal closed");
        Ok(())
    }

    async fn commit(&mut self, batch: &mut Vec<Waiting>) -> Result<(), sqlx::Error> {
        let mut world = self.read(Named::of(batch, &self.cache)).await?;
        let now_micros = now_micros();
        let mut head = *self.head.borrow();
        let mut writes = Writes::default();
        let mut ended: Vec<(Ended, oneshot::Sender<_>)> = Vec::with_capacity(batch.len());
        for Waiting { entry, answer } in batch.drain(..) {
            ended.push((batch::decide(&mut world, &mut writes, &mut head, now_micros, entry), answer));
        }
        if !writes.is_empty() {
            self.write(&world, writes, now_micros).await?;
            self.counters.commits.fetch_add(1, Ordering::Relaxed);
            self.head.send_if_modified(|position| std::mem::replace(position, head) != head);
        }
        self.counters.entries.fetch_add(ended.len() as u64, Ordering::Relaxed);
        for (Ended { result, on_commit }, answer) in ended {
            on_commit.into_iter().for_each(|tell| tell());
            // Whoever asked may have left: what was decided holds all the same.
            let _ = answer.send(result);
        }
        Ok(())
    }

    /// Reads all that the batch names, once.
    async fn read(&mut self, named: Named) -> Result<World, sqlx::Error> {
        let mut world = World { aggregates: named.cached, ..World::default() };
        let connection = &mut self.writer.connection;
        if !named.requests.is_empty() {
            for record in sql::fetch_keys(connection, &REQUESTS, &named.requests).await? {
                let (key, known) = Known::read(&record)?;
                world.requests.insert(key, known);
            }
        }
        if !named.aggregates.is_empty() {
            for record in sql::fetch_keys(connection, &AGGREGATES, &named.aggregates).await? {
                let kind = record.text(0)?;
                if let Some(kind) = named.kinds.iter().find(|known| **known == kind) {
                    let aggregate = Aggregate { version: record.int(2)?.unsigned_abs(), state: record.blob(3)? };
                    world.aggregates.insert(AggregateId::new(kind, record.text(1)?), aggregate);
                }
            }
        }
        Ok(world)
    }

    /// Writes and commits: durable when it returns.
    async fn write(&mut self, world: &World, writes: Writes, now_micros: i64) -> Result<(), sqlx::Error> {
        let Writes { mut aggregates, requests, events, rows } = writes;
        aggregates.sort_unstable();
        aggregates.dedup();
        let aggregate_row = |id: &AggregateId| {
            world.aggregates.get(id).map(|aggregate| {
                let version = i64::try_from(aggregate.version).unwrap_or(i64::MAX);
                vec![id.kind.into(), (*id.id).into(), version.into(), aggregate.state.clone().into()]
            })
        };
        let known = |key: &String| world.requests.get(key).map(|known| known.row(key, now_micros));
        let mut statements = Statements::default();
        statements.write(&AGGREGATES, Write::Upsert, aggregates.iter().filter_map(aggregate_row).collect());
        let events = events.into_iter().map(|event| event.row(now_micros)).collect();
        statements.write(&EVENTS, Write::Insert, events);
        statements.write(&REQUESTS, Write::Insert, requests.iter().filter_map(known).collect());
        statements.upsert(rows);
        statements.commit(&mut self.writer.connection).await?;
        self.cache.learn(world, aggregates);
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
    fn of(batch: &[Waiting], cache: &Cache) -> Self {
        let mut keys: HashSet<&str> = HashSet::new();
        let mut ids: HashSet<&AggregateId> = HashSet::new();
        for Waiting { entry, .. } in batch {
            if let Some(request) = &entry.request {
                keys.insert(&request.key);
                if let Role::Compensation { action } = &request.role {
                    keys.insert(action);
                }
            }
            ids.extend(&entry.aggregates);
        }
        let mut cached = HashMap::with_capacity(ids.len());
        ids.retain(|id| match cache.aggregates.get(*id) {
            Some(aggregate) => {
                cached.insert((*id).clone(), aggregate.clone());
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

/// Aggregates as they were last committed. The committer is the only writer, so they are the truth; what fills it is the hot
/// ones, and when it is full it starts over.
#[derive(Debug, Default)]
pub(super) struct Cache {
    aggregates: HashMap<AggregateId, Aggregate>,
    bytes: usize,
}

impl Cache {
    const MOST_BYTES: usize = 16 << 20;
    /// About what an entry takes beside its state.
    const OVERHEAD: usize = 150;

    /// Takes in what a commit changed.
    fn learn(&mut self, world: &World, changed: Vec<AggregateId>) {
        if self.bytes > Self::MOST_BYTES {
            *self = Self::default();
        }
        for id in changed {
            if let Some(aggregate) = world.aggregates.get(&id) {
                self.bytes += aggregate.state.len();
                match self.aggregates.insert(id, aggregate.clone()) {
                    Some(before) => self.bytes -= before.state.len().min(self.bytes),
                    None => self.bytes += Self::OVERHEAD,
                }
            }
        }
    }
}

/// The wall clock, in microseconds since 1970.
fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
