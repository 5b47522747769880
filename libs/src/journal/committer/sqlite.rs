//! The committer on SQLite, in a thread of its own.
//!
//! While one batch is being synced the next one gathers; only under load, where a batch of many is about to be followed by one of
//! few, does it wait a little for more.

use std::{sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};

use super::{AGGREGATES, Counters, MOST_BYTES, MOST_ENTRIES, Named, Sets, Waiting, decide_all, now_micros};
use crate::journal::{
    batch::World,
    cache::Cache,
    entry::Forgotten,
    log::{EVENTS, Event},
    recent::Recent,
    requests::REQUESTS,
    sql::{self, Error, Write},
    sqlite::Writer,
};

/// How long a batch waits for as many entries as the one before it had, and how many of those are worth waiting for.
const LINGER: Duration = Duration::from_millis(5);
const FEW: usize = 8;

/// The committer's side of the journal.
pub(in crate::journal) struct Committer {
    pub(in crate::journal) writer: Writer,
    pub(in crate::journal) cache: Arc<RwLock<Cache>>,
    pub(in crate::journal) recent: Recent,
    pub(in crate::journal) waiting: mpsc::Receiver<Waiting>,
    pub(in crate::journal) head: watch::Sender<i64>,
    pub(in crate::journal) counters: Arc<Counters>,
}

impl Committer {
    /// Commits until the journal is closed and nothing waits, or until the database fails.
    ///
    /// # Errors
    /// The database's error. It must end the process: what a failed commit left on disk is found out by opening it again.
    pub(in crate::journal) fn run(mut self) -> Result<(), Error> {
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
            self.counters.waits_no_more(size);
            self.commit(&mut batch)?;
        }
        self.writer.close();
        self.counters.told();
        Ok(())
    }

    fn commit(&mut self, batch: &mut Vec<Waiting>) -> Result<(), Error> {
        let cache = self.cache.read();
        let named = Named::of(batch, |id| cache.get(id));
        drop(cache);
        let mut world = self.read(named)?;
        let now_micros = now_micros();
        let mut head = *self.head.borrow();
        let (writes, ended) = decide_all(&mut world, &mut head, now_micros, batch, &self.counters);
        if !writes.is_empty() {
            let events: Vec<Event> = writes.events.iter().map(|event| event.event(now_micros)).collect();
            let sets = Sets::of(&world, writes, now_micros);
            let forgotten = self.write(&sets)?;
            self.cache.write().learn(&world, sets.changed);
            self.recent.learn(events);
            self.counters.committed(forgotten);
            self.head.send_if_modified(|position| std::mem::replace(position, head) != head);
        }
        self.counters.answer(ended);
        Ok(())
    }

    /// Reads all that the batch names, once.
    fn read(&self, named: Named) -> Result<World, Error> {
        let mut world = World { aggregates: named.cached, ..World::default() };
        let connection = &self.writer.connection;
        if !named.requests.is_empty() {
            world.learn_requests(&sql::fetch_keys(connection, &REQUESTS, &named.requests)?)?;
        }
        if !named.aggregates.is_empty() {
            let records = sql::fetch_keys(connection, &AGGREGATES, &named.aggregates)?;
            world.learn_aggregates(&named.kinds, &records)?;
        }
        Ok(world)
    }

    /// Writes and commits: durable when it returns. Answers how many stored answers are gone.
    fn write(&self, sets: &Sets) -> Result<u64, Error> {
        let connection = &self.writer.connection;
        sql::begin(connection)?;
        sql::write(connection, &AGGREGATES, Write::Upsert, &sets.aggregates)?;
        sql::write(connection, &EVENTS, Write::Insert, &sets.events)?;
        sql::write(connection, &REQUESTS, Write::Insert, &sets.requests)?;
        sql::upsert(connection, &sets.rows)?;
        let mut forgotten = 0;
        for Forgotten { keys, stored_before_micros } in &sets.forgotten {
            forgotten += sql::delete_older(connection, &REQUESTS, "time", keys, *stored_before_micros)?;
        }
        sql::commit(connection)?;
        Ok(forgotten)
    }
}
