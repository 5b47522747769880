//! The little SQL that the journal, projections and queries share: values in, rows out, whole sets a statement.

pub(super) mod postgres;
mod reader;
mod statements;
mod transaction;

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use rusqlite::{
    Connection, Statement, ToSql,
    types::{ToSqlOutput, ValueRef},
};

use crate::refusal::Refusal;

pub use self::{reader::Reader, transaction::Transaction};
pub(super) use self::{
    statements::{Write, delete_older, fetch_keys, upsert, write},
    transaction::roll_back,
};

/// A value to bind, or one that was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// NULL.
    Null,
    /// A 64-bit integer.
    Int(i64),
    /// A text.
    Text(Cow<'static, str>),
    /// Bytes.
    Blob(Bytes),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Self::Int(value.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Int(value.into())
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned().into())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value.into())
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Blob(value.into())
    }
}

impl From<Bytes> for Value {
    fn from(value: Bytes) -> Self {
        Self::Blob(value)
    }
}

impl Value {
    /// Whether it is a text that holds U+0000. A server has none.
    fn holds_nul(&self) -> bool {
        matches!(self, Self::Text(text) if text.contains('\0'))
    }

    /// Puts U+FFFD in the place of each U+0000.
    pub(super) fn replace_nul(&mut self) {
        if let Self::Text(text) = self
            && text.contains('\0')
        {
            *text = text.replace('\0', "\u{fffd}").into();
        }
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Int(value) => ValueRef::Integer(*value),
            Self::Text(value) => ValueRef::Text(value.as_bytes()),
            Self::Blob(value) => ValueRef::Blob(value),
        }))
    }
}

/// A row that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record(Vec<Value>);

impl Record {
    /// The integer in a column.
    ///
    /// # Errors
    /// When the column is missing or holds something else.
    pub fn int(&self, column: usize) -> Result<i64, Error> {
        match self.0.get(column) {
            Some(Value::Int(value)) => Ok(*value),
            other => Err(unexpected(column, "an integer", other)),
        }
    }

    /// The text in a column.
    ///
    /// # Errors
    /// When the column is missing or holds something else.
    pub fn text(&self, column: usize) -> Result<String, Error> {
        match self.0.get(column) {
            Some(Value::Text(value)) => Ok(value.clone().into_owned()),
            other => Err(unexpected(column, "a text", other)),
        }
    }

    /// The bytes in a column.
    ///
    /// # Errors
    /// When the column is missing or holds something else.
    pub fn blob(&self, column: usize) -> Result<Bytes, Error> {
        match self.0.get(column) {
            Some(Value::Blob(value)) => Ok(value.clone()),
            other => Err(unexpected(column, "bytes", other)),
        }
    }

    /// Some of its columns, in this order.
    pub(super) fn columns<const N: usize>(&self, columns: [usize; N]) -> Self {
        Self(columns.iter().filter_map(|column| self.0.get(*column)).cloned().collect())
    }

    /// True if these are its values.
    pub(super) fn is(&self, values: &[Value]) -> bool {
        self.0 == values
    }

    fn read(row: &rusqlite::Row<'_>, columns: usize) -> Result<Self, Error> {
        let value = |column| {
            Ok(match row.get_ref(column)? {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(value) => Value::Int(value),
                ValueRef::Text(text) => match std::str::from_utf8(text) {
                    Ok(text) => text.into(),
                    Err(error) => return Err(Error::Corrupt(format!("column {column}: {error}"))),
                },
                ValueRef::Blob(bytes) => Value::Blob(Bytes::copy_from_slice(bytes)),
                ValueRef::Real(number) => return Err(Error::Corrupt(format!("column {column} holds {number}"))),
            })
        };
        (0..columns).map(value).collect::<Result<_, Error>>().map(Self)
    }
}

fn unexpected(column: usize, wanted: &str, found: Option<&Value>) -> Error {
    Error::Corrupt(format!("column {column} should hold {wanted} and holds {found:?}"))
}

