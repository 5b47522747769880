//! Views of a version whose tables have another shape than those that an older version left, or that can't fold what that one could.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod lines;
mod squeamish;

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use libs::{
    cqrs::{Board, Documents, Log, Projection, ProjectionError, Projections, Views},
    journal::{
        AggregateId, Cause, Change, Decided, Entry, Event, Journal, Loaded, Location, NewEvent, OpenError, Row, Table,
        sql::Transaction,
    },
};
use lines::Lines;
use pb::{
    projection_command_service_server::ProjectionCommandService as _,
    projection_query_service_server::ProjectionQueryService as _,
};
use proto::projections::v1 as pb;
use sqlx::{Connection as _, Executor as _};
use squeamish::Squeamish;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tonic::Request;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

static COUNTS: [Table; 2] = [
    Table {
        name: "counts",
        create: &["CREATE TABLE IF NOT EXISTS counts (id TEXT NOT NULL PRIMARY KEY, position INTEGER, document BLOB)"],
        columns: &["id", "position", "document"],
        key: 1,
        fixed: &[],
    },
    Table {
        name: "counts",
        create: &["CREATE TABLE IF NOT EXISTS counts (
            id TEXT NOT NULL PRIMARY KEY, position INTEGER, document BLOB, parity INTEGER
        )"],
        columns: &["id", "position", "document", "parity"],
        key: 1,
        fixed: &[],
    },
];

/// Counts each aggregate's events. A later version keeps the count's parity in a column.
struct Counts<const VERSION: usize>;

impl<const VERSION: usize> Projection for Counts<VERSION> {
    const NAME: &'static str = "counts";
    const TABLES: &'static [&'static Table] = &[&COUNTS[VERSION]];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let ids = events.iter().map(|event| &event.id);
        let mut counts = Documents::<i64>::load(transaction, Self::TABLES[0], ids).await?;
        events.iter().for_each(|event| counts.update(&event.id, event.position, |count| *count += 1));
        counts.save(transaction, |count| [(*count % 2).into()][..VERSION].to_vec()).await
    }
}

static NAMES: [Table; 2] = [
    Table {
        name: "names",
        create: &["CREATE TABLE IF NOT EXISTS names (position INTEGER NOT NULL PRIMARY KEY, id TEXT)"],
        columns: &["position", "id"],
        key: 1,
        fixed: &[],
    },
    Table {
        name: "names",
        create: &["CREATE TABLE IF NOT EXISTS names (position INTEGER NOT NULL PRIMARY KEY, id TEXT, name TEXT)"],
        columns: &["position", "id", "name"],
        key: 1,
        fixed: &[],
    },
];

/// A row for each event, of which nothing is read. A later version keeps the event's name, too.
struct Names<const VERSION: usize>;

impl<const VERSION: usize> Projection for Names<VERSION> {
    const NAME: &'static str = "names";
    const TABLES: &'static [&'static Table] = &[&NAMES[VERSION]];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let row = |event: &Event| {
            let values = [event.position.into(), (*event.id).into(), (*event.name).into()];
            Row { table: Self::TABLES[0], values: values[..2 + VERSION].to_vec() }
        };
        Ok(transaction.upsert(events.iter().map(row).collect()).await?)
    }
}

async fn write(journal: &Journal, id: &str) {
    let event = NewEvent { name: "Noted", payload: "noted".into() };
    let change = Change { aggregate: AggregateId::new("note", id), state: None, version: 1, events: vec![event] };
    let decide = Box::new(move |_: &Loaded<'_>| Decided { changes: vec![change], ..Decided::default() });
    let entry = Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size: 10 };
    journal.submit(entry).await.unwrap();
}

async fn open(journal: &Journal, projections: Projections) -> Result<Views, OpenError> {
    Views::open(journal.location().views(), Log::of(journal), &projections).await
}

/// Where each projection is, and what it is parked for.
async fn standing(board: &Board) -> Vec<(i64, Option<String>)> {
    let request = Request::new(pb::ListProjectionsRequest {});
    let all = board.service("test").list_projections(request).await.unwrap().into_inner().projections;
    all.into_iter().map(|one| (one.position, one.parked.map(|parked| parked.error))).collect()
}

async fn rebuild(board: &Board) {
    let request = Request::new(pb::RebuildProjectionsRequest { source: "test".to_owned() });
    let mut answer = board.service("test").rebuild_projections(request).await.unwrap().into_inner();
    while let Some(said) = timeout(PATIENCE, answer.next()).await.unwrap() {
        said.unwrap();
    }
}

