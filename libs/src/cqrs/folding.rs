//! One batch of events handed to the projections: to all in one transaction, and where that fails to one after the other. The one that
//! goes on failing is parked with the event and the error, as is one whose tables may not be written, until they may.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;

use super::{Views, checkpoints, projection::ProjectionError, turns::MOST_EVENTS, views::Folded};
use crate::{
    journal::{
        Event,
        sql::{self, Transaction},
    },
    rpc::cause::of_panic,
};

/// How often a failing batch is tried before its projection is parked.
const TRIES: u32 = 3;

impl Views {
    /// Takes the batch after a position to every projection that has come so far and is not parked, and tells how far they are.
    pub(super) async fn fold(&mut self, from: i64, events: &[Event], last: i64) -> Result<(), sql::Error> {
        self.projections.iter().for_each(|folded| folded.standing.saw(last));
        match self.fold_together(from, events, last).await {
            Ok(()) => {}
            // Alone it may take as long.
            Err(ProjectionError::Database(error)) if is_too_much(&error, events) => return Err(error),
            Err(_) => {
                for at in 0..self.projections.len() {
                    self.fold_alone(at, from, events, last).await?;
                }
            }
        }
        self.caught_up.send_replace(passed(&self.projections));
        Ok(())
    }

    async fn fold_together(&mut self, from: i64, events: &[Event], last: i64) -> Result<(), ProjectionError> {
        let shared = self.writer.is_shared();
        let mut transaction = self.writer.begin().await?;
        let moving = || self.projections.iter().filter(|folded| folded.takes(from));
        let stood = positions(moving(), shared, &mut transaction).await?;
        let mut passed = Vec::with_capacity(stood.len());
        for (folded, checkpoint) in moving().zip(stood) {
            passed.push(fold(folded, checkpoint, events, last, &mut transaction).await?);
        }
        transaction.commit().await?;
        let moved = self.projections.iter_mut().filter(|folded| folded.takes(from));
        moved.zip(passed).for_each(|(folded, checkpoint)| folded.moved(checkpoint));
        Ok(())
    }

