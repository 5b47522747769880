//! What goes into the journal and what comes back.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use super::sql::{Error, Value};
#[cfg(feature = "cqrs")]
use crate::refusal::Refusal;

/// The longest id of an aggregate, in bytes. An index takes no longer rows than some 2,700, and contracts allow far less.
#[cfg(feature = "cqrs")]
const LONGEST_ID: usize = 512;

/// Names one aggregate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AggregateId {
    /// The kind, such as `stock`.
    pub kind: &'static str,
    /// The id within the kind.
    pub id: Arc<str>,
}

impl AggregateId {
    /// Names an aggregate.
    pub fn new(kind: &'static str, id: impl Into<Arc<str>>) -> Self {
        Self { kind, id: id.into() }
    }

    /// Whether an aggregate can have this id.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if it can't.
    #[cfg(feature = "cqrs")]
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        if self.id.len() <= LONGEST_ID && !self.id.contains(char::is_control) {
            return Ok(());
        }
        let why = format!("its id must be at most {LONGEST_ID} bytes long and hold no control characters");
        Err(Refusal::invalid(self.kind, why))
    }
}

/// One unit of work: what it needs to see, and the pure decision over it.
pub struct Entry {
    /// The key under which the answer is kept, so that a repetition gets the same one. None decides every time.
    pub request: Option<RequestKey>,
    /// The aggregates the decision sees and may change.
    pub aggregates: Vec<AggregateId>,
    /// Goes into the metadata of every event the decision makes.
    pub cause: Cause,
    /// The decision. It runs on the committer, and all others wait for it: no clock, no I/O, nothing that waits or computes for long.
    pub decide: Box<dyn FnOnce(&Loaded<'_>) -> Decided + Send>,
    /// About how many bytes the entry holds; bounds a batch.
    pub size: usize,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("request", &self.request)
            .field("aggregates", &self.aggregates)
            .finish_non_exhaustive()
    }
}

/// Why an event came to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// The W3C trace context of the request, empty when it carried none.
    pub traceparent: String,
    /// The request or saga operation, as in [`RequestKey::key`].
    pub request: String,
    /// What of the request's metadata goes on with what it begins, keys and values. Not kept with events.
    pub carried: Arc<[(String, String)]>,
}

/// Under which key an answer is kept, and what made the request what it was.
#[derive(Clone, Debug)]
pub struct RequestKey {
    /// Unique within the database.
    pub key: String,
    /// A hash of the request: the same key with another hash is a conflict.
    pub hash: [u8; 32],
    /// But for this one, under which the same request may be known.
    pub other_hash: Option<[u8; 32]>,
    /// What a repetition, or its counterpart, means.
    pub role: Role,
}

impl RequestKey {
    /// Whether what is known under this hash is the same request.
    pub(super) fn is_same(&self, known: &[u8; 32]) -> bool {
        self.hash == *known || self.other_hash.as_ref() == Some(known)
    }
}

/// What a keyed request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A client's command, or the action of a saga step.
    Action,
    /// The compensation of a saga step.
    Compensation {
        /// The key of the action that it undoes.
        action: String,
        /// Until when it counts where nothing is known of that, in microseconds since 1970. 0 for always.
        expires_micros: i64,
    },
}

/// What a decision sees.
#[derive(Debug)]
pub struct Loaded<'a> {
    aggregates: &'a [(AggregateId, Aggregate)],
    action_reply: Option<&'a Bytes>,
    now_micros: i64,
    traceparent: &'a str,
    carried: &'a [(String, String)],
}

impl<'a> Loaded<'a> {
    /// What a decision would see, for the committer and for tests of decisions.
    #[must_use]
    pub fn new(aggregates: &'a [(AggregateId, Aggregate)], action_reply: Option<&'a Bytes>, now_micros: i64) -> Self {
        Self { aggregates, action_reply, now_micros, traceparent: "", carried: &[] }
    }

    /// The same, caused so.
    #[must_use]
    pub fn caused(mut self, cause: &'a Cause) -> Self {
        (self.traceparent, self.carried) = (&cause.traceparent, &cause.carried);
        self
    }

