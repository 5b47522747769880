//! The log of events: one order a database, no gaps, read by position. It is the outbox.

use std::borrow::Cow;

use bytes::Bytes;

use super::{
    batch::Written,
    entry::Table,
    sql::{Error, Reader, Record, Value},
};

pub(super) static EVENTS: Table = Table {
    name: "events",
    create: &["CREATE TABLE IF NOT EXISTS events (
        position INTEGER NOT NULL PRIMARY KEY,
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        version INTEGER NOT NULL,
        name TEXT NOT NULL,
        payload BLOB NOT NULL,
        cause TEXT NOT NULL,
        traceparent TEXT NOT NULL,
        time INTEGER NOT NULL
    )"],
    columns: &["position", "kind", "id", "version", "name", "payload", "cause", "traceparent", "time"],
    key: 1,
    fixed: &[],
};

/// Something that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Its place in the log, from 1. A reader that has seen position p has seen all before it.
    pub position: i64,
    /// The kind of the aggregate it happened to.
    pub kind: Cow<'static, str>,
    /// The aggregate's id.
    pub id: String,
    /// The aggregate's version after it.
    pub version: u64,
    /// What happened, such as `StockReserved`.
    pub name: Cow<'static, str>,
    /// The event, encoded by its aggregate.
    pub payload: Bytes,
    /// The request or saga operation it came from.
    pub cause: String,
    /// The W3C trace context it came from, or empty.
    pub traceparent: String,
    /// When, in microseconds since 1970.
    pub time_micros: i64,
}

impl Event {
    /// Which one it is, in a line.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("event {} ({} of {} {})", self.position, self.name, self.kind, self.id)
    }

    fn read(record: &Record) -> Result<Self, Error> {
        Ok(Self {
            position: record.int(0)?,
            kind: record.text(1)?.into(),
            id: record.text(2)?,
            version: record.int(3)?.unsigned_abs(),
            name: record.text(4)?.into(),
            payload: record.blob(5)?,
            cause: record.text(6)?,
            traceparent: record.text(7)?,
            time_micros: record.int(8)?,
        })
    }
}

impl Written {
    /// The event as a reader of the log will find it.
    pub(super) fn event(&self, time_micros: i64) -> Event {
        Event {
            position: self.position,
            kind: self.aggregate.kind.into(),
            id: (*self.aggregate.id).into(),
            version: self.version,
            name: self.event.name.into(),
            payload: self.event.payload.clone(),
            cause: self.cause.request.clone(),
            traceparent: self.cause.traceparent.clone(),
            time_micros,
        }
    }

    pub(super) fn row(self, now_micros: i64) -> Vec<Value> {
        vec![
            self.position.into(),
            Value::Text(self.aggregate.kind.into()),
            (*self.aggregate.id).into(),
            i64::try_from(self.version).unwrap_or(i64::MAX).into(),
            Value::Text(self.event.name.into()),
            self.event.payload.into(),
            self.cause.request.into(),
            self.cause.traceparent.into(),
            now_micros.into(),
        ]
    }
}

/// Reads the events after a position, in order, at most `limit`.
///
/// # Errors
/// When the log can't be read.
pub async fn events_after(reader: &Reader, position: i64, limit: i64) -> Result<Vec<Event>, Error> {
    const SQL: &str = "SELECT position,kind,id,version,name,payload,cause,traceparent,time FROM events
        WHERE position > $1 ORDER BY position LIMIT $2";
    let records = reader.fetch(SQL, vec![position.into(), limit.into()]).await?;
    records.iter().map(Event::read).collect()
}

/// The same, but of events that hold more than so many bytes together none after those that reach that.
///
/// # Errors
/// When the log can't be read.
#[cfg(feature = "cqrs")]
pub(crate) async fn batch_after(reader: &Reader, position: i64, limit: i64, bytes: i64) -> Result<Vec<Event>, Error> {
    // Neither database reads a payload for its length.
    const SQL: &str = "SELECT position,kind,id,version,name,payload,cause,traceparent,time FROM events
        WHERE position > $1 AND position <= (SELECT MAX(position) FROM (
            SELECT position, SUM(size) OVER (ORDER BY position) - size AS before FROM (
                SELECT position, LENGTH(payload) AS size FROM events WHERE position > $1 ORDER BY position LIMIT $2
            ) AS sizes
        ) AS sums WHERE before < $3) ORDER BY position";
    let records = reader.fetch(SQL, vec![position.into(), limit.into(), bytes.into()]).await?;
    records.iter().map(Event::read).collect()
}

/// The position of the last event, 0 if there is none.
///
/// # Errors
/// When the log can't be read.
pub async fn head(reader: &Reader) -> Result<i64, Error> {
    position(&reader.fetch(HEAD, Vec::new()).await?)
}

/// The same, but None from a standby, whose log may go further than it has replayed.
///
/// # Errors
/// When the log can't be read.
pub async fn head_of_primary(reader: &Reader) -> Result<Option<i64>, Error> {
    reader.fetch_of_primary(HEAD, Vec::new()).await?.as_deref().map(position).transpose()
}

const HEAD: &str = "SELECT COALESCE(MAX(position), 0) FROM events";

fn position(records: &[Record]) -> Result<i64, Error> {
    records.first().map_or(Ok(0), |record| record.int(0))
}
