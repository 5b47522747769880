//! The write side's storage: decisions go in, state, events and stored replies are committed together.
//!
//! One committer a database takes whatever waits, decides it in order in memory and commits it as one batch: one sync and
//! a handful of statements, whatever the batch's size. The events are the outbox: readers follow them by position.

mod batch;
mod beside;
mod cache;
mod committer;
mod definition;
mod entry;
mod location;
mod log;
mod losses;
mod members;
mod names;
mod postgres;
mod recent;
#[cfg(feature = "cqrs")]
mod refused_reads;
mod requests;
mod session;
#[cfg(test)]
#[cfg_attr(not(feature = "saga"), allow(dead_code, unused_imports, reason = "only sagas are simulated"))]
pub(crate) mod simulated;
pub mod sql;
pub mod sqlite;
pub mod store;
mod unreadable;
mod wal;

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::{Mutex, RwLock};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
};

pub use self::{
    beside::Beside,
    entry::{
        Aggregate, AggregateId, Cause, Change, Committed, Decided, Entry, Forgotten, Loaded, NewEvent, Outcome,
        RequestKey, Role, Row, SubmitError, Table,
    },
    location::Location,
    log::{Event, events_after, head, head_of_primary},
    losses::Losses,
    members::Member,
    names::Names,
    recent::Recent,
    requests::{Answered, answered_after},
    sqlite::OpenError,
};
use self::{
    cache::Cache,
    committer::{AGGREGATES, Counters, MOST_BYTES, PostgresCommitter, SqliteCommitter, Tail, Waiting},
    log::EVENTS,
    members::MEMBERS,
    postgres::Server,
    requests::REQUESTS,
    sql::Reader,
    sqlite::{Durability, Writer},
};
#[cfg(feature = "cqrs")]
pub(crate) use self::{log::batch_after, refused_reads::RefusedReads};

/// How many entries may wait for the committer, and about how many bytes.
const MOST_WAITING: usize = 4096;
const MOST_BYTES_WAITING: usize = 64 << 20;
/// How many may read at once.
const READERS: usize = 4;
/// How many sessions write: the committer's, and those that ask what became of it and say who is there.
const WRITERS: usize = 3;

/// The journal of one database. Clones share it.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    location: Location,
    /// None once the journal is closed.
    queue: Mutex<Option<mpsc::Sender<Waiting>>>,
    head: watch::Receiver<i64>,
    reader: Reader,
    /// Where others may write too it is no more than what this process wrote.
    cache: Arc<RwLock<Cache>>,
    /// Stays empty where others may write too.
    recent: Recent,
    /// None on SQLite.
    server: Option<Server>,
    counters: Arc<Counters>,
    /// Tells how the committer ended; taken by the one who waits for it.
    ended: Mutex<Option<oneshot::Receiver<Result<(), sql::Error>>>>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.entry.fmt(f)
    }
}

/// What the journal has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Transactions committed; on SQLite each is one sync of the log.
    pub commits: u64,
    /// Entries decided, repetitions included.
    pub entries: u64,
    /// Stored answers that were let go of.
    pub forgotten: u64,
    /// Decisions that held up the others of their batch for 10 ms or longer.
    pub slow_decisions: u64,
}

impl Journal {
    /// Opens the database, making what is missing, and starts its committer. `tables` are kept beside the journal's own, in the
    /// same transactions. A SQLite file has one process at a time; on PostgreSQL many take turns.
    ///
    /// # Errors
    /// When the database is in use, can't be opened, or can't promise durability, or a table has another one's name.
    pub async fn open(location: impl Into<Location>, tables: &[&'static Table]) -> Result<Self, OpenError> {
        let location = location.into();
        Names::of_journal(tables)?;
        let mut all = vec![&AGGREGATES, &EVENTS, &REQUESTS];
        all.extend(tables);
        let failed = |source| OpenError::Database { location: location.clone(), source };
        let (queue, waiting) = mpsc::channel(MOST_WAITING);
        let counters = Arc::<Counters>::default();
        let cache = Arc::<RwLock<Cache>>::default();
        let (tell, ended) = oneshot::channel();
        let (head, watched) = watch::channel(0);
        let recent = Recent::default();
        let (reader, server) = match &location {
            Location::Sqlite(path) => {
                let writer = Writer::open(path, Durability::Full, &all)?;
                let reader = sqlite::readers(path, READERS)?;
                head.send_replace(log::head(&reader).await.map_err(failed)?);
                let (cache, recent, counters) = (Arc::clone(&cache), recent.clone(), Arc::clone(&counters));
                let committer = SqliteCommitter { writer, cache, recent, waiting, head, counters };
                start(committer, tell).map_err(|source| OpenError::File { path: path.clone(), source })?;
                (reader, None)
            }
            Location::Postgres { .. } => {
                all.push(&MEMBERS);
                let server = Server::open(&location, WRITERS, &all).await?;
                let reader = Reader::postgres(Server::readers(&location, READERS)?);
                head.send_replace(log::head(&reader).await.map_err(failed)?);
                let (cache, counters) = (Arc::clone(&cache), Arc::clone(&counters));
                let committer = PostgresCommitter {
                    server: server.clone(),
                    cache,
                    waiting,
                    head,
                    counters,
                    is_out: false,
                    tail: Tail::default(),
                };
                tokio::spawn(async move { tell.send(committer.run().await) });
                (reader, Some(server))
            }
        };
        Ok(Self(Arc::new(Shared {
            location,
            queue: Mutex::new(Some(queue)),
            head: watched,
            reader,
            cache,
            recent,
            server,
            counters,
            ended: Mutex::new(Some(ended)),
        })))
    }

    /// Whether other processes may write to the database too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.0.server.is_some()
    }