/// Why the database can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite's word.
    #[error("{}", in_full(.0))]
    Sqlite(#[from] rusqlite::Error),
    /// PostgreSQL's word, or that of the way to it.
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
    /// For so long no session could be begun.
    #[error("no session with the server could be begun within {0:?}: it is out of reach, or lets nobody in")]
    OutOfReach(Duration),
    /// For so long no session was free.
    #[error("no session with the server was free within {0:?}: all are at work, or have yet to begin")]
    AllAtWork(Duration),
    /// What was read is not what was written.
    #[error("the database holds what was never written: {0}")]
    Corrupt(String),
    /// What became of a commit can't be told by who is asked.
    #[error("it is not known whether transaction {0} was committed: the server is a standby that nobody has promoted")]
    NotPromoted(String),
    /// What became of a commit could not be found out in time. Before it the log had ended there.
    #[error("{why}")]
    Unanswered {
        /// The position of the last event before it.
        ended: i64,
        /// That event's time, in microseconds since 1970: another may come to its position.
        time: i64,
        /// What was said last.
        why: Box<Self>,
    },
    /// What must be the newest there is can't be told by who is asked.
    #[error("the server is a standby, which may have yet to replay what was committed")]
    Standby,
    /// The values of one column are to be of one type.
    #[error(
        "rows that are written or looked up together have values of several types in one column, or keys without a value"
    )]
    Mixed,
    /// A row has more or fewer values than its table has columns.
    #[error(
        "{table} has {columns} columns, and a row for it has {values} values: give it one for each, in their order"
    )]
    Width {
        /// The table's name.
        table: &'static str,
        /// How many columns it has.
        columns: usize,
        /// How many values the row has.
        values: usize,
    },
    /// A key holds U+0000, which is in no text on a server.
    #[error("{key:?} is to be a key in {table}, and no key can hold U+0000: refuse it where it comes in")]
    NulInKey {
        /// The table's name.
        table: &'static str,
        /// The key.
        key: String,
    },
    /// What was committed is not there: a server has taken over that had not come so far, or somebody else has begun anew.
    #[error("what was committed is gone: {0}")]
    Gone(String),
    /// The process is going down.
    #[error("the database is closed")]
    Closed,
}

/// SQLite's word, and the code that says what its words leave open: a disk that fails has dozens, and one sentence.
fn in_full(error: &rusqlite::Error) -> String {
    match error.sqlite_error() {
        Some(said) if said.extended_code > 0xff => format!("{error} (SQLite's code {})", said.extended_code),
        _ => error.to_string(),
    }
}

impl Error {
    /// What a caller is told: UNAVAILABLE while the [database can't do anything](Self::is_passing), as a command is, else INTERNAL, with
    /// nothing of the inside.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        if !self.is_passing() {
            return Refusal::internal();
        }
        let message = "the database can't be reached or can't answer now: try again";
        Refusal::unavailable("DATABASE_UNAVAILABLE", message, Duration::from_secs(1))
    }

    /// True where the database can't do anything just now, whatever it is asked: it is out of reach or room, lets nobody in, or others are in
    /// the way.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        use rusqlite::ErrorCode::{
            CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory, PermissionDenied, ReadOnly,
            SystemIoFailure,
        };
        match self {
            Self::Sqlite(rusqlite::Error::SqliteFailure(said, _)) => {
                let in_the_way = matches!(said.code, DatabaseBusy | DatabaseLocked);
                let of_the_disk = matches!(said.code, DiskFull | OutOfMemory | SystemIoFailure);
                in_the_way || of_the_disk || matches!(said.code, CannotOpen | PermissionDenied | ReadOnly)
            }
            Self::Gone(_) => true,
            Self::Postgres(sqlx::Error::Io(_) | sqlx::Error::PoolClosed)
            | Self::OutOfReach(_)
            | Self::AllAtWork(_)
            | Self::Standby => true,
            // Operator intervention, a broken connection, insufficient resources; a transaction turned down for others' sake, a lock, the
            // system; a login or a database that is yet to be there, a right that is yet to be granted, a standby that is yet to be promoted
            // or a server that takes no writes for a while.
            Self::Postgres(sqlx::Error::Database(said)) => {
                let passing = ["57", "08", "53", "40", "55", "58", "28", "3D", "42501", "25006"];
                said.code().is_some_and(|code| passing.iter().any(|class| code.starts_with(class)))
            }
            _ => false,
        }
    }

    /// What a person does about what [passes](Self::is_passing) only by one. None of what passes by itself, as far as its code tells.
    #[must_use]
    pub fn mend(&self) -> Option<&'static str> {
        match self {
            Self::Sqlite(error) => match error.sqlite_error_code()? {
                rusqlite::ErrorCode::SystemIoFailure => Some("see to the disk that it is on"),
                rusqlite::ErrorCode::PermissionDenied => Some("give its files back to the user of this process"),
                _ => None,
            },
            Self::Postgres(sqlx::Error::Database(said)) => match said.code()?.as_ref() {
                "42501" => Some("grant this process's role what it is denied"),
                code if code.starts_with("28") => {
                    Some("let the role of --database-url log in, by its password and the server's pg_hba.conf")
                }
                code if code.starts_with("3D") => Some("make that database, or name another one in --database-url"),
                code if code.starts_with("58") => Some("see to the server's disk and to its log"),
                _ => None,
            },
            _ => None,
        }
    }

    /// True where a server doesn't let this role do that to a table, or to another thing of its own.
    #[cfg(feature = "cqrs")]
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self, Self::Postgres(sqlx::Error::Database(said)) if said.code().as_deref() == Some("42501"))
    }

    /// True where a column was named that there isn't.
    #[cfg(feature = "cqrs")]
    pub(crate) fn is_unknown_column(&self) -> bool {
        match self {
            // As it is read, and as it is written.
            Self::Sqlite(said) => {
                let said = said.to_string();
                said.contains("no such column") || said.contains(" has no column named ")
            }
            Self::Postgres(sqlx::Error::Database(said)) => said.code().as_deref() == Some("42703"),
            _ => false,
        }
    }
}

