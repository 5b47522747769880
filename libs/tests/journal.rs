//! The journal on a real database: what is answered is there after opening it again, once, and nothing else is.
#![cfg(feature = "journal")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;

use std::sync::mpsc;

use bytes::Bytes;
use futures::future::maybe_done;
use libs::journal::{
    AggregateId, Cause, Change, Decided, Entry, Journal, Loaded, Location, NewEvent, OpenError, Outcome, RequestKey,
    Role, Row, SubmitError, Table, events_after, sql::Value, sqlite::companion,
};
use proptest::prelude::*;
use sqlx::{Connection as _, Executor as _};
use tempfile::TempDir;

async fn open(folder: &TempDir) -> Journal {
    Journal::open(database::location(folder.path(), "test"), &[]).await.unwrap()
}

async fn reopen(journal: Journal, folder: &TempDir) -> Journal {
    journal.close();
    journal.ended().await.unwrap();
    drop(journal);
    open(folder).await
}

fn key(key: &str) -> Option<RequestKey> {
    Some(RequestKey { key: key.to_owned(), hash: [7; 32], other_hash: None, role: Role::Action })
}

fn undo_key(key: &str, action: &str) -> Option<RequestKey> {
    let role = Role::Compensation { action: action.to_owned(), expires_micros: 0 };
    Some(RequestKey { key: key.to_owned(), hash: [7; 32], other_hash: None, role })
}

fn counter(name: &str) -> AggregateId {
    AggregateId::new("counter", name)
}

fn number(bytes: &[u8]) -> i64 {
    std::str::from_utf8(bytes).unwrap().parse().unwrap_or(0)
}

/// Adds to a counter, refusing to go below zero, and answers the new value.
fn add(name: &'static str, amount: i64, request: Option<RequestKey>) -> Entry {
    Entry {
        request,
        aggregates: vec![counter(name)],
        cause: Cause::default(),
        decide: Box::new(move |loaded| {
            let now = loaded.aggregate("counter", name).unwrap();
            let next = number(&now.state) + amount;
            if next < 0 {
                return Decided { rejected: true, reply: Bytes::from("below zero"), ..Decided::default() };
            }
            let state = Bytes::from(next.to_string());
            let event = NewEvent { name: "Added", payload: Bytes::from(amount.to_string()) };
            let version = now.version + 1;
            let change = Change { aggregate: counter(name), state: Some(state.clone()), version, events: vec![event] };
            Decided { reply: state, changes: vec![change], ..Decided::default() }
        }),
        size: 100,
    }
}

async fn value(journal: &Journal, name: &str) -> i64 {
    number(&journal.aggregate(&counter(name)).await.unwrap().state)
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    for amount in [5, 7] {
        assert_eq!(journal.submit(add("a", amount, None)).await.unwrap().outcome, Outcome::Done);
    }
    let journal = reopen(journal, &folder).await;
    assert_eq!(value(&journal, "a").await, 12);
    let events = events_after(journal.reader(), 0, 10).await.unwrap();
    let seen: Vec<_> = events.iter().map(|e| (e.position, e.version, &*e.name)).collect();
    assert_eq!(seen, [(1, 1, "Added"), (2, 2, "Added")]);
    // Positions go on where they ended.
    assert_eq!(journal.submit(add("a", 1, None)).await.unwrap().position, 3);
}

/// A process that was killed leaves a log that was written and maybe never synced. Nobody may be told of anything in it before it is.
#[tokio::test]
async fn what_a_killed_process_left_in_the_log_is_settled_before_it_is_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("killed.db");
    let killed = Journal::open(path.as_path(), &[]).await.unwrap();
    killed.submit(add("a", 5, key("k"))).await.unwrap();
    let (left, settled) = (folder.path().join("left.db"), folder.path().join("settled.db"));
    for suffix in ["", "-wal"] {
        std::fs::copy(companion(&path, suffix), companion(&left, suffix)).unwrap();
    }
    assert!(std::fs::metadata(companion(&left, "-wal")).unwrap().len() > 0, "it is in the log");
    let journal = Journal::open(left.as_path(), &[]).await.unwrap();
    assert_eq!(std::fs::metadata(companion(&left, "-wal")).unwrap().len(), 0);
    std::fs::copy(&left, &settled).unwrap();
    assert_eq!(value(&Journal::open(settled.as_path(), &[]).await.unwrap(), "a").await, 5);
    assert_eq!(value(&journal, "a").await, 5);
}

