//! The read side's database: opening it, for the one who keeps it up to date, and for who reads it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};

use super::{
    Board, Log, Projections, ReadSide,
    board::{Standing, Telling},
    checkpoints::{self, CHECKPOINTS},
    folding::passed,
    projection::Fold,
    read::Kept,
    rebuild::Rebuilding,
    turns::MOST_EVENTS,
};
use crate::journal::{
    Location, Names, OpenError, Table,
    sql::Reader,
    store::{self, Store},
};

/// How many queries may read at once.
const READERS: usize = 4;

/// The read side's database, open for its one projector.
#[derive(Debug)]
pub struct Views {
    pub(super) location: Location,
    pub(super) writer: Store,
    pub(super) reader: Reader,
    pub(super) log: Log,
    pub(super) projections: Vec<Folded>,
    /// True of those that are made beside others, which nobody reads yet.
    pub(super) is_beside: bool,
    /// The most events that a turn takes now.
    pub(super) most: i64,
    pub(super) caught_up: watch::Sender<i64>,
    pub(super) wanted: Arc<Notify>,
    /// Rings when a parked projection is to try again.
    pub(super) bell: Arc<Notify>,
    /// Who wants the views made anew, and is told how far that is.
    pub(super) rebuilds: (mpsc::Sender<Telling>, mpsc::Receiver<Telling>),
    /// Views that are made anew beside these, at most one at a time.
    pub(super) rebuilding: JoinSet<Rebuilding>,
}

/// A projection and how far it is.
pub(super) struct Folded {
    pub(super) fold: Arc<dyn Fold>,
    pub(super) checkpoint: i64,
    pub(super) parked: bool,
    /// It was parked because this process may not read or write its tables, and has not got past that since.
    pub(super) is_denied: bool,
    pub(super) standing: Arc<Standing>,
}

impl Folded {
    /// Whether what comes after a position is taken to it now.
    pub(super) const fn takes(&self, from: i64) -> bool {
        !self.parked && self.checkpoint >= from
    }

    pub(super) fn moved(&mut self, checkpoint: i64) {
        if self.is_denied {
            tracing::info!(projection = self.fold.name(), checkpoint, "goes on: it has the rights on its tables");
            self.go_on(checkpoint);
        }
        self.checkpoint = checkpoint;
        self.standing.moved(checkpoint);
    }

    /// It goes on from where somebody else has brought it, and is not parked.
    pub(super) fn go_on(&mut self, checkpoint: i64) {
        (self.parked, self.is_denied) = (false, false);
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
            folded.push(Folded { fold: fold.clone(), checkpoint, parked: false, is_denied: false, standing });
        }
        let (caught_up, _) = watch::channel(passed(&folded));
        let (wanted, rebuilds) = (Arc::default(), mpsc::channel(1));
        let (projections, is_beside, most, rebuilding) = (folded, false, MOST_EVENTS, JoinSet::new());
        Ok(Self {
            location,
            writer,
            reader,
            log,
            projections,
            is_beside,
            most,
            caught_up,
            wanted,
            bell,
            rebuilds,
            rebuilding,
        })
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
}

/// All that views need. One that the journal has would be dropped with its rows when they are made anew.
fn tables(projections: &Projections) -> Result<Vec<&'static Table>, OpenError> {
    projections.take_names(&mut Views::names(&[])?)?;
    let own = projections.0.iter().flat_map(|fold| fold.tables());
    Ok(std::iter::once(&CHECKPOINTS).chain(own.copied()).collect())
}

/// Says what to do about a column that an index is to be on and that the views of an older version lack, and about a name that those have.
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
        // The file is made anew, and with it all names.
        OpenError::OtherOwner { location: location @ Location::Sqlite(_), name, found, wanted, .. } => {
            let mend = "make the views anew with the service's `rebuild`".to_owned();
            OpenError::OtherOwner { location, name, found, wanted, mend }
        }
        error => error,
    }
}
