//! Views made anew beside those that are read, which go on meanwhile; then the new ones take their place in one transaction.
//!
//! Beside is a database of their own: a file on SQLite, a schema on PostgreSQL, which is nobody else's who makes the same views anew. The
//! same projector folds into it, from the first event on, so a projection knows nothing of it. Whatever becomes of it, the old views are
//! whole until the new ones are in their place.

use std::time::Duration;

use tokio::{runtime::Handle, task::JoinError};

use super::{
    Log, Projections, Views,
    board::Telling,
    checkpoints,
    rebuild_error::RebuildError,
    turns::{joined, lowest},
    views::State,
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

/// How often in a row the old views of the service's own events may be further on by the time the new ones have what those had.
const MOST_BEHIND: u32 = 3;

/// Views under way beside others, and who is told.
pub(super) type Rebuilding = (Telling, Result<Rebuilt, RebuildError>);

/// Views that were made anew, and where.
#[derive(Debug)]
pub(super) struct Rebuilt {
    views: Views,
    beside: Beside,
    /// How far the old ones were when they were looked at last. These have all that the log had up to there.
    old: i64,
    /// Where the stream ended that they go on with: up to there they have all, whatever the stream holds.
    stream: i64,
    /// How often somebody was reading the old ones.
    held: u32,
    /// How often the old ones were further on.
    behind: u32,
}

/// What came of putting views in the place of others.
enum Replaced {
    /// How far they are if they are there, and what is left beside them.
    Ended(Result<i64, RebuildError>, Option<Beside>),
    /// They are to go on first.
    NotYet(Box<Rebuilt>, Wait),
}

/// How far they are, unless they are to go on first.
type Taken = Result<i64, Wait>;

/// What is to come before views take the place of others.
enum Wait {
    /// The old ones went on to there while they were made, or were made anew themselves.
    Behind(i64),
    /// Somebody goes on reading the old ones.
    Held,
}

/// What views are made anew from, and beside what.
struct Plan {
    here: Location,
    log: Log,
    /// What they go on with then.
    followed: Log,
    projections: Projections,
    /// How far the old ones are.
    old: i64,
}

impl Views {
    /// Makes all views anew, while queries are answered from the old ones and other processes fold into them.
    ///
    /// # Errors
    /// When the database or the log fails, or an event can't be folded. Nothing is changed then, unless the error says that it isn't known.
    pub async fn rebuild(mut self, mut progress: impl FnMut(i64, i64)) -> Result<(), RebuildError> {
        let mut rebuilt = self.plan().build(&mut progress).await?;
        let (ended, beside) = loop {
            let (old, replaced) = self.replace(rebuilt).await?;
            self = old;
            match replaced {
                Replaced::Ended(ended, beside) => break (ended, beside),
                Replaced::NotYet(waiting, wait) => rebuilt = waiting.go_on(wait).await?,
            }
        };
        if let Some(beside) = beside {
            remove(beside).await;
        }
        let head = ended?;
        progress(head, head);
        self.writer.close().await;
        Ok(())
    }

    /// Begins to make all views anew, and tells how far that is.
    pub(super) fn begin_anew(&mut self, telling: Telling) {
        let plan = self.plan();
        self.rebuilding.spawn(async move {
            let told = telling.clone();
            // The last word is kept until they are in place. That nobody listens any more is no reason to stop.
            let rebuilt = plan.build(move |position, head| {
                if position < head {
                    let _ = told.send(Ok((position, head)));
                }
            });
            let rebuilt = rebuilt.await;
            (telling, rebuilt)
        });
    }

    /// Puts what was made anew in its place, and tells.
    pub(super) async fn end_anew(self, rebuilt: Result<Rebuilding, JoinError>) -> Result<Self, sql::Error> {
        let location = self.location.clone();
        let (telling, rebuilt) = match rebuilt {
            Ok(rebuilt) => rebuilt,
            Err(error) => {
                // Who waits for the end sees none.
                tracing::error!(views = %location, %error, "the views are not made anew");
                return Ok(self);
            }
        };
        let (mut views, mut next) = (self, rebuilt);
        let (ended, beside) = loop {
            let (old, replaced) = match next {
                Ok(rebuilt) => views.replace(rebuilt).await?,
                Err(error) => break (Err(error), None),
            };
            views = old;
            match replaced {
                Replaced::Ended(ended, beside) => break (ended, beside),
                // Of events that never cease the old ones always have more: they stand still while these catch up. On a server others may
                // fold them on, so that is not for long.
                Replaced::NotYet(rebuilt, wait @ Wait::Behind(_)) if rebuilt.is_outrun() => {
                    next = rebuilt.go_on(wait).await;
                }
                // That may take long, and another service may be out by now: the old ones don't wait for it.
                Replaced::NotYet(rebuilt, wait) => {
                    views.rebuilding.spawn(async move { (telling, rebuilt.go_on(wait).await) });
                    return Ok(views);
                }
            }
        };
        let word = match ended {
            Ok(head) => {
                tracing::info!(views = %location, "the views are made anew");
                Ok((head, head))
            }
            Err(error) => {
                tracing::error!(views = %location, %error, "the views are not made anew");
                Err(match error {
                    RebuildError::Poison(_)
                    | RebuildError::OtherLog(_)
                    | RebuildError::OtherStream { .. }
                    | RebuildError::Lost
                    | RebuildError::Held
                    | RebuildError::UnknownEnd(_) => error.to_string(),
                    RebuildError::Open(_) | RebuildError::Database(_) => {
                        "the views were not made anew and are as they were: the service's log says why".to_owned()
                    }
                    RebuildError::Unknown(_) => "it is not known whether the views were made anew: the service's log \
                        says why; make them anew once more"
                        .to_owned(),
                })
            }
        };
        let tell = move || {
            let _ = telling.send(word);
        };
        match beside {
            // The way to a server may be cut, unseen for as long as nothing went over it: the views don't wait for that.
            Some(beside) => drop(tokio::spawn(async {
                remove(beside).await;
                tell();
            })),
            None => tell(),
        }
        Ok(views)
    }

    fn plan(&self) -> Plan {
        Plan {
            here: self.location.clone(),
            log: self.log.beside(),
            followed: self.log.clone(),
            projections: Projections(self.projections.iter().map(|state| state.fold.clone()).collect()),
            old: self.projections.iter().map(|state| state.checkpoint).max().unwrap_or_default(),
        }
    }

    /// Has views that were made anew take the place of these; on a file where that holds up no other task, in one go. On a server what is
    /// left beside them is to be removed then.
    async fn replace(mut self, rebuilt: Rebuilt) -> Result<(Self, Replaced), sql::Error> {
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
                self.writer.detach().await.map_err(RebuildError::from).and(taken)
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
        let names = self.projections.iter().map(|state| state.fold.name());
        let old = checkpoints::read_within(names, &mut transaction).await?.into_iter().max().unwrap_or_default();
        let reached = lowest(&rebuilt.projections).max(stream);
        // A query must not see less than before. They need not come as far as old ones of another log, which went further than this one
        // does.
        if reached < old && *seen != old {
            transaction.rollback().await?;
            return Ok(Err(Wait::Behind(old)));
        }
        // Else the tables would lack for good what counts as folded.
        let names = rebuilt.projections.iter().map(|state| state.fold.name());
        let made = checkpoints::read_beside(names, &rebuilt.location, &mut transaction).await?;
        if rebuilt.projections.iter().zip(made).any(|(state, made)| made < state.checkpoint) {
            transaction.rollback().await?;
            return Err(RebuildError::Lost);
        }
        // One may be further than the others, where a fold was cut short.
        let stand: Vec<i64> = rebuilt.projections.iter().map(|state| state.checkpoint.max(stream)).collect();
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
        for (state, checkpoint) in self.projections.iter_mut().zip(stand) {
            state.go_on(checkpoint);
            if let Some(end) = end {
                state.standing.ends(end);
            }
        }
        self.caught_up.send_replace(lowest(&self.projections));
        Ok(Ok(reached))
    }
}

impl Rebuilt {
    /// Whether the old ones are not to go on any more before these have what those have. Another service, which may be out, isn't waited
    /// for so.
    const fn is_outrun(&self) -> bool {
        self.behind % (MOST_BEHIND + 1) == MOST_BEHIND && !self.views.log.is_remote()
    }

    /// Leaves who reads the old ones alone for a while, or folds what those had folded meanwhile.
    async fn go_on(self, wait: Wait) -> Result<Self, RebuildError> {
        let Wait::Behind(old) = wait else {
            tokio::time::sleep(PAUSE).await;
            return Ok(self);
        };
        let Self { views, beside, stream, held, behind, .. } = self;
        match views.fold_to(old, |_, _| {}).await.and_then(whole) {
            Ok(views) => Ok(Self { views, beside, old, stream, held, behind: behind + 1 }),
            Err(error) => {
                remove(beside).await;
                Err(error)
            }
        }
    }
}

impl Plan {
    /// Folds the whole log, as far as it goes now.
    async fn build(self, progress: impl FnMut(i64, i64)) -> Result<Rebuilt, RebuildError> {
        let beside = Beside::make(&self.here).await?;
        let old = self.old;
        match self.build_in(beside.location(), progress).await {
            Ok((views, stream)) => Ok(Rebuilt { views, beside, old, stream, held: 0, behind: 0 }),
            Err(error) => {
                // What it took of the disk may be all that was left.
                remove(beside).await;
                Err(error)
            }
        }
    }

    /// The views, and where the stream ends that they are to go on with, if one is followed.
    async fn build_in(self, place: &Location, progress: impl FnMut(i64, i64)) -> Result<(Views, i64), RebuildError> {
        let Self { log, followed, projections, old, .. } = self;
        // Before the service is asked: where its log ends then, a copy of it has not come further.
        let (stream, reached) = followed.stream_end().await?.unwrap_or_default();
        let views = Views::open(place, log, &projections).await?;
        let head = match views.log.is_remote() {
            // What was folded was wanted; whether there is more will be seen. A stream may be the copy of a log that was lost and that this
            // one has outgrown: it must have nothing left to tell.
            true => old.max(reached),
            false => views.log.head().await?,
        };
        let views = whole(views.fold_to(head, progress).await?)?;
        match views.log.told_end() {
            Some(end) if reached > end => Err(RebuildError::OtherStream { stream, reached, end }),
            _ => Ok((views, reached)),
        }
    }
}

/// Puts all tables that were made beside these in the place of the ones that are here, and how far they are.
async fn put(
    projections: &[State],
    stand: &[i64],
    [here, beside]: [&Location; 2],
    transaction: &mut Transaction<'_>,
) -> Result<(), sql::Error> {
    for (state, &checkpoint) in projections.iter().zip(stand) {
        for table in state.fold.tables() {
            for sql in store::replacing(table, here, beside) {
                transaction.execute(&sql, Vec::new()).await?;
            }
        }
        checkpoints::store(state.fold.name(), checkpoint, transaction).await?;
    }
    transaction.flush().await
}

/// Leaves nothing beside the views.
async fn remove(beside: Beside) {
    if let Err(error) = beside.remove().await {
        // It is removed before the next time, too.
        tracing::warn!(%error, "what is left beside the views is not removed");
    }
}

/// The views, if each of them could fold every event.
pub(super) fn whole(views: Views) -> Result<Views, RebuildError> {
    match views.projections.iter().find_map(|state| state.standing.parked()) {
        Some(parked) => Err(RebuildError::Poison(parked.error)),
        None => Ok(views),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::{
        cqrs::{Documents, Projection, ProjectionError},
        journal::{
            AggregateId, Cause, Change, Decided, Entry, Event, Journal, Loaded, NewEvent, Table, sql::Transaction,
        },
    };

    static COUNTS: [Table; 2] = [
        Table {
            name: "first",
            create: &["CREATE TABLE IF NOT EXISTS first (id TEXT PRIMARY KEY, position INTEGER, document BLOB)"],
            columns: &["id", "position", "document"],
            key: 1,
            fixed: &[],
        },
        Table {
            name: "second",
            create: &["CREATE TABLE IF NOT EXISTS second (id TEXT PRIMARY KEY, position INTEGER, document BLOB)"],
            columns: &["id", "position", "document"],
            key: 1,
            fixed: &[],
        },
    ];

    /// Counts events.
    struct Counts<const TABLE: usize>;

    impl<const TABLE: usize> Projection for Counts<TABLE> {
        const NAME: &'static str = ["first", "second"][TABLE];
        const TABLES: &'static [&'static Table] = &[&COUNTS[TABLE]];

        async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
            let ids = events.iter().map(|event| &event.id);
            let mut counts = Documents::<i64>::load(transaction, &COUNTS[TABLE], ids).await?;
            events.iter().for_each(|event| counts.update(&event.id, event.position, |count| *count += 1));
            counts.save(transaction, |_| Vec::new()).await
        }
    }

    async fn write(journal: &Journal, events: u32) {
        for _ in 0..events {
            let event = NewEvent { name: "Happened", payload: Vec::new().into() };
            let aggregate = AggregateId::new("thing", "it");
            let change = Change { aggregate, state: None, version: 1, events: vec![event] };
            let decide = Box::new(|_: &Loaded<'_>| Decided { changes: vec![change], ..Decided::default() });
            let entry = Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size: 10 };
            journal.submit(entry).await.unwrap();
        }
    }

    #[tokio::test]
    async fn of_views_made_anew_each_goes_on_from_where_it_is() {
        let folder = TempDir::new().unwrap();
        let journal = Journal::open(&folder.path().join("test.db"), &[]).await.unwrap();
        let projections = Projections::new().with(Counts::<0>).with(Counts::<1>);
        let views = Views::open(journal.location().views(), Log::of(&journal), &projections).await.unwrap();
        write(&journal, 10).await;
        let mut rebuilt = views.plan().build(|_, _| {}).await.unwrap();
        write(&journal, 5).await;
        // As where a batch is folded into one after the other, and the second time that is cut short.
        rebuilt.views.projections[1].parked = true;
        (rebuilt.views, _) = rebuilt.views.catch_up_once().await.unwrap();
        rebuilt.views.projections[1].parked = false;
        let (views, replaced) = views.replace(rebuilt).await.unwrap();
        assert!(matches!(replaced, Replaced::Ended(Ok(10), _)));
        let views = views.fold_to(15, |_, _| {}).await.unwrap();
        let read = views.read_side("test", Duration::ZERO);
        for table in &COUNTS {
            assert_eq!(read.document::<i64>(table, "it").await.unwrap(), Some(15), "{}", table.name);
        }
    }

    #[tokio::test]
    async fn views_of_events_that_never_cease_stand_still_while_those_made_anew_catch_up() {
        let folder = TempDir::new().unwrap();
        let journal = Journal::open(&folder.path().join("test.db"), &[]).await.unwrap();
        let projections = Projections::new().with(Counts::<0>);
        let mut views = Views::open(journal.location().views(), Log::of(&journal), &projections).await.unwrap();
        let (telling, mut told) = tokio::sync::mpsc::unbounded_channel();
        let mut rebuilt = views.plan().build(|_, _| {}).await;
        for behind in 1..=MOST_BEHIND {
            write(&journal, 1).await;
            views = views.fold_to(behind.into(), |_, _| {}).await.unwrap();
            views = views.end_anew(Ok((telling.clone(), rebuilt))).await.unwrap();
            rebuilt = views.rebuilding.join_next().await.expect("they go on beside the old ones").unwrap().1;
        }
        write(&journal, 1).await;
        let end = i64::from(MOST_BEHIND) + 1;
        views = views.fold_to(end, |_, _| {}).await.unwrap();
        let views = views.end_anew(Ok((telling, rebuilt))).await.unwrap();
        assert!(views.rebuilding.is_empty());
        assert_eq!(told.recv().await, Some(Ok((end, end))));
    }
}