/// Its rows name others of it, which must be there by the commit.
static NEEDY: Table = Table {
    name: "needy",
    create: &["CREATE TABLE IF NOT EXISTS needy (
        id TEXT NOT NULL PRIMARY KEY,
        needs TEXT REFERENCES needy (id) DEFERRABLE INITIALLY DEFERRED
    )"],
    columns: &["id", "needs"],
    key: 1,
    fixed: &[],
};

#[tokio::test]
async fn what_fails_at_its_commit_is_not_answered_as_done() {
    let folder = TempDir::new().unwrap();
    let location = database::location(folder.path(), "test");
    let journal = Journal::open(location.clone(), &[&NEEDY]).await.unwrap();
    let needing = |id: &'static str, needs: &'static str| {
        let entry = add("a", 5, key(id));
        let decide = move |loaded: &Loaded<'_>| {
            let row = Row { table: &NEEDY, values: vec![id.into(), needs.into()] };
            Decided { rows: vec![row], ..(entry.decide)(loaded) }
        };
        Entry { decide: Box::new(decide), ..add("a", 0, key(id)) }
    };
    assert_eq!(journal.submit(needing("one", "one")).await.unwrap().outcome, Outcome::Done);
    let answer = journal.submit(needing("two", "nobody")).await;
    assert!(answer.is_err(), "answered before its commit, which failed: {answer:?}");
    assert_eq!(answer, Err(SubmitError::Unwritable));
    journal.close();
    journal.ended().await.unwrap();
    drop(journal);
    let journal = Journal::open(location, &[&NEEDY]).await.unwrap();
    assert_eq!(value(&journal, "a").await, 5);
    assert_eq!(journal.submit(add("a", 2, key("two"))).await.unwrap().outcome, Outcome::Done);
}

#[tokio::test]
async fn a_repetition_gets_the_first_answer_and_changes_nothing() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let first = journal.submit(add("a", 5, key("k"))).await.unwrap();
    assert_eq!((first.outcome, &first.reply[..]), (Outcome::Done, &b"5"[..]));
    let journal = reopen(journal, &folder).await;
    let again = journal.submit(add("a", 5, key("k"))).await.unwrap();
    assert_eq!((again.outcome, &again.reply[..]), (Outcome::Replayed, &b"5"[..]));
    assert_eq!(value(&journal, "a").await, 5);
}

#[tokio::test]
async fn a_refusal_is_kept_even_when_it_would_be_granted_now() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let refused = journal.submit(add("a", -1, key("k"))).await.unwrap();
    assert_eq!(refused.outcome, Outcome::Rejected);
    journal.submit(add("a", 10, None)).await.unwrap();
    let again = journal.submit(add("a", -1, key("k"))).await.unwrap();
    assert_eq!((again.outcome, &again.reply[..]), (Outcome::RejectedBefore, &b"below zero"[..]));
    assert_eq!(value(&journal, "a").await, 10);
}

#[tokio::test]
async fn a_transient_refusal_is_not_kept() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let mut overloaded = add("a", 5, key("k"));
    overloaded.decide = Box::new(|_| Decided { rejected: true, transient: true, ..Decided::default() });
    assert_eq!(journal.submit(overloaded).await.unwrap().outcome, Outcome::Rejected);
    assert_eq!(journal.submit(add("a", 5, key("k"))).await.unwrap().outcome, Outcome::Done);
}

