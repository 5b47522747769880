//! Where sagas are kept: one row a saga in the journal's database, written in the same transaction as everything else.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use proto::saga::v1::SagaPhase;

use super::record::{Record, RecordError, is_final};
use crate::journal::{
    AggregateId, Change, Decided, Journal, Member, NewEvent, Row, Table, head,
    sql::{self, Value},
};

/// About how many bytes of records are read at a time.
const MOST_BYTES: i64 = 8 << 20;
/// Of how many sagas it is asked at a time how many bytes they have.
const MOST_SIZED: usize = 64;

/// The kind of a saga's stream of events, each of which tells what changed: a `SagaTransition`.
pub(super) const KIND: &str = "saga";

pub(super) static SAGAS: Table = Table {
    name: "sagas",
    create: &[
        "CREATE TABLE IF NOT EXISTS sagas (
            saga_id TEXT NOT NULL PRIMARY KEY,
            open INTEGER,
            record BLOB
        ) WITHOUT ROWID",
        "CREATE INDEX IF NOT EXISTS sagas_open ON sagas (saga_id) WHERE open = 1",
    ],
    columns: &["saga_id", "open", "record"],
    key: 1,
    fixed: &[],
};

/// The kind of the aggregate that says which process drives a saga, where several share a database. Its state is the process's
/// name, its version counts the changes.
const OWNER: &str = "saga_owner";
/// A saga's owner when it begins, in changes.
pub(super) const FIRST_OWNER: u64 = 1;

/// The name under which a saga's owner is kept.
pub(super) fn owner_of(saga_id: &str) -> AggregateId {
    AggregateId::new(OWNER, saga_id)
}

/// A saga's new owner, `version` changes after there was none.
pub(super) fn owned_by(saga_id: &str, member: &str, version: u64) -> Change {
    let state = Some(member.as_bytes().to_vec().into());
    Change { aggregate: owner_of(saga_id), state, version, events: Vec::new() }
}

/// Those of these sagas that a process owns, by name, and how often the owner of each has changed, as new as that is.
pub(super) async fn owned(
    journal: &Journal,
    saga_ids: impl Iterator<Item = &str>,
    member: &str,
) -> Result<Owned, sql::Error> {
    let mut owned = Owned::default();
    for (saga_id, owner) in journal.aggregates(OWNER, saga_ids).await? {
        match owner {
            Ok(owner) if owner.state == member.as_bytes() => drop(owned.since.insert(saga_id, owner.version)),
            Ok(_) => {}
            // The journal has said so.
            Err(_) => drop(owned.unread.insert(saga_id)),
        }
    }
    Ok(owned)
}

/// What was found of whose some sagas are.
#[derive(Debug, Default)]
pub(super) struct Owned {
    /// Of those that are the process's, how often the owner of each has changed.
    pub(super) since: HashMap<String, u64>,
    /// Those whose owner can't be read. They may be anybody's, and nobody's transition of them is committed.
    pub(super) unread: HashSet<String>,
}

impl Owned {
    /// Whether a saga is known to be another process's.
    pub(super) fn is_anothers(&self, saga_id: &str) -> bool {
        !self.since.contains_key(saga_id) && !self.unread.contains(saga_id)
    }
}

/// A page of the sagas that have not ended and whose owner is gone, by id, after one of them; with each its owner. To a standby that lags
/// everybody would be gone.
pub(super) async fn orphans_after(
    journal: &Journal,
    after: &str,
    limit: i64,
) -> Result<Vec<(String, Bytes)>, sql::Error> {
    let is_there = Member::is_there("m");
    // The owner is looked up saga by saga: as a join it may be read from the list of all owners there ever were.
    let sql = format!(
        "SELECT saga_id, owner FROM (
             SELECT saga_id,
                    COALESCE((SELECT state FROM aggregates WHERE kind = '{OWNER}' AND id = saga_id), ''::bytea) AS owner
             FROM sagas WHERE open = 1 AND saga_id > $1
         ) AS s
         WHERE NOT EXISTS (SELECT 1 FROM members m WHERE convert_to(m.name, 'UTF8') = s.owner AND {is_there})
         ORDER BY saga_id LIMIT $2"
    );
    let records = of_primary(journal, &sql, vec![after.into(), limit.into()]).await?;
    let orphan = |record: &sql::Record| Ok((record.text(0)?, record.blob(1)?));
    records.iter().map(orphan).collect()
}

