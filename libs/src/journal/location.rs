//! Where a database is.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Where a database is.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// A SQLite file. The views are in another one beside it.
    Sqlite(PathBuf),
    /// A schema of a PostgreSQL database. The views are in it too.
    Postgres {
        /// How to reach the database, such as `postgres://user@host/trellis`.
        url: String,
        /// The schema: each service has its own.
        schema: String,
    },
}

impl Location {
    /// Where the views over the events of this database are.
    #[must_use]
    pub fn views(&self) -> Self {
        match self {
            Self::Sqlite(path) => Self::Sqlite(path.with_extension("views.db")),
            Self::Postgres { .. } => self.clone(),
        }
    }

    /// Where views are made anew beside those that are here; on a server under a name of their own.
    #[must_use]
    pub fn anew(&self, name: &str) -> Self {
        match self {
            Self::Sqlite(path) => Self::Sqlite(path.with_extension("anew.db")),
            Self::Postgres { url, schema } => {
                Self::Postgres { url: url.clone(), schema: format!("{schema}_anew_{name}") }
            }
        }
    }

    /// Where this service's views over another one's events are.
    #[must_use]
    pub fn views_of(&self, source: &str) -> Self {
        match self {
            Self::Sqlite(path) => Self::Sqlite(path.with_extension(format!("views.{source}.db"))),
            Self::Postgres { .. } => self.clone(),
        }
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self::Sqlite(path.to_owned())
    }
}

impl From<&PathBuf> for Location {
    fn from(path: &PathBuf) -> Self {
        Self::Sqlite(path.clone())
    }
}

impl From<&Self> for Location {
    fn from(location: &Self) -> Self {
        location.clone()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            // The rest of the address may hold a password.
            Self::Postgres { schema, .. } => write!(f, "PostgreSQL, schema {schema}"),
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
