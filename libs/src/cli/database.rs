//! Where a service keeps its data, as an operator types it.

#[cfg(feature = "journal")]
use std::net::IpAddr;
use std::{fmt, path::PathBuf, str::FromStr};

#[cfg(feature = "journal")]
use sqlx::postgres::{PgConnectOptions, PgSslMode};

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

impl DatabaseUrl {
    /// Warns of a server that may be anybody to whoever connects.
    #[cfg(feature = "journal")]
    pub(super) fn tell_of_too_little(&self) {
        let Self::Postgres(url) = self else { return };
        if let Some(sslmode) = too_little(url) {
            tracing::warn!(
                ?sslmode,
                "PostgreSQL need not prove who it is: what is said may be read or answered by others, in plain text too unless TLS is \
                 required. Write ?sslmode=verify-full&sslrootcert=FILE behind its address, or ?sslmode=disable where that is meant"
            );
        }
    }

    /// Without a journal nobody connects.
    #[cfg(not(feature = "journal"))]
    #[expect(clippy::unused_self, reason = "as with a journal")]
    pub(super) const fn tell_of_too_little(&self) {}
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

/// The options of an address that those who will connect know, besides `options[NAME]`. Any other they ignore, and log with its value.
#[cfg(feature = "journal")]
const KNOWN: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Those that name the authority a server's certificate is to be of.
#[cfg(feature = "journal")]
const AUTHORITY: [&str; 3] = ["sslrootcert", "ssl-root-cert", "ssl-ca"];

/// The names of an address's options.
#[cfg(feature = "journal")]
fn names(url: &str) -> impl Iterator<Item = &str> {
    let before_fragment = url.split('#').next().unwrap_or(url);
    let (_, options) = before_fragment.split_once('?').unwrap_or_default();
    let options = options.split('&').filter(|option| !option.is_empty());
    options.map(|option| option.split('=').next().unwrap_or(option))
}

/// Asks those who will connect whether they understand the address, and will do what it says. What they say of it has no password in it.
#[cfg(feature = "journal")]
fn usable(url: &str) -> Result<(), WrongUrl> {
    for name in names(url) {
        let plain = name.to_ascii_lowercase().replace("%5b", "[").replace("%5d", "]");
        let of_session = plain.starts_with("options[") && plain.ends_with(']') && name.starts_with("options");
        if !of_session && !KNOWN.contains(&name) {
            // What is no name may be a part of a password.
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            return Err(WrongUrl::Server(match !name.is_empty() && name.bytes().all(is_name) {
                true => format!("it has no option {name:?}"),
                false => "an option of it has no name; a ? that is part of a password is %3F".to_owned(),
            }));
        }
    }
    let reached = url.parse::<PgConnectOptions>().map_err(|error| match error {
        sqlx::Error::Configuration(why) => WrongUrl::Server(why.to_string()),
        error => WrongUrl::Server(error.to_string()),
    })?;
    match reached.get_ssl_mode() {
        // libpq goes on to TLS where a server refuses plain text. This client doesn't.
        PgSslMode::Allow => Err(WrongUrl::Server(
            "with sslmode=allow there is never TLS: write sslmode=verify-full, or disable where none is meant"
                .to_owned(),
        )),
        // To libpq that is verify-ca, or as good as that.
        PgSslMode::Prefer | PgSslMode::Require if names(url).any(|name| AUTHORITY.contains(&name)) => {
            Err(WrongUrl::Server("nobody looks at its sslrootcert: write sslmode=verify-full beside it".to_owned()))
        }
        _ => Ok(()),
    }
}

/// What is asked of a server elsewhere that need not prove who it is, though nobody said that this is meant.
#[cfg(feature = "journal")]
fn too_little(url: &str) -> Option<PgSslMode> {
    let reached = url.parse::<PgConnectOptions>().ok()?;
    let mode = reached.get_ssl_mode();
    let is_said = matches!(mode, PgSslMode::VerifyFull | PgSslMode::Disable);
    let host = reached.get_host();
    let is_socket = reached.get_socket().is_some() || host.starts_with('/');
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_here = is_socket || host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    (!is_said && !is_here).then_some(mode)
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

    #[cfg(feature = "journal")]
    #[test]
    fn an_option_that_nobody_knows_is_refused_by_its_name() {
        let all = "sslmode=verify-full&sslrootcert=a&sslcert=b&sslkey=c&host=h&hostaddr=::1&port=1&user=u&password=p&dbname=d\
             &application_name=n&statement-cache-capacity=9&options=-c%20a=b&options[a]=b&options%5Ba%5D=b&";
        for right in ["", all, "ssl-mode=verify-ca&ssl-root-cert=a&ssl-ca=a&ssl-cert=b&ssl-key=c"] {
            let right = format!("postgres://me@host/db?{right}#sslpassword=x");
            assert!(matches!(right.parse(), Ok(DatabaseUrl::Postgres(_))), "{right}");
        }
        let wrong = [
            ("?ssl_mode=verify-full", "ssl_mode"),
            ("?sslmode=require&sslpassword=secret", "sslpassword"),
            ("?pasword=secret", "pasword"),
            ("?SSLMODE=require", "SSLMODE"),
            ("?options[secret=x", "an option"),
            ("?secret@host/db", "an option"),
            ("?=secret", "an option"),
        ];
        for (options, says) in wrong {
            let error = format!("postgres://me:secret@host/db{options}").parse::<DatabaseUrl>().expect_err(options);
            let line = error.to_string();
            assert!(line.contains(says) && !line.contains("secret") && !line.contains('\n'), "{options}: {line}");
        }
    }

    #[cfg(feature = "journal")]
    #[test]
    fn an_address_that_promises_more_than_it_holds_is_refused() {
        let wrong = [
            ("sslmode=allow", "disable"),
            ("ssl-mode=ALLOW", "disable"),
            ("sslmode=require&sslrootcert=ca.pem", "verify-full"),
            ("ssl-ca=ca.pem&sslmode=require", "verify-full"),
            ("sslmode=prefer&ssl-root-cert=ca.pem", "verify-full"),
            ("sslrootcert=ca.pem", "verify-full"),
        ];
        for (options, says) in wrong {
            let error = format!("postgres://me:secret@host/db?{options}").parse::<DatabaseUrl>().expect_err(options);
            let line = error.to_string();
            assert!(line.contains(says) && !line.contains("secret") && !line.contains('\n'), "{options}: {line}");
        }
        for right in ["verify-full&sslrootcert=ca.pem", "verify-ca&sslrootcert=ca.pem", "require", "prefer", "disable"]
        {
            let right = format!("postgres://me:secret@host/db?sslmode={right}");
            assert!(matches!(right.parse(), Ok(DatabaseUrl::Postgres(_))), "{right}");
        }
    }

    #[cfg(feature = "journal")]
    #[test]
    fn a_server_elsewhere_proves_who_it_is_or_is_told_of() {
        let here = ["localhost", "127.0.0.1:5433", "127.3.2.1", "[::1]:5432", "%2Frun%2Fpostgresql"];
        for url in here.map(|here| format!("postgres://me@{here}/db")) {
            assert!(too_little(&url).is_none(), "{url}");
        }
        assert!(too_little("postgres:///db?host=/run").is_none());
        assert!(too_little("postgres:///db?host=db").is_some());
        let modes =
            ["sslmode=prefer", "sslmode=require", "ssl-mode=verify-ca", "sslmode=verify-full", "sslmode=disable"];
        for (mode, is_told) in modes.into_iter().zip([true, true, true, false, false]) {
            for there in ["db", "10.0.0.1:5433", "[fd00::1]", "localhost.example"] {
                let url = format!("postgres://me@{there}/db?{mode}");
                assert_eq!(too_little(&url).is_some(), is_told, "{url}");
            }
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let url: DatabaseUrl = "postgres://me:secret@host/db".parse().expect("well formed");
        assert!(!format!("{url} {url:?}").contains("secret"));
    }
}