    /// Enters this process among those that share the database. None on SQLite, where the file has one process.
    ///
    /// # Errors
    /// When the server can't be asked.
    pub async fn join(&self) -> Result<Option<Member>, sql::Error> {
        match &self.0.server {
            Some(server) => Member::enter(server.clone()).await.map(Some),
            None => Ok(None),
        }
    }

    /// Has an entry decided and committed. When this returns, what it came to is durable.
    ///
    /// # Errors
    /// [`SubmitError::Full`] at once when too much waits, before anything is written, [`SubmitError::TooLarge`] for what is over 8 MiB; the
    /// others as they say.
    ///
    /// # Cancel safety
    /// Leaving changes nothing: an entry that was taken is decided and committed all the same.
    pub async fn submit(&self, entry: Entry) -> Result<Committed, SubmitError> {
        let size = entry.size;
        if size > MOST_BYTES {
            return Err(SubmitError::TooLarge);
        }
        let (answer, answered) = Self::waiting(entry);
        let (queue, counters) = (self.queue()?, &self.0.counters);
        let room = queue.try_reserve().map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(()) => SubmitError::Full,
            mpsc::error::TrySendError::Closed(()) => SubmitError::Closed,
        })?;
        if counters.waits(size) > MOST_BYTES_WAITING {
            counters.waits_no_more(size);
            return Err(SubmitError::Full);
        }
        room.send(answer);
        drop(queue);
        answered.await.unwrap_or(Err(SubmitError::Closed))
    }

    /// Like [`submit`](Self::submit), but waits for room in the queue, and may be of any size: for work that was admitted before, such as
    /// the next step of a saga.
    ///
    /// # Errors
    /// All of [`SubmitError`] but Full and TooLarge.
    pub async fn submit_admitted(&self, entry: Entry) -> Result<Committed, SubmitError> {
        let size = entry.size;
        let (answer, answered) = Self::waiting(entry);
        let queue = self.queue()?;
        let room = queue.reserve().await.map_err(|_| SubmitError::Closed)?;
        self.0.counters.waits(size);
        room.send(answer);
        drop(queue);
        answered.await.unwrap_or(Err(SubmitError::Closed))
    }

    /// Lets go of stored answers, in a transaction with whatever else waits.
    ///
    /// # Errors
    /// All of [`SubmitError`] but Panicked.
    pub async fn forget(&self, forgotten: Forgotten) -> Result<(), SubmitError> {
        let size = forgotten.keys.iter().map(String::len).sum();
        let decide = move |_: &Loaded<'_>| Decided { forgotten: vec![forgotten], ..Decided::default() };
        let (request, aggregates, cause) = (None, Vec::new(), Cause::default());
        self.submit(Entry { request, aggregates, cause, decide: Box::new(decide), size }).await.map(drop)
    }

    /// The position of the last event that is durable; changes with every batch.
    #[must_use]
    pub fn head(&self) -> watch::Receiver<i64> {
        self.0.head.clone()
    }

    /// The last events of the log, in memory.
    #[must_use]
    pub fn recent(&self) -> &Recent {
        &self.0.recent
    }

    /// Reads the journal's database; can't write.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.0.reader
    }

    /// One aggregate as it is committed, from memory where it is hot.
    ///
    /// # Errors
    /// When the database can't be read.
    pub async fn aggregate(&self, id: &AggregateId) -> Result<Aggregate, sql::Error> {
        if !self.is_shared() {
            return self.aggregate_as_written(id).await;
        }
        self.stored_aggregate(id).await
    }

    /// One aggregate as this process wrote it last, where it did so lately: others may have written it since. Else as it is committed.
    ///
    /// # Errors
    /// When the database can't be read.
    pub async fn aggregate_as_written(&self, id: &AggregateId) -> Result<Aggregate, sql::Error> {
        if let Some(aggregate) = self.0.cache.read().get(id) {
            return Ok(aggregate);
        }
        self.stored_aggregate(id).await
    }

    async fn stored_aggregate(&self, id: &AggregateId) -> Result<Aggregate, sql::Error> {
        let key = vec![vec![id.kind.into(), (*id.id).into()]];
        let found = self.0.reader.fetch_keys(&AGGREGATES, key).await?;
        let Some(record) = found.first() else { return Ok(Aggregate::default()) };
        Aggregate::read(record)
    }

    /// Several aggregates of a kind as they are committed, with their ids and in any order; for one that can't be read, why. Those that
    /// aren't there are left out. They are the primary's: a standby may have yet to replay the newest.
    ///
    /// # Errors
    /// When the database can't be read, or only a standby.
    pub async fn aggregates(
        &self,
        kind: &'static str,
        ids: impl Iterator<Item = &str>,
    ) -> Result<Vec<(String, Result<Aggregate, sql::Error>)>, sql::Error> {
        let keys = ids.map(|id| vec![kind.into(), id.into()]).collect();
        let found = self.0.reader.fetch_keys_of_primary(&AGGREGATES, keys).await?.ok_or(sql::Error::Standby)?;
        let aggregate = |record: &sql::Record| {
            let (id, aggregate) = (record.text(1)?, Aggregate::read(record));
            if let Err(error) = &aggregate {
                let row =
                    unreadable::Row { table: AGGREGATES.name, key: format!("{kind} {id}"), why: &error.to_string() };
                self.0.counters.could_not_read(&row, "");
            }
            Ok((id, aggregate))
        };
        found.iter().map(aggregate).collect()
    }

    /// Where the database is.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.0.location
    }

    /// What was done since the journal was opened, by this process.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counters = &self.0.counters;
        Stats {
            commits: counters.commits.load(Ordering::Relaxed),
            entries: counters.entries.load(Ordering::Relaxed),
            forgotten: counters.forgotten.load(Ordering::Relaxed),
            slow_decisions: counters.slow_decisions.load(Ordering::Relaxed),
        }
    }

    /// Waits until the committer ends: after [`close`](Self::close) without an error, else with the database's.
    /// The process must end then; opening the database again finds out what became of the last batch. One caller only.
    ///
    /// # Errors
    /// The database's error.
    pub async fn ended(&self) -> Result<(), CommitError> {
        let ended = self.0.ended.lock().take();
        let Some(ended) = ended else { return std::future::pending().await };
        let location = || self.0.location.clone();
        match ended.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(sql::Error::Gone(why))) => Err(CommitError::Gone { location: location(), why }),
            Ok(Err(sql::Error::Unanswered { ended, time, why })) => {
                Err(CommitError::Unanswered { location: location(), message: why.to_string(), ended, time })
            }
            Ok(Err(source)) => Err(CommitError::Failed { location: location(), message: source.to_string() }),
            Err(_) => Err(CommitError::Failed { location: location(), message: "the committer panicked".to_owned() }),
        }
    }

    /// How often the log has lost its last events.
    #[must_use]
    pub fn losses(&self) -> &Losses {
        &self.0.counters.losses
    }

    /// Takes nothing more, and lets what waits be committed. [`ended`](Self::ended) tells when that is done.
    pub fn close(&self) {
        self.0.queue.lock().take();
    }

    fn queue(&self) -> Result<mpsc::Sender<Waiting>, SubmitError> {
        self.0.queue.lock().clone().ok_or(SubmitError::Closed)
    }

    fn waiting(entry: Entry) -> (Waiting, oneshot::Receiver<Result<Committed, SubmitError>>) {
        let (answer, answered) = oneshot::channel();
        (Waiting { entry, answer }, answered)
    }
}

