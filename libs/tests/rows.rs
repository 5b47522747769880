//! What folds and decisions write into tables, and what is read of it: the same on either database, and never another row's.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;

use std::time::Duration;

use libs::{
    cqrs::{
        Board, Column, Documents, Log, PageOrder, PageQuery, Projection, ProjectionError, Projections, ReadSide, Views,
    },
    journal::{
        AggregateId, Cause, Change, Committed, Decided, Entry, Event, Journal, Loaded, Location, NewEvent, Row,
        SubmitError, Table,
        sql::{Reader, Transaction},
    },
};
use proto::projections::v1::{ListProjectionsRequest, projection_query_service_server::ProjectionQueryService as _};
use tempfile::TempDir;
use tonic::Request;

const PATIENCE: Duration = Duration::from_secs(60);

/// Decides that something was said of a note, and what to write beside.
fn say(id: &str, said: &str, rows: Vec<Row>) -> Entry {
    let aggregate = AggregateId::new("note", id);
    let event = NewEvent { name: "Said", payload: said.to_owned().into_bytes().into() };
    let change = Change { aggregate: aggregate.clone(), state: None, version: 1, events: vec![event] };
    let decide = move |_: &Loaded<'_>| Decided { changes: vec![change], rows, ..Decided::default() };
    Entry { request: None, aggregates: vec![aggregate], cause: Cause::default(), decide: Box::new(decide), size: 10 }
}

async fn opened(folder: &TempDir, tables: &[&'static Table]) -> Journal {
    Journal::open(database::location(folder.path(), "test"), tables).await.unwrap()
}

async fn submit(journal: &Journal, entries: Vec<Entry>) -> Vec<Result<Committed, SubmitError>> {
    futures::future::join_all(entries.into_iter().map(|entry| journal.submit(entry))).await
}

/// Folds all that there is, and answers where the projection is and what it is parked for.
async fn folded(journal: &Journal, projection: impl Projection) -> (ReadSide, i64, Option<String>) {
    let projections = Projections::new().with(projection);
    let views = Views::open(journal.location().views(), Log::of(journal), &projections).await.unwrap();
    let (read, board) = (views.read_side("test", PATIENCE), Board::default());
    views.show_on(&board, "test");
    views.catch_up(|_, _| {}).await.ok();
    let all = board.service("test").list_projections(Request::new(ListProjectionsRequest {})).await.unwrap();
    let one = all.into_inner().projections.remove(0);
    (read, one.position, one.parked.map(|parked| parked.error))
}

static PLACES: Table = Table {
    name: "places",
    create: &["CREATE TABLE IF NOT EXISTS places (id TEXT NOT NULL PRIMARY KEY, position INTEGER, document BLOB)"],
    columns: &["id", "position", "document"],
    key: 1,
    fixed: &[],
};

/// Counts what was said in a place, which it doesn't load.
struct Places;

impl Projection for Places {
    const NAME: &'static str = "places";
    const TABLES: &'static [&'static Table] = &[&PLACES];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let mut places = Documents::<i64>::load(transaction, &PLACES, events.iter().map(|event| &event.id)).await?;
        for event in events {
            let place = std::str::from_utf8(&event.payload).unwrap();
            places.update(place, event.position, |said| *said += 1);
        }
        places.save(transaction, |_| Vec::new()).await
    }
}

#[tokio::test]
async fn a_document_that_was_not_loaded_is_not_replaced_and_the_projection_is_parked() {
    let folder = TempDir::new().unwrap();
    let journal = opened(&folder, &[]).await;
    submit(&journal, vec![say("hall", "hall", Vec::new()), say("hall", "hall", Vec::new())]).await;
    assert_eq!(folded(&journal, Places).await.1, 2, "each is loaded by its own id");
    submit(&journal, vec![say("ann", "hall", Vec::new())]).await;
    let (read, position, parked) = folded(&journal, Places).await;
    assert_eq!(read.document::<i64>(&PLACES, "hall").await.unwrap(), Some(2), "what was counted stays");
    let parked = parked.expect("nobody knows whether the hall is there");
    assert!(position == 2 && parked.contains("changes hall in places"), "{position}: {parked}");
}

static NOTES: Table = Table {
    name: "notes",
    create: &[
        "create table if not exists notes (
            id text not null primary key, position integer, document blob, text text
        ) without rowid",
        "create index if not exists notes_by_text on notes (text)",
    ],
    columns: &["id", "position", "document", "text"],
    key: 1,
    fixed: &[],
};

/// Keeps what was said of a note last, and beside it as many values as it is told to.
struct Notes {
    values: usize,
    key: fn(&Event) -> String,
}

