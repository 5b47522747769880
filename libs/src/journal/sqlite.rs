//! Opening SQLite so that what is committed stays: WAL, `synchronous=FULL`, both read back, one process a file.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, Connection as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{entry::Table, sql::Reader};

/// How much a commit promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A commit outlives a power loss (`synchronous=FULL`).
    Full,
    /// A commit outlives a crash of the process; a power loss may take the last ones (`synchronous=NORMAL`). For what can be
    /// made again from the log.
    Rebuildable,
}

/// Why a database can't be used. Each says what to do in one line.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder or the lock file can't be made.
    #[error("can't use {path}: {source}")]
    File {
        /// Which file or folder.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Another process has the database open.
    #[error("{path} is in use by another process: stop that one, or give this one its own --database-url")]
    InUse {
        /// Which database.
        path: PathBuf,
    },
    /// SQLite can't open or read it.
    #[error("can't open {path}: {source}")]
    Database {
        /// Which database.
        path: PathBuf,
        /// SQLite's word.
        source: sqlx::Error,
    },
    /// The file system or an older file doesn't give the promised durability.
    #[error("{path}: {pragma} is {found} and must be {wanted}: put the database on a local disk")]
    NotDurable {
        /// Which database.
        path: PathBuf,
        /// Which setting.
        pragma: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        wanted: &'static str,
    },
}

/// The one writing connection of a database, and the lock that makes it the only one.
#[derive(Debug)]
pub struct Writer {
    pub(super) connection: SqliteConnection,
    _lock: File,
}

impl Writer {
    /// Opens a database for writing, makes these tables, and takes the file's lock for as long as the writer lives.
    ///
    /// # Errors
    /// When it is in use, can't be opened, or can't promise the durability.
    pub async fn open(path: &Path, durability: Durability, tables: &[&'static Table]) -> Result<Self, OpenError> {
        let lock = lock(path)?;
        let (synchronous, wanted) = match durability {
            Durability::Full => (SqliteSynchronous::Full, "2"),
            Durability::Rebuildable => (SqliteSynchronous::Normal, "1"),
        };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            .busy_timeout(Duration::from_secs(5))
            .foreign_keys(false)
            .statement_cache_capacity(256)
            // A checkpoint every 16 MiB or so: fewer syncs of the main file, and the log stays small enough to read fast.
            .pragma("wal_autocheckpoint", "4000")
            .pragma("temp_store", "2")
            .disable_statement_logging();
        let failed = |source| OpenError::Database { path: path.to_owned(), source };
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(failed)?;

        // SQLite takes an unknown or impossible setting for another one and says nothing, so ask.
        for (pragma, wanted) in [("journal_mode", "wal"), ("synchronous", wanted)] {
            let found = read_pragma(&mut connection, pragma).await.map_err(failed)?;
            if found != wanted {
                return Err(OpenError::NotDurable { path: path.to_owned(), pragma, found, wanted });
            }
        }
        for statement in tables.iter().flat_map(|table| table.create) {
            sqlx::query(*statement).execute(&mut connection).await.map_err(failed)?;
        }
        let sqlite: String =
            sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut connection).await.map_err(failed)?;
        let synchronous = if durability == Durability::Full { "full" } else { "normal" };
        tracing::info!(path = %path.display(), journal_mode = "wal", synchronous, sqlite, "database open");
        Ok(Self { connection, _lock: lock })
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// When the database can't be written.
    pub async fn begin(&mut self) -> Result<super::sql::Transaction<'_>, sqlx::Error> {
        // Immediate: take the write lock now, rather than fail at the first write.
        self.connection.begin_with("BEGIN IMMEDIATE").await.map(super::sql::Transaction)
    }

    /// Copies the write-ahead log into the database and closes it.
    pub async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "closing the database failed; nothing is lost");
        }
    }
}

/// Opens read-only connections on a database that a [`Writer`] of this or another process keeps.
///
/// # Errors
/// When it isn't there or can't be read.
pub async fn readers(path: &Path, most: u32) -> Result<Reader, OpenError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(Duration::from_secs(5))
        .statement_cache_capacity(256)
        .pragma("query_only", "1")
        .disable_statement_logging();
    let pool = SqlitePoolOptions::new().max_connections(most).min_connections(1).test_before_acquire(false);
    let failed = |source| OpenError::Database { path: path.to_owned(), source };
    pool.connect_with(options).await.map(Reader).map_err(failed)
}

async fn read_pragma(connection: &mut SqliteConnection, pragma: &'static str) -> Result<String, sqlx::Error> {
    match pragma {
        "journal_mode" => sqlx::query_scalar("PRAGMA journal_mode").fetch_one(connection).await,
        _ => {
            let level: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(connection).await?;
            Ok(level.to_string())
        }
    }
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let mut name = path.to_owned().into_os_string();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let failed = |path: &Path, source| OpenError::File { path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|source| failed(&lock_path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(&lock_path, source)),
    }
}