#[tokio::test]
async fn one_key_with_two_requests_is_a_conflict() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    journal.submit(add("a", 5, key("k"))).await.unwrap();
    let mut other = add("a", 6, key("k"));
    other.request.as_mut().unwrap().hash = [8; 32];
    assert_eq!(journal.submit(other).await.unwrap().outcome, Outcome::Conflict);
    assert_eq!(value(&journal, "a").await, 5);
}

#[tokio::test]
async fn an_action_that_comes_after_its_compensation_has_no_effect() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let undo = || add("a", -5, undo_key("undo", "do"));
    assert_eq!(journal.submit(undo()).await.unwrap().outcome, Outcome::NothingToUndo);
    let journal = reopen(journal, &folder).await;
    assert_eq!(journal.submit(add("a", 5, key("do"))).await.unwrap().outcome, Outcome::Cancelled);
    assert_eq!(journal.submit(undo()).await.unwrap().outcome, Outcome::Replayed);
    assert_eq!(value(&journal, "a").await, 0);
}

#[tokio::test]
async fn a_compensation_runs_once_and_sees_the_reply_it_undoes() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    journal.submit(add("a", 5, key("do"))).await.unwrap();
    let undo = || {
        let mut entry = add("a", -5, undo_key("undo", "do"));
        let decide = entry.decide;
        entry.decide = Box::new(move |loaded| {
            assert_eq!(loaded.action_reply(), Some(&Bytes::from_static(b"5")));
            decide(loaded)
        });
        entry
    };
    assert_eq!(journal.submit(undo()).await.unwrap().outcome, Outcome::Done);
    assert_eq!(journal.submit(undo()).await.unwrap().outcome, Outcome::Replayed);
    assert_eq!(value(&journal, "a").await, 0);
}

#[tokio::test]
async fn a_decision_that_panics_fails_alone() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let mut poison = add("a", 1, key("poison"));
    poison.decide = Box::new(|_| panic!("poison"));
    let (before, bad, after) =
        tokio::join!(journal.submit(add("a", 1, None)), journal.submit(poison), journal.submit(add("a", 1, None)));
    assert_eq!(bad, Err(SubmitError::Panicked));
    assert_eq!((before.unwrap().outcome, after.unwrap().outcome), (Outcome::Done, Outcome::Done));
    assert_eq!(value(&journal, "a").await, 2);
}