impl Projection for Notes {
    const NAME: &'static str = "notes";
    const TABLES: &'static [&'static Table] = &[&NOTES];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let ids = events.iter().map(|event| (self.key)(event));
        let mut notes = Documents::<String>::load(transaction, &NOTES, ids).await?;
        for event in events {
            let said = String::from_utf8(event.payload.to_vec()).unwrap();
            notes.update(&(self.key)(event), event.position, |note| *note = said);
        }
        notes.save(transaction, |note| vec![note.as_str().into(); self.values]).await
    }
}

const BY_ID: fn(&Event) -> String = |event| event.id.to_string();
const BY_TEXT: fn(&Event) -> String = |event| String::from_utf8_lossy(&event.payload).into_owned();

#[tokio::test]
async fn a_row_of_more_or_fewer_values_than_columns_parks_its_projection() {
    for values in [0, 2] {
        let folder = TempDir::new().unwrap();
        let journal = opened(&folder, &[]).await;
        submit(&journal, vec![say("a", "one", Vec::new()), say("b", "two", Vec::new())]).await;
        let (read, position, parked) = folded(&journal, Notes { values, key: BY_ID }).await;
        let parked = parked.expect("a row of another length");
        let says = format!("notes has 4 columns, and a row for it has {} values", 3 + values);
        assert!(position == 0 && parked.contains(&says), "{position}: {parked}");
        assert_eq!(read.document::<String>(&NOTES, "a").await.unwrap(), None);
    }
}

async fn found(read: &ReadSide, text: &str) -> Vec<String> {
    let order = PageOrder::Ascending(Column::Text("id"));
    let query = PageQuery { page_size: 10, page_token: "", filter: vec![("text", text.into())], order };
    read.page::<String>(&NOTES, query).await.unwrap().items
}

#[tokio::test]
async fn a_text_that_no_server_takes_is_kept_in_its_document_and_parks_nothing() {
    let folder = TempDir::new().unwrap();
    let journal = opened(&folder, &[]).await;
    submit(&journal, vec![say("a", "x\0y", Vec::new()), say("b", "xy", Vec::new())]).await;
    let (read, position, parked) = folded(&journal, Notes { values: 1, key: BY_ID }).await;
    assert_eq!((position, parked), (2, None));
    assert_eq!(read.document::<String>(&NOTES, "a").await.unwrap().as_deref(), Some("x\0y"));
    assert_eq!(found(&read, "xy").await, ["xy"]);
    assert_eq!(found(&read, "x\u{fffd}y").await, ["x\0y"], "its column");
    // Neither a key nor a column holds it.
    assert_eq!(found(&read, "x\0y").await, [""; 0]);
    assert_eq!(read.document::<String>(&NOTES, "a\0").await.unwrap(), None);
    assert_eq!(read.documents::<String>(&NOTES, ["a\0", "b"]).await.unwrap().into_keys().collect::<Vec<_>>(), ["b"]);
}

#[tokio::test]
async fn a_key_that_no_server_takes_parks_its_projection_on_either_database() {
    let folder = TempDir::new().unwrap();
    let journal = opened(&folder, &[]).await;
    submit(&journal, vec![say("a", "x\0y", Vec::new())]).await;
    let (_, position, parked) = folded(&journal, Notes { values: 1, key: BY_TEXT }).await;
    let parked = parked.expect("it has no row");
    assert!(position == 0 && parked.contains("\"x\\0y\" is to be a key in notes"), "{position}: {parked}");
}

/// A fold that writes by statements of its own.
struct ByHand;

