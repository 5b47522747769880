//! Rows beside the journal's own that the database refuses: whoever writes one fails alone, and what waited with it goes through.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod lines;
mod saga_world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use libs::{
    cqrs::{Decision, not_submitted},
    journal::{
        AggregateId, Cause, Change, Decided, Entry, Journal, Loaded, Location, NewEvent, Outcome, RequestKey, Role,
        Row, SubmitError, Table, events_after,
        sql::{Reader, Value},
    },
    saga::{Definition, LocalWork, Options, ParkedSagas, TABLES},
};
use lines::Lines;
use proto::saga::v1::{
    ListParkedSagasRequest, SagaPhase, parked_saga_query_service_server::ParkedSagaQueryService as _,
};
use saga_world::{Process, Reserve, Ship, World, becomes};
use sqlx::{Connection as _, Executor as _};
use tempfile::TempDir;
use tonic::{Code, Request};

/// Users, of whom each has an address of their own.
static USERS: Table = Table {
    name: "users",
    create: &[
        "CREATE TABLE IF NOT EXISTS users (id TEXT NOT NULL PRIMARY KEY, email TEXT NOT NULL CHECK (length(email) < 20))",
        "CREATE UNIQUE INDEX IF NOT EXISTS users_by_email ON users (email)",
    ],
    columns: &["id", "email"],
    key: 1,
    fixed: &[],
};

/// Its rows have a number, and name others of it that must be there by the commit.
static NEEDY: Table = Table {
    name: "needy",
    create: &["CREATE TABLE IF NOT EXISTS needy (
        id INTEGER NOT NULL PRIMARY KEY,
        needs INTEGER REFERENCES needy (id) DEFERRABLE INITIALLY DEFERRED
    )"],
    columns: &["id", "needs"],
    key: 1,
    fixed: &[],
};

/// Nobody keeps it.
static MISSING: Table = Table { name: "missing", create: &[], columns: &["id"], key: 1, fixed: &[] };

fn row(table: &'static Table, values: impl Into<Vec<Value>>) -> Row {
    Row { table, values: values.into() }
}

fn user(id: &str, email: &str) -> Row {
    row(&USERS, [id.into(), email.into()])
}

/// Writes an event, a state and a row, all or none of them, under a key.
fn writes(id: &str, row: Row) -> Entry {
    let aggregate = AggregateId::new("user", id);
    let event = NewEvent { name: "Registered", payload: id.to_owned().into() };
    let change = Change { aggregate: aggregate.clone(), state: Some("here".into()), version: 1, events: vec![event] };
    let decide = move |_: &Loaded<'_>| Decided { changes: vec![change], rows: vec![row], ..Decided::default() };
    let request = Some(RequestKey { key: id.to_owned(), hash: [1; 32], other_hash: None, role: Role::Action });
    let cause = Cause { request: id.to_owned(), ..Cause::default() };
    Entry { request, aggregates: vec![aggregate], cause, decide: Box::new(decide), size: 10 }
}

fn registers(id: &str, email: &str) -> Entry {
    writes(id, user(id, email))
}

type Ended = Result<Outcome, SubmitError>;

const DONE: Ended = Ok(Outcome::Done);
const AGAIN: Ended = Err(SubmitError::Unavailable);
const REFUSED: Ended = Err(SubmitError::Unwritable);

async fn submit(journal: &Journal, entry: Entry) -> Ended {
    journal.submit(entry).await.map(|committed| committed.outcome)
}

/// Submits entries that all wait before the first of them is taken.
async fn together<const N: usize>(journal: &Journal, entries: [Entry; N]) -> [Ended; N] {
    let (tell, begun) = mpsc::channel();
    let (all_wait, waited) = mpsc::channel();
    let decide = Box::new(move |_: &Loaded<'_>| {
        tell.send(()).unwrap();
        waited.recv().unwrap();
        Decided::default()
    });
    let first = Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size: 10 };
    let mut first = Box::pin(submit(journal, first));
    assert!(futures::poll!(&mut first).is_pending());
    begun.recv().unwrap();
    let mut waiting: Vec<_> = entries.into_iter().map(|entry| Box::pin(submit(journal, entry))).collect();
    for entry in &mut waiting {
        assert!(futures::poll!(entry).is_pending());
    }
    all_wait.send(()).unwrap();
    assert_eq!(first.await, DONE);
    futures::future::join_all(waiting).await.try_into().unwrap()
}

