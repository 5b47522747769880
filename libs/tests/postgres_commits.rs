//! What becomes of a batch whose commit goes wrong on the server, at the very moment: the link is cut, the backend is ended, the server
//! turns it down. Runs where `TEST_POSTGRES` names one.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use libs::journal::{
    AggregateId, Cause, Change, Decided, Entry, Journal, Location, NewEvent, Outcome, RequestKey, Role, SubmitError,
    events_after,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Notes something, under a key.
fn note(key: &str) -> Entry {
    let aggregate = AggregateId::new("note", key);
    let event = NewEvent { name: "Noted", payload: key.to_owned().into() };
    let state = Some(key.to_owned().into());
    let change = Change { aggregate: aggregate.clone(), state, version: 1, events: vec![event] };
    let decide = move |_: &libs::journal::Loaded<'_>| Decided { changes: vec![change], ..Decided::default() };
    let request = Some(RequestKey { key: key.to_owned(), hash: [1; 32], role: Role::Action });
    Entry { request, aggregates: vec![aggregate], cause: Cause::default(), decide: Box::new(decide), size: 10 }
}

/// Notes it once more, beside what there is.
fn change(id: &str) -> Entry {
    let aggregate = AggregateId::new("note", id);
    let event = NewEvent { name: "Noted", payload: id.to_owned().into() };
    let changed = aggregate.clone();
    let decide = move |loaded: &libs::journal::Loaded<'_>| {
        let before = loaded.aggregate("note", &changed.id).cloned().unwrap_or_default();
        let change =
            Change { aggregate: changed, state: Some(before.state), version: before.version + 1, events: vec![event] };
        Decided { changes: vec![change], ..Decided::default() }
    };
    Entry { request: None, aggregates: vec![aggregate], cause: Cause::default(), decide: Box::new(decide), size: 10 }
}

/// What was noted, in order.
async fn noted(journal: &Journal) -> Vec<String> {
    let events = events_after(journal.reader(), 0, 1_000_000).await.unwrap();
    events.into_iter().map(|event| String::from_utf8(event.payload.to_vec()).unwrap()).collect()
}

/// A schema of this test's own.
struct Schema {
    folder: TempDir,
    url: String,
    name: String,
}

impl Schema {
    /// None where no server is named.
    fn new() -> Option<Self> {
        let folder = TempDir::new().unwrap();
        match database::location(folder.path(), "test") {
            Location::Postgres { url, schema } => Some(Self { folder, url, name: schema }),
            Location::Sqlite(_) => None,
        }
    }

    async fn open(&self) -> Journal {
        Journal::open(database::location(self.folder.path(), "test"), &[]).await.unwrap()
    }

    /// A connection beside the journal's.
    async fn connect(&self) -> PgConnection {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        connection.execute(AssertSqlSafe(format!("SET search_path = {}", self.name))).await.unwrap();
        connection
    }

    /// Has the server do something when an event is written, or in the midst of its COMMIT. It asks the sequence `troubles` first, which
    /// survives what is rolled back: so many times, and then all is well.
    async fn trouble(&self, when: When, times: u32, what: &str) {
        let mut connection = self.connect().await;
        let timing = match when {
            When::Written => "CREATE TRIGGER trouble AFTER INSERT",
            When::Committed => "CREATE CONSTRAINT TRIGGER trouble AFTER INSERT",
        };
        let deferred = if when == When::Committed { "DEFERRABLE INITIALLY DEFERRED" } else { "" };
        let sql = format!(
            "DROP TRIGGER IF EXISTS trouble ON events;
            DROP SEQUENCE IF EXISTS troubles;
            CREATE SEQUENCE troubles;
            CREATE OR REPLACE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('troubles') <= {times} THEN {what}; END IF;
                RETURN NEW;
            END $$;
            {timing} ON events {deferred} FOR EACH ROW EXECUTE FUNCTION trouble()"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }

    /// How often an event was written since then, in vain or not.
    async fn written(&self) -> i64 {
        let mut connection = self.connect().await;
        sqlx::query_scalar("SELECT last_value FROM troubles").fetch_one(&mut connection).await.unwrap()
    }

    /// Waits until the journal waits for somebody else's transaction.
    async fn until_the_journal_waits(&self) {
        const SQL: &str = "SELECT count(*) FROM pg_stat_activity
            WHERE application_name = $1 AND wait_event_type = 'Lock' AND wait_event = 'transactionid'";
        let mut connection = self.connect().await;
        let waits = async {
            let name = format!("trellis {}", self.name);
            while sqlx::query_scalar::<_, i64>(SQL).bind(&name).fetch_one(&mut connection).await.unwrap() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, waits).await.unwrap();
    }
}

/// When the server makes trouble.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    Written,
    Committed,
}

/// What happens to the next COMMIT that goes over a link.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    Never,
    /// It doesn't arrive.
    Before,
    /// It arrives, and its answer doesn't.
    After,
    /// So long after it went by, its backend is ended.
    Ended(Duration),
}

