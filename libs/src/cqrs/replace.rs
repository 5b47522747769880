//! Views that were made anew take the place of the old ones.

use std::time::Duration;

use tokio::runtime::Handle;

use super::{
    Views, checkpoints,
    rebuild_error::RebuildError,
    turns::{MOST_EVENTS, joined, lowest, whole},
    views::Folded,
};
use crate::journal::{
    Beside, Location,
    sql::{self, Transaction},
    store,
};

/// How long to leave alone who goes on reading the old views, and how often. With 1.5 s each time in which that is found out those are ten
/// minutes: a dump ends, a transaction that was left open may not.
const PAUSE: Duration = Duration::from_secs(5);
const MOST_HELD: u32 = 92;

/// How often in a row the old views of the service's own events may be further on by the time the new ones have what those had, and by
/// how many events more while those come nearer: the old ones stand still for about as long as folding so many takes.
pub(super) const MOST_BEHIND: u32 = 3;
const MOST_LEFT: i64 = 2 * MOST_EVENTS;

/// Views that were made anew, and where.
#[derive(Debug)]
pub(super) struct Rebuilt {
    pub(super) views: Views,
    pub(super) beside: Beside,
    /// How far the old ones were when they were looked at last. These have all that the log had up to there.
    pub(super) old: i64,
    /// Where the stream ended that they go on with: up to there they have all, whatever the stream holds.
    pub(super) stream: i64,
    /// How often somebody was reading the old ones.
    pub(super) held: u32,
    /// How often the old ones were further on, since they stood still last.
    pub(super) behind: u32,
    /// By how many events they were the last time.
    pub(super) left: i64,
}

/// What came of putting views in the place of others.
pub(super) enum Replaced {
    /// How far they are if they are there, and what is left beside them.
    Ended(Result<i64, RebuildError>, Option<Beside>),
    /// They are to go on first.
    NotYet(Box<Rebuilt>, Wait),
}

/// How far they are, unless they are to go on first.
type Taken = Result<i64, Wait>;

/// What is to come before views take the place of others.
pub(super) enum Wait {
    /// The old ones went on to there while they were made, or were made anew themselves.
    Behind(i64),
    /// Somebody goes on reading the old ones.
    Held,
}

impl Views {
    /// Has views that were made anew take the place of these; on a file where that holds up no other task, in one go. On a server what is
    /// left beside them is to be removed then.
    pub(super) async fn replace(mut self, rebuilt: Rebuilt) -> Result<(Self, Replaced), sql::Error> {
        if self.writer.is_shared() {
            let replaced = self.put_in_place(rebuilt).await;
            return Ok((self, replaced));
        }
        let runtime = Handle::current();
        let replacing = tokio::task::spawn_blocking(move || {
            runtime.block_on(async {
                let mut replaced = self.put_in_place(rebuilt).await;
                if let Replaced::Ended(_, beside) = &mut replaced
                    && let Some(beside) = beside.take()
                {
                    remove(beside).await;
                }
                Ok((self, replaced))
            })
        });
        joined(replacing.await)
    }

    async fn put_in_place(&mut self, mut rebuilt: Rebuilt) -> Replaced {
        let taken = match self.writer.attach(rebuilt.beside.location()).await {
            Ok(()) => {
                let taken = self.take_tables(&mut rebuilt).await;
                let detached = self.writer.detach().await;
                // As much as was copied would take room in the log, too. A round that copied nothing doesn't wait for who reads.
                if !matches!(taken, Ok(Err(_))) {
                    self.writer.empty_log();
                }
                detached.map_err(RebuildError::from).and(taken)
            }
            Err(error) => Err(error.into()),
        };
        let ended = match taken {
            Ok(Ok(reached)) => Ok(reached),
            Ok(Err(wait)) => return Replaced::NotYet(rebuilt.into(), wait),
            Err(RebuildError::Database(error)) if error.is_in_the_way() => {
                if rebuilt.held == 0 {
                    tracing::info!(views = %self.location, %error, "the new views wait for who reads the old ones");
                }
                rebuilt.held += 1;
                if rebuilt.held <= MOST_HELD {
                    return Replaced::NotYet(rebuilt.into(), Wait::Held);
                }
                Err(RebuildError::Held)
            }
            Err(error) => Err(error),
        };
        let Rebuilt { views, beside, .. } = rebuilt;
        views.writer.close().await;
        Replaced::Ended(ended, Some(beside))
    }

