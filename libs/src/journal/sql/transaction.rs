//! A transaction, for those who fold events into tables.

use rusqlite::Connection;

use super::{Error, Record, Value, execute, fetch_keys, query, upsert};
use crate::journal::entry::{Row, Table};

/// A transaction over somebody's own tables. Dropped before its end, it changes nothing.
///
/// Its methods are async although SQLite, which runs in the caller's thread, never makes them wait: what is written against
/// them holds for a database at the end of a network too.
#[derive(Debug)]
pub struct Transaction<'c> {
    connection: &'c mut Connection,
    ended: bool,
}

impl<'c> Transaction<'c> {
    /// Begins one.
    pub(in crate::journal) fn begin(connection: &'c mut Connection) -> Result<Self, Error> {
        super::begin(connection)?;
        Ok(Self { connection, ended: false })
    }

    /// Makes all of it durable, or none.
    ///
    /// # Errors
    /// When it can't be.
    pub async fn commit(mut self) -> Result<(), Error> {
        super::commit(self.connection)?;
        self.ended = true;
        Ok(())
    }

    /// Makes none of it.
    ///
    /// # Errors
    /// When the database can't be told.
    pub async fn rollback(mut self) -> Result<(), Error> {
        self.ended = true;
        roll_back(self.connection)
    }

    /// Runs a statement.
    ///
    /// # Errors
    /// When the statement is wrong or can't be carried out.
    pub async fn execute(&mut self, sql: &str, values: Vec<Value>) -> Result<(), Error> {
        execute(self.connection, sql, &values)
    }

    /// Runs a SELECT.
    ///
    /// # Errors
    /// When the statement is wrong or the database can't be read.
    pub async fn fetch(&mut self, sql: &str, values: Vec<Value>) -> Result<Vec<Record>, Error> {
        query(self.connection, sql, &values)
    }

    /// Reads the rows with these keys, all columns in the table's order.
    ///
    /// # Errors
    /// When the database can't be read.
    pub async fn fetch_keys(&mut self, table: &'static Table, keys: &[Vec<Value>]) -> Result<Vec<Record>, Error> {
        fetch_keys(self.connection, table, keys)
    }

    /// Inserts rows, or replaces those whose key is there. Of two rows with one key the later stays.
    ///
    /// # Errors
    /// When a row can't be written.
    pub async fn upsert(&mut self, rows: Vec<Row>) -> Result<(), Error> {
        upsert(self.connection, rows)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = roll_back(self.connection)
        {
            tracing::warn!(%error, "a transaction can't be rolled back");
        }
    }
}

fn roll_back(connection: &Connection) -> Result<(), Error> {
    // Some errors, such as a full disk, have ended it already.
    if connection.is_autocommit() { Ok(()) } else { execute(connection, "ROLLBACK", []) }
}
