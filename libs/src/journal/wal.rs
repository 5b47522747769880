//! SQLite's write-ahead log, on its way into the database.

use std::{
    fs::{self, File},
    path::Path,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode};

use super::sqlite::{BUSY, OpenError, companion};

/// Copies all and waits for readers, so that the log is empty then.
pub(super) const EMPTYING: &str = "TRUNCATE";
/// Copies what can be copied beside a writer and readers, without holding up any of them.
pub(super) const BESIDE_OTHERS: &str = "PASSIVE";
/// How long to wait for another process that copies the same log.
const COPYING: Duration = Duration::from_millis(5);

/// Has the disk take what an earlier process left in the log, before anybody reads it. SQLite finds there what was written, though it
/// may never have been synced, or in vain: what is told of it would be lost with the power.
pub(super) fn settle(connection: &Connection, path: &Path, how: &str) -> Result<(), OpenError> {
    let failed = |source: rusqlite::Error| OpenError::Database { location: path.into(), source: source.into() };
    let (log, mut waited) = (companion(path, "-wal"), Duration::ZERO);
    loop {
        let copied = match copy_log(connection, how) {
            // Who only reads need be allowed no more; and the log is a file that can be synced where it is.
            Err(error) if how == BESIDE_OTHERS && is_held_back(&error) => {
                if matches!(fs::exists(&log), Ok(false)) {
                    return Ok(());
                }
                break;
            }
            copied => copied.map_err(failed)?,
        };
        match copied {
            Copied::All => return Ok(()),
            Copied::ByAnother if waited < BUSY => std::thread::sleep(COPYING),
            Copied::Part | Copied::ByAnother => break,
        }
        waited += COPYING;
    }
    // Somebody reads and goes on reading: then the log stays, and is on the disk all the same.
    let synced = File::open(&log).and_then(|file| file.sync_all());
    synced.map_err(|source| OpenError::File { path: log, source })
}

/// Whether a log can't be copied into its database for want of room or of rights.
fn is_held_back(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly | ErrorCode::DiskFull))
}

/// How much of a log is in its database, and synced.
pub(super) enum Copied {
    All,
    /// Somebody goes on reading what was there before the rest.
    Part,
    /// Another process is at it.
    ByAnother,
}

/// Copies the write-ahead log into the database.
pub(super) fn copy_log(connection: &Connection, how: &str) -> rusqlite::Result<Copied> {
    connection.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |row| {
        let (busy, frames, copied): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(match (busy, frames) {
            (0, _) if frames == copied => Copied::All,
            (1, -1) => Copied::ByAnother,
            _ => Copied::Part,
        })
    })
}
