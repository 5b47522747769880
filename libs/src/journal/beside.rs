//! A place beside a database, where tables of it are made anew.
//!
//! Beside a file there is one, for whoever has the file open. On a server several processes may be at it at once, for the same tables and
//! with other versions of the program, so each has a schema of its own. Its session says that somebody is at work there: what nobody
//! says that of is removed by whoever comes next. Only cleanliness stands on that. Who was cut off and goes on finds its tables gone, and
//! puts none in place.

use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::{
    location::Location,
    postgres::Server,
    sql::postgres::answered,
    sqlite::{self, OpenError},
};

/// A place for tables that are made anew.
#[derive(Debug)]
pub struct Beside {
    location: Location,
    /// None beside a file.
    session: Option<PgConnection>,
}

impl Beside {
    /// Makes room beside a database. What those left there who came to no end is removed.
    ///
    /// # Errors
    /// When a file can't be removed, or the server can't be reached.
    pub async fn make(database: &Location) -> Result<Self, OpenError> {
        let unique = Uuid::new_v4().simple().to_string();
        // The server cuts names after 63 bytes.
        let location = database.anew(&unique[..12]);
        let session = match &location {
            Location::Sqlite(path) => {
                sqlite::remove(path).map_err(|source| OpenError::File { path: path.clone(), source })?;
                None
            }
            Location::Postgres { .. } => {
                let failed = |source| OpenError::Database { location: location.clone(), source };
                let mut session = Server::occupy(&location).await?;
                if let Location::Postgres { schema: all, .. } = database.anew("") {
                    Server::remove_abandoned(&mut session, &all).await.map_err(failed)?;
                }
                Some(session)
            }
        };
        Ok(Self { location, session })
    }

    /// Where it is.
    #[must_use]
    pub const fn location(&self) -> &Location {
        &self.location
    }

    /// Removes it. Nobody may have it open.
    ///
    /// # Errors
    /// When it can't be removed: then it is the next time.
    pub async fn remove(self) -> Result<(), OpenError> {
        match (&self.location, self.session) {
            (Location::Postgres { schema, .. }, Some(mut session)) => {
                let failed = |source| OpenError::Database { location: self.location.clone(), source };
                // The session may have been silent for hours, and the way to the server be cut since. Tables are dropped quickly, however
                // large they are, and a server that is late goes on with it when nobody waits any more.
                answered(Server::remove(&mut session, schema)).await.map_err(failed)?;
                answered(session.close()).await.map_err(|error| failed(error.into()))
            }
            (Location::Sqlite(path), _) => {
                sqlite::remove(path).map_err(|source| OpenError::File { path: path.clone(), source })
            }
            (Location::Postgres { .. }, None) => Ok(()),
        }
    }
}
