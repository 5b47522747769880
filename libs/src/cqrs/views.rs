//! The read side's database and the one who keeps it up to date.
//!
//! One projector a database reads the log after the lowest checkpoint and hands each batch to every projection, all in one
//! transaction. When one of them fails, the batch is done again one projection at a time: the one that goes on failing is parked
//! with the event and the error, and the others go on.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    Projections, ReadSide,
    projection::{Fold, ProjectionError},
};
use crate::journal::{
    Event, Row, Table, events_after, head,
    sql::{self, Reader, Transaction},
    sqlite::{self, Durability, OpenError, Writer},
};

/// The most events in a batch.
const MOST_EVENTS: i64 = 4096;
/// How many queries may read at once.
const READERS: usize = 4;
/// How often a failing batch is tried before its projection is parked.
const TRIES: u32 = 3;
/// After a batch the log gathers for so many times as long as the batch took, but not longer than [`MOST_GATHER`]. A busy log is
/// then folded in large batches that change a document once for many events, folding takes a bounded share of the machine, and
/// the first event after a silence is folded at once. Whoever waits for a write they made ends the gathering.
const GATHER: u32 = 4;
const MOST_GATHER: Duration = Duration::from_millis(150);
/// How often a log in another process is looked at.
const POLL: Duration = Duration::from_millis(20);

static CHECKPOINTS: Table = Table {
    name: "checkpoints",
    create: &["CREATE TABLE IF NOT EXISTS checkpoints (
        projection TEXT NOT NULL PRIMARY KEY,
        position INTEGER NOT NULL
    ) WITHOUT ROWID"],
    columns: &["projection", "position"],
    key: 1,
};

/// Where events come from.
#[derive(Clone, Debug)]
pub struct Log {
    reader: Reader,
    /// Tells of news; None where another process writes the log and it must be looked at.
    head: Option<watch::Receiver<i64>>,
}

impl Log {
    /// The log of a journal in this process.
    #[must_use]
    pub fn of(journal: &crate::journal::Journal) -> Self {
        Self { reader: journal.reader().clone(), head: Some(journal.head()) }
    }

    /// The log of a journal that another process writes, on the same machine.
    ///
    /// # Errors
    /// When its database isn't there or can't be read.
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        Ok(Self { reader: sqlite::readers(path, 1)?, head: None })
    }

    /// Waits until the log has something after `position`. False when the journal is closed and there is nothing more.
    async fn news(&mut self, position: i64) -> Result<bool, sql::Error> {
        if let Some(news) = &mut self.head {
            return Ok(news.wait_for(|head| *head > position).await.is_ok());
        }
        while head(&self.reader).await? <= position {
            tokio::time::sleep(POLL).await;
        }
        Ok(true)
    }
}

/// The read side's database, open for its one projector.
#[derive(Debug)]
pub struct Views {
    path: PathBuf,
    writer: Writer,
    reader: Reader,
    log: Log,
    projections: Vec<State>,
    caught_up: watch::Sender<i64>,
    wanted: Arc<Notify>,
}

/// A projection and how far it is.
struct State {
    fold: Arc<dyn Fold>,
    checkpoint: i64,
    parked: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("projection", &self.fold.name())
            .field("checkpoint", &self.checkpoint)
            .field("parked", &self.parked)
            .finish()
    }
}

impl Views {
    /// Opens the views at `path`, making what is missing, to be fed from `log`.
    ///
    /// # Errors
    /// When the database is in use or can't be opened.
    pub async fn open(path: &Path, log: Log, projections: &Projections) -> Result<Self, OpenError> {
        let mut tables = vec![&CHECKPOINTS];
        tables.extend(projections.0.iter().flat_map(|fold| fold.tables()));
        let writer = Writer::open(path, Durability::Rebuildable, &tables)?;
        let reader = sqlite::readers(path, READERS)?;
        let failed = |source| OpenError::Database { path: path.to_owned(), source };
        let mut states = Vec::new();
        for fold in &projections.0 {
            let rows = reader.fetch_keys(&CHECKPOINTS, vec![vec![fold.name().into()]]).await.map_err(failed)?;
            let checkpoint = rows.first().map_or(Ok(0), |row| row.int(1)).map_err(failed)?;
            states.push(State { fold: fold.clone(), checkpoint, parked: false });
        }
        let (caught_up, _) = watch::channel(lowest(&states));
        Ok(Self { path: path.to_owned(), writer, reader, log, projections: states, caught_up, wanted: Arc::default() })
    }

    /// What queries are handed. `service` names the database in tokens, `most_wait` bounds how long a query waits for one.
    #[must_use]
    pub fn read_side(&self, service: &'static str, most_wait: Duration) -> ReadSide {
        ReadSide::new(service, self.reader.clone(), self.caught_up.subscribe(), Arc::clone(&self.wanted), most_wait)
    }

