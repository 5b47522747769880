//! Opening SQLite so that what is committed stays: WAL, `synchronous=FULL`, both read back, one process a file.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, MAIN_DB, OpenFlags, config::DbConfig};

use super::{
    entry::Table,
    location::Location,
    log::EVENTS,
    names::{There, check_names},
    sql::{Error, Reader, Transaction},
    wal::{BESIDE_OTHERS, Copied, EMPTYING, NotCopied, copy_log, copy_when_long, settle},
};

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
    /// Nobody has made it yet, and who only reads makes none.
    #[error("there is no database {path} yet: serve its commands or run migrate first")]
    Missing {
        /// Which database.
        path: PathBuf,
    },
    /// Another process has the database open.
    #[error("{path} is in use by another process: stop that one, or give this one its own --database-url")]
    InUse {
        /// Which database.
        path: PathBuf,
    },
    /// It can be read, and not written.
    #[error("{path} may not be written by this process: give it the file's owner, or the file its own and mode 0600")]
    ReadOnly {
        /// Which database.
        path: PathBuf,
    },
    /// The session was not told which schema is its.
    #[error(
        "{location}: its sessions are in {found}: the role may not use the schema, or a pooler on the way drops the options of those who \
         connect, search_path among them; have it pass them on, or name the server itself in --database-url"
    )]
    OtherSchema {
        /// Which database.
        location: Location,
        /// Where the session is.
        found: String,
    },
    /// A table that is there lacks a column that an index is to be on.
    #[error("{location}: {source}: a table was made by another version of this program; {mend}")]
    OtherShape {
        /// Which database.
        location: Location,
        /// Its word.
        source: Error,
        /// What to do.
        mend: String,
    },
    /// What is there has a name that another table or index of this version is to have.
    #[error(
        "{location}: {name} is there as {found}, and is to be {wanted}: another version of this program made it; if that is to run no \
         more, {mend}"
    )]
    OtherOwner {
        /// Which database.
        location: Location,
        /// The name.
        name: String,
        /// What has it.
        found: String,
        /// What is to have it.
        wanted: String,
        /// What to do.
        mend: String,
    },
    /// Two tables or indexes of a process have one name.
    #[error(
        "{name} is the name of two tables or indexes, which on a server are in one schema: give one of them another name (aggregates, \
         events, requests and members are the journal's, checkpoints the views')"
    )]
    SameName {
        /// The name.
        name: String,
    },
    /// The key of a table is none of its columns, or more than there are.
    #[error("the key of {table} is {key} of its {columns} columns: make it the first one, or more of them")]
    NoKey {
        /// The table's name.
        table: &'static str,
        /// How many columns the key is to be.
        key: usize,
        /// How many there are.
        columns: usize,
    },
    /// Two projections of a process have one name.
    #[error(
        "two projections are named {projection}, and how far each is would be kept as one: give one of them another name, and make its \
         views anew"
    )]
    SameProjection {
        /// Their name.
        projection: &'static str,
    },
    /// It can't be opened or read.
    #[error("can't open {location}: {source}")]
    Database {
        /// Which database.
        location: Location,
        /// Its word.
        source: Error,
    },
    /// The file system or an older file doesn't give the promised durability.
    #[error("{location}: {pragma} is {found} and must be {wanted}: a commit would not outlive a crash")]
    NotDurable {
        /// Which database.
        location: Location,
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
    pub(super) connection: Connection,
    /// What was opened: the database, and the lock of its name.
    held: [(PathBuf, Identity); 2],
    not_copied: NotCopied,
    _lock: File,
}

/// What a file is, whatever its name: the device and the number there.
type Identity = (u64, u64);