/// Writes beside the journal, which is closed.
async fn write_beside(folder: &TempDir, sql: &str) {
    match database::location(folder.path(), "test") {
        Location::Sqlite(path) => rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap(),
        Location::Postgres { url, schema } => {
            let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
            let sql = format!("SET search_path = {schema}; {sql}");
            connection.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn who_names_a_row_that_can_not_be_read_fails_alone() {
    let folder = TempDir::new().unwrap();
    let mut journal = open(&folder).await;
    for name in ["newer", "empty", "torn"] {
        journal.submit(add(name, 1, key(name))).await.unwrap();
    }
    // What a newer version has answered, one that has lost its state, and one whose version is none.
    let mut harms = vec![
        ("UPDATE requests SET outcome = 9 WHERE key = 'newer'", "UPDATE requests SET outcome = 1 WHERE key = 'newer'"),
        (
            "UPDATE aggregates SET state = NULL WHERE id = 'empty'",
            "UPDATE aggregates SET state = (SELECT state FROM aggregates WHERE id = 'newer') WHERE id = 'empty'",
        ),
    ];
    if !database::is_shared() {
        let whole = "UPDATE aggregates SET version = 1 WHERE id = 'torn'";
        harms.push(("UPDATE aggregates SET version = 1.5 WHERE id = 'torn'", whole));
    }
    for (round, (harm, mend)) in harms.into_iter().enumerate() {
        journal.close();
        journal.ended().await.unwrap();
        write_beside(&folder, harm).await;
        journal = open(&folder).await;
        let broken = || match round {
            0 => [add("other", 1, key("newer")), add("other", -1, undo_key("undone", "newer"))],
            1 => [add("empty", 1, key("more")), add("empty", 1, None)],
            _ => [add("torn", 1, key("once more")), add("torn", 1, None)],
        };
        for _ in 0..2 {
            let [one, two] = broken();
            let (before, one, two, after) = tokio::join!(
                journal.submit(add("whole", 1, None)),
                journal.submit(one),
                journal.submit(two),
                journal.submit(add("whole", 1, None)),
            );
            assert_eq!((one, two), (Err(SubmitError::Unreadable), Err(SubmitError::Unreadable)), "{harm}");
            assert_eq!((before.unwrap().outcome, after.unwrap().outcome), (Outcome::Done, Outcome::Done), "{harm}");
        }
        journal.close();
        journal.ended().await.unwrap();
        write_beside(&folder, mend).await;
        journal = open(&folder).await;
        let [one, _] = broken();
        let outcome = if round == 0 { Outcome::Replayed } else { Outcome::Done };
        assert_eq!(journal.submit(one).await.unwrap().outcome, outcome, "{mend}");
    }
    assert_eq!(value(&journal, "whole").await, if database::is_shared() { 8 } else { 12 });
    assert_eq!(value(&journal, "other").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_committed_together_and_seen_in_order() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    // Nobody else is decided on before all of them wait.
    let (all_wait, waited) = mpsc::channel();
    let Entry { decide, .. } = add("hot", 1, None);
    let decide = Box::new(move |loaded: &Loaded<'_>| {
        waited.recv().unwrap();
        decide(loaded)
    });
    let first = Entry { decide, ..add("hot", 1, None) };
    let entries = std::iter::once(first).chain((1..300).map(|_| add("hot", 1, None)));
    let mut adds: Vec<_> = entries.map(|entry| Box::pin(journal.submit(entry))).collect();
    for add in &mut adds {
        assert!(futures::poll!(add).is_pending());
    }
    all_wait.send(()).unwrap();
    let answers = futures::future::join_all(adds).await;
    let values: Vec<i64> = answers.into_iter().map(|a| number(&a.unwrap().reply)).collect();
    assert_eq!(values, (1..=300).collect::<Vec<_>>());
    let stats = journal.stats();
    assert_eq!(stats.entries, 300);
    assert!(stats.commits <= 3, "{} commits for 300 entries that waited together", stats.commits);
    let events = events_after(journal.reader(), 0, 1000).await.unwrap();
    assert_eq!(events.iter().map(|e| e.position).collect::<Vec<_>>(), (1..=300).collect::<Vec<_>>());
}

#[tokio::test]
async fn who_reads_can_not_write() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    journal.submit(add("a", 5, key("k"))).await.unwrap();
    for sql in [
        "INSERT INTO aggregates (kind, id, version, state) VALUES ('counter', 'b', 1, NULL)",
        "UPDATE aggregates SET version = 7",
        "DELETE FROM events",
        "DROP TABLE requests",
        "CREATE TABLE mine (id TEXT)",
    ] {
        let written = journal.reader().fetch(sql, Vec::new()).await;
        let said = written.expect_err(sql).to_string();
        assert!(said.contains("readonly") || said.contains("read-only"), "{sql}: {said}");
    }
    let journal = reopen(journal, &folder).await;
    let found = journal.aggregate(&counter("a")).await.unwrap();
    assert_eq!((found.version, value(&journal, "a").await, value(&journal, "b").await), (1, 5, 0));
    assert_eq!(events_after(journal.reader(), 0, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_file_of_a_journal_that_was_closed_is_all_of_it_though_somebody_reads() {
    if database::is_shared() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    journal.submit(add("a", 5, key("k"))).await.unwrap();
    let reader = journal.reader().clone();
    assert_eq!(events_after(&reader, 0, 10).await.unwrap().len(), 1);
    journal.close();
    journal.ended().await.unwrap();

    let elsewhere = TempDir::new().unwrap();
    let Location::Sqlite(file) = journal.location() else { unreachable!() };
    std::fs::copy(file, elsewhere.path().join(file.file_name().unwrap())).unwrap();
    let copy = open(&elsewhere).await;
    assert_eq!(value(&copy, "a").await, 5);
    assert_eq!(events_after(&reader, 0, 10).await.unwrap().len(), 1, "who reads goes on");
}

#[tokio::test]
async fn a_second_process_on_the_same_file_is_told_so() {
    if database::is_shared() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let second = Journal::open(journal.location(), &[]).await;
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
}

#[tokio::test]
async fn a_closed_journal_takes_nothing_more_and_keeps_what_it_took() {
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let mut taken = Box::pin(maybe_done(journal.submit(add("a", 5, None))));
    // One poll hands the entry over. A committer that is quick has answered by the end of it.
    let _ = futures::poll!(taken.as_mut());
    journal.close();
    assert_eq!(journal.submit(add("a", 1, None)).await, Err(SubmitError::Closed));
    taken.as_mut().await;
    assert_eq!(taken.as_mut().take_output().unwrap().unwrap().outcome, Outcome::Done);
    drop(taken);
    let journal = reopen(journal, &folder).await;
    assert_eq!(value(&journal, "a").await, 5);
}

/// Few names, so that calls meet each other.
const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Call {
    Plain(usize, i64),
    Do(u8, usize, i64),
    Undo(u8, usize),
    /// From one counter to another, both or none.
    Move(usize, usize, i64),
    /// Is refused for now, and may be asked again.
    Busy(u8),
    Panic(u8),
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        3 => (0..3_usize, -3..5_i64).prop_map(|(name, amount)| Call::Plain(name, amount)),
        3 => (0..4_u8, 0..3_usize, -3..5_i64).prop_map(|(key, name, amount)| Call::Do(key, name, amount)),
        2 => (0..4_u8, 0..3_usize).prop_map(|(key, name)| Call::Undo(key, name)),
        2 => (0..3_usize, 0..3_usize, 1..4_i64).prop_map(|(from, to, amount)| Call::Move(from, to, amount)),
        1 => (0..4_u8).prop_map(Call::Busy),
        1 => (0..4_u8).prop_map(Call::Panic),
    ];
    proptest::collection::vec(call, 1..40)
}

impl Call {
    fn entry(&self) -> Entry {
        match *self {
            Self::Plain(name, amount) => add(NAMES[name], amount, None),
            Self::Do(at, name, amount) => {
                let mut entry = add(NAMES[name], amount, key(&format!("do{at}")));
                entry.request.as_mut().unwrap().hash = [amount.unsigned_abs() as u8; 32];
                entry
            }
            Self::Undo(at, name) => add(NAMES[name], -1, undo_key(&format!("undo{at}"), &format!("do{at}"))),
            Self::Move(from, to, _) if from == to => add(NAMES[from], 0, None),
            Self::Move(from, to, amount) => shift(NAMES[from], NAMES[to], amount),
            Self::Busy(at) => {
                let decide =
                    Box::new(|_: &Loaded<'_>| Decided { rejected: true, transient: true, ..Decided::default() });
                Entry { decide, ..add("a", 0, key(&format!("do{at}"))) }
            }
            Self::Panic(at) => {
                let decide =
                    Box::new(|_: &Loaded<'_>| -> Decided { std::panic::resume_unwind(Box::new("on purpose")) });
                Entry { decide, ..add("a", 0, key(&format!("do{at}"))) }
            }
        }
    }
}

/// Takes from one counter and gives to another, unless there is too little.
fn shift(from: &'static str, to: &'static str, amount: i64) -> Entry {
    Entry {
        aggregates: vec![counter(from), counter(to)],
        decide: Box::new(move |loaded| {
            let change = |name: &'static str, amount: i64| {
                let now = loaded.aggregate("counter", name).unwrap();
                let state = Bytes::from((number(&now.state) + amount).to_string());
                let event = NewEvent { name: "Added", payload: Bytes::from(amount.to_string()) };
                Change { aggregate: counter(name), state: Some(state), version: now.version + 1, events: vec![event] }
            };
            if number(&loaded.aggregate("counter", from).unwrap().state) < amount {
                return Decided { rejected: true, ..Decided::default() };
            }
            Decided { changes: vec![change(from, -amount), change(to, amount)], ..Decided::default() }
        }),
        ..add(from, 0, None)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Any commands, decided in whatever batches form, come to what they come to one by one.
    #[test]
    fn a_batch_equals_one_by_one(calls in calls()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ended = |ended: Result<libs::journal::Committed, SubmitError>| ended.map(|c| (c.outcome, c.reply));
        let left = async |journal: &Journal| {
            let events = events_after(journal.reader(), 0, 1_000).await.unwrap();
            let events: Vec<_> = events.into_iter().map(|e| (e.position, e.id, e.version, e.payload)).collect();
            let mut values = Vec::new();
            for name in NAMES {
                values.push(value(journal, name).await);
            }
            (events, values)
        };
        let (together, alone) = runtime.block_on(async {
            let folder = TempDir::new().unwrap();
            let journal = open(&folder).await;
            let together = futures::future::join_all(calls.iter().map(|call| journal.submit(call.entry()))).await;
            let together: Vec<_> = together.into_iter().map(ended).collect();
            let together = (together, left(&journal).await);

            let folder = TempDir::new().unwrap();
            let journal = open(&folder).await;
            let mut alone = Vec::new();
            for call in &calls {
                alone.push(ended(journal.submit(call.entry()).await));
            }
            (together, (alone, left(&journal).await))
        });
        prop_assert_eq!(together, alone);
    }
}

/// Rows with and without values of each type.
static SPARSE: Table = Table {
    name: "sparse",
    create: &[
        "CREATE TABLE IF NOT EXISTS sparse (id TEXT NOT NULL PRIMARY KEY, number INTEGER, text TEXT, bytes BLOB)",
    ],
    columns: &["id", "number", "text", "bytes"],
    key: 1,
    fixed: &[],
};

#[tokio::test]
async fn rows_without_a_value_are_written_as_such() {
    let folder = TempDir::new().unwrap();
    let journal = Journal::open(database::location(folder.path(), "test"), &[&SPARSE]).await.unwrap();
    let full = |id: &str| vec![id.into(), 7_i64.into(), "text".into(), vec![7_u8].into()];
    let none = |id: &str| vec![id.into(), Value::Null, Value::Null, Value::Null];
    let sets = [
        vec![full("a"), full("b")],
        // Of one that has them nothing stays.
        vec![none("a")],
        vec![none("b"), full("c"), none("d")],
        vec![none("e"), none("f")],
    ];
    for (at, set) in sets.into_iter().enumerate() {
        let decide = move |_: &Loaded<'_>| {
            let rows = set.into_iter().map(|values| Row { table: &SPARSE, values }).collect();
            Decided { rows, ..Decided::default() }
        };
        let entry = Entry { decide: Box::new(decide), ..add("a", 0, key(&format!("{at}"))) };
        assert_eq!(journal.submit(entry).await.map(|done| done.outcome), Ok(Outcome::Done), "{at}");
    }
    for (id, is_full) in [("a", false), ("b", false), ("c", true), ("d", false), ("e", false), ("f", false)] {
        let found = journal.reader().fetch_keys(&SPARSE, vec![vec![id.into()]]).await.unwrap().remove(0);
        let has = (found.int(1).is_ok(), found.text(2).is_ok(), found.blob(3).is_ok());
        assert_eq!(has, (is_full, is_full, is_full), "{id}: {found:?}");
    }
}
