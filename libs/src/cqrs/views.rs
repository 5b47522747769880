//! The read side's database and the one who keeps it up to date.
//!
//! One projector a database reads the log after the lowest checkpoint and hands each batch to every projection, all in one
//! transaction; those that are further on than that get theirs in turn, and don't wait for one that begins, unless the log is another
//! service's, which comes once. When one of them fails, the batch is done again one projection at a time: the one that goes on failing is
//! parked with the event and the error, and the others go on.

use std::{cmp::Ordering, sync::Arc, time::Duration};

use futures::FutureExt as _;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use super::{
    Board, Log, Projections, ReadSide,
    board::{Standing, Telling},
    checkpoints::{self, CHECKPOINTS},
    folding::passed,
    projection::Fold,
    read::Kept,
    rebuild::Rebuilding,
    turns::{MOST_EVENTS, lowest},
};
use crate::journal::{
    Location, Names, OpenError, Table,
    sql::{self, Reader},
    store::{self, Store},
};

/// How many queries may read at once.
const READERS: usize = 4;
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

/// The read side's database, open for its one projector.
#[derive(Debug)]
pub struct Views {
    pub(super) location: Location,
    pub(super) writer: Store,
    pub(super) reader: Reader,
    pub(super) log: Log,
    pub(super) projections: Vec<Folded>,
    /// The most events that a turn takes now.
    pub(super) most: i64,
    pub(super) caught_up: watch::Sender<i64>,
    wanted: Arc<Notify>,
    /// Rings when a parked projection is to try again.
    bell: Arc<Notify>,
    /// Who wants the views made anew, and is told how far that is.
    rebuilds: (mpsc::Sender<Telling>, mpsc::Receiver<Telling>),
    /// Views that are made anew beside these, at most one at a time.
    pub(super) rebuilding: JoinSet<Rebuilding>,
}

/// A projection and how far it is.
pub(super) struct Folded {
    pub(super) fold: Arc<dyn Fold>,
    pub(super) checkpoint: i64,
    pub(super) parked: bool,
    pub(super) standing: Arc<Standing>,
}

impl Folded {
    /// Whether what comes after a position is taken to it now.
    pub(super) const fn takes(&self, from: i64) -> bool {
        !self.parked && self.checkpoint >= from
    }

    pub(super) fn moved(&mut self, checkpoint: i64) {
        self.checkpoint = checkpoint;
        self.standing.moved(checkpoint);
    }

    /// It goes on from where somebody else has brought it, and is not parked.
    pub(super) fn go_on(&mut self, checkpoint: i64) {
        self.parked = false;
        self.checkpoint = checkpoint;
        self.standing.go_on(checkpoint);
    }
}

impl std::fmt::Debug for Folded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Folded")
            .field("projection", &self.fold.name())
            .field("checkpoint", &self.checkpoint)
            .field("parked", &self.parked)
            .finish()
    }
}

impl Views {
    /// Opens the views, making what is missing, to be fed from `log`.
    ///
    /// # Errors
    /// When the database is in use or can't be opened, or a table or projection has another one's name.
    pub async fn open(location: impl Into<Location>, log: Log, projections: &Projections) -> Result<Self, OpenError> {
        let tables = tables(projections)?;
        Self::over(location.into(), log, projections, &tables).await
    }

