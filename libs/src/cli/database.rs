//! Where a service keeps its data, as an operator types it.

use std::{fmt, path::PathBuf, str::FromStr};

/// A database, read from `sqlite:PATH` or `postgres://…`.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL server.
    Postgres(String),
}

/// Neither `sqlite:PATH` nor `postgres://…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a database is sqlite:PATH, such as sqlite:data/orders.db, or postgres://…")]
pub struct WrongUrl;

impl FromStr for DatabaseUrl {
    type Err = WrongUrl;

    fn from_str(text: &str) -> Result<Self, WrongUrl> {
        match text.split_once(':') {
            // Both `sqlite:PATH` and `sqlite://PATH` are in use elsewhere.
            Some(("sqlite", path)) => match path.strip_prefix("//").unwrap_or(path) {
                "" => Err(WrongUrl),
                path => Ok(Self::Sqlite(path.into())),
            },
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => Ok(Self::Postgres(text.to_owned())),
            _ => Err(WrongUrl),
        }
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            // What follows may hold a password.
            Self::Postgres(_) => f.write_str("postgres://…"),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_a_file_or_a_server() {
        assert_eq!("sqlite:data/a.db".parse(), Ok(DatabaseUrl::Sqlite("data/a.db".into())));
        assert_eq!("sqlite:///var/a.db".parse(), Ok(DatabaseUrl::Sqlite("/var/a.db".into())));
        assert!(matches!("postgres://me@host/db".parse(), Ok(DatabaseUrl::Postgres(_))));
        for wrong in ["", "sqlite:", "sqlite://", "data/a.db", "mysql://host/db", "postgres:host"] {
            assert_eq!(wrong.parse::<DatabaseUrl>(), Err(WrongUrl), "{wrong}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let url: DatabaseUrl = "postgres://me:secret@host/db".parse().expect("well formed");
        assert!(!format!("{url} {url:?}").contains("secret"));
    }
}