    /// The aggregates as they are after these changes, for [`seeing`](Self::seeing).
    #[cfg(feature = "saga")]
    pub(crate) fn after(&self, changes: &[Change]) -> Vec<(AggregateId, Aggregate)> {
        let mut aggregates = self.aggregates.to_vec();
        for Change { aggregate: changed, state, version, .. } in changes {
            if let Some((_, aggregate)) = aggregates.iter_mut().find(|(name, _)| name == changed) {
                *aggregate = Aggregate { version: *version, state: state.clone().unwrap_or_default() };
            }
        }
        aggregates
    }

    /// The same, but for the aggregates.
    #[cfg(feature = "saga")]
    pub(crate) fn seeing<'b>(&self, aggregates: &'b [(AggregateId, Aggregate)]) -> Loaded<'b>
    where
        'a: 'b,
    {
        Loaded { aggregates, ..*self }
    }

    /// The aggregate as it stands, the batch's earlier decisions included. None if the entry didn't name it.
    #[must_use]
    pub fn aggregate(&self, kind: &str, id: &str) -> Option<&'a Aggregate> {
        self.aggregates.iter().find(|(name, _)| name.kind == kind && &*name.id == id).map(|(_, aggregate)| aggregate)
    }

    /// In a compensation: the stored reply of the action it undoes.
    #[must_use]
    pub fn action_reply(&self) -> Option<&'a Bytes> {
        self.action_reply
    }

    /// The W3C trace context of the request that asked for the decision, empty when it carried none.
    #[must_use]
    pub fn traceparent(&self) -> &'a str {
        self.traceparent
    }

    /// What of the request's metadata goes on with what it begins, keys and values.
    #[must_use]
    pub fn carried(&self) -> &'a [(String, String)] {
        self.carried
    }

    /// When the batch was taken, in microseconds since 1970: the time of every event it writes.
    #[must_use]
    pub fn now_micros(&self) -> i64 {
        self.now_micros
    }
}

/// One aggregate's stored form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aggregate {
    /// How many events made it; 0 while it does not exist.
    pub version: u64,
    /// Its state, encoded by its owner; empty while it does not exist.
    pub state: Bytes,
}

/// What a decision came to. All of it is committed in one transaction, or none.
#[derive(Default)]
pub struct Decided {
    /// True for a refusal: only the reply counts then, and it is kept like any other.
    pub rejected: bool,
    /// With `rejected`: true if the refusal says nothing about the request itself, such as an overload. It is not kept, and a
    /// repetition is decided anew.
    pub transient: bool,
    /// What the caller gets, now and at every repetition.
    pub reply: Bytes,
    /// Aggregates that changed, with their events.
    pub changes: Vec<Change>,
    /// Rows of registered tables, written beside. One that the database refuses, as by a constraint of its table, fails the entry alone:
    /// it is [`SubmitError::Unwritable`], nothing of it is written, and what waited with it may be told to try again.
    pub rows: Vec<Row>,
    /// Stored answers that nobody will ask for any more.
    pub forgotten: Vec<Forgotten>,
    /// Called once all of it is durable. A crash loses the call: whoever needs it finds its rows again at start.
    pub on_commit: Vec<Box<dyn FnOnce() + Send>>,
}

impl fmt::Debug for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decided")
            .field("rejected", &self.rejected)
            .field("changes", &self.changes)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl Decided {
    /// Takes in what another decision of the same transaction came to; the reply stays this one's.
    pub fn absorb(&mut self, other: Self) {
        self.changes.extend(other.changes);
        self.rows.extend(other.rows);
        self.forgotten.extend(other.forgotten);
        self.on_commit.extend(other.on_commit);
    }
}

/// One aggregate's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub aggregate: AggregateId,
    /// Its new state, or None for a stream whose state is kept elsewhere (in a registered table).
    pub state: Option<Bytes>,
    /// The version after the change.
    pub version: u64,
    /// What happened, in order.
    pub events: Vec<NewEvent>,
}

/// An event about to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// The event's type, such as `StockReserved`, stable for ever.
    pub name: &'static str,
    /// The event, encoded as protobuf.
    pub payload: Bytes,
}

