//! One turn: the next batch of the log, taken to those projections that are furthest back, and then to the others.

use std::time::Duration;

use tokio::{runtime::Handle, task::JoinError, time::Instant};

use super::{
    Views,
    folding::is_too_much,
    log::{MOST_BYTES, bytes},
    rebuild_error::RebuildError,
    views::Folded,
};
use crate::journal::{Event, sql};

/// The most events in a batch.
pub(super) const MOST_EVENTS: i64 = 4096;
/// After a fold that was done so soon the next one may be of twice as many events. Well within what a server leaves a turn, or every other
/// one would be in vain.
const QUICK: Duration = Duration::from_secs(1);

impl Views {
    /// Folds all that the log holds now, telling after each batch how far it is: (done, all).
    ///
    /// # Errors
    /// When the database or the log fails, or an event can't be folded: such views must take nobody's place.
    pub async fn catch_up(self, progress: impl FnMut(i64, i64)) -> Result<(), RebuildError> {
        let all = self.log.head().await?;
        let beside = Self { is_beside: true, ..self };
        let Self { writer, reader, .. } = whole(beside.fold_to(all, progress).await?)?;
        // The last connection to a file is the one that leaves all in it, and nothing beside it.
        drop(reader);
        writer.close().await;
        Ok(())
    }

    /// Folds up to a position, or up to where the log ends now, if that is before.
    pub(super) async fn fold_to(mut self, all: i64, mut progress: impl FnMut(i64, i64)) -> Result<Self, RebuildError> {
        self.log.begin_again();
        while lowest(&self.projections) < all {
            if !self.log.news_up_to(lowest(&self.projections), all).await? {
                break;
            }
            if self.writer.is_shared() {
                self.take_turn().await?;
            } else {
                (self, _) = self.catch_up_once().await?;
            }
            let all = self.log.told_end().map_or(all, |end| end.min(all));
            progress(lowest(&self.projections).min(all), all);
        }
        Ok(self)
    }

    /// Takes a batch to those projections that are furthest back, on a server, and then to those that this doesn't bring them up to: nobody
    /// waits for who begins. True if one was full, so that the log may hold more.
    pub(super) async fn take_turn(&mut self) -> Result<bool, sql::Error> {
        let (mut next, mut full) = (Some(lowest(&self.projections)), false);
        while let Some(from) = next {
            let most = self.most;
            let events = self.log.after(from, most).await?;
            let Some(last) = events.last().map(|event| event.position) else { break };
            let began = Instant::now();
            match self.fold(from, &events, last).await {
                Ok(()) if began.elapsed() < QUICK => self.most = (most * 2).min(MOST_EVENTS),
                Ok(()) => {}
                // The server ends a session that is silent in the midst of a turn. It does that to the same batch each time.
                Err(error) if is_too_much(&error, &events) => {
                    self.most = i64::try_from(events.len() / 2).unwrap_or(MOST_EVENTS);
                    tracing::warn!(%error, events = events.len(), "a fold was cut short: once more, of half as many events");
                    continue;
                }
                Err(error) => return Err(error),
            }
            full |= is_full(&events, most);
            next = lowest_after(last, &self.projections);
        }
        Ok(full)
    }

    /// As [`take_turn`](Self::take_turn), in a file. The folds run where they hold up no other task, in one go.
    pub(super) async fn catch_up_once(mut self) -> Result<(Self, bool), sql::Error> {
        let (mut next, mut full) = (Some(lowest(&self.projections)), false);
        while let Some(from) = next {
            let events = self.log.after(from, MOST_EVENTS).await?;
            let Some(last) = events.last().map(|event| event.position) else { break };
            full |= is_full(&events, MOST_EVENTS);
            let runtime = Handle::current();
            let folding = tokio::task::spawn_blocking(move || {
                runtime.block_on(async {
                    self.fold(from, &events, last).await?;
                    Ok(self)
                })
            });
            self = joined(folding.await)?;
            next = lowest_after(last, &self.projections);
        }
        Ok((self, full))
    }
}

/// What a task came to that holds up no other.
pub(super) fn joined<T>(ended: Result<Result<T, sql::Error>, JoinError>) -> Result<T, sql::Error> {
    ended.unwrap_or_else(|stopped| match stopped.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Err(sql::Error::Closed),
    })
}

/// True if a batch holds as much as one may.
fn is_full(events: &[Event], most: i64) -> bool {
    i64::try_from(events.len()).is_ok_and(|events| events >= most) || bytes(events) >= MOST_BYTES
}

/// The lowest checkpoint of those that move: what every view has seen. Without any it is the end of time.
pub(super) fn lowest(projections: &[Folded]) -> i64 {
    lowest_after(i64::MIN, projections).unwrap_or(i64::MAX)
}

/// The lowest checkpoint after a position, of those that move.
fn lowest_after(position: i64, projections: &[Folded]) -> Option<i64> {
    let moving = projections.iter().filter(|folded| !folded.parked).map(|folded| folded.checkpoint);
    moving.filter(|checkpoint| *checkpoint > position).min()
}

/// The views, if each of them could fold every event.
pub(super) fn whole(views: Views) -> Result<Views, RebuildError> {
    match views.projections.iter().find_map(|folded| folded.standing.parked()) {
        Some(parked) => Err(RebuildError::Poison(parked.error)),
        None => Ok(views),
    }
}
