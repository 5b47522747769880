//! Reading: a few connections that can do nothing else, lent to whoever asks.

use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Error, Record, Value, fetch_keys, query};
use crate::journal::{entry::Table, postgres::Server};

/// Reads, and can do nothing else: its connections are opened read-only. Clones share them.
///
/// A read of a file may wait for the disk, so it runs where that holds up no other task.
#[derive(Clone, Debug)]
pub struct Reader(Source);

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
}

impl Reader {
    /// Lends these connections.
    pub(in crate::journal) fn sqlite(connections: Vec<Connection>) -> Self {
        let turns = Arc::new(Semaphore::new(connections.len()));
        Self(Source::Sqlite(Arc::new(Connections { idle: Mutex::new(connections), turns })))
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
            Source::Postgres(server) => server.fetch(sql, &values).await,
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
                connections.read(move |connection| fetch_keys(connection, table, &keys)).await
            }
            Source::Postgres(server) => server.fetch_keys(table, &keys).await,
        }
    }

    /// Reads the row with this key here, and that with the same key in a table of another database: on files in one go, since a read that
    /// finds all in memory takes less than to hand it to somebody.
    ///
    /// # Errors
    /// When a database can't be read.
    pub async fn fetch_key_of_both(
        &self,
        table: &'static Table,
        other: &Self,
        other_table: &'static Table,
        key: Vec<Value>,
    ) -> Result<(Vec<Record>, Vec<Record>), Error> {
        let (Source::Sqlite(connections), Source::Sqlite(others)) = (&self.0, &other.0) else {
            let own = self.fetch_keys(table, vec![key.clone()]);
            return futures::try_join!(own, other.fetch_keys(other_table, vec![key]));
        };
        let other = others.lend().await?;
        let read = move |connection: &Connection| {
            let keys = [key];
            Ok((fetch_keys(connection, table, &keys)?, fetch_keys(other.connection()?, other_table, &keys)?))
        };
        connections.read(read).await
    }
}

impl Connections {
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