/// A way to the server that breaks when it is told to. Answers its port.
async fn link(url: String, cut: Arc<Mutex<Cut>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_, server) = url.split_once('@').unwrap();
    let server = server.split_once('/').unwrap().0.to_owned();
    let killer = Arc::new(tokio::sync::Mutex::new(PgConnection::connect(&url).await.unwrap()));
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(&server).await.unwrap();
            tokio::spawn(carry(near, far, Arc::clone(&cut), Arc::clone(&killer)));
        }
    });
    port
}

async fn carry(
    mut near: TcpStream,
    mut far: TcpStream,
    cut: Arc<Mutex<Cut>>,
    killer: Arc<tokio::sync::Mutex<PgConnection>>,
) {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut backend = None;
    loop {
        tokio::select! {
            read = near.read(&mut up) => {
                let count = read.unwrap_or(0);
                let commits = up[..count].windows(6).any(|word| word == b"COMMIT");
                let broken = if commits { std::mem::replace(&mut *cut.lock().unwrap(), Cut::Never) } else { Cut::Never };
                if count == 0 || broken == Cut::Before || far.write_all(&up[..count]).await.is_err() {
                    return;
                }
                match broken {
                    Cut::Never | Cut::Before => {}
                    Cut::After => {
                        // It was committed once there is an answer.
                        let _ = far.read(&mut down).await;
                        return;
                    }
                    Cut::Ended(delay) => {
                        tokio::time::sleep(delay).await;
                        let ended = sqlx::query("SELECT pg_terminate_backend($1)").bind(backend.unwrap());
                        ended.execute(&mut *killer.lock().await).await.unwrap();
                    }
                }
            }
            read = far.read(&mut down) => {
                let count = read.unwrap_or(0);
                backend = backend.or_else(|| backend_of(&down[..count]));
                if count == 0 || near.write_all(&down[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The backend's id, as the server tells it in BackendKeyData: `K`, the length 12, the id, a secret.
fn backend_of(said: &[u8]) -> Option<i32> {
    let at = said.windows(5).position(|word| word == [b'K', 0, 0, 0, 12])?;
    Some(i32::from_be_bytes(said[at + 5..at + 9].try_into().unwrap()))
}

/// A journal that reaches its schema by a link.
async fn linked(schema: &Schema) -> (Journal, Arc<Mutex<Cut>>) {
    let cut = Arc::new(Mutex::new(Cut::Never));
    let port = link(schema.url.clone(), Arc::clone(&cut)).await;
    let ((before, server), schema) = (schema.url.split_once('@').unwrap(), schema.name.clone());
    let name = server.split_once('/').unwrap().1;
    let url = format!("{before}@127.0.0.1:{port}/{name}?sslmode=disable");
    (Journal::open(Location::Postgres { url, schema }, &[]).await.unwrap(), cut)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_became_of_a_commit_without_an_answer_is_found_out() {
    let Some(schema) = Schema::new() else { return };
    let (journal, cut) = linked(&schema).await;
    let mut keys = Vec::new();
    for at in 0..40 {
        for way in [Cut::After, Cut::Before] {
            let key = format!("{way:?} {at}");
            *cut.lock().unwrap() = way;
            assert_eq!(
                journal.submit(note(&key)).await.unwrap().outcome,
                Outcome::Done,
                "it was committed, then or again"
            );
            assert_eq!(*cut.lock().unwrap(), Cut::Never, "the link was cut");
            assert_eq!(journal.submit(note(&key)).await.unwrap().outcome, Outcome::Replayed);
            keys.push(key);
        }
    }
    assert_eq!(noted(&journal).await, keys);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_ended_in_its_commit_loses_nothing_and_doubles_nothing() {
    let Some(schema) = Schema::new() else { return };
    let (journal, cut) = linked(&schema).await;
    let mut keys = Vec::new();
    // Before, in and after the sync, which takes some tenths of a millisecond.
    for at in 0..100 {
        let key = format!("note {at}");
        *cut.lock().unwrap() = Cut::Ended(Duration::from_micros(at % 25 * 40));
        let two = format!("with it {at}");
        let (one, other) = tokio::join!(journal.submit(note(&key)), journal.submit(note(&two)));
        assert_eq!((one.unwrap().outcome, other.unwrap().outcome), (Outcome::Done, Outcome::Done), "{key}");
        keys.extend([key, two]);
    }
    let mut noted = noted(&journal).await;
    noted.sort();
    keys.sort();
    assert_eq!(noted, keys);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_the_server_turns_down_for_a_moment_is_committed_once_more() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    let mut keys = 0;
    for when in [When::Written, When::Committed] {
        for what in [
            "RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001'",
            "RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'",
            "PERFORM pg_terminate_backend(pg_backend_pid())",
        ] {
            for times in [1, 2] {
                schema.trouble(when, times, what).await;
                // Those that wait while the first is tried are a batch, and fare alike.
                let submitted = (keys..keys + 30).map(|at| journal.submit(note(&format!("note {at}"))));
                for ended in futures::future::join_all(submitted).await {
                    assert_eq!(ended.map(|ended| ended.outcome), Ok(Outcome::Done), "{when:?} {what}");
                }
                keys += 30;
            }
        }
    }
    let mut noted = noted(&journal).await;
    assert_eq!(noted.len(), keys);
    noted.sort();
    noted.dedup();
    assert_eq!(noted.len(), keys, "some took effect twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_the_server_turns_down_for_good_is_not_written_and_the_next_one_is() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    for (when, times, what) in [
        (When::Written, 1, "RAISE EXCEPTION 'no' USING ERRCODE = '23514'"),
        (When::Committed, 1, "RAISE EXCEPTION 'no' USING ERRCODE = '23514'"),
        (When::Written, 1, "RAISE EXCEPTION 'no room' USING ERRCODE = '53100'"),
        (When::Written, 3, "RAISE EXCEPTION 'again' USING ERRCODE = '40001'"),
        (When::Committed, 3, "PERFORM pg_terminate_backend(pg_backend_pid())"),
    ] {
        schema.trouble(when, times, what).await;
        let before = noted(&journal).await;
        let key = format!("note {}", before.len());
        assert_eq!(journal.submit(note(&key)).await, Err(SubmitError::Unavailable), "{what}");
        assert_eq!(noted(&journal).await, before, "{what}");
        assert_eq!(journal.submit(note(&key)).await.unwrap().outcome, Outcome::Done, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_loses_a_deadlock_is_committed_once_more() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    assert_eq!(journal.submit(note("first")).await.unwrap().outcome, Outcome::Done);
    let mut other = schema.connect().await;
    // The batch is the one to give way: it looks for a deadlock after a second, the other one never.
    other.execute("SET deadlock_timeout = '1h'").await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    let request = "INSERT INTO requests SELECT 'second', hash, outcome, reply, time FROM requests WHERE key = 'first'";
    transaction.execute(request).await.unwrap();

    schema.trouble(When::Written, 0, "NULL").await;
    let batch = tokio::spawn({
        let journal = journal.clone();
        async move { journal.submit(Entry { request: note("second").request, ..change("first") }).await }
    });
    // The batch has the aggregate and waits for the request's key. Now the other one wants the aggregate.
    schema.until_the_journal_waits().await;
    transaction.execute("UPDATE aggregates SET state = state WHERE id = 'first'").await.unwrap();
    transaction.rollback().await.unwrap();

    let ended = timeout(PATIENCE, batch).await.unwrap().unwrap().unwrap();
    assert_eq!(
        (ended.outcome, schema.written().await),
        (Outcome::Done, 2),
        "it was written twice, and the first time in vain"
    );
    assert_eq!(noted(&journal).await, ["first", "first"]);
}