/// A saga's owner, if that is no process that is there.
pub(super) async fn owner_gone(journal: &Journal, saga_id: &str) -> Result<Option<Bytes>, sql::Error> {
    let is_there = Member::is_there("m");
    let sql = format!(
        "SELECT owner FROM (
             SELECT COALESCE((SELECT state FROM aggregates WHERE kind = '{OWNER}' AND id = $1), ''::bytea) AS owner
         ) AS s
         WHERE NOT EXISTS (SELECT 1 FROM members m WHERE convert_to(m.name, 'UTF8') = s.owner AND {is_there})"
    );
    let found = of_primary(journal, &sql, vec![saga_id.into()]).await?;
    found.first().map(|record| record.blob(0)).transpose()
}

/// A saga as its transitions tell of it, for one whose record can't be read: see [`Record::told`]. It reads the whole log, a stretch at a time.
pub(super) async fn told(journal: &Journal, saga_id: &str) -> Result<Stored, sql::Error> {
    const STRETCH: i64 = 10_000;
    const SQL: &str =
        "SELECT payload FROM events WHERE position > $1 AND position <= $2 AND kind = $3 AND id = $4 ORDER BY position";
    let (head, mut last) = (head(journal.reader()).await?, 0);
    let mut transitions = Vec::new();
    while last < head {
        let next = last + STRETCH;
        let values = vec![last.into(), next.into(), KIND.into(), saga_id.into()];
        for record in journal.reader().fetch(SQL, values).await? {
            transitions.push(record.blob(0)?);
        }
        last = next;
    }
    Ok(Record::told(transitions))
}

/// The tables that a journal must keep for a coordinator.
pub const TABLES: &[&Table] = &[&SAGAS];

/// A record's new version as the journal commits it, its row and the event that tells of it, and about how many bytes it takes.
pub(super) fn transition(record: &mut Record) -> (Decided, usize) {
    let (shown, stored) = record.encode();
    let saga = &record.saga;
    let size = shown.len() + stored.len();
    let values = vec![saga.saga_id.as_str().into(), (!is_final(saga.phase())).into(), stored.into()];
    let change = Change {
        aggregate: AggregateId::new(KIND, saga.saga_id.as_str()),
        state: None,
        version: saga.version,
        events: vec![NewEvent { name: event_name(saga.phase()), payload: shown }],
    };
    let rows = vec![Row { table: &SAGAS, values }];
    (Decided { rows, changes: vec![change], ..Decided::default() }, size)
}

/// A stretch of the log, and which sagas ended in it.
#[derive(Debug, Default)]
pub(super) struct EndedPage {
    /// When the first event in it was, in microseconds since 1970. None if there is none.
    pub(super) first_micros: Option<i64>,
    /// The sagas.
    pub(super) ended: Vec<String>,
    /// The position of the last event in it.
    pub(super) position: i64,
}

/// The log after a position, as far as it is older than `before_micros`, read `limit` events at a time. What claims to be later than now
/// was written by a clock that was ahead: it is as old as what comes after it.
pub(super) async fn ended_after(
    journal: &Journal,
    position: i64,
    before_micros: i64,
    now_micros: i64,
    limit: i64,
) -> Result<EndedPage, sql::Error> {
    const SQL: &str =
        "SELECT position, time, kind, id, name FROM events WHERE position > $1 ORDER BY position LIMIT $2";
    let mut page = EndedPage { position, ..EndedPage::default() };
    let (mut last, mut ended) = (position, Vec::new());
    loop {
        let records = journal.reader().fetch(SQL, vec![last.into(), limit.into()]).await?;
        for record in &records {
            let time_micros = record.int(1)?;
            if (before_micros..=now_micros).contains(&time_micros) {
                return Ok(page);
            }
            last = record.int(0)?;
            if record.text(2)? == KIND && ENDS.map(event_name).contains(&&*record.text(4)?) {
                ended.push(record.text(3)?);
            }
            if time_micros < before_micros {
                page.first_micros.get_or_insert(time_micros);
                page.position = last;
                page.ended.append(&mut ended);
            }
        }
        // Nothing but what claims to be later than now: what comes after it is to say how old it is.
        let more = i64::try_from(records.len()).is_ok_and(|found| found == limit);
        if page.first_micros.is_some() || !more {
            return Ok(page);
        }
    }
}

/// The phases in which nothing happens to a saga any more.
const ENDS: [SagaPhase; 3] = [SagaPhase::Completed, SagaPhase::Compensated, SagaPhase::ForceClosed];

