//! The database that a test runs on: a SQLite file in the test's folder, or a schema of its own on the PostgreSQL server that
//! `TEST_POSTGRES` names. `tests/postgres.sh` starts one and runs the same tests again.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
};

use libs::journal::Location;

/// Where `name` is kept in a test's folder.
pub(crate) fn location(folder: &Path, name: &str) -> Location {
    match std::env::var("TEST_POSTGRES") {
        Ok(url) => {
            // The folder's name is unique, and so is the schema's. A server cuts names off after 63 bytes.
            let mut unique = DefaultHasher::new();
            folder.hash(&mut unique);
            Location::Postgres { url, schema: format!("test{:016x}_{name}", unique.finish()).to_lowercase() }
        }
        Err(_) => Location::Sqlite(folder.join(format!("{name}.db"))),
    }
}

/// True on a server, which the test needs; else it says that the test is left out.
#[allow(dead_code, reason = "not every test asks")]
#[expect(clippy::print_stderr, reason = "a test that is left out says why")]
pub(crate) fn has_server() -> bool {
    if !is_shared() {
        eprintln!("skipped: needs PostgreSQL, and TEST_POSTGRES names none (tests/postgres.sh)");
    }
    is_shared()
}

/// True on a server.
#[allow(dead_code, reason = "not every test asks")]
pub(crate) fn is_shared() -> bool {
    std::env::var_os("TEST_POSTGRES").is_some()
}