    /// Folds until the journal closes, then closes the views.
    ///
    /// # Errors
    /// When the log can't be read or the views can't be written: the process should end.
    pub async fn run(mut self) -> Result<(), ViewsError> {
        let path = self.path.clone();
        let failed = |source| ViewsError { path: path.clone(), source };
        while self.log.news(lowest(&self.projections)).await.map_err(failed)? {
            let begin = Instant::now();
            self = self.catch_up_once().await.map_err(failed)?;
            if !self.is_near() {
                continue;
            }
            let gathered = tokio::time::sleep((begin.elapsed() * GATHER).min(MOST_GATHER));
            tokio::select! {
                () = gathered => {}
                () = self.wanted.notified() => {}
            }
        }
        self.writer.close();
        Ok(())
    }

    /// Folds all that the log holds now, telling after each batch how far it is: (done, all).
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn catch_up(mut self, mut progress: impl FnMut(i64, i64)) -> Result<(), ViewsError> {
        let path = self.path.clone();
        let failed = |source| ViewsError { path: path.clone(), source };
        let all = head(&self.log.reader).await.map_err(failed)?;
        while lowest(&self.projections) < all {
            self = self.catch_up_once().await.map_err(failed)?;
            progress(lowest(&self.projections).min(all), all);
        }
        self.writer.close();
        Ok(())
    }

    /// True if the next batch holds all that the log has now.
    fn is_near(&self) -> bool {
        let head = self.log.head.as_ref().map(|head| *head.borrow());
        head.is_none_or(|head| head - lowest(&self.projections) < MOST_EVENTS)
    }

    /// Takes one batch to every projection that is not parked. The folds run where they hold up no other task, in one go.
    async fn catch_up_once(mut self) -> Result<Self, sql::Error> {
        let events = events_after(&self.log.reader, lowest(&self.projections), MOST_EVENTS).await?;
        let Some(last) = events.last().map(|event| event.position) else { return Ok(self) };
        let runtime = Handle::current();
        let folding = tokio::task::spawn_blocking(move || {
            runtime.block_on(async {
                if self.fold_together(&events, last).await.is_err() {
                    for at in 0..self.projections.len() {
                        self.fold_alone(at, &events, last).await?;
                    }
                }
                Ok(self)
            })
        });
        let views = folding.await.unwrap_or_else(|stopped| match stopped.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(sql::Error::Closed),
        })?;
        views.caught_up.send_replace(lowest(&views.projections));
        Ok(views)
    }

    async fn fold_together(&mut self, events: &[Event], last: i64) -> Result<(), ProjectionError> {
        let mut transaction = self.writer.begin()?;
        for state in self.projections.iter().filter(|state| !state.parked) {
            fold(state, events, last, &mut transaction).await?;
        }
        transaction.commit().await?;
        for state in self.projections.iter_mut().filter(|state| !state.parked) {
            state.checkpoint = state.checkpoint.max(last);
        }
        Ok(())
    }

    /// Folds one projection's events, at last one by one, and parks it at the event it can't fold.
    async fn fold_alone(&mut self, at: usize, events: &[Event], last: i64) -> Result<(), sql::Error> {
        let Self { writer, projections, .. } = self;
        let state = &mut projections[at];
        if state.parked {
            return Ok(());
        }
        for events in std::iter::once(events).chain(events.chunks(1)) {
            let last = events.last().map_or(last, |event| event.position);
            for attempt in 1..=TRIES {
                let mut transaction = writer.begin()?;
                match fold(state, events, last, &mut transaction).await {
                    Ok(()) => {
                        transaction.commit().await?;
                        state.checkpoint = state.checkpoint.max(last);
                        break;
                    }
                    Err(error) => {
                        transaction.rollback().await?;
                        if events.len() == 1 && attempt == TRIES {
                            let projection = state.fold.name();
                            tracing::error!(
                                projection,
                                position = last,
                                %error,
                                "projection parked: its view stands still at this event; mend the projection and restart"
                            );
                            state.parked = true;
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Folds what is new to a projection and moves its checkpoint, in one transaction.
async fn fold(
    state: &State,
    events: &[Event],
    last: i64,
    transaction: &mut Transaction<'_>,
) -> Result<(), ProjectionError> {
    let seen = events.partition_point(|event| event.position <= state.checkpoint);
    if seen == events.len() {
        return Ok(());
    }
    state.fold.fold(&events[seen..], transaction).await?;
    let values = vec![state.fold.name().into(), last.into()];
    Ok(transaction.upsert(vec![Row { table: &CHECKPOINTS, values }]).await?)
}

/// The lowest checkpoint of those that move: what every view has seen. Without any it is the end of time.
fn lowest(states: &[State]) -> i64 {
    states.iter().filter(|state| !state.parked).map(|state| state.checkpoint).min().unwrap_or(i64::MAX)
}

/// The read side's database or the log failed.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}: the views stand still; start again to go on from the last checkpoint")]
pub struct ViewsError {
    path: PathBuf,
    source: sql::Error,
}