fn event_name(phase: SagaPhase) -> &'static str {
    match phase {
        SagaPhase::Completed => "SagaCompleted",
        SagaPhase::Compensated => "SagaCompensated",
        SagaPhase::ForceClosed => "SagaForceClosed",
        SagaPhase::Stuck => "SagaStuck",
        SagaPhase::Compensating => "SagaCompensating",
        SagaPhase::Unspecified | SagaPhase::Scheduled | SagaPhase::Forward => "SagaAdvanced",
    }
}

/// A stored saga, or why it can't be read.
pub(super) type Stored = Result<Record, RecordError>;

/// A page of the sagas that have not ended, by id, after one of them.
pub(super) async fn open_after(journal: &Journal, after: &str, limit: usize) -> Result<Vec<String>, sql::Error> {
    const SQL: &str = "SELECT saga_id FROM sagas WHERE open = 1 AND saga_id > $1 ORDER BY saga_id LIMIT $2";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let records = journal.reader().fetch(SQL, vec![after.into(), limit.into()]).await?;
    records.iter().map(|record| record.text(0)).collect()
}

/// Has each of these sagas taken once, in one order, as new as it is. A record may have megabytes, so only so many are in memory at a time
/// as are small enough together.
pub(super) async fn load_each(
    journal: &Journal,
    ids: &[String],
    mut take: impl FnMut(String, Stored),
) -> Result<(), sql::Error> {
    for ids in ids.chunks(MOST_SIZED) {
        for portion in portions(journal, ids).await? {
            let (wanted, values) = among(&portion);
            let sql = format!("SELECT saga_id, record FROM sagas WHERE saga_id IN ({wanted}) ORDER BY saga_id");
            for record in of_primary(journal, &sql, values).await? {
                take(record.text(0)?, Record::decode(record.blob(1)?));
            }
        }
    }
    Ok(())
}

/// These sagas as they are read: one, or as many as have [`MOST_BYTES`] together. No record is read for that.
async fn portions(journal: &Journal, ids: &[String]) -> Result<Vec<Vec<String>>, sql::Error> {
    let (wanted, values) = among(ids);
    let sql = format!("SELECT saga_id, length(record) FROM sagas WHERE saga_id IN ({wanted}) ORDER BY saga_id");
    let (mut portions, mut bytes) = (Vec::<Vec<_>>::new(), 0);
    for record in of_primary(journal, &sql, values).await? {
        let (saga_id, size) = (record.text(0)?, record.int(1)?);
        bytes += size;
        match portions.last_mut() {
            Some(portion) if bytes <= MOST_BYTES => portion.push(saga_id),
            _ => {
                portions.push(vec![saga_id]);
                bytes = size;
            }
        }
    }
    Ok(portions)
}

/// Placeholders for these sagas, and what is bound to them.
fn among(ids: &[String]) -> (String, Vec<Value>) {
    // Few shapes: each is prepared once a session.
    let count = ids.len().next_power_of_two();
    let wanted: Vec<String> = (1..=count).map(|at| format!("${at}")).collect();
    let values = ids.iter().chain(ids.last().into_iter().cycle()).take(count).map(|id| id.as_str().into()).collect();
    (wanted.join(","), values)
}

/// One saga, as it is shown: a standby may have yet to replay how it went on.
pub(super) async fn load(journal: &Journal, saga_id: &str) -> Result<Option<Stored>, sql::Error> {
    let found = journal.reader().fetch_keys(&SAGAS, vec![vec![Value::from(saga_id)]]).await?;
    found.first().map(|record| Ok(Record::decode(record.blob(2)?))).transpose()
}

/// One saga, as new as it is: to go on from there.
pub(super) async fn load_newest(journal: &Journal, saga_id: &str) -> Result<Option<Stored>, sql::Error> {
    const SQL: &str = "SELECT record FROM sagas WHERE saga_id = $1";
    let found = of_primary(journal, SQL, vec![saga_id.into()]).await?;
    found.first().map(|record| Ok(Record::decode(record.blob(0)?))).transpose()
}

/// Whether a saga is stored, and not as far as this version.
pub(super) async fn is_behind(journal: &Journal, saga_id: &str, version: u64) -> Result<bool, sql::Error> {
    let stored = load_newest(journal, saga_id).await?;
    Ok(stored.is_some_and(|stored| stored.is_ok_and(|stored| stored.saga.version < version)))
}

/// Runs a SELECT whose answer must be the newest there is. Of a standby it is none.
async fn of_primary(journal: &Journal, sql: &str, values: Vec<Value>) -> Result<Vec<sql::Record>, sql::Error> {
    journal.reader().fetch_of_primary(sql, values).await?.ok_or(sql::Error::Standby)
}