/// Gives the committer a thread of its own: from taking a batch to answering it, nothing is handed to anyone else.
fn start(committer: SqliteCommitter, tell: oneshot::Sender<Result<(), sql::Error>>) -> io::Result<()> {
    let runtime = Handle::current();
    std::thread::Builder::new().name("committer".to_owned()).spawn(move || {
        // Those who are told of a commit may start tasks.
        let _context = runtime.enter();
        // Nobody may be waiting for the end.
        let _ = tell.send(committer.run());
    })?;
    Ok(())
}

/// The database failed under a commit. Nothing more is taken; the process must end.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// It can't be written.
    #[error("{location}: {message}: stopping; what was answered is safe, start again to find out about the rest")]
    Failed {
        /// Which database.
        location: Location,
        /// Its word.
        message: String,
    },
    /// Nobody says what became of a commit, and another server may be promoted that has not come as far as what was answered before.
    #[error(
        "{location}: {message}: stopping; the events of what was answered stand if the log has event {ended} of time {time} when a server \
         takes over, start again to find out about the rest"
    )]
    Unanswered {
        /// Which database.
        location: Location,
        /// What was said last.
        message: String,
        /// The position of the last event before the commit.
        ended: i64,
        /// That event's time, in microseconds since 1970.
        time: i64,
    },
    /// It isn't there.
    #[error(
        "{location}: {why}: stopping; what was answered before that is only where the file is now, and another start begins with what is here"
    )]
    Gone {
        /// Which database.
        location: Location,
        /// What became of it.
        why: String,
    },
}
