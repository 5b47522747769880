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

/// Why what was typed names no database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WrongUrl {
    /// Neither `sqlite:PATH` nor `postgres://…`.
    #[error("a database is sqlite:PATH, such as sqlite:data/orders.db, or postgres://…")]
    Form,
    /// A URI or a path with options behind it, as other programs take them.
    #[error(
        "a SQLite database is sqlite:PATH without a ? or a file: before it: no options are taken, and a file that is missing is made"
    )]
    Options,
    /// A server that could never be reached.
    #[error("this postgres://… can't be used: {0}")]
    Server(String),
}

impl FromStr for DatabaseUrl {
    type Err = WrongUrl;

    fn from_str(text: &str) -> Result<Self, WrongUrl> {
        match text.split_once(':') {
            // Both `sqlite:PATH` and `sqlite://PATH` are in use elsewhere.
            Some(("sqlite", path)) => match path.strip_prefix("//").unwrap_or(path) {
                "" => Err(WrongUrl::Form),
                // It would be part of the file's name here, and none of it to SQLite: two names of one database, and two locks.
                path if path.contains('?') || path.starts_with("file:") => Err(WrongUrl::Options),
                path => Ok(Self::Sqlite(path.into())),
            },
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => {
                usable(text)?;
                Ok(Self::Postgres(text.to_owned()))
            }
            _ => Err(WrongUrl::Form),
        }
    }
}

/// Asks those who will connect whether they understand the address. What they say of it has no password in it.
#[cfg(feature = "journal")]
fn usable(url: &str) -> Result<(), WrongUrl> {
    match url.parse::<sqlx::postgres::PgConnectOptions>() {
        Ok(_) => Ok(()),
        Err(sqlx::Error::Configuration(why)) => Err(WrongUrl::Server(why.to_string())),
        Err(error) => Err(WrongUrl::Server(error.to_string())),
    }
}

/// Without a journal nobody connects.
#[cfg(not(feature = "journal"))]
#[expect(clippy::unnecessary_wraps, reason = "as with a journal")]
const fn usable(_: &str) -> Result<(), WrongUrl> {
    Ok(())
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
            assert_eq!(wrong.parse::<DatabaseUrl>(), Err(WrongUrl::Form), "{wrong}");
        }
        for wrong in ["sqlite:a.db?mode=rwc", "sqlite://a.db?", "sqlite:?", "sqlite:file:a.db", "sqlite:file:///a.db"] {
            assert_eq!(wrong.parse::<DatabaseUrl>(), Err(WrongUrl::Options), "{wrong}");
        }
    }

    #[cfg(feature = "journal")]
    #[test]
    fn a_server_that_could_never_be_reached_is_no_database() {
        for right in ["postgres:///db", "postgres://[::1]:5432/db?sslmode=require", "postgresql://host/db?host=/run"] {
            assert!(matches!(right.parse(), Ok(DatabaseUrl::Postgres(_))), "{right}");
        }
        for wrong in ["host:notaport/db", "host:99999/db", "host/db?sslmode=nope", "host/db?port=x", "ho st/db"] {
            let wrong = format!("postgres://me:secret@{wrong}");
            let error = wrong.parse::<DatabaseUrl>().expect_err(&wrong);
            let line = error.to_string();
            assert!(matches!(error, WrongUrl::Server(_)), "{wrong}: {line}");
            assert!(!line.contains("secret") && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let url: DatabaseUrl = "postgres://me:secret@host/db".parse().expect("well formed");
        assert!(!format!("{url} {url:?}").contains("secret"));
    }
}