/// A table that someone else keeps: beside the journal's own, written in the transaction of a decision, or among the views, written in
/// that of a fold.
///
/// No text in it holds U+0000, which a server's can't: in a column that is no key each is U+FFFD, so that who looks for such a text finds
/// nothing, and a row with one in its key is refused. It is so on either database.
///
/// Only its key is `NOT NULL`: SQLite, which can't know that a replacement never meets a NULL, would else copy every page that one
/// touches, so that it could be undone by itself.
#[derive(Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// How to make it, each statement safe to repeat, its columns of the types INTEGER, TEXT and BLOB.
    pub create: &'static [&'static str],
    /// Its columns, the key first.
    pub columns: &'static [&'static str],
    /// How many of the columns are the key: at least one.
    pub key: usize,
    /// The columns that stay as they were first written: replacing a row leaves them, and indexes over them alone, untouched.
    pub fixed: &'static [&'static str],
}

/// A row to insert, or to replace if its key is there.
#[derive(Clone, Debug)]
pub struct Row {
    /// Whose.
    pub table: &'static Table,
    /// One value a column. A row of more or fewer is refused.
    pub values: Vec<Value>,
}

impl Row {
    /// Makes it one that either database takes, as its [`Table`] says.
    ///
    /// # Errors
    /// When it has more or fewer values than there are columns: a set of rows is bound one value after the other, and they would be another
    /// row's. And when its key holds U+0000.
    pub(super) fn fit(&mut self) -> Result<(), Error> {
        let &Table { name: table, columns, key, .. } = self.table;
        let (columns, values) = (columns.len(), self.values.len());
        if values != columns {
            return Err(Error::Width { table, columns, values });
        }
        for (column, value) in self.values.iter_mut().enumerate() {
            match value {
                // Of two keys it could make one.
                Value::Text(text) if column < key && text.contains('\0') => {
                    return Err(Error::NulInKey { table, key: text.clone().into_owned() });
                }
                value => value.replace_nul(),
            }
        }
        Ok(())
    }
}

/// Stored answers to let go of: a repetition of such a request is decided anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// The keys of the requests; those that are not known are none.
    pub keys: Vec<String>,
    /// Answers that were stored at this time or later stay, in microseconds since 1970.
    pub stored_before_micros: i64,
}

/// What became of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// How it ended.
    pub outcome: Outcome,
    /// The reply: the decision's, or the stored one of a repetition.
    pub reply: Bytes,
    /// The journal's position after it: a reader that has passed it has seen this entry.
    pub position: i64,
}

/// How an entry ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Decided and done just now.
    Done,
    /// Decided just now, and refused.
    Rejected,
    /// Done before; the stored reply.
    Replayed,
    /// Refused before; the stored refusal.
    RejectedBefore,
    /// A compensation whose action had no effect: nothing to undo, and the action can't happen any more.
    NothingToUndo,
    /// A compensation that came too late for what it undoes to be known, if it ever was: nothing is undone, and nothing kept.
    TooOld,
    /// An action whose compensation came first: it had no effect and never will.
    Cancelled,
    /// The key was used before with another request.
    Conflict,
}

/// Why an entry could not be decided. Nothing of it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too much is waiting already.
    #[error("the journal's queue is full")]
    Full,
    /// The entry alone is over the limit of a batch.
    #[error("the command is too large")]
    TooLarge,
    /// The database can't be reached, or didn't take it: it is in no state to, or refused another entry that was to be committed with this
    /// one. It may be tried again.
    #[error("the database can't be reached or didn't take it")]
    Unavailable,
    /// The decision panicked.
    #[error("the decision failed")]
    Panicked,
    /// An aggregate or a stored answer that the entry names is there and can't be read. Another try meets it again.
    #[error("what the database holds for it can't be read")]
    Unreadable,
    /// The database refuses what the decision writes, as by a constraint of a table beside. Another try meets it again.
    #[error("the database refuses what it writes")]
    Unwritable,
    /// The journal is shutting down.
    #[error("the journal is closed")]
    Closed,
}
