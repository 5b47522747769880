//! Reading: a few connections that can do nothing else, lent to whoever asks.

use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::{Error, Record, Value, fetch_keys, query};
use crate::journal::entry::Table;

/// Reads, and can do nothing else: its connections are opened read-only. Clones share them.
///
/// A read may wait for the disk, so it runs where that holds up no other task.
#[derive(Clone, Debug)]
pub struct Reader(Arc<Connections>);

#[derive(Debug)]
struct Connections {
    idle: Mutex<Vec<Connection>>,
    /// One for each connection.
    turns: Arc<Semaphore>,
}

impl Reader {
    /// Lends these connections.
    pub(in crate::journal) fn new(connections: Vec<Connection>) -> Self {
        let turns = Arc::new(Semaphore::new(connections.len()));
        Self(Arc::new(Connections { idle: Mutex::new(connections), turns }))
    }

    /// Runs a SELECT. Placeholders are `$1`, `$2`, ….
    ///
    /// # Errors
    /// When the statement is wrong or the database can't be read.
    pub async fn fetch(&self, sql: &str, values: Vec<Value>) -> Result<Vec<Record>, Error> {
        let sql = sql.to_owned();
        self.read(move |connection| query(connection, &sql, &values)).await
    }

    /// Reads the rows with these keys, all columns in the table's order. A key that isn't there gives no row; a row may come
    /// more than once.
    ///
    /// # Errors
    /// When the database can't be read.
    pub async fn fetch_keys(&self, table: &'static Table, keys: Vec<Vec<Value>>) -> Result<Vec<Record>, Error> {
        self.read(move |connection| fetch_keys(connection, table, &keys)).await
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = Arc::clone(&self.0.turns).acquire_owned().await.map_err(|_| Error::Closed)?;
        let connections = Arc::clone(&self.0);
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let connection = connections.idle.lock().pop().ok_or(Error::Closed)?;
            let result = read(&connection);
            connections.idle.lock().push(connection);
            result
        });
        reading.await.map_err(|_| Error::Closed)?
    }
}