impl Projection for ByHand {
    const NAME: &'static str = "by_hand";
    const TABLES: &'static [&'static Table] = &[&NOTES];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        for event in events {
            let values = vec![BY_ID(event).into(), BY_TEXT(event).into()];
            transaction.execute("INSERT INTO notes (id, document, text) VALUES ($1, '', $2)", values).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_statement_is_given_such_a_text_as_a_row_is() {
    let folder = TempDir::new().unwrap();
    let journal = opened(&folder, &[]).await;
    submit(&journal, vec![say("a", "x\0y", Vec::new())]).await;
    let (_, position, parked) = folded(&journal, ByHand).await;
    assert_eq!((position, parked), (1, None));
    let views = libs::journal::store::readers(&journal.location().views(), 1).unwrap();
    assert_eq!(texts(&views, "notes").await, ["x\u{fffd}y"]);
}

/// What a table's texts are, in their order.
async fn texts(reader: &Reader, table: &str) -> Vec<String> {
    let found = reader.fetch(&format!("SELECT text FROM {table} ORDER BY text"), Vec::new()).await.unwrap();
    found.iter().map(|record| record.text(0).unwrap()).collect()
}

static WORDS: Table = Table {
    name: "words",
    create: &["CREATE TABLE IF NOT EXISTS words (id TEXT NOT NULL PRIMARY KEY, text TEXT)"],
    columns: &["id", "text"],
    key: 1,
    fixed: &["text"],
};

static PAIRS: Table = Table {
    name: "pairs",
    create: &["CREATE TABLE IF NOT EXISTS pairs (id TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (id, text))"],
    columns: &["id", "text"],
    key: 2,
    fixed: &[],
};

#[tokio::test]
async fn a_row_of_which_nothing_may_change_stays_as_it_is() {
    let folder = TempDir::new().unwrap();
    let journal = opened(&folder, &[&WORDS, &PAIRS]).await;
    for said in ["once", "again"] {
        let row = |table, text: &str| Row { table, values: vec!["a".into(), text.into()] };
        let rows = vec![row(&WORDS, said), row(&PAIRS, "both")];
        submit(&journal, vec![say("a", said, rows)]).await.remove(0).unwrap();
    }
    assert_eq!(texts(journal.reader(), "words").await, ["once"]);
    assert_eq!(texts(journal.reader(), "pairs").await, ["both"]);
}

#[tokio::test]
async fn a_decision_whose_row_no_table_takes_fails_alone() {
    let folder = TempDir::new().unwrap();
    let journal = opened(&folder, &[&WORDS]).await;
    let row = |values: &[&str]| vec![Row { table: &WORDS, values: values.iter().map(|&text| text.into()).collect() }];
    let (narrow, whole, wide) = (row(&["a"]), row(&["b", "x\0y"]), row(&["c", "c", "c"]));
    let entries = vec![
        say("a", "", narrow),
        say("b", "", whole),
        say("c", "", wide),
        say("d", "", row(&["d\0", "d"])),
        say("e", "", row(&["e", "e"])),
    ];
    let ended: Vec<_> =
        submit(&journal, entries).await.into_iter().map(|ended| ended.map(|done| done.position)).collect();
    let failed = Err(SubmitError::Unwritable);
    assert_eq!(ended, [failed, Ok(1), failed, failed, Ok(2)]);
    assert_eq!(texts(journal.reader(), "words").await, ["e", "x\u{fffd}y"]);
}

#[tokio::test]
async fn nothing_has_happened_to_an_aggregate_whose_id_no_server_takes() {
    let folder = TempDir::new().unwrap();
    let journal = opened(&folder, &[]).await;
    let id = AggregateId::new("note", "a\0");
    assert_eq!(journal.aggregate(&id).await.unwrap().version, 0);
}

#[tokio::test]
async fn a_table_without_a_key_is_refused_when_it_is_opened() {
    static NO_KEY: Table = Table { key: 3, ..WORDS };
    let folder = TempDir::new().unwrap();
    let refused = Journal::open(database::location(folder.path(), "test"), &[&NO_KEY]).await.unwrap_err().to_string();
    assert!(refused.starts_with("the key of words is 3 of its 2 columns"), "{refused}");
}

static NUMBERS: Table = Table {
    name: "numbers",
    create: &["create table if not exists numbers (id integer not null primary key, text text)"],
    ..WORDS
};

#[tokio::test]
async fn numbers_are_as_large_however_their_type_is_written() {
    let folder = TempDir::new().unwrap();
    let journal = opened(&folder, &[&NUMBERS]).await;
    let rows = vec![Row { table: &NUMBERS, values: vec![i64::MAX.into(), "most".into()] }];
    submit(&journal, vec![say("a", "", rows)]).await.remove(0).unwrap();
    let found = journal.reader().fetch_keys(&NUMBERS, vec![vec![i64::MAX.into()]]).await.unwrap();
    assert_eq!(found[0].int(0).unwrap(), i64::MAX);
}

/// On a server a name that isn't quoted is one in small letters.
#[tokio::test]
async fn a_service_may_have_capitals_in_its_name() {
    let folder = TempDir::new().unwrap();
    let location = match database::location(folder.path(), "test") {
        Location::Postgres { url, schema } => Location::Postgres { url, schema: format!("{schema}_Capitals") },
        file => file,
    };
    let journal = Journal::open(location, &[&WORDS]).await.unwrap();
    submit(&journal, vec![say("hall", "hall", Vec::new())]).await.remove(0).unwrap();
    let (read, position, _) = folded(&journal, Places).await;
    assert_eq!((position, read.document::<i64>(&PLACES, "hall").await.unwrap()), (1, Some(1)));
    let views =
        Views::open(journal.location().views(), Log::of(&journal), &Projections::new().with(Places)).await.unwrap();
    views.rebuild(|_, _| {}).await.unwrap();
}
