//! The one who keeps views up to date: folds what comes, looks at what other processes have done, and makes them anew when somebody wants
//! that.
//!
//! One projector a database reads the log after the lowest checkpoint and hands each batch to every projection, all in one
//! transaction; those that are further on than that get theirs in turn, and don't wait for one that begins, unless the log is another
//! service's, which comes once. When one of them fails, the batch is done again one projection at a time: the one that goes on failing is
//! parked with the event and the error, and the others go on.

use std::{cmp::Ordering, time::Duration};

use futures::FutureExt as _;
use tokio::{
    sync::Notify,
    task::JoinError,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use super::{Views, board::Telling, checkpoints, folding::passed, rebuild::Rebuilding, turns::lowest, views::Folded};
use crate::journal::{
    Location,
    sql::{self, Reader},
};

/// After all that there was, the log gathers for so many times as long as folding it took, but not longer than [`MOST_GATHER`]. A busy
/// log is then folded in large batches that change a document once for many events, folding stays out of the way of what is being
/// written, and the first event after a silence is folded at once. Whoever waits for a write they made ends the gathering.
/// The bound is meant to keep a view within a quarter of a second of its log, its own fold included: after a full batch, which may
/// not have been all, the next one follows at once.
const GATHER: u32 = 20;
const MOST_GATHER: Duration = Duration::from_millis(120);
/// How long to leave a server alone that is out of reach.
const PAUSE: Duration = Duration::from_secs(1);
/// How often to look at what other processes have done.
const LOOK: Duration = Duration::from_secs(1);

/// What there is to do.
enum Woken {
    /// A parked projection is to try again.
    Resume,
    /// Somebody wants the views made anew.
    Rebuild(Telling),
    /// Views that were made anew are there, or are not to be.
    Rebuilt(Box<Result<Rebuilding, JoinError>>),
    /// The log has more than was folded.
    News,
    /// It is time to look at what other processes have done.
    Look,
    /// The log can't be read.
    Failed(sql::Error),
    /// The log is closed, and all of it is folded.
    Closed,
}

impl Views {
    /// Lets those parked projections go on that somebody wants to.
    fn resume(&mut self) {
        for folded in &mut self.projections {
            if folded.parked && folded.standing.take_wanted() {
                folded.parked = false;
                // What has come of another service may be what can't be folded, and that service may be what was mended.
                self.log.begin_again();
            }
        }
    }

    /// Has those try again that were parked for want of a right: nobody tells when it is granted.
    fn try_denied(&mut self) {
        for folded in &mut self.projections {
            if folded.parked && folded.is_denied {
                folded.parked = false;
                self.log.begin_again();
            }
        }
    }

    /// Tells where another service's log ends, as far as is known.
    fn tell_head(&self) {
        let reached = lowest(&self.projections);
        if reached < i64::MAX
            && let Some(head) = self.log.head_after(reached)
        {
            self.projections.iter().for_each(|folded| folded.standing.ends(head));
        }
    }

    /// Looks at what other processes have done: how far the log is, and whether one of them has taken a projection that is parked here past
    /// its event, or made its tables anew. Those may end further back than here, where they are of another service's log that does, or of a
    /// server that has taken over from one that was further on: with its log, or with the tables alone.
    async fn look(&mut self) -> Result<(), sql::Error> {
        self.try_denied();
        let mut is_lost = false;
        if !self.log.is_remote() {
            let head = self.log.head().await?;
            let furthest = self.projections.iter().map(|folded| folded.checkpoint).max().unwrap_or_default();
            if furthest > head {
                // A standby that has yet to replay what it has doesn't know.
                is_lost = self.log.lost_to(furthest).await?.is_some();
                if !is_lost {
                    return Ok(());
                }
            }
            self.projections.iter().for_each(|folded| folded.standing.ends(head));
        }
        if !self.writer.is_shared() || !is_elsewhere(&self.projections, &self.reader).await? {
            return Ok(());
        }
        let names = self.projections.iter().map(|folded| folded.fold.name());
        // Of the tables it knows as little.
        let Some(stood) = checkpoints::read_of_primary(names, &self.reader).await? else { return Ok(()) };
        for (folded, checkpoint) in self.projections.iter_mut().zip(stood) {
            let projection = folded.fold.name();
            if folded.parked && checkpoint > folded.checkpoint {
                tracing::info!(
                    projection,
                    checkpoint,
                    "goes on: another process has passed the event it was parked at"
                );
            } else if checkpoint < folded.checkpoint && is_lost {
                tracing::warn!(
                    projection,
                    checkpoint,
                    "goes on from further back: the log has lost its last events, and the views with it"
                );
            } else if checkpoint < folded.checkpoint && !self.log.is_behind() {
                tracing::warn!(
                    projection,
                    checkpoint,
                    "goes on from further back: what was folded last is lost, as after a failover, or the views were made anew"
                );
            } else if checkpoint < folded.checkpoint {
                tracing::info!(
                    projection,
                    checkpoint,
                    "goes on from further back: another process has made the views anew to where the log ends"
                );
            } else {
                continue;
            }
            folded.go_on(checkpoint);
            // What came here may be of a log that was lost before the other one asked.
            self.log.begin_again();
        }
        self.caught_up.send_replace(passed(&self.projections));
        Ok(())
    }

    /// Folds until the journal closes, then closes the views.
    ///
    /// # Errors
    /// When the log can't be read or is another one, or the views can't be written: the process should end.
    pub async fn run(mut self) -> Result<(), ViewsError> {
        let location = self.location.clone();
        let failed = |source| ViewsError::Database { location: location.clone(), source };
        self.know_the_log().await?;
        let mut took = Duration::ZERO;
        let mut looks = interval_at(Instant::now() + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = match self.wait(&mut looks).await {
                Woken::Resume => {
                    self.resume();
                    Ok(())
                }
                Woken::Rebuild(telling) => {
                    // Whoever asked while others were made may have left since, and have asked once more.
                    if telling.is_closed() {
                        tracing::info!("the views are not made anew once more: who wanted that has left");
                    } else {
                        self.begin_anew(telling);
                    }
                    Ok(())
                }
                Woken::Rebuilt(rebuilt) => {
                    self = self.end_anew(*rebuilt).await.map_err(failed)?;
                    Ok(())
                }
                Woken::News => {
                    let full;
                    (self, full) = self.turn(&mut looks, &mut took).await.map_err(failed)?;
                    if !full {
                        gather(std::mem::take(&mut took), &self.wanted).await;
                    }
                    Ok(())
                }
                Woken::Look => self.look().await,
                Woken::Failed(error) => Err(error),
                Woken::Closed => break,
            };
            match done {
                Err(error) if self.writer.is_shared() => pause(&error).await,
                done => done.map_err(failed)?,
            }
        }
        self.writer.close().await;
        Ok(())
    }

    /// Waits until there is something to do.
    async fn wait(&mut self, looks: &mut Interval) -> Woken {
        let reached = lowest(&self.projections);
        // Where all are parked, what came of another service would be let go of. A log of one's own is listened to all the same: it
        // tells of its end.
        let is_remote = self.log.is_remote();
        let listens = reached < i64::MAX || !is_remote;
        let looks_up = !is_remote || self.writer.is_shared();
        tokio::select! {
            // What may come all the time comes after what comes now and then, and before a look that would be begun in vain.
            biased;
            () = self.bell.notified() => Woken::Resume,
            Some(telling) = self.rebuilds.1.recv(), if self.rebuilding.is_empty() => Woken::Rebuild(telling),
            Some(rebuilt) = self.rebuilding.join_next() => Woken::Rebuilt(rebuilt.into()),
            news = self.log.news(reached), if listens => match news {
                Ok(true) => Woken::News,
                Ok(false) => Woken::Closed,
                Err(error) => Woken::Failed(error),
            },
            () = until_look(looks, is_remote, &self.projections, &self.reader), if looks_up => Woken::Look,
        }
    }

    /// Folds a batch, in a file or on a server. True if there may be more of it. A server that fails is left alone for a while, and counts
    /// as one that has more.
    async fn turn(mut self, looks: &mut Interval, took: &mut Duration) -> Result<(Self, bool), sql::Error> {
        self.tell_head();
        let begin = Instant::now();
        let full;
        if self.writer.is_shared() {
            full = match self.take_turn_and_look(looks).await {
                Ok(full) => full,
                Err(error) => {
                    pause(&error).await;
                    // It may be that they are elsewhere. If that can't be read, the next turn says so.
                    let _ = self.look().await;
                    return Ok((self, true));
                }
            };
        } else {
            (self, full) = self.catch_up_once().await?;
        }
        *took += begin.elapsed();
        self.tell_head();
        Ok((self, full))
    }

    async fn take_turn_and_look(&mut self, looks: &mut Interval) -> Result<bool, sql::Error> {
        let full = self.take_turn().await?;
        // Whoever shares them may have made them anew already; and where news come all the time nothing else looks.
        if self.log.is_behind() || looks.tick().now_or_never().is_some() {
            self.look().await?;
        }
        Ok(full)
    }

    /// Refuses a log that ends before what was folded. Its next events would count as folded, and tokens of them as passed.
    async fn know_the_log(&mut self) -> Result<(), ViewsError> {
        let reached = self.projections.iter().map(|folded| folded.checkpoint).max().unwrap_or_default();
        // Another service refuses by itself.
        if self.log.is_remote() {
            return Ok(());
        }
        let location = self.location.clone();
        loop {
            let ends = async {
                let head = self.log.head().await?;
                // A standby may have the rest to replay yet: it is waited for.
                Ok((head, if head < reached { self.log.lost_to(reached).await? } else { None }))
            };
            match ends.await {
                Ok((_, Some(head))) => return Err(ViewsError::OtherLog { location, reached, head }),
                Ok((head, None)) => {
                    self.projections.iter().for_each(|folded| folded.standing.saw(head));
                    return Ok(());
                }
                Err(error) if self.writer.is_shared() => pause(&error).await,
                Err(source) => return Err(ViewsError::Database { location, source }),
            }
        }
    }
}

/// Lets the log gather after turns that took so long, unless somebody wants it folded.
async fn gather(took: Duration, wanted: &Notify) {
    tokio::select! {
        () = tokio::time::sleep((took * GATHER).min(MOST_GATHER)) => {}
        () = wanted.notified() => {}
    }
}

/// Whether the tables are further back than here, or past an event that something is parked at here.
async fn is_elsewhere(projections: &[Folded], reader: &Reader) -> Result<bool, sql::Error> {
    let stood = checkpoints::read(projections.iter().map(|folded| folded.fold.name()), reader).await?;
    let is_elsewhere = |(folded, checkpoint): (&Folded, i64)| match checkpoint.cmp(&folded.checkpoint) {
        Ordering::Less => true,
        Ordering::Equal => false,
        Ordering::Greater => folded.parked,
    };
    Ok(projections.iter().zip(stood).any(is_elsewhere))
}

/// Waits until it is time to look. What is under way to another service is not to be begun again for a look that finds nothing.
async fn until_look(looks: &mut Interval, is_remote: bool, projections: &[Folded], reader: &Reader) {
    loop {
        looks.tick().await;
        let is_denied = projections.iter().any(|folded| folded.is_denied);
        // If that can't be read, a turn will say so.
        if !is_remote || is_denied || is_elsewhere(projections, reader).await.unwrap_or(false) {
            return;
        }
    }
}

/// A server that is out of reach comes back; until then the views stand still.
async fn pause(error: &sql::Error) {
    tracing::warn!(%error, "the views stand still until the database is back");
    tokio::time::sleep(PAUSE).await;
}

/// Why the views stand still.
#[derive(Debug, thiserror::Error)]
pub enum ViewsError {
    /// The read side's database or the log failed.
    #[error(
        "{location}, or the log that it is made of: {source}: the views stand still; start again to go on from the last checkpoint"
    )]
    Database {
        /// The read side's database.
        location: Location,
        /// What became of it.
        source: sql::Error,
    },
    /// The log ends before what was folded.
    #[error(
        "{location}: the views are at {reached} and the log ends at {head}: it is not the one they were made of, as after a restored \
         backup; make them anew with the service's `rebuild` command"
    )]
    OtherLog {
        /// The read side's database.
        location: Location,
        /// How far the furthest view is.
        reached: i64,
        /// How far the log is.
        head: i64,
    },
}
