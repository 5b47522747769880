//! What a server's codes say of a transaction that failed, and of the server.

use std::borrow::Cow;

use crate::journal::sql::Error;

/// What the server says of a transaction that may do better the next time: it was in another's way, or its session was ended.
const PASSING: [&str; 6] = ["40001", "40P01", "55P03", "57P01", "57P02", "25P03"];
/// What a server says that takes no writes until it is promoted.
const READ_ONLY: &str = "25006";
/// What it says begins so where it is in no state to serve: it has no disk, memory or session left, or is starting up or going down.
const STATES: [&str; 2] = ["53", "57P"];

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

/// The server's own code of what is wrong.
pub(super) fn code(error: &Error) -> Option<Cow<'_, str>> {
    match error {
        Error::Postgres(sqlx::Error::Database(said)) => said.code(),
        _ => None,
    }
}