impl Writer {
    /// Opens a database for writing, makes these tables, and takes the file's lock for as long as the writer lives.
    ///
    /// # Errors
    /// When it is in use, can't be opened, or can't promise the durability.
    pub fn open(path: &Path, durability: Durability, tables: &[&'static Table]) -> Result<Self, OpenError> {
        let (path, lock) = (&*real(path), lock(path)?);
        let synchronous = match durability {
            Durability::Full => Setting { name: "synchronous", value: "FULL", read_back: "2" },
            Durability::Rebuildable => Setting { name: "synchronous", value: "NORMAL", read_back: "1" },
        };
        let failed = |source: Error| OpenError::Database { location: path.into(), source };
        make(path)?;
        let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
        let journal_mode = Setting { name: "journal_mode", value: "WAL", read_back: "wal" };
        for setting in [&journal_mode, &synchronous] {
            // SQLite takes an unknown or impossible setting for another one and says nothing, so ask.
            let found = setting.set(&connection).map_err(failed)?;
            if found != setting.read_back {
                let (pragma, wanted) = (setting.name, setting.value);
                return Err(OpenError::NotDurable { location: path.into(), pragma, found, wanted });
            }
        }
        check_names(path.into(), tables, &there(&connection).map_err(failed)?)?;
        let mut script = String::from(FIRST);
        for statement in tables.iter().flat_map(|table| table.create) {
            script.push_str(statement);
            script.push(';');
        }
        script.push_str(LAST);
        connection.execute_batch(&script).map_err(|error| failed(error.into()))?;
        // SQLite opens what it may not write for reading, and lets a transaction begin.
        if connection.is_readonly(MAIN_DB).map_err(|error| failed(error.into()))? {
            return Err(OpenError::ReadOnly { path: path.to_owned() });
        }
        settle(&connection, path, EMPTYING)?;
        let not_copied = copy_when_long(&mut connection, path).map_err(|error| failed(error.into()))?;
        let lock_path = companion(path, ".lock");
        let unfit = |path: &Path, source| OpenError::File { path: path.to_owned(), source };
        let database = fs::metadata(path).map(|file| identity(&file)).map_err(|source| unfit(path, source))?;
        let its_lock = lock.metadata().map(|file| identity(&file)).map_err(|source| unfit(&lock_path, source))?;
        let held = [(path.to_owned(), database), (lock_path, its_lock)];
        let (journal_mode, synchronous) = (journal_mode.value, synchronous.value);
        let sqlite = rusqlite::version();
        tracing::info!(path = %path.display(), journal_mode, synchronous, sqlite, "database open");
        Ok(Self { connection, held, not_copied, _lock: lock })
    }

    /// Whether what was committed will be found: the disk takes it, and it is under the database's name, where nobody else takes it for theirs.
    ///
    /// # Errors
    /// [`Error::Gone`] if it isn't there, and SQLite's if the log could not be copied into the database: what the disk has of it nobody knows,
    /// and the next time it would say that all is well. It is in the log yet, and a start begins with that.
    pub(super) fn will_be_found(&self) -> Result<(), Error> {
        if let Some(error) = self.not_copied.lock().take() {
            return Err(error.into());
        }
        for (path, held) in &self.held {
            if !fs::metadata(path).is_ok_and(|found| identity(&found) == *held) {
                let path = path.display();
                return Err(Error::Gone(format!("{path} was removed or replaced while this process had it open")));
            }
        }
        Ok(())
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// When the database can't be written.
    pub fn begin(&mut self) -> Result<Transaction<'_>, Error> {
        Transaction::sqlite(&mut self.connection)
    }

    /// Lets transactions read another database, under this name.
    pub(super) fn attach(&self, path: &Path, name: &str) -> Result<(), Error> {
        let attach = format!("ATTACH DATABASE ?1 AS {name}");
        self.connection.execute(&attach, [path.to_string_lossy()])?;
        Ok(())
    }

    pub(super) fn detach(&self, name: &str) -> Result<(), Error> {
        Ok(self.connection.execute_batch(&format!("DETACH DATABASE {name}"))?)
    }

    /// Copies the write-ahead log into the database, whose file is all of it then. Where somebody goes on reading what the log has, it
    /// stays beside the file.
    pub(super) fn empty_log(&self) {
        let copied = self.connection.busy_timeout(LEAVING).and_then(|()| copy_log(&self.connection, EMPTYING));
        match self.connection.busy_timeout(BUSY).and(copied) {
            Ok(Copied::All) => {}
            Ok(Copied::Part | Copied::ByAnother) => {
                tracing::info!("somebody reads on: what was written last stays in the log beside the database")
            }
            Err(error) => {
                tracing::warn!(%error, "what was written last stays in the log beside the database; nothing is lost");
            }
        }
    }

    /// Closes it, all in the file if it can be.
    pub fn close(self) {
        // The last connection would do that by itself; readers of this process or of another are there longer.
        self.empty_log();
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(%error, "closing the database failed; nothing is lost");
        }
    }
}

