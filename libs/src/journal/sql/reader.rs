//! Reading: a few connections that can do nothing else, lent to whoever asks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Error, Record, Value, fetch_keys, query};
use crate::journal::{entry::Table, postgres::Server};

/// How many keys are looked up where they are asked for.
const FEW: usize = 4;

/// Reads, and can do nothing else: its connections are opened read-only. Clones share them.
///
/// A read of a file may wait for the disk, so it runs where that holds up no other task. To hand it there and back takes longer than to
/// find a few rows in memory, though: those are looked up at once, for as long as they are found quickly.
#[derive(Clone, Debug)]
pub struct Reader(Source);

/// Waiting for a server takes kilobytes, which whoever reads a file should not carry along: it is in a box.
#[derive(Clone, Debug)]
enum Source {
    Sqlite(Arc<Connections>),
    Postgres(Server),
}

#[derive(Debug)]
struct Connections {
    idle: Mutex<Vec<Connection>>,
    /// One for each connection.
    turns: Arc<Semaphore>,
    pace: Pace,
}

/// Whether the rows that are looked up are in memory, by how long the last ones took.
#[derive(Debug)]
struct Pace {
    begun: Instant,
    /// In microseconds since then.
    slow_until: AtomicU64,
}

impl Pace {
    /// A look-up in memory takes some ten microseconds. One that takes so long has waited for the disk…
    const QUICK: Duration = Duration::from_millis(1);
    /// … and so may those that follow it.
    const SLOW: Duration = Duration::from_millis(100);

    fn new() -> Self {
        Self { begun: Instant::now(), slow_until: AtomicU64::new(0) }
    }

    fn is_slow(&self) -> bool {
        self.slow_until.load(Ordering::Relaxed) > micros(self.begun.elapsed())
    }

    fn took(&self, time: Duration) {
        if time > Self::QUICK {
            self.slow_until.store(micros(self.begun.elapsed() + Self::SLOW), Ordering::Relaxed);
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Reader {
    /// Lends these connections.
    pub(in crate::journal) fn sqlite(connections: Vec<Connection>) -> Self {
        let turns = Arc::new(Semaphore::new(connections.len()));
        Self(Source::Sqlite(Arc::new(Connections { idle: Mutex::new(connections), turns, pace: Pace::new() })))
    }

    /// Lends a server's connections.
    pub(in crate::journal) const fn postgres(server: Server) -> Self {
        Self(Source::Postgres(server))
    }

    /// Runs a SELECT. Placeholders are `$1`, `$2`, ….
    ///
    /// # Errors
    /// When the statement is wrong or the database can't be read.
    pub async fn fetch(&self, sql: &str, values: Vec<Value>) -> Result<Vec<Record>, Error> {
        match &self.0 {
            Source::Sqlite(connections) => {
                let sql = sql.to_owned();
                connections.read(move |connection| query(connection, &sql, &values)).await
            }
            Source::Postgres(server) => Box::pin(server.fetch(sql, &values)).await,
        }
    }

    /// Runs a SELECT, unless a standby would answer, which may not have replayed all that it has: None then.
    ///
    /// # Errors
    /// As of [`fetch`](Self::fetch).
    pub async fn fetch_of_primary(&self, sql: &str, values: Vec<Value>) -> Result<Option<Vec<Record>>, Error> {
        match &self.0 {
            Source::Sqlite(_) => self.fetch(sql, values).await.map(Some),
            Source::Postgres(server) => Box::pin(server.fetch_of_primary(sql, &values)).await,
        }
    }

    /// Reads the rows with these keys, all columns in the table's order. A key that isn't there gives no row; a row may come
    /// more than once.
    ///
    /// # Errors
    /// When the database can't be read.
    pub async fn fetch_keys(&self, table: &'static Table, keys: Vec<Vec<Value>>) -> Result<Vec<Record>, Error> {
        match &self.0 {
            Source::Sqlite(connections) => {
                let few = keys.len() <= FEW;
                let read = move |connection: &Connection| fetch_keys(connection, table, &keys);
                if few { connections.read_quickly(read).await } else { connections.read(read).await }
            }
            Source::Postgres(server) => Box::pin(server.fetch_keys(table, &keys)).await,
        }
    }

    /// Reads them, unless a standby would answer, which may not have replayed all that it has: None then.
    ///
    /// # Errors
    /// As of [`fetch_keys`](Self::fetch_keys).
    pub async fn fetch_keys_of_primary(
        &self,
        table: &'static Table,
        keys: Vec<Vec<Value>>,
    ) -> Result<Option<Vec<Record>>, Error> {
        match &self.0 {
            Source::Sqlite(_) => self.fetch_keys(table, keys).await.map(Some),
            Source::Postgres(server) => Box::pin(server.fetch_keys_of_primary(table, &keys)).await,
        }
    }
}

impl Connections {
    /// Reads where it is asked for, for as long as that is quick.
    async fn read_quickly<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        if self.pace.is_slow() {
            return self.read(read).await;
        }
        let lent = self.lend().await?;
        let began = Instant::now();
        let found = read(lent.connection()?);
        self.pace.took(began.elapsed());
        found
    }

    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let lent = self.lend().await?;
        let reading = tokio::task::spawn_blocking(move || read(lent.connection()?));
        reading.await.map_err(|_| Error::Closed)?
    }

    async fn lend(self: &Arc<Self>) -> Result<Lent, Error> {
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| Error::Closed)?;
        let connection = self.idle.lock().pop();
        Ok(Lent { connection, of: Arc::clone(self), _turn: turn })
    }
}

/// A connection that goes back when this is dropped.
struct Lent {
    connection: Option<Connection>,
    of: Arc<Connections>,
    _turn: OwnedSemaphorePermit,
}

impl Lent {
    fn connection(&self) -> Result<&Connection, Error> {
        self.connection.as_ref().ok_or(Error::Closed)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.of.idle.lock().extend(self.connection.take());
    }
}
