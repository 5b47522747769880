//! The committer: one a database, the only one who writes.
//!
//! It takes all that waits, reads what the batch needs, decides in memory, writes set by set, commits once, then answers
//! all. While one batch is being synced the next one gathers; only under load, where a batch of many is about to be followed by
//! one of few, does it wait a little for more.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::RwLock;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};

use super::{
    batch::{self, Ended, World, Writes},
    cache::Cache,
    entry::{Aggregate, AggregateId, Committed, Entry, Role, SubmitError, Table},
    log::EVENTS,
    requests::{Known, REQUESTS},
    sql::{self, Error, Value, Write},
    sqlite::Writer,
};

/// The most entries in a batch, and about the most bytes.
const MOST_ENTRIES: usize = 256;
pub(super) const MOST_BYTES: usize = 8 << 20;

/// How long a batch waits for as many entries as the one before it had, and how many of those are worth waiting for.
const LINGER: Duration = Duration::from_millis(5);
const FEW: usize = 8;

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
    pub(super) cache: Arc<RwLock<Cache>>,
    pub(super) waiting: mpsc::Receiver<Waiting>,
    pub(super) head: watch::Sender<i64>,
    pub(super) counters: Arc<Counters>,
}

impl Committer {
    /// Commits until the journal is closed and nothing waits, or until the database fails.
    ///
    /// # Errors
    /// The database's error. It must end the process: what a failed commit left on disk is found out by opening it again.
    pub(super) fn run(mut self) -> Result<(), Error> {
        let runtime = Handle::current();
        let mut batch = Vec::with_capacity(MOST_ENTRIES);
        let mut expected = 0;
        while let Some(first) = self.waiting.blocking_recv() {
            let mut size = first.entry.size;
            batch.push(first);
            let mut deadline = None;
            while batch.len() < MOST_ENTRIES && size < MOST_BYTES {
                let next = match self.waiting.try_recv() {
                    Ok(next) => next,
                    Err(_) if batch.len() >= expected => break,
                    Err(_) => {
                        let deadline = *deadline.get_or_insert_with(|| Instant::now() + LINGER);
                        match runtime.block_on(async { timeout_at(deadline, self.waiting.recv()).await }) {
                            Ok(Some(next)) => next,
                            Ok(None) | Err(_) => break,
                        }
                    }
                };
                size += next.entry.size;
                batch.push(next);
            }
            expected = if batch.len() < FEW { 0 } else { batch.len() };
            self.commit(&mut batch)?;
        }
        let (commits, entries) = (&self.counters.commits, &self.counters.entries);
        let (commits, entries) = (commits.load(Ordering::Relaxed), entries.load(Ordering::Relaxed));
        self.writer.close();
        tracing::info!(commits, entries, "journal closed");
        Ok(())
    }

    fn commit(&mut self, batch: &mut Vec<Waiting>) -> Result<(), Error> {
        let named = Named::of(batch, &self.cache.read());
        let mut world = self.read(named)?;
        let now_micros = now_micros();
        let mut head = *self.head.borrow();
        let mut writes = Writes::default();
        let mut ended: Vec<(Ended, oneshot::Sender<_>)> = Vec::with_capacity(batch.len());
        for Waiting { entry, answer } in batch.drain(..) {
            ended.push((batch::decide(&mut world, &mut writes, &mut head, now_micros, entry), answer));
        }
        if !writes.is_empty() {
            self.write(&world, writes, now_micros)?;
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
    fn read(&self, named: Named) -> Result<World, Error> {
        let mut world = World { aggregates: named.cached, ..World::default() };
        let connection = &self.writer.connection;
        if !named.requests.is_empty() {
            for record in sql::fetch_keys(connection, &REQUESTS, &named.requests)? {
                let (key, known) = Known::read(&record)?;
                world.requests.insert(key, known);
            }
        }
        if !named.aggregates.is_empty() {
            for record in sql::fetch_keys(connection, &AGGREGATES, &named.aggregates)? {
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
    fn write(&self, world: &World, writes: Writes, now_micros: i64) -> Result<(), Error> {
        let Writes { mut aggregates, requests, events, rows } = writes;
        aggregates.sort_unstable();
        aggregates.dedup();
        let aggregate_row = |id: &AggregateId| {
            world.aggregates.get(id).map(|aggregate| {
                let version = i64::try_from(aggregate.version).unwrap_or(i64::MAX);
                vec![Value::Text(id.kind.into()), (*id.id).into(), version.into(), aggregate.state.clone().into()]
            })
        };
        let known = |key: &String| world.requests.get(key).map(|known| known.row(key, now_micros));
        let aggregate_rows: Vec<_> = aggregates.iter().filter_map(aggregate_row).collect();
        let events: Vec<_> = events.into_iter().map(|event| event.row(now_micros)).collect();
        let known: Vec<_> = requests.iter().filter_map(known).collect();
        let connection = &self.writer.connection;
        sql::begin(connection)?;
        sql::write(connection, &AGGREGATES, Write::Upsert, &aggregate_rows)?;
        sql::write(connection, &EVENTS, Write::Insert, &events)?;
        sql::write(connection, &REQUESTS, Write::Insert, &known)?;
        sql::upsert(connection, rows)?;
        sql::commit(connection)?;
        self.cache.write().learn(world, aggregates);
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
        ids.retain(|id| match cache.get(id) {
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