/// How long a connection waits for another one's lock: readers meet one only while a log is copied.
pub(super) const BUSY: Duration = Duration::from_secs(5);
/// How long a log that is to be emptied waits for readers before it stays where it is: less than a process has to end.
const LEAVING: Duration = Duration::from_secs(1);
/// How many statements a connection keeps prepared.
const PREPARED: usize = 256;
/// 4 MiB of pages are kept in memory, and no more: at a commit that had to move pages SQLite looks through all of them, and what isn't
/// there is a copy away, in the system's cache.
const FIRST: &str = "PRAGMA cache_size = -4096;";
/// What is put aside while batches are written is small and stays in memory. The keys of a new index are not: of those that don't go into
/// the cache SQLite makes a file.
const LAST: &str = "PRAGMA temp_store = MEMORY;";

/// The mode of a file that is made here: nobody else's business is in it. One that is there keeps its own.
const FILE: u32 = 0o600;
/// The same of a folder.
const FOLDER: u32 = 0o700;

/// A setting that durability stands on.
struct Setting {
    name: &'static str,
    value: &'static str,
    /// What SQLite says when it holds.
    read_back: &'static str,
}

impl Setting {
    fn set(&self, connection: &Connection) -> Result<String, Error> {
        // Some of them answer when they are set, some don't.
        connection.pragma_update_and_check(None, self.name, self.value, |_| Ok(())).or_else(|error| match error {
            rusqlite::Error::QueryReturnedNoRows => Ok(()),
            error => Err(error),
        })?;
        let found = connection.pragma_query_value(None, self.name, |row| {
            Ok(match row.get_ref(0)? {
                rusqlite::types::ValueRef::Integer(value) => value.to_string(),
                other => String::from_utf8_lossy(other.as_bytes().unwrap_or_default()).into_owned(),
            })
        })?;
        Ok(found)
    }
}