    /// Opens views that are to be made anew. Nothing is made but what says how far they are, for those that are there may lack what an
    /// index is to be on.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) async fn open_old(location: Location, log: Log, projections: &Projections) -> Result<Self, OpenError> {
        tables(projections)?;
        Self::over(location, log, projections, &[&CHECKPOINTS]).await
    }

    async fn over(
        location: Location,
        log: Log,
        projections: &Projections,
        tables: &[&'static Table],
    ) -> Result<Self, OpenError> {
        let shaped = |error| of_other_shape(error, projections, log.is_remote());
        let writer = Store::open(&location, tables).await.map_err(shaped)?;
        let reader = store::readers(&location, READERS)?;
        let failed = |source| OpenError::Database { location: location.clone(), source };
        let (mut folded, bell) = (Vec::new(), Arc::<Notify>::default());
        let stood = checkpoints::read(projections.0.iter().map(|fold| fold.name()), &reader).await.map_err(failed)?;
        for (fold, checkpoint) in projections.0.iter().zip(stood) {
            let standing = Standing::new(fold.name(), checkpoint, log.watched_head(), Arc::clone(&bell));
            folded.push(Folded { fold: fold.clone(), checkpoint, parked: false, standing });
        }
        let (caught_up, _) = watch::channel(passed(&folded));
        let (wanted, rebuilds) = (Arc::default(), mpsc::channel(1));
        let (projections, most, rebuilding) = (folded, MOST_EVENTS, JoinSet::new());
        Ok(Self { location, writer, reader, log, projections, most, caught_up, wanted, bell, rebuilds, rebuilding })
    }

    /// Makes what is missing of views that are not to be fed yet.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn make(location: &Location, projections: &Projections) -> Result<(), OpenError> {
        let made = Store::open(location, &tables(projections)?).await;
        made.map_err(|error| of_other_shape(error, projections, true))?.close().await;
        Ok(())
    }

    /// The names that are taken in a service before any view has its own, with these tables kept beside the journal's.
    pub(crate) fn names(beside: &[&'static Table]) -> Result<Names, OpenError> {
        let mut names = Names::of_journal(beside)?;
        names.take(&[&CHECKPOINTS])?;
        Ok(names)
    }

    /// What queries are handed. `service` names the database in tokens, `most_wait` bounds how long a query waits for one.
    #[must_use]
    pub fn read_side(&self, service: &'static str, most_wait: Duration) -> ReadSide {
        let (reader, log) = (self.reader.clone(), self.log.own().cloned());
        let kept = |folded: &Folded| Kept { tables: folded.fold.tables(), standing: Arc::clone(&folded.standing) };
        let kept = self.projections.iter().map(kept).collect();
        ReadSide::new(service, reader, log, self.caught_up.subscribe(), Arc::clone(&self.wanted), most_wait, kept)
    }

    /// Shows these projections on a board, as over the events of `source`.
    pub fn show_on(&self, board: &Board, source: &str) {
        board.add(source, self.projections.iter().map(|folded| Arc::clone(&folded.standing)));
        board.add_rebuilder(source, self.rebuilds.0.clone());
    }

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
            let reached = lowest(&self.projections);
            // Where all are parked, what came of another service would be let go of. A log of one's own is listened to all the same: it
            // tells of its end.
            let is_remote = self.log.is_remote();
            let listens = reached < i64::MAX || !is_remote;
            let looks_up = !is_remote || self.writer.is_shared();
            let news = tokio::select! {
                // What may come all the time comes after what comes now and then, and before a look that would be begun in vain.
                biased;
                () = self.bell.notified() => {
                    self.resume();
                    continue;
                }
                Some(telling) = self.rebuilds.1.recv(), if self.rebuilding.is_empty() => {
                    self.begin_anew(telling);
                    continue;
                }
                Some(rebuilt) = self.rebuilding.join_next() => {
                    self = self.end_anew(rebuilt).await.map_err(failed)?;
                    continue;
                }
                news = self.log.news(reached), if listens => news.map(Some),
                () = until_look(&mut looks, is_remote, &self.projections, &self.reader), if looks_up => {
                    self.look().await.map(|()| None)
                }
            };
            match news {
                Ok(Some(true)) => {}
                Ok(Some(false)) => break,
                Ok(None) => continue,
                Err(error) if self.writer.is_shared() => {
                    pause(&error).await;
                    continue;
                }
                Err(error) => return Err(failed(error)),
            }
            self.tell_head();
            let begin = Instant::now();
            let full = if self.writer.is_shared() {
                let turn = match self.take_turn().await {
                    // Whoever shares them may have made them anew already; and where news come all the time nothing else looks.
                    Ok(full) if self.log.is_behind() || looks.tick().now_or_never().is_some() => {
                        self.look().await.map(|()| full)
                    }
                    turn => turn,
                };
                match turn {
                    Ok(full) => full,
                    Err(error) => {
                        pause(&error).await;
                        // It may be that they are elsewhere. If that can't be read, the next turn says so.
                        let _ = self.look().await;
                        continue;
                    }
                }
            } else {
                let (caught_up, full) = self.catch_up_once().await.map_err(failed)?;
                self = caught_up;
                full
            };
            took += begin.elapsed();
            self.tell_head();
            if full {
                continue;
            }
            let gathered = tokio::time::sleep((std::mem::take(&mut took) * GATHER).min(MOST_GATHER));
            tokio::select! {
                () = gathered => {}
                () = self.wanted.notified() => {}
            }
        }
        self.writer.close().await;
        Ok(())
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
        // If that can't be read, a turn will say so.
        if !is_remote || is_elsewhere(projections, reader).await.unwrap_or(false) {
            return;
        }
    }
}

/// All that views need. One that the journal has would be dropped with its rows when they are made anew.
fn tables(projections: &Projections) -> Result<Vec<&'static Table>, OpenError> {
    projections.take_names(&mut Views::names(&[])?)?;
    let own = projections.0.iter().flat_map(|fold| fold.tables());
    Ok(std::iter::once(&CHECKPOINTS).chain(own.copied()).collect())
}

/// Says what to do about a column that an index is to be on and that the views of an older version lack.
fn of_other_shape(error: OpenError, projections: &Projections, are_over_others: bool) -> OpenError {
    match error {
        OpenError::Database { location, source } if source.is_unknown_column() => {
            let mend = match location {
                // All of them: what stays would have every event folded into it once more.
                Location::Postgres { .. } if are_over_others => {
                    let tables = |fold: &Arc<dyn Fold>| {
                        let names: Vec<_> = fold.tables().iter().map(|table| table.name).collect();
                        format!("{} ({})", fold.name(), names.join(", "))
                    };
                    let all: Vec<_> = projections.0.iter().map(tables).collect();
                    format!(
                        "drop all tables of the projection that it is of, and that one's row in checkpoints: they are made anew from that \
                         service's events. It is one of {}",
                        all.join(", ")
                    )
                }
                _ => "make the views anew with the service's `rebuild` command before anything else".to_owned(),
            };
            OpenError::OtherShape { location, source, mend }
        }
        error => error,
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
