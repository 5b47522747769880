//! Tables that somebody else keeps beside the journal, such as views: one writer, many readers, on either database.

use super::{
    entry::Table,
    location::Location,
    postgres::Server,
    sql::{Error, Reader, Transaction},
    sqlite::{self, Durability, OpenError, Writer},
};

/// Writes tables that can be made again from the log.
#[derive(Debug)]
pub struct Store(Kind);

#[derive(Debug)]
enum Kind {
    Sqlite(Writer),
    Postgres(Server),
}

/// Opens read-only connections on a database that somebody else writes.
///
/// # Errors
/// When it isn't there or can't be read.
pub fn readers(location: &Location, count: usize) -> Result<Reader, OpenError> {
    match location {
        Location::Sqlite(path) => sqlite::readers(path, count),
        Location::Postgres { .. } => match Server::readers(location, count.try_into().unwrap_or(1))? {
            Some(server) => Ok(Reader::postgres(server)),
            None => Err(OpenError::Database { location: location.clone(), source: Error::Closed }),
        },
    }
}

impl Store {
    /// Opens the database for writing, and makes these tables where they are missing.
    ///
    /// # Errors
    /// When it is in use, can't be opened, or can't promise the durability.
    pub async fn open(location: &Location, tables: &[&'static Table]) -> Result<Self, OpenError> {
        match location {
            Location::Sqlite(path) => Writer::open(path, Durability::Rebuildable, tables).map(Kind::Sqlite).map(Self),
            Location::Postgres { .. } => match Server::open(location, 1, tables).await? {
                Some(server) => Ok(Self(Kind::Postgres(server))),
                None => Err(OpenError::Database { location: location.clone(), source: Error::Closed }),
            },
        }
    }

    /// True if other processes may write the tables too, in turn.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        matches!(self.0, Kind::Postgres(_))
    }

    /// Begins a transaction, when it is this writer's turn.
    ///
    /// # Errors
    /// When the database can't be written.
    pub async fn begin(&mut self) -> Result<Transaction<'_>, Error> {
        match &mut self.0 {
            Kind::Sqlite(writer) => writer.begin(),
            Kind::Postgres(server) => server.begin("views").await.map(Transaction::postgres),
        }
    }

    /// Puts it away.
    pub async fn close(self) {
        match self.0 {
            Kind::Sqlite(writer) => writer.close(),
            Kind::Postgres(server) => server.close().await,
        }
    }
}
