//! A transaction, for those who fold events into tables.

use rusqlite::Connection;

use super::{Error, Record, Value, execute, fetch_keys, postgres, query, upsert};
use crate::journal::{
    entry::{Row, Table},
    session,
};

/// A transaction over somebody's own tables. Dropped before its end, it changes nothing.
///
/// SQLite runs in the caller's thread and never makes these methods wait; a server does.
#[derive(Debug)]
pub struct Transaction<'c>(Kind<'c>);

#[derive(Debug)]
enum Kind<'c> {
    Sqlite(Sqlite<'c>),
    Postgres(Postgres),
}

/// A transaction that is rolled back when it is dropped, and the rows that are written before its tables are read or it ends: together,
/// in one statement.
#[derive(Debug)]
struct Postgres {
    transaction: session::Transaction,
    unwritten: Vec<Row>,
}

impl Postgres {
    /// Writes what is still unwritten.
    async fn write(&mut self) -> Result<(), Error> {
        let rows = std::mem::take(&mut self.unwritten);
        postgres::upsert(&mut self.transaction, &rows).await
    }
}

/// A transaction that is rolled back when it is dropped.
#[derive(Debug)]
struct Sqlite<'c> {
    connection: &'c mut Connection,
    ended: bool,
}

impl<'c> Transaction<'c> {
    /// Begins one on SQLite.
    pub(in crate::journal) fn sqlite(connection: &'c mut Connection) -> Result<Self, Error> {
        super::begin(connection)?;
        Ok(Self(Kind::Sqlite(Sqlite { connection, ended: false })))
    }

    /// One that was begun on PostgreSQL.
    pub(in crate::journal) const fn postgres(transaction: session::Transaction) -> Self {
        Self(Kind::Postgres(Postgres { transaction, unwritten: Vec::new() }))
    }

    /// Makes all of it durable, or none.
    ///
    /// # Errors
    /// When it can't be, or it can't be known.
    pub async fn commit(self) -> Result<(), Error> {
        match self.0 {
            Kind::Sqlite(mut transaction) => {
                super::commit(transaction.connection)?;
                transaction.ended = true;
                Ok(())
            }
            Kind::Postgres(mut postgres) => {
                postgres.write().await?;
                Ok(postgres.transaction.commit().await?)
            }
        }
    }

    /// Makes none of it.
    ///
    /// # Errors
    /// When the database can't be told.
    pub async fn rollback(self) -> Result<(), Error> {
        match self.0 {
            Kind::Sqlite(mut transaction) => {
                transaction.ended = true;
                roll_back(transaction.connection)
            }
            Kind::Postgres(postgres) => Ok(postgres.transaction.rollback().await?),
        }
    }

    /// Has the database take all that was written so far.
    ///
    /// # Errors
    /// When a row can't be written.
    pub async fn flush(&mut self) -> Result<(), Error> {
        match &mut self.0 {
            Kind::Sqlite(_) => Ok(()),
            Kind::Postgres(postgres) => postgres.write().await,
        }
    }

    /// Runs a statement. A server has as long for it as for any other. In the texts that are bound U+FFFD stands for U+0000, as in a
    /// [`Table`]: a key that may hold it is for [`upsert`](Self::upsert), which refuses it.
    ///
    /// # Errors
    /// When the statement is wrong or can't be carried out.
    pub async fn execute(&mut self, sql: &str, mut values: Vec<Value>) -> Result<(), Error> {
        values.iter_mut().for_each(Value::replace_nul);
        match &mut self.0 {
            Kind::Sqlite(transaction) => execute(transaction.connection, sql, &values),
            Kind::Postgres(postgres) => {
                postgres.write().await?;
                postgres::answered(postgres::execute(&mut postgres.transaction, sql, &values)).await
            }
        }
    }

    /// Runs a SELECT.
    ///
    /// # Errors
    /// When the statement is wrong or the database can't be read.
    pub async fn fetch(&mut self, sql: &str, values: Vec<Value>) -> Result<Vec<Record>, Error> {
        match &mut self.0 {
            Kind::Sqlite(transaction) => query(transaction.connection, sql, &values),
            Kind::Postgres(postgres) => {
                postgres.write().await?;
                postgres::query(&mut postgres.transaction, sql, &values).await
            }
        }
    }

    /// Reads the rows with these keys, all columns in the table's order.
    ///
    /// # Errors
    /// When the database can't be read.
    pub async fn fetch_keys(&mut self, table: &'static Table, keys: &[Vec<Value>]) -> Result<Vec<Record>, Error> {
        match &mut self.0 {
            Kind::Sqlite(transaction) => fetch_keys(transaction.connection, table, keys),
            Kind::Postgres(postgres) => {
                if postgres.unwritten.iter().any(|row| row.table.name == table.name) {
                    postgres.write().await?;
                }
                postgres::fetch_keys(&mut postgres.transaction, table, keys).await
            }
        }
    }

    /// Inserts rows, or replaces those whose key is there. Of two rows with one key the later stays.
    ///
    /// # Errors
    /// When a row doesn't fit its [`Table`], or can't be written. A server may be told, and say so, only later: see [`flush`](Self::flush).
    pub async fn upsert(&mut self, mut rows: Vec<Row>) -> Result<(), Error> {
        rows.iter_mut().try_for_each(Row::fit)?;
        match &mut self.0 {
            Kind::Sqlite(transaction) => upsert(transaction.connection, &rows),
            Kind::Postgres(postgres) => {
                postgres.unwritten.extend(rows);
                Ok(())
            }
        }
    }
}

impl Drop for Sqlite<'_> {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = roll_back(self.connection)
        {
            tracing::warn!(%error, "a transaction can't be rolled back");
        }
    }
}

/// Undoes what was written since the transaction began.
pub(in crate::journal) fn roll_back(connection: &Connection) -> Result<(), Error> {
    // Some errors, such as a full disk, have ended it already.
    if connection.is_autocommit() { Ok(()) } else { execute(connection, "ROLLBACK", []) }
}
