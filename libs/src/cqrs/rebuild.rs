//! Views made anew beside those that are read, which go on meanwhile; then the new ones take their place in one transaction.
//!
//! Beside is a database of their own: a file on SQLite, a schema on PostgreSQL, which is nobody else's who makes the same views anew. The
//! same projector folds into it, from the first event on, so a projection knows nothing of it. Whatever becomes of it, the old views are
//! whole until the new ones are in their place.

use tokio::task::JoinError;

use super::{
    Log, Projections, Views,
    board::{Telling, UNKNOWN_END},
    rebuild_error::RebuildError,
    replace::{Rebuilt, Replaced, Wait, remove},
    turns::whole,
};
use crate::journal::{Beside, Location, sql};

/// Views under way beside others, and who is told.
pub(super) type Rebuilding = (Telling, Result<Rebuilt, RebuildError>);

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
                // Who waits for the end is told that it is not known.
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
                // Of events that never cease the old ones always have more: they stand still while these catch up.
                Replaced::NotYet(rebuilt, wait @ Wait::Behind(old)) if rebuilt.is_outrun(old) => {
                    let events = rebuilt.left_to(old);
                    tracing::info!(views = %location, events, "the old views stand still until the new ones have what they have");
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
                    RebuildError::Unknown(_) => UNKNOWN_END.to_owned(),
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
            projections: Projections(self.projections.iter().map(|folded| folded.fold.clone()).collect()),
            old: self.projections.iter().map(|folded| folded.checkpoint).max().unwrap_or_default(),
        }
    }
}

impl Plan {
    /// Folds the whole log, as far as it goes now.
    async fn build(self, progress: impl FnMut(i64, i64)) -> Result<Rebuilt, RebuildError> {
        let beside = Beside::make(&self.here).await?;
        let old = self.old;
        match self.build_in(beside.location(), progress).await {
            Ok((views, stream)) => Ok(Rebuilt { views, beside, old, stream, held: 0, behind: 0, left: old }),
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
        let views = Views { is_beside: true, ..Views::open(place, log, &projections).await? };
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;
    use tokio::{net::TcpSocket, time::timeout};

    use super::*;
    use crate::{
        breaker::Registry,
        cqrs::{Documents, Projection, ProjectionError, replace::MOST_BEHIND, turns::MOST_EVENTS},
        journal::{
            AggregateId, Cause, Change, Decided, Entry, Event, Journal, Loaded, NewEvent, Table, sql::Transaction,
        },
        rpc::client::{PeerOptions, Peers},
    };

    /// Far more than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);

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

    /// Writes so many events, in one commit.
    async fn write(journal: &Journal, events: i64) {
        let event = || NewEvent { name: "Happened", payload: Vec::new().into() };
        let events = std::iter::repeat_with(event).take(usize::try_from(events).unwrap()).collect();
        let change = Change { aggregate: AggregateId::new("thing", "it"), state: None, version: 1, events };
        let decide = Box::new(|_: &Loaded<'_>| Decided { changes: vec![change], ..Decided::default() });
        let entry = Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size: 10 };
        journal.submit(entry).await.unwrap();
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

    #[tokio::test]
    async fn views_of_a_service_that_is_out_do_not_stand_still_while_those_made_anew_wait_for_it() {
        let folder = TempDir::new().unwrap();
        let journal = Journal::open(&folder.path().join("test.db"), &[]).await.unwrap();
        write(&journal, 2).await;
        let (here, projections) = (folder.path().join("views.db"), Projections::new().with(Counts::<0>));
        Views::open(&here, Log::of(&journal), &projections).await.unwrap().catch_up(|_, _| {}).await.unwrap();
        // Nobody listens there.
        let held = TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let uri = format!("http://{}", held.local_addr().unwrap());
        let peers = Peers::new(Registry::new(), &[("source", &*uri)], Vec::new()).unwrap();
        let log = Log::of_service(peers.connect_with("source", &PeerOptions::stream()).unwrap(), &[]);
        let views = Views::open(&here, log.clone(), &projections).await.unwrap();
        let beside = Beside::make(&views.location).await.unwrap();
        let made = Views::open(beside.location(), log, &projections).await.unwrap();
        let rebuilt = Rebuilt { views: made, beside, old: 0, stream: 0, held: 0, behind: MOST_BEHIND, left: 2 };
        let (telling, _told) = tokio::sync::mpsc::unbounded_channel();
        let views = timeout(PATIENCE, views.end_anew(Ok((telling, Ok(rebuilt))))).await.expect("they go on").unwrap();
        assert_eq!(views.rebuilding.len(), 1);
    }

    #[tokio::test]
    async fn views_go_on_for_as_long_as_those_made_anew_have_much_left_and_come_nearer() {
        let folder = TempDir::new().unwrap();
        let journal = Journal::open(&folder.path().join("test.db"), &[]).await.unwrap();
        let projections = Projections::new().with(Counts::<0>);
        let mut views = Views::open(journal.location().views(), Log::of(&journal), &projections).await.unwrap();
        let (telling, mut told) = tokio::sync::mpsc::unbounded_channel();
        let mut rebuilt = views.plan().build(|_, _| {}).await;
        let mut end = 0;
        // In each round fewer than in the one before, and many all the same.
        for left in (1..=MOST_BEHIND + 2).rev() {
            let left = 3 * MOST_EVENTS + i64::from(left);
            write(&journal, left).await;
            end += left;
            views = views.fold_to(end, |_, _| {}).await.unwrap();
            views = views.end_anew(Ok((telling.clone(), rebuilt))).await.unwrap();
            assert!(!views.rebuilding.is_empty(), "the old ones stand still for {left} events");
            rebuilt = views.rebuilding.join_next().await.unwrap().unwrap().1;
        }
        // As many as before: they come no nearer.
        write(&journal, 3 * MOST_EVENTS + 1).await;
        end += 3 * MOST_EVENTS + 1;
        views = views.fold_to(end, |_, _| {}).await.unwrap();
        let views = views.end_anew(Ok((telling, rebuilt))).await.unwrap();
        assert!(views.rebuilding.is_empty());
        assert_eq!(told.recv().await, Some(Ok((end, end))));
    }

    #[tokio::test]
    async fn views_that_are_not_put_in_place_yet_leave_the_log_of_the_old_ones_alone() {
        let folder = TempDir::new().unwrap();
        let journal = Journal::open(&folder.path().join("test.db"), &[]).await.unwrap();
        let projections = Projections::new().with(Counts::<0>);
        let views = Views::open(journal.location().views(), Log::of(&journal), &projections).await.unwrap();
        let logged = || std::fs::metadata(folder.path().join("test.views.db-wal")).unwrap().len();
        let rebuilt = views.plan().build(|_, _| {}).await.unwrap();
        write(&journal, 1).await;
        let views = views.fold_to(1, |_, _| {}).await.unwrap();
        let before = logged();
        assert_ne!(before, 0);
        let (views, replaced) = views.replace(rebuilt).await.unwrap();
        let Replaced::NotYet(rebuilt, wait) = replaced else { panic!("the old ones have more") };
        // It would be waited for who reads, for nothing.
        assert_eq!(logged(), before);
        let rebuilt = rebuilt.go_on(wait).await.unwrap();
        let (_views, replaced) = views.replace(rebuilt).await.unwrap();
        assert!(matches!(replaced, Replaced::Ended(Ok(1), _)));
        assert_eq!(logged(), 0, "what was copied takes no room twice");
    }
}