/// Whose events there are, in order: their positions follow each other without a gap.
async fn told(journal: &Journal) -> Vec<String> {
    let events = events_after(journal.reader(), 0, 1000).await.unwrap();
    let positions: Vec<_> = events.iter().map(|event| event.position).collect();
    assert_eq!(positions, (1..=events.len()).map(|at| at as i64).collect::<Vec<_>>());
    assert_eq!(*journal.head().borrow(), positions.len() as i64);
    events.into_iter().map(|event| event.id.to_string()).collect()
}

async fn users(reader: &Reader) -> Vec<String> {
    let found = reader.fetch("SELECT id FROM users ORDER BY id", Vec::new()).await.unwrap();
    found.iter().map(|record| record.text(0).unwrap()).collect()
}

async fn open(folder: &TempDir) -> Journal {
    Journal::open(database::location(folder.path(), "order"), &[&USERS, &NEEDY]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_row_is_refused_fails_alone_and_the_others_go_through() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    assert_eq!(submit(&journal, registers("ann", "a@x")).await, DONE);
    let calls = Arc::new(AtomicUsize::new(0));
    let eve = || {
        let (Entry { decide, .. }, calls) = (registers("eve", "a@x"), Arc::clone(&calls));
        let counted = move || _ = calls.fetch_add(1, Ordering::Relaxed);
        let decide = move |loaded: &Loaded<'_>| Decided { on_commit: vec![Box::new(counted)], ..decide(loaded) };
        Entry { decide: Box::new(decide), ..registers("eve", "a@x") }
    };
    let others = || [registers("bob", "b@x"), eve(), registers("cy", "c@x")];
    assert_eq!(together(&journal, others()).await, [AGAIN; 3], "nobody knows who is to blame");
    assert_eq!((told(&journal).await, users(journal.reader()).await), (vec!["ann".to_owned()], vec!["ann".to_owned()]));

    assert_eq!(together(&journal, others()).await, [DONE, REFUSED, DONE]);
    assert_eq!(told(&journal).await, ["ann", "bob", "cy"]);
    // Whoever tries again all the same is in nobody's way.
    let commits = journal.stats().commits;
    let more = [registers("dan", "d@x"), registers("dora", "do@x"), eve(), registers("bob", "b@x")];
    assert_eq!(together(&journal, more).await, [DONE, DONE, REFUSED, Ok(Outcome::Replayed)]);
    assert_eq!(journal.stats().commits, commits + 1, "who is not suspected is committed together");
    // Neither may have the address of the other, and the first one gets it.
    let twins = || [registers("fay", "f@x"), registers("gus", "f@x")];
    assert_eq!(together(&journal, twins()).await, [AGAIN; 2]);
    assert_eq!(together(&journal, twins()).await, [DONE, REFUSED]);

    // Nothing of hers was kept, neither in memory nor an answer: what she asks for is decided anew.
    let hers = journal.aggregate_as_written(&AggregateId::new("user", "eve")).await.unwrap();
    assert_eq!((hers.version, calls.load(Ordering::Relaxed)), (0, 0));
    assert_eq!(submit(&journal, registers("eve", "e@x")).await, DONE);
    let all = ["ann", "bob", "cy", "dan", "dora", "fay", "eve"];
    assert_eq!(told(&journal).await, all);
    journal.close();
    journal.ended().await.unwrap();
    drop(journal);
    let journal = open(&folder).await;
    assert_eq!(told(&journal).await, all);
    assert_eq!(users(journal.reader()).await, ["ann", "bob", "cy", "dan", "dora", "eve", "fay"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_row_is_refused_for_its_writer_alone_fails() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let refused: [(&'static str, Row); 6] = [
        ("no value", row(&USERS, ["no value".into(), Value::Null])),
        ("too long", user("too long", "somebody@somewhere.example")),
        ("no key", row(&USERS, [Value::Null, "n@x".into()])),
        ("no number", row(&NEEDY, ["seven".into(), Value::Null])),
        // Known at the commit.
        ("nobody", row(&NEEDY, [Value::Int(1), Value::Int(2)])),
        ("no table", row(&MISSING, [Value::Int(1)])),
    ];
    let mut others = Vec::new();
    for (what, row) in refused {
        let other = format!("beside {what}");
        let both = || [registers(&other, what), writes(what, row.clone())];
        assert_eq!(together(&journal, both()).await, [AGAIN; 2], "{what}");
        assert_eq!(together(&journal, both()).await, [DONE, REFUSED], "{what}");
        assert_eq!(submit(&journal, writes(what, row.clone())).await, REFUSED, "{what}");
        others.push(other);
    }
    assert_eq!(told(&journal).await, others);
    // A client is told that it is nothing to try again, and no more.
    let refusal = not_submitted(SubmitError::Unwritable);
    assert_eq!((refusal.code, refusal.retry_after), (Code::Internal, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_those_without_a_name_as_many_as_there_were_are_committed_alone() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let nameless = |id: &str, email: &str| Entry { cause: Cause::default(), ..registers(id, email) };
    let all = || [nameless("ann", "a@x"), nameless("eve", "a@x"), nameless("bob", "b@x")];
    assert_eq!(together(&journal, all()).await, [AGAIN; 3]);
    // The one that has the others wait is nameless, too, and alone already.
    assert_eq!(together(&journal, all()).await, [DONE, REFUSED, DONE]);
    assert_eq!(told(&journal).await, ["ann", "bob"]);
}

/// In one thread, so that its lines are kept: they are a server's committer's.
#[tokio::test]
async fn who_is_to_blame_is_told_to_a_person_with_the_databases_word() {
    if !database::has_server() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let (lines, _keeping) = Lines::keep();
    let both = || (submit(&journal, registers("ann", "a@x")), submit(&journal, registers("eve", "a@x")));
    let (ann, eve) = both();
    assert_eq!(tokio::join!(ann, eve), (AGAIN, AGAIN));
    let (ann, eve) = both();
    assert_eq!(tokio::join!(ann, eve), (DONE, REFUSED));
    let apart = lines.that_say("refuses what a batch writes");
    assert!(apart.len() == 1 && apart[0].starts_with("WARN") && apart[0].contains("entries=2"), "{apart:?}");
    for _ in 0..10 {
        assert_eq!(submit(&journal, registers("eve", "a@x")).await, REFUSED);
    }
    let blamed = lines.that_say("what a decision writes is refused");
    assert!((1..11).contains(&blamed.len()), "a line a second: {blamed:?}");
    assert!(blamed[0].starts_with("ERROR") && blamed[0].contains("request=\"eve\""), "{blamed:?}");
    assert!(blamed[0].contains("users_by_email") && blamed[0].contains("Mend the decision"), "{blamed:?}");
}

/// A saga whose own work registers somebody: what it is about says whom, and by which address.
fn registering() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("place-order", 1);
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.retriable_local("register", |order, _| {
        let (id, email) = order.split_once(' ').unwrap_or_default();
        let decided = Decided { rows: vec![user(id, email)], ..Decided::default() };
        Ok(LocalWork::new(Vec::new(), move |_| Ok(Decision::reply(()).beside(decided))))
    });
    saga.build().unwrap()
}

async fn driving(world: &World) -> Process {
    let mut tables = vec![&USERS];
    tables.extend(TABLES);
    let journal = Journal::open(database::location(world.folder.path(), "order"), &tables).await.unwrap();
    Process::on(journal, vec![Arc::clone(&world.definition)], world.participants.clone(), Options::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saga_whose_own_row_is_refused_is_parked_until_that_is_mended() {
    let world = World::with(registering());
    let process = driving(&world).await;
    process.coordinator.recover().await.unwrap();
    let place = async |id: &str, email: &str| process.try_place(id, &format!("{id} {email}")).await.unwrap();
    place("ann", "a@x").await;
    assert_eq!(process.finished("ann").await.phase(), SagaPhase::Completed);
    // Whose own work is decided with hers is tried again.
    place("bob", "b@x").await;
    place("eve", "a@x").await;
    let queries = ParkedSagas::new("test", process.coordinator.clone());
    let parked = async || {
        let request = Request::new(ListParkedSagasRequest::default());
        queries.list_parked_sagas(request).await.unwrap().into_inner().parked_sagas
    };
    becomes("parked", async || !parked().await.is_empty()).await;
    assert_eq!(process.finished("bob").await.phase(), SagaPhase::Completed, "the others go on");
    let [eve] = &parked().await[..] else { panic!("one is parked") };
    let why = "its transition can't be stored: the database refuses what it writes";
    assert_eq!((&*eve.saga_id, &*eve.error), ("eve", why));
    assert_eq!(users(process.journal.reader()).await, ["ann", "bob"]);
    process.coordinator.leave().await;
    drop(queries);
    process.crash().await;

    let sql = "DELETE FROM users WHERE id = 'ann'";
    match database::location(world.folder.path(), "order") {
        Location::Sqlite(path) => rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap(),
        Location::Postgres { url, schema } => {
            let sql = format!("SET search_path = {schema}; {sql}");
            sqlx::PgConnection::connect(&url).await.unwrap().execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
        }
    }
    let process = driving(&world).await;
    assert_eq!(process.coordinator.recover().await.unwrap(), 1);
    assert_eq!(process.finished("eve").await.phase(), SagaPhase::Completed);
    assert_eq!(users(process.journal.reader()).await, ["bob", "eve"]);
    tokio::time::timeout(Duration::from_secs(60), process.crash()).await.unwrap();
}
