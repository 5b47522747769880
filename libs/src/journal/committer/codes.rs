//! What a database's codes say of a transaction that failed, of whoever is in it, and of the server.

use std::borrow::Cow;

use rusqlite::{ErrorCode, ffi::SQLITE_ERROR};

use super::AGGREGATES;
use crate::journal::{log::EVENTS, requests::REQUESTS, sql::Error};

/// What the server says of a transaction that may do better the next time: it was in another's way, or its session was ended.
const PASSING: [&str; 6] = ["40001", "40P01", "55P03", "57P01", "57P02", "25P03"];
/// What a server says that takes no writes until it is promoted.
const READ_ONLY: &str = "25006";
/// What it says begins so where it is in no state to serve: it has no disk, memory or session left, or is starting up or going down.
const STATES: [&str; 2] = ["53", "57P"];

/// What it says of what it was given begins so: two rows that are one to it, a value that can't be or that a constraint or a check refuses,
/// a table or column that is not there or is of another type, something too long, a trigger that says no.
const UNWRITABLE: [&str; 7] = ["21", "22", "23", "42", "44", "54", "P0"];

/// Whether a transaction that failed so may do better the next time.
pub(super) fn is_passing(error: &Error) -> bool {
    match error {
        Error::Postgres(sqlx::Error::Io(_)) | Error::OutOfReach(_) | Error::AllAtWork(_) => true,
        error => code(error).is_some_and(|code| PASSING.contains(&&*code)),
    }
}

/// Whether a server says that it can write for nobody now.
pub(super) fn is_state(error: &Error) -> bool {
    code(error).is_some_and(|code| code == READ_ONLY || STATES.iter().any(|class| code.starts_with(class)))
}

/// Whether it is what was to be written that the database refuses: it would the next time, and takes all else.
pub(super) fn is_unwritable(error: &Error) -> bool {
    match error {
        // Such as a right that is yet to be granted, which is of class 42.
        error if error.is_passing() => false,
        Error::Sqlite(error) => error.sqlite_error().is_some_and(|said| match said.code {
            ErrorCode::ConstraintViolation | ErrorCode::ParameterOutOfRange => true,
            ErrorCode::TooBig | ErrorCode::TypeMismatch => true,
            // Of a table or column that is not there.
            _ => said.extended_code & 0xff == SQLITE_ERROR,
        }),
        Error::Mixed | Error::Postgres(sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_)) => true,
        error => code(error).is_some_and(|code| UNWRITABLE.iter().any(|class| code.starts_with(class))),
    }
}

/// Whether a server names one of the journal's own tables. What somebody has added to it is to blame then, and no decision.
pub(super) fn is_of_own_table(error: &Error) -> bool {
    let Error::Postgres(sqlx::Error::Database(said)) = error else { return false };
    said.table().is_some_and(|table| [AGGREGATES.name, EVENTS.name, REQUESTS.name].contains(&table))
}

/// The server's own code of what is wrong.
pub(super) fn code(error: &Error) -> Option<Cow<'_, str>> {
    match error {
        Error::Postgres(sqlx::Error::Database(said)) => said.code(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn a_disk_that_fails_or_is_full_or_anothers_is_to_blame_itself() {
        let error = |code| Error::from(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        for code in [
            ffi::SQLITE_CONSTRAINT_UNIQUE,
            ffi::SQLITE_CONSTRAINT_TRIGGER,
            ffi::SQLITE_MISMATCH,
            ffi::SQLITE_TOOBIG,
            ffi::SQLITE_RANGE,
            ffi::SQLITE_ERROR,
        ] {
            assert!(is_unwritable(&error(code)), "{code}");
        }
        for code in [
            ffi::SQLITE_IOERR_WRITE,
            ffi::SQLITE_FULL,
            ffi::SQLITE_BUSY,
            ffi::SQLITE_LOCKED,
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_NOTADB,
            ffi::SQLITE_NOMEM,
            ffi::SQLITE_READONLY,
            ffi::SQLITE_CANTOPEN,
            ffi::SQLITE_INTERRUPT,
            ffi::SQLITE_MISUSE,
        ] {
            assert!(!is_unwritable(&error(code)), "{code}");
        }
        assert!(!is_unwritable(&Error::Postgres(sqlx::Error::Protocol(String::new()))));
    }
}