    async fn take_tables(&mut self, rebuilt: &mut Rebuilt) -> Result<Taken, RebuildError> {
        let Rebuilt { views: rebuilt, old: seen, stream, .. } = rebuilt;
        let stream = *stream;
        let mut transaction = self.writer.begin().await?;
        let names = self.projections.iter().map(|folded| folded.fold.name());
        let old = checkpoints::read_within(names, &mut transaction).await?.into_iter().max().unwrap_or_default();
        let reached = lowest(&rebuilt.projections).max(stream);
        // A query must not see less than before. They need not come as far as old ones of another log, which went further than this one
        // does.
        if reached < old && *seen != old {
            transaction.rollback().await?;
            return Ok(Err(Wait::Behind(old)));
        }
        // Else the tables would lack for good what counts as folded.
        let names = rebuilt.projections.iter().map(|folded| folded.fold.name());
        let made = checkpoints::read_beside(names, &rebuilt.location, &mut transaction).await?;
        if rebuilt.projections.iter().zip(made).any(|(folded, made)| made < folded.checkpoint) {
            transaction.rollback().await?;
            return Err(RebuildError::Lost);
        }
        // One may be further than the others, where a fold was cut short.
        let stand: Vec<i64> = rebuilt.projections.iter().map(|folded| folded.checkpoint.max(stream)).collect();
        let places = [&self.location, &rebuilt.location];
        if let Err(error) = put(&self.projections, &stand, places, &mut transaction).await {
            if error.is_in_the_way() {
                transaction.rollback().await?;
            }
            return Err(error.into());
        }
        let committed = transaction.commit().await;
        // What came before may be of a log that was lost since; who was parked may hold much of it.
        self.log.begin_again();
        committed.map_err(|error| match self.writer.is_shared() {
            true => RebuildError::Unknown(error),
            false => RebuildError::Database(error),
        })?;
        // Another service may have nothing more to say of it for long.
        let end = rebuilt.log.told_end().and_then(|_| rebuilt.log.head_after(reached));
        for (folded, checkpoint) in self.projections.iter_mut().zip(stand) {
            folded.go_on(checkpoint);
            if let Some(end) = end {
                folded.standing.ends(end);
            }
        }
        self.caught_up.send_replace(lowest(&self.projections));
        Ok(Ok(reached))
    }
}

impl Rebuilt {
    /// Whether the old ones, which are at `old`, are not to go on any more before these have what those have. Much is not folded so as long
    /// as there is less of it each time. Another service, which may be out, isn't waited for so.
    pub(super) fn is_outrun(&self, old: i64) -> bool {
        let left = self.left_to(old);
        self.behind >= MOST_BEHIND && (left <= MOST_LEFT || left >= self.left) && !self.views.log.is_remote()
    }

    /// How many events these lack of what the old ones have.
    pub(super) fn left_to(&self, old: i64) -> i64 {
        old - lowest(&self.views.projections)
    }

    /// Leaves who reads the old ones alone for a while, or folds what those had folded meanwhile.
    pub(super) async fn go_on(self, wait: Wait) -> Result<Self, RebuildError> {
        let Wait::Behind(old) = wait else {
            tokio::time::sleep(PAUSE).await;
            return Ok(self);
        };
        let left = self.left_to(old);
        // On a server others may have the old ones further on all the same: those of this process don't stand still for that again at once.
        let behind = if self.is_outrun(old) { 0 } else { self.behind + 1 };
        let Self { views, beside, stream, held, .. } = self;
        match views.fold_to(old, |_, _| {}).await.and_then(whole) {
            Ok(views) => Ok(Self { views, beside, old, stream, held, behind, left }),
            Err(error) => {
                remove(beside).await;
                Err(error)
            }
        }
    }
}

/// Puts all tables that were made beside these in the place of the ones that are here, and how far they are.
async fn put(
    projections: &[Folded],
    stand: &[i64],
    [here, beside]: [&Location; 2],
    transaction: &mut Transaction<'_>,
) -> Result<(), sql::Error> {
    for (folded, &checkpoint) in projections.iter().zip(stand) {
        for table in folded.fold.tables() {
            for sql in store::replacing(table, here, beside) {
                transaction.execute(&sql, Vec::new()).await?;
            }
        }
        checkpoints::store(folded.fold.name(), checkpoint, transaction).await?;
    }
    transaction.flush().await
}

/// Leaves nothing beside the views.
pub(super) async fn remove(beside: Beside) {
    if let Err(error) = beside.remove().await {
        // It is removed before the next time, too.
        tracing::warn!(%error, "what is left beside the views is not removed");
    }
}