    /// Folds one projection's events, at last one by one, and parks it at the event it can't fold.
    async fn fold_alone(&mut self, at: usize, from: i64, events: &[Event], last: i64) -> Result<(), sql::Error> {
        let Self { writer, projections, is_beside, .. } = self;
        let shared = writer.is_shared();
        let folded = &mut projections[at];
        if !folded.takes(from) {
            return Ok(());
        }
        for events in std::iter::once(events).chain(events.chunks(1)) {
            let last = events.last().map_or(last, |event| event.position);
            if folded.checkpoint >= last {
                continue;
            }
            for attempt in 1..=TRIES {
                let mut transaction = writer.begin().await?;
                match try_fold(folded, shared, events, last, &mut transaction).await {
                    Ok(checkpoint) => {
                        transaction.commit().await?;
                        folded.moved(checkpoint);
                        break;
                    }
                    // No more the event's fault, nor that of the others, whose tables may be written.
                    Err(ProjectionError::Database(error)) if error.is_denied() && !*is_beside => {
                        if let Err(error) = transaction.rollback().await {
                            tracing::info!(%error, "a fold that failed is not rolled back: its session is over");
                        }
                        let next = events.iter().find(|event| event.position > folded.checkpoint);
                        park_denied(folded, next.map_or(last, |event| event.position), &error);
                        return Ok(());
                    }
                    // Not the event's fault: another time all of them are folded.
                    Err(ProjectionError::Database(error)) if error.is_passing() || is_too_much(&error, events) => {
                        return Err(error);
                    }
                    Err(error) => {
                        // Where it can't be told any more, nothing of it holds either.
                        if let Err(error) = transaction.rollback().await {
                            tracing::info!(%error, "a fold that failed is not rolled back: its session is over");
                        }
                        if events.len() == 1 && attempt == TRIES {
                            // Tables that are made beside others are this version's.
                            let other = if *is_beside { None } else { of_another_version(&error) };
                            let projection = folded.fold.name();
                            tell_parked(*is_beside, projection, last, &error, other);
                            folded.parked = true;
                            let shown = other.map_or_else(|| error.to_string(), |mend| format!("{error}: {mend}"));
                            folded.standing.park(last, shown);
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Tells why a projection goes no further. Of views that are made beside others none is read: whoever has them made is told the same.
fn tell_parked(is_beside: bool, projection: &str, position: i64, error: &ProjectionError, mend: Option<&str>) {
    if is_beside {
        tracing::warn!(projection, position, %error, "the new views don't get past this event: those that are there stay as they are");
        return;
    }
    let mend = mend.unwrap_or("mend it and restart, or have it try again by ResumeProjection");
    tracing::error!(projection, position, %error, "projection parked: its view stands still at this event; {mend}");
}

/// Parks a projection whose tables this process may not read or write, until it is tried again, and tells that once.
fn park_denied(folded: &mut Folded, position: i64, error: &sql::Error) {
    const MEND: &str = "grant whoever serves SELECT, INSERT, UPDATE and DELETE on its tables, and it goes on by itself";
    folded.parked = true;
    folded.standing.park(position, format!("{error}: {MEND}"));
    if !std::mem::replace(&mut folded.is_denied, true) {
        let projection = folded.fold.name();
        tracing::error!(projection, position, %error, "projection parked: its view stands still at this event; {MEND}");
    }
}

/// What to do where a table lacks a column: if it is another version's, no restart mends it.
fn of_another_version(error: &ProjectionError) -> Option<&'static str> {
    match error {
        ProjectionError::Database(error) if error.is_unknown_column() => Some(
            "mend the fold and restart or, if another version of this program made its table, make the views anew by \
                 RebuildProjections",
        ),
        _ => None,
    }
}

/// Whether fewer of these events may be folded where all of them were cut short.
pub(super) fn is_too_much(error: &sql::Error, events: &[Event]) -> bool {
    events.len() > 1 && error.is_cut_short()
}

/// Folds what is new to a projection alone, as [`fold`] does, and finds out whether its tables take it.
async fn try_fold(
    folded: &Folded,
    shared: bool,
    events: &[Event],
    last: i64,
    transaction: &mut Transaction<'_>,
) -> Result<i64, ProjectionError> {
    let stood = positions(std::iter::once(folded), shared, transaction).await?;
    let stood = stood.first().copied().unwrap_or(folded.checkpoint);
    let passed = fold(folded, stood, events, last, transaction).await?;
    transaction.flush().await?;
    Ok(passed)
}

/// Folds what is new to a projection that stands at `checkpoint` and moves that, in one transaction. Answers how far it is then.
async fn fold(
    folded: &Folded,
    checkpoint: i64,
    events: &[Event],
    last: i64,
    transaction: &mut Transaction<'_>,
) -> Result<i64, ProjectionError> {
    let seen = events.partition_point(|event| event.position <= checkpoint);
    if seen == events.len() {
        return Ok(checkpoint);
    }
    let folding = AssertUnwindSafe(async { folded.fold.fold(&events[seen..], transaction).await });
    folding.catch_unwind().await.unwrap_or_else(|panic| Err(ProjectionError::Panicked(of_panic(&*panic))))?;
    checkpoints::store(folded.fold.name(), last, transaction).await?;
    Ok(last)
}

/// How far these projections are. Where the tables are shared the database is asked: another replica may have had its turn since.
///
/// # Errors
/// When the database can't be read, and [`sql::Error::Gone`] where one went back.
async fn positions(
    projections: impl Iterator<Item = &Folded> + Clone,
    shared: bool,
    transaction: &mut Transaction<'_>,
) -> Result<Vec<i64>, sql::Error> {
    if !shared {
        return Ok(projections.map(|folded| folded.checkpoint).collect());
    }
    let stood = checkpoints::read_within(projections.clone().map(|folded| folded.fold.name()), transaction).await?;
    match projections.zip(&stood).find(|(folded, checkpoint)| **checkpoint < folded.checkpoint) {
        None => Ok(stood),
        Some((folded, checkpoint)) => {
            let (name, from) = (folded.fold.name(), folded.checkpoint);
            Err(sql::Error::Gone(format!("the checkpoint of {name} went back from {from} to {checkpoint}")))
        }
    }
}

/// What queries are told: the lowest checkpoint of those that follow the log. One that is parked doesn't, nor one that is more than a batch
/// behind the foremost, as a new one is. Where all are parked it is theirs, for nothing else was seen.
pub(super) fn passed(projections: &[Folded]) -> i64 {
    let all = || projections.iter().map(|folded| folded.checkpoint);
    let moving = || projections.iter().filter(|folded| !folded.parked).map(|folded| folded.checkpoint);
    let Some(foremost) = moving().max() else { return all().min().unwrap_or(i64::MAX) };
    moving().filter(|checkpoint| foremost - checkpoint < MOST_EVENTS).min().unwrap_or(foremost)
}
