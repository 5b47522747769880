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
            Self::Sqlite(path) => Self::Sqlite(beside(path, "views")),
            Self::Postgres { .. } => self.clone(),
        }
    }

    /// Where views are made anew beside those that are here; on a server under a name of their own.
    #[must_use]
    pub fn anew(&self, name: &str) -> Self {
        match self {
            Self::Sqlite(path) => Self::Sqlite(beside(path, "anew")),
            Self::Postgres { url, schema } => {
                Self::Postgres { url: url.clone(), schema: format!("{schema}_anew_{name}") }
            }
        }
    }

    /// Where this service's views over another one's events are.
    #[must_use]
    pub fn views_of(&self, source: &str) -> Self {
        match self {
            Self::Sqlite(path) => Self::Sqlite(beside(path, &format!("views.{source}"))),
            Self::Postgres { .. } => self.clone(),
        }
    }
}

/// A database beside another one: `order.views.db` beside `order.db`. Where the name has another ending, or none, it stays whole, and a
/// hyphen stands in the dot's place, since `order.views.db` is taken: no two databases have the same one beside them.
fn beside(path: &Path, what: &str) -> PathBuf {
    let whole = path.file_name().filter(|_| path.extension().is_none_or(|ending| ending != "db"));
    let Some(whole) = whole else { return path.with_extension(format!("{what}.db")) };
    let mut name = whole.to_owned();
    name.push(format!("-{what}.db"));
    path.with_file_name(name)
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_goes_beside_a_database_goes_beside_no_other() {
        let mut names = HashSet::new();
        for path in ["order.db", "order", "order.bak", "order.test", "order.test.db", "data/order", ".db"] {
            let database = Location::from(Path::new(path));
            let views = database.views();
            for beside in [database.views_of("payment"), views.anew(""), views] {
                let Location::Sqlite(beside) = beside else { panic!("{beside} is no file") };
                assert_eq!(beside.parent(), Path::new(path).parent());
                assert!(beside.to_string_lossy().ends_with(".db"), "as all that is {}", beside.display());
                assert!(names.insert(beside.clone()), "{} is beside another one, too", beside.display());
            }
        }
        assert_eq!(Location::from(Path::new("data/order.db")).views().to_string(), "data/order.views.db");
    }
}