#[tokio::test]
async fn who_is_parked_because_its_table_lacks_a_column_says_that_the_views_are_to_be_made_anew() {
    let folder = TempDir::new().unwrap();
    let journal = Journal::open(database::location(folder.path(), "test"), &[]).await.unwrap();
    write(&journal, "a").await;
    let before = Projections::new().with(Counts::<0>).with(Names::<0>);
    open(&journal, before).await.unwrap().catch_up(|_, _| {}).await.unwrap();

    write(&journal, "a").await;
    let views = open(&journal, Projections::new().with(Counts::<1>).with(Names::<1>)).await.unwrap();
    let (read, board) = (views.read_side("test", PATIENCE), Board::default());
    views.show_on(&board, "test");
    tokio::spawn(async { views.run().await.unwrap() });
    let parked = async {
        loop {
            let standing = standing(&board).await;
            if standing.iter().all(|(_, parked)| parked.is_some()) {
                return standing;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    for (position, why) in timeout(PATIENCE, parked).await.unwrap() {
        let why = why.unwrap();
        assert!(position == 1 && why.ends_with("make the views anew by RebuildProjections"), "{position}: {why}");
    }

    rebuild(&board).await;
    assert_eq!(standing(&board).await, [(2, None), (2, None)]);
    assert_eq!(read.document::<i64>(&COUNTS[1], "a").await.unwrap(), Some(2));
}

static SHELVES: [Table; 3] = [
    Table {
        name: "shelves",
        create: &[
            "CREATE TABLE IF NOT EXISTS shelves (id TEXT NOT NULL PRIMARY KEY, position INTEGER, document BLOB)",
            "CREATE INDEX IF NOT EXISTS shelves_position ON shelves (position)",
        ],
        ..COUNTS[0]
    },
    Table {
        name: "shelves_anew",
        create: &[
            "CREATE TABLE IF NOT EXISTS shelves_anew (id TEXT NOT NULL PRIMARY KEY, position INTEGER, document BLOB)",
            "CREATE INDEX IF NOT EXISTS Shelves_Position ON shelves_anew (position)",
        ],
        ..COUNTS[0]
    },
    Table {
        name: "shelves_position",
        create: &["CREATE TABLE IF NOT EXISTS shelves_position (id TEXT NOT NULL PRIMARY KEY, position INTEGER)"],
        ..COUNTS[0]
    },
];

/// Folds nothing, into a table that each version has another one of.
struct Shelves<const VERSION: usize>;

impl<const VERSION: usize> Projection for Shelves<VERSION> {
    const NAME: &'static str = ["shelves", "shelves_anew", "positions"][VERSION];
    const TABLES: &'static [&'static Table] = &[&SHELVES[VERSION]];

    async fn project(&self, _: &[Event], _: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        Ok(())
    }
}

/// Does something to views that nobody has open.
async fn by_hand(views: &Location, sql: &str) {
    match views {
        Location::Sqlite(path) => rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap(),
        Location::Postgres { url, schema } => {
            let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
            connection.execute(sqlx::AssertSqlSafe(format!("SET search_path = {schema}; {sql}"))).await.unwrap();
        }
    }
}

/// Else it would count as there, and the view would have none. On a server no view that is made anew could take its place, either.
#[tokio::test]
async fn an_index_whose_name_an_older_versions_table_has_is_refused_until_that_is_gone() {
    let folder = TempDir::new().unwrap();
    let journal = Journal::open(database::location(folder.path(), "test"), &[]).await.unwrap();
    let close = async |views: Views| views.catch_up(|_, _| {}).await.unwrap();
    for _ in 0..2 {
        close(open(&journal, Projections::new().with(Shelves::<0>)).await.unwrap()).await;
    }
    let refused = async |projections| open(&journal, projections).await.unwrap_err().to_string();
    let said = refused(Projections::new().with(Shelves::<1>)).await;
    let taken = "shelves_position is there as an index on shelves, and is to be an index on shelves_anew";
    let mend = if database::has_server() { "drop shelves_position there" } else { "with the service's `rebuild`" };
    assert!(said.contains(taken) && said.ends_with(mend) && !said.contains('\n'), "{said}");
    let said = refused(Projections::new().with(Shelves::<2>)).await;
    assert!(said.contains("an index on shelves, and is to be a table"), "{said}");

    by_hand(&journal.location().views(), "DROP INDEX shelves_position").await;
    let views = open(&journal, Projections::new().with(Shelves::<1>)).await.unwrap();
    views.rebuild(|_, _| {}).await.unwrap();
    let said = refused(Projections::new().with(Shelves::<0>)).await;
    assert!(said.contains("an index on shelves_anew, and is to be an index on shelves"), "the new one has it: {said}");
}

/// On a server, for in a file it is another thread that folds, and its lines are not kept.
#[tokio::test]
async fn that_new_views_do_not_get_past_an_event_is_not_said_of_those_that_are_read() {
    if !database::has_server() {
        return;
    }
    let (lines, _keeping) = Lines::keep();
    let folder = TempDir::new().unwrap();
    let journal = Journal::open(database::location(folder.path(), "test"), &[]).await.unwrap();
    write(&journal, "poison").await;
    let before = Projections::new().with(Squeamish { mended: Arc::new(true.into()) });
    open(&journal, before).await.unwrap().catch_up(|_, _| {}).await.unwrap();
    let views = open(&journal, Projections::new().with(Squeamish::default())).await.unwrap();
    views.rebuild(|_, _| {}).await.unwrap_err();
    assert_eq!((lines.that_say("projection parked"), lines.that_say("ERROR")), (Vec::new(), Vec::new()));
    let told = lines.that_say("the new views");
    let event = "projection=\"squeamish\" position=1 error=";
    assert!(told.len() == 1 && told[0].starts_with("WARN") && told[0].contains(event), "{told:?}");
}