/// Begins a transaction that writes. It takes the write lock now, rather than fail at its first write.
pub(super) fn begin(connection: &Connection) -> Result<(), Error> {
    execute(connection, "BEGIN IMMEDIATE", [])
}

/// Makes what was written since [`begin`] durable, or none of it.
pub(super) fn commit(connection: &Connection) -> Result<(), Error> {
    execute(connection, "COMMIT", [])
}

/// Runs a statement, kept prepared. Placeholders are `$1`, `$2`, … or `?`.
pub(super) fn execute<'v>(
    connection: &Connection,
    sql: &str,
    values: impl IntoIterator<Item = &'v Value>,
) -> Result<(), Error> {
    let mut statement = connection.prepare_cached(sql)?;
    bind(&mut statement, values)?;
    statement.raw_execute()?;
    Ok(())
}

/// Runs a SELECT, kept prepared.
pub(super) fn query<'v>(
    connection: &Connection,
    sql: &str,
    values: impl IntoIterator<Item = &'v Value>,
) -> Result<Vec<Record>, Error> {
    let mut statement = connection.prepare_cached(sql)?;
    bind(&mut statement, values)?;
    let columns = statement.column_count();
    let mut rows = statement.raw_query();
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(Record::read(row, columns)?);
    }
    Ok(records)
}

fn bind<'v>(statement: &mut Statement<'_>, values: impl IntoIterator<Item = &'v Value>) -> Result<(), Error> {
    for (at, value) in values.into_iter().enumerate() {
        statement.raw_bind_parameter(at + 1, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bound_is_what_is_read() {
        let connection = Connection::open_in_memory().unwrap();
        let values = [Value::Null, (-7).into(), "é".into(), Value::Blob(Bytes::from_static(&[0, 255]))];
        let records = query(&connection, "SELECT $1, $2, $3, $4", &values).unwrap();
        assert_eq!(records, [Record(values.to_vec())]);
        assert_eq!((records[0].int(1).unwrap(), records[0].text(2).unwrap()), (-7, "é".to_owned()));
    }

    #[test]
    fn a_column_that_holds_something_else_is_an_error() {
        let connection = Connection::open_in_memory().unwrap();
        let records = query(&connection, "SELECT 1", []).unwrap();
        assert!(records[0].text(0).is_err() && records[0].blob(0).is_err() && records[0].int(1).is_err());
        assert!(query(&connection, "SELECT 1.5", []).is_err());
        assert!(query(&connection, "SELECT CAST(x'ff' AS TEXT)", []).is_err());
    }

    #[test]
    fn who_reads_is_told_to_try_again_where_that_helps() {
        use rusqlite::ffi;
        let refused = |code| Error::from(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)).refusal();
        for code in [ffi::SQLITE_BUSY, ffi::SQLITE_FULL, ffi::SQLITE_CANTOPEN, ffi::SQLITE_IOERR_READ] {
            let refusal = refused(code);
            assert_eq!(&*refusal.reason, "DATABASE_UNAVAILABLE", "{code}");
            assert!(refusal.retry_after.is_some(), "{code}");
        }
        for code in [ffi::SQLITE_CORRUPT, ffi::SQLITE_ERROR, ffi::SQLITE_NOTADB] {
            assert_eq!(&*refused(code).reason, "INTERNAL", "{code}");
        }
    }

    #[test]
    fn what_a_disk_fails_at_is_a_persons_to_mend_and_what_others_hold_is_not() {
        use rusqlite::ffi;
        let mend = |code| Error::from(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)).mend();
        assert!(mend(ffi::SQLITE_IOERR_READ).is_some_and(|mend| mend.contains("the disk")));
        assert_eq!([ffi::SQLITE_BUSY, ffi::SQLITE_FULL, ffi::SQLITE_CORRUPT].map(mend), [None; 3]);
    }
}
