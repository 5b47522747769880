//! The committer on SQLite, in a thread of its own.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};

use super::{
    AGGREGATES, Counters, MOST_ENTRIES, Named, Sets, Waiting, Written, apart::Suspects, codes::is_unwritable,
    decide_all, gather::Gathering, now_micros,
};
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
        let mut gathering = Gathering::on_own_thread();
        while let Some(size) = runtime.block_on(gathering.next(&mut self.waiting, &mut batch)) {
            self.counters.waits_no_more(size);
            self.commit(&mut batch, &mut gathering.suspects)?;
        }
        self.writer.close();
        self.counters.told();
        Ok(())
    }

    fn commit(&mut self, batch: &mut Vec<Waiting>, suspects: &mut Suspects) -> Result<(), Error> {
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
            let forgotten = match self.write(&sets)? {
                Written::Durable(forgotten) => forgotten,
                Written::Nothing(error) => {
                    self.counters.unwritable(ended, &error, suspects);
                    return Ok(());
                }
            };
            self.writer.will_be_found()?;
            // Whoever sees the new states finds the new head, too: a token that is made of both is never older than what it stands for.
            let mut cache = self.cache.write();
            cache.learn(&world, sets.changed);
            self.recent.learn(events);
            self.counters.committed(forgotten);
            self.head.send_if_modified(|position| std::mem::replace(position, head) != head);
            drop(cache);
        }
        self.counters.answer(ended);
        Ok(())
    }

    /// Reads all that the batch names, once.
    fn read(&self, named: Named) -> Result<World, Error> {
        let mut world = World { aggregates: named.cached, ..World::default() };
        let connection = &self.writer.connection;
        if !named.requests.is_empty() {
            let records = world.unreadable.fetch(connection, &REQUESTS, &named.requests)?;
            world.learn_requests(&records)?;
        }
        if !named.aggregates.is_empty() {
            let records = world.unreadable.fetch(connection, &AGGREGATES, &named.aggregates)?;
            world.learn_aggregates(&named.kinds, &records)?;
        }
        Ok(world)
    }

    /// Writes and commits, unless rows beside the journal's own are refused: those of its own tables are as this process left them, or it
    /// must end.
    fn write(&self, sets: &Sets) -> Result<Written, Error> {
        let connection = &self.writer.connection;
        sql::begin(connection)?;
        sql::write(connection, &AGGREGATES, Write::Upsert, &sets.aggregates)?;
        sql::write(connection, &EVENTS, Write::Insert, &sets.events)?;
        sql::write(connection, &REQUESTS, Write::Insert, &sets.requests)?;
        if let Err(error) = sql::upsert(connection, &sets.rows) {
            return self.roll_back(error);
        }
        let mut forgotten = 0;
        for Forgotten { keys, stored_before_micros } in &sets.forgotten {
            forgotten += sql::delete_older(connection, &REQUESTS, keys, *stored_before_micros)?;
        }
        match sql::commit(connection) {
            Ok(()) => Ok(Written::Durable(forgotten)),
            // What a constraint that is checked at the end refuses is not begun to be committed: the transaction is open yet.
            Err(error) if !connection.is_autocommit() => self.roll_back(error),
            Err(error) => Err(error),
        }
    }

    /// Writes nothing, if it is what was to be written that is refused.
    fn roll_back(&self, error: Error) -> Result<Written, Error> {
        if !is_unwritable(&error) {
            return Err(error);
        }
        sql::roll_back(&self.writer.connection)?;
        Ok(Written::Nothing(error))
    }
}