/// The names that are there: of each index the table that it is on.
fn there(connection: &Connection) -> Result<There, Error> {
    let sql = "SELECT name, CASE type WHEN 'index' THEN tbl_name ELSE '' END FROM sqlite_master";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?.to_lowercase(), row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Makes a database that isn't there, of nothing yet. SQLite would make it for whoever the umask lets read; what it makes beside a database
/// has that one's mode.
fn make(path: &Path) -> Result<(), OpenError> {
    match File::options().write(true).create_new(true).mode(FILE).open(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(OpenError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, Error> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    // macOS takes a sync for done once the drive has it in its cache, unless asked for more. Other systems flush the drive anyway.
    connection.pragma_update(None, "fullfsync", true)?;
    // A plan never depends on a bound value: else SQLite prepares a statement with a bound LIMIT anew whenever it is bound.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(PREPARED);
    Ok(connection)
}

/// Opens read-only connections on a database that a [`Writer`] of this or another process keeps.
///
/// # Errors
/// When it isn't there or can't be read.
pub fn readers(path: &Path, count: usize) -> Result<Reader, OpenError> {
    read_only(path, count).map(Reader::sqlite)
}

/// The same on a journal that others may be told of, whether a writer has it open or none does: what one left in the log that was killed is
/// on the disk before it is read.
///
/// # Errors
/// When it isn't there or can't be read, or the disk doesn't take it.
pub fn settled_reader(path: &Path) -> Result<Reader, OpenError> {
    let path = &*real(path);
    let connections = read_only(path, 1)?;
    let failed = |source: Error| OpenError::Database { location: path.into(), source };
    // From now on it is found there up to where it is now, until a writer has synced more.
    if let Some(connection) = connections.first() {
        // Whoever was to make it may have been killed before that was done.
        if !connection.table_exists(None, EVENTS.name).map_err(|error| failed(error.into()))? {
            return Err(OpenError::Missing { path: path.to_owned() });
        }
    }
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    settle(&connection, path, BESIDE_OTHERS)?;
    Ok(Reader::sqlite(connections))
}

fn read_only(path: &Path, count: usize) -> Result<Vec<Connection>, OpenError> {
    if matches!(fs::exists(path), Ok(false)) {
        return Err(OpenError::Missing { path: path.to_owned() });
    }
    let open = |_| {
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(connection)
    };
    let failed = |source| OpenError::Database { location: path.into(), source };
    (0..count).map(open).collect::<Result<_, Error>>().map_err(failed)
}

fn identity(file: &Metadata) -> Identity {
    (file.dev(), file.ino())
}

/// Where a database is whose name is a link: what goes with it is beside that, and SQLite looks for it there.
fn real(path: &Path) -> PathBuf {
    let linked = |path: &Path| {
        fs::read_link(path).ok().map(|to| path.parent().map_or_else(|| to.clone(), |folder| folder.join(&to)))
    };
    // One that is yet to be made has no such path, but the links to it say where it will be.
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::canonicalize(&path).ok() {
            Some(real) => return real,
            None => match linked(&path) {
                Some(to) => path = to,
                None => break,
            },
        }
    }
    path
}

/// More links to a file than the system follows.
const MOST_LINKS: usize = 64;

/// A file that goes with a database, by what its name ends with: one of SQLite's own, or the lock.
#[must_use]
pub fn companion(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes a database, its write-ahead log and its lock. Nobody may have it open.
///
/// # Errors
/// When one of them is there and can't be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    for suffix in ["", "-wal", "-shm", ".lock"] {
        match fs::remove_file(companion(path, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The same, unless somebody has it open. True if it is removed.
///
/// # Errors
/// When one of them can't be removed.
pub fn remove_abandoned(path: &Path) -> Result<bool, OpenError> {
    let _lock = match lock(path) {
        Err(OpenError::InUse { .. }) => return Ok(false),
        lock => lock?,
    };
    remove(path).map_err(|source| OpenError::File { path: path.to_owned(), source })?;
    Ok(true)
}

/// Opens a file that has this name itself: somebody else may have left a link there that leads to any other.
///
/// # Errors
/// When it can't be opened, or is a link.
pub fn itself(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let is_link = || Err(io::Error::other("it is a link, or was replaced meanwhile: remove it"));
    // Or what is at its end would be made.
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
        return is_link();
    }
    let file = options.open(path)?;
    let opened = identity(&file.metadata()?);
    if fs::symlink_metadata(path).is_ok_and(|found| identity(&found) == opened) { Ok(file) } else { is_link() }
}

/// Takes a database for oneself, until what this answers is dropped. A file of more than one name, by symbolic links, is one database.
///
/// # Errors
/// When somebody has it open, or its lock can't be made.
pub fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = companion(&real(path), ".lock");
    let failed = |path: &Path, source| OpenError::File { path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(FOLDER).create(folder).map_err(|source| failed(folder, source))?;
    }
    let options = File::options().create(true).truncate(false).write(true).mode(FILE).clone();
    let file = itself(&options, &lock_path).map_err(|source| failed(&lock_path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(&lock_path, source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flushes(connection: &Connection) -> bool {
        connection.pragma_query_value(None, "fullfsync", |row| row.get(0)).unwrap()
    }

    /// Who only answers queries copies a log too.
    #[test]
    fn what_is_synced_is_on_the_drive_on_every_system() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("order.db");
        let writer = Writer::open(&path, Durability::Full, &[]).unwrap();
        assert!(flushes(&writer.connection), "a writer leaves it to the drive");
        let other = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
        assert!(flushes(&other), "who settles a log leaves it to the drive");
    }
}
