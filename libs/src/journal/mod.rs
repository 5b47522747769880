//! The write side's storage: decisions go in, state, events and stored replies are committed together.
//!
//! One committer a database takes whatever waits, decides it in order in memory and commits it as one batch: one fsync and
//! a handful of statements, whatever the batch's size. The events are the outbox: readers follow them by position.

mod entry;
pub mod sql;

pub use self::entry::{
    Aggregate, AggregateId, Cause, Change, Committed, Decided, Entry, Loaded, NewEvent, Outcome, RequestKey, Role, Row,
    SubmitError, Table,
};
