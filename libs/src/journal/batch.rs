//! Deciding a batch in memory: every entry in order, each seeing what the ones before it came to.
//!
//! Nothing here waits or touches the database. What was read goes in, what must be written comes out, so that deciding a
//! batch equals deciding its entries one by one. Only what is forgotten goes with the batch's writes: entries behind that still find it.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    entry::{
        Aggregate, AggregateId, Cause, Change, Committed, Decided, Entry, Forgotten, Loaded, NewEvent, Outcome, Row,
        SubmitError,
    },
    requests::{Ending, Judgement, Known, judge},
    unreadable::Unreadable,
};
use crate::journal::{entry::Role, sql::Error};

/// What was read for a batch, then what its decisions made of it.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) aggregates: HashMap<AggregateId, Aggregate>,
    pub(super) requests: HashMap<String, Known>,
    /// The rows of both that are there and say nothing.
    pub(super) unreadable: Unreadable,
}

/// What a batch has to write.
#[derive(Debug, Default)]
pub(super) struct Writes {
    /// Aggregates whose state changed; the world holds the last state of each.
    pub(super) aggregates: Vec<AggregateId>,
    /// Keys that were answered now; the world holds the answers.
    pub(super) requests: Vec<String>,
    pub(super) events: Vec<Written>,
    pub(super) rows: Vec<Row>,
    pub(super) forgotten: Vec<Forgotten>,
}

impl Writes {
    pub(super) fn is_empty(&self) -> bool {
        let Self { aggregates, requests, events, rows, forgotten } = self;
        aggregates.is_empty() && requests.is_empty() && events.is_empty() && rows.is_empty() && forgotten.is_empty()
    }
}

/// An event with its place in the log.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) position: i64,
    pub(super) aggregate: AggregateId,
    pub(super) version: u64,
    pub(super) event: NewEvent,
    pub(super) cause: Cause,
}

/// What became of one entry, and whom to tell once it is durable.
pub(super) struct Ended {
    pub(super) result: Result<Committed, SubmitError>,
    pub(super) on_commit: Vec<Box<dyn FnOnce() + Send>>,
    /// As [`Cause::request`] says: which it was.
    pub(super) request: String,
    /// How long the decision held up the others.
    pub(super) took: Duration,
    /// Why it can't be written, where that is known by now.
    pub(super) unfit: Option<Box<Error>>,
}

impl Ended {
    /// It could not be decided.
    pub(super) fn refused(error: SubmitError, request: String) -> Self {
        Self { result: Err(error), on_commit: Vec::new(), request, took: Duration::ZERO, unfit: None }
    }
}

/// Decides one entry. `head` is the last position given out so far and moves with every event.
pub(super) fn decide(world: &mut World, writes: &mut Writes, head: &mut i64, now_micros: i64, entry: Entry) -> Ended {
    let Entry { request, aggregates, cause, decide, .. } = entry;
    let judgement = request.as_ref().map(|request| {
        let action = match &request.role {
            Role::Action => None,
            Role::Compensation { action, .. } => world.requests.get(action),
        };
        judge(request, world.requests.get(&request.key), action, now_micros)
    });
    let known = |outcome, reply| Ended {
        result: Ok(Committed { outcome, reply, position: *head }),
        on_commit: Vec::new(),
        request: String::new(),
        took: Duration::ZERO,
        unfit: None,
    };
    let action_reply = match judgement {
        None => None,
        Some(Judgement::Decide { action_reply }) => action_reply,
        Some(Judgement::Replay(reply)) => return known(Outcome::Replayed, reply),
        Some(Judgement::RejectAgain(reply)) => return known(Outcome::RejectedBefore, reply),
        Some(Judgement::TooOld) => return known(Outcome::TooOld, Bytes::new()),
        Some(Judgement::Cancelled) => return known(Outcome::Cancelled, Bytes::new()),
        Some(Judgement::Conflict) => return known(Outcome::Conflict, Bytes::new()),
        Some(Judgement::NothingToUndo { tombstone }) => {
            if let Some(request) = request {
                if let (true, Role::Compensation { action, .. }) = (tombstone, request.role) {
                    remember(world, writes, action, Known::tombstone());
                }
                let done = Known { hash: request.hash, ending: Ending::Done, reply: Bytes::new() };
                remember(world, writes, request.key, done);
            }
            return known(Outcome::NothingToUndo, Bytes::new());
        }
    };

    let seen: Vec<(AggregateId, Aggregate)> = aggregates
        .into_iter()
        .map(|id| {
            let aggregate = world.aggregates.get(&id).cloned().unwrap_or_default();
            (id, aggregate)
        })
        .collect();
    let loaded = Loaded::new(&seen, action_reply.as_ref(), now_micros).caused(&cause);
    let begin = Instant::now();
    let decided = catch_unwind(AssertUnwindSafe(|| decide(&loaded)));
    let took = begin.elapsed();
    let Ok(decided) = decided else {
        return Ended { took, ..Ended::refused(SubmitError::Panicked, cause.request) };
    };
    let Decided { rejected, transient, reply, changes, mut rows, forgotten, on_commit } = decided;
    // Among the batch's others it would keep all of them from being written.
    if !rejected && let Err(error) = rows.iter_mut().try_for_each(Row::fit) {
        let unfit = Some(Box::new(error));
        return Ended { took, unfit, ..Ended::refused(SubmitError::Unwritable, cause.request) };
    }

    if !rejected {
        for Change { aggregate, state, version, events } in changes {
            let first = version.saturating_sub(events.len() as u64);
            for (offset, event) in events.into_iter().enumerate() {
                *head += 1;
                let version = first + offset as u64 + 1;
                let (aggregate, cause) = (aggregate.clone(), cause.clone());
                writes.events.push(Written { position: *head, aggregate, version, event, cause });
            }
            if let Some(state) = state {
                writes.aggregates.push(aggregate.clone());
                world.aggregates.insert(aggregate, Aggregate { version, state });
            }
        }
        writes.rows.extend(rows);
        writes.forgotten.extend(forgotten);
    }
    if let Some(request) = request.filter(|_| !(rejected && transient)) {
        let ending = if rejected { Ending::Rejected } else { Ending::Done };
        remember(world, writes, request.key, Known { hash: request.hash, ending, reply: reply.clone() });
    }
    let (outcome, on_commit) = if rejected { (Outcome::Rejected, Vec::new()) } else { (Outcome::Done, on_commit) };
    let result = Ok(Committed { outcome, reply, position: *head });
    Ended { result, on_commit, request: cause.request, took, unfit: None }
}

fn remember(world: &mut World, writes: &mut Writes, key: String, known: Known) {
    writes.requests.push(key.clone());
    world.requests.insert(key, known);
}
