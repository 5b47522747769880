//! SQLite's write-ahead log, on its way into the database.

use std::{
    ffi::c_int,
    fs::{self, File},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, hooks::Wal};

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
    let synced = File::open(&log).and_then(|file| file.sync_data());
    synced.map_err(|source| OpenError::File { path: log, source })
}

/// Whether a log can't be copied into its database for want of room or of rights. Of room that a quota denies SQLite knows only that a write
/// failed.
fn is_held_back(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly | ErrorCode::DiskFull))
        || error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_WRITE)
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

/// So many pages, 64 MiB or so: one that is written again and again is copied once, and the log stays small enough to be read within a moment
/// after a crash.
const LONG: c_int = 16_000;
/// How long a log is left alone that can't be copied: every commit would try all of it again.
const REST: Duration = Duration::from_secs(10);

/// Why a log could not be copied last, other than for want of room.
pub(super) type NotCopied = Arc<Mutex<Option<rusqlite::Error>>>;

/// Has a connection copy a long log into the database at its commits, beside readers. SQLite would do that by itself, and say nothing where
/// it fails.
pub(super) fn copy_when_long(connection: &mut Connection, path: &Path) -> rusqlite::Result<NotCopied> {
    let not_copied = NotCopied::default();
    let (path, mut rests_until, tell) = (path.to_owned(), None::<Instant>, Arc::clone(&not_copied));
    connection.wal_hook(Some(move |log: &mut Wal, pages: c_int| {
        if pages < LONG || rests_until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        let Err(error) = log.checkpoint() else { return Ok(()) };
        // Another process may be at it.
        if !matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)) {
            let path = path.display();
            tracing::error!(%path, pages, %error, "the log can't be copied into the database, and grows");
            rests_until = Some(Instant::now() + REST);
            // The log takes more for as long as there is room for it.
            if !is_held_back(&error) {
                *tell.lock() = Some(error);
            }
        }
        Ok(())
    }))?;
    Ok(not_copied)
}
