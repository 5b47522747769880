//! What becomes of those who need a session while the way to the server is troubled. Runs where `TEST_POSTGRES` names one.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod lines;
mod link;
mod schema;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::{join_all, pending};
use libs::journal::{
    Journal, Location, OpenError, Outcome, SubmitError, Table,
    sql::{Error, Reader, Record},
    store,
};
use lines::Lines;
use link::Cut;
use schema::{PATIENCE, Schema, note};
use sqlx::{AssertSqlSafe, Executor as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};
use tonic::Code;

/// How whoever comes by a way fares, from when it is said.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// Those who come are let through. Those who are there hear nothing any more, and nobody is told.
    Through,
    /// So it is for those who come, too.
    Silent,
    /// They are turned away, those who are there too.
    Away,
    /// The next one is, and whoever comes after that is let through.
    AwayOnce,
    /// They are, and are told that the server is starting up.
    Starting,
}

/// An ErrorResponse: `E`, the length, the fields.
const STARTING: &[u8] = b"E\0\0\0\x35SFATAL\0VFATAL\0C57P03\0Mthe system is starting up\0\0";

/// A way to the server.
struct Way {
    location: Location,
    manner: watch::Sender<Manner>,
    /// How many have come by it.
    came: Arc<AtomicUsize>,
}

impl Way {
    async fn to(schema: &Schema) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = listener.local_addr().unwrap();
        let (before, server) = schema.url.split_once('@').unwrap();
        let (server, name) = server.split_once('/').unwrap();
        let url = format!("{before}@{near}/{name}?sslmode=disable");
        let (server, manner, came) = (server.to_owned(), watch::Sender::new(Manner::Through), Arc::default());
        let (saying, count) = (manner.clone(), Arc::<AtomicUsize>::clone(&came));
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                // Once it is counted, something else may be said.
                let mut said = saying.subscribe();
                let manner = *said.borrow_and_update();
                count.fetch_add(1, Ordering::SeqCst);
                if manner == Manner::AwayOnce {
                    saying.send_replace(Manner::Through);
                    continue;
                }
                let mut far = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(async move {
                    if manner == Manner::Through {
                        tokio::select! {
                            _ = copy_bidirectional(&mut near, &mut far) => return,
                            _ = said.changed() => {}
                        }
                    }
                    let manner = *said.borrow();
                    match manner {
                        // Both ends stay open.
                        Manner::Through | Manner::Silent => pending().await,
                        Manner::Away | Manner::AwayOnce => {}
                        Manner::Starting => {
                            // What it begins with is read: who goes before takes away what was said.
                            let _ = near.read(&mut [0; 1024]).await;
                            let _ = near.write_all(STARTING).await;
                        }
                    }
                });
            }
        });
        Self { location: Location::Postgres { url, schema: schema.name.clone() }, manner, came }
    }

    async fn open(&self) -> Journal {
        Journal::open(&self.location, &[]).await.unwrap()
    }
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn sessions_that_died_silently_while_they_were_idle_cost_nobody_their_answer() {
    let Some(schema) = Schema::new() else { return };
    let (lines, _keeping) = Lines::keep();
    let way = Way::to(&schema).await;
    let journal = way.open().await;
    let reader = journal.reader();
    let member = journal.join().await.unwrap().unwrap();
    let (mut rounds, mut round) = (0, 0);
    while rounds < 2 {
        round += 1;
        // All the sessions that there may be.
        let slowly = || reader.fetch("SELECT pg_sleep(0.2)::text", Vec::new());
        for read in join_all((0..4).map(|_| slowly())).await {
            read.unwrap();
        }
        let commits = (0..3).map(|at| journal.submit(note(&format!("before {round} {at}"))));
        let (commits, beat) = tokio::join!(join_all(commits), member.beat());
        assert!(beat.is_ok() && commits.iter().all(Result::is_ok));
        // After which a session is asked whether it is still there.
        sleep(Duration::from_millis(2_000)).await;
        way.manner.send_replace(Manner::Through);

        let told = lines.that_say("an idle session says nothing").len();
        let (after, began) = (format!("after {round}"), Instant::now());
        let read = async { reader.fetch("SELECT 1::bigint", Vec::new()).await };
        let (submitted, beat, read) = tokio::join!(journal.submit(note(&after)), member.beat(), read);
        // On a machine that stalls there is no time left to begin another session: that says nothing.
        if began.elapsed() > Duration::from_secs(4) && round < 10 {
            continue;
        }
        rounds += 1;
        assert_eq!(submitted.map(|committed| committed.outcome), Ok(Outcome::Done));
        assert!(beat.is_ok() && read.is_ok(), "{beat:?} {read:?}");
        // To ask each of them would have taken a second each: as long as there is, where there are more.
        let told = lines.that_say("an idle session says nothing").split_off(told);
        assert!(told.iter().any(|line| line.contains("dropped=4")), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_outlasts_a_server_that_lets_nobody_in_for_a_while() {
    let Some(schema) = Schema::new() else { return };
    let way = Way::to(&schema).await;
    let journal = way.open().await;
    sleep(Duration::from_millis(1_100)).await;
    way.manner.send_replace(Manner::Silent);
    let came_before = way.came.load(Ordering::Relaxed);
    let submitted = tokio::spawn(async move { journal.submit(note("patient")).await });
    // Nobody speaks to whoever came until then, and that is waited for.
    let comes = async {
        while way.came.load(Ordering::SeqCst) == came_before {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, comes).await.expect("nobody comes");
    way.manner.send_replace(Manner::Through);
    let answer = timeout(PATIENCE, submitted).await.expect("an answer").unwrap();
    assert_eq!(answer.map(|committed| committed.outcome), Ok(Outcome::Done));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_turns_everybody_away_is_not_asked_without_a_pause() {
    let Some(schema) = Schema::new() else { return };
    let way = Way::to(&schema).await;
    let journal = way.open().await;
    journal.submit(note("before")).await.unwrap();
    way.manner.send_replace(Manner::Away);
    let (came_before, began) = (way.came.load(Ordering::Relaxed), Instant::now());
    for at in 0..5 {
        assert_eq!(journal.submit(note(&format!("in vain {at}"))).await, Err(SubmitError::Unavailable));
    }
    let (came, took) = (way.came.load(Ordering::Relaxed) - came_before, began.elapsed());
    assert!(came as u128 <= 3 + took.as_millis() / 100, "{came} times in {took:?}");

    way.manner.send_replace(Manner::AwayOnce);
    let answer = timeout(PATIENCE, journal.submit(note("patient"))).await.expect("an answer");
    assert_eq!(*way.manner.borrow(), Manner::Through, "it was turned away");
    assert_eq!(answer.map(|committed| committed.outcome), Ok(Outcome::Done), "it was tried once more");
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn a_server_that_is_in_no_state_to_serve_is_not_asked_without_a_pause_and_told_of_once() {
    let Some(schema) = Schema::new() else { return };
    let (lines, _keeping) = Lines::keep();
    let way = Way::to(&schema).await;
    let journal = way.open().await;
    journal.submit(note("before")).await.unwrap();
    way.manner.send_replace(Manner::Starting);
    let (came_before, began) = (way.came.load(Ordering::Relaxed), Instant::now());
    for at in 0..50 {
        assert_eq!(journal.submit(note(&format!("in vain {at}"))).await, Err(SubmitError::Unavailable));
    }
    let (came, took) = (way.came.load(Ordering::Relaxed) - came_before, began.elapsed());
    assert!(came as u128 <= 3 + took.as_millis() / 100, "{came} times in {took:?}");
    let told = lines.that_say("a batch was not committed");
    assert!(!told.is_empty() && told.len() as u64 <= 1 + took.as_secs(), "{told:?}");

    way.manner.send_replace(Manner::Through);
    let served = async {
        while journal.submit(note("patient")).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, served).await.expect("it serves again");
}

/// Else what is on the way forgets a session that has nothing to say for long, such as one that makes an index, and nobody is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_waits_for_long_is_kept_in_mind_by_what_is_on_the_way() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    let asked = "SELECT current_setting('tcp_keepalives_idle'), current_setting('tcp_keepalives_interval')";
    let set = journal.reader().fetch(asked, Vec::new()).await.unwrap();
    assert_eq!((&*set[0].text(0).unwrap(), &*set[0].text(1).unwrap()), ("60", "10"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_without_a_word_while_a_turn_is_asked_for_is_not_waited_for_for_ever() {
    let Some(schema) = Schema::new() else { return };
    let (location, cut) = link::to(&schema).await;
    *cut.lock().unwrap() = Cut::Silent("BEGIN");
    let opened = timeout(PATIENCE, Journal::open(location, &[])).await.expect("an end");
    assert!(matches!(opened, Err(OpenError::Database { .. })), "{opened:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_without_a_word_while_a_schema_or_a_table_is_made_is_not_waited_for_for_ever() {
    let opens = ["CREATE SCHEMA", "CREATE TABLE"].map(async |from| {
        let Some(schema) = Schema::new() else { return };
        let (location, cut) = link::to(&schema).await;
        *cut.lock().unwrap() = Cut::Silent(from);
        let opened = timeout(PATIENCE, Journal::open(location, &[])).await.expect("an end");
        assert!(matches!(opened, Err(OpenError::Database { .. })), "{opened:?}");
    });
    join_all(opens).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_to_make_tables_is_waited_for_however_long_another_has_it() {
    let Some(schema) = Schema::new() else { return };
    let mut other = schema.connect().await;
    let turn = format!("hashtextextended('trellis/{}/create', 0)", schema.name);
    other.execute(AssertSqlSafe(format!("SELECT pg_advisory_lock({turn})"))).await.unwrap();
    let location = Location::Postgres { url: schema.url.clone(), schema: schema.name.clone() };
    let opened = tokio::spawn(async move { Journal::open(location, &[]).await.map(drop) });
    let who = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND (classid, objid) IN
        (SELECT classid, objid FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid())";
    let mut waited = HashSet::new();
    let twice = async {
        while waited.len() < 2 {
            waited.extend(sqlx::query_scalar::<_, i32>(who).fetch_optional(&mut other).await.unwrap());
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, twice).await.expect("it is asked for again");
    other.execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    timeout(PATIENCE, opened).await.expect("an end").unwrap().unwrap();
}

/// As a `pg_restore --single-transaction` is in its midst.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_up_on_a_table_that_another_makes_keeps_nobody_else_waiting() {
    let Some(schema) = Schema::new() else { return };
    let (mut other, mut next) = (schema.connect().await, schema.connect().await);
    other.execute(AssertSqlSafe(format!("CREATE SCHEMA {}", schema.name))).await.unwrap();
    other.execute("BEGIN; CREATE TABLE events (position BIGINT)").await.unwrap();
    let location = Location::Postgres { url: schema.url.clone(), schema: schema.name.clone() };
    let opened = timeout(PATIENCE, Journal::open(location, &[])).await.expect("an end");
    let Err(OpenError::Database { source, .. }) = opened else { panic!("{opened:?}") };
    assert!(source.is_in_the_way(), "{source:?}");
    let turn = format!("hashtextextended('trellis/{}/create', 0)", schema.name);
    let turn = next.execute(AssertSqlSafe(format!("SELECT pg_advisory_lock({turn})")));
    timeout(PATIENCE, turn).await.expect("nobody has the turn any more").unwrap();
}

/// One with an index that those who wrote it did not make, and one that comes after it.
static NOTES: Table = Table {
    name: "notes",
    create: &[
        "CREATE TABLE IF NOT EXISTS notes (id TEXT NOT NULL PRIMARY KEY) WITHOUT ROWID",
        "CREATE INDEX IF NOT EXISTS notes_by_id ON notes (id)",
    ],
    columns: &["id"],
    key: 1,
    fixed: &[],
};
static TAGS: Table = Table {
    name: "tags",
    create: &["CREATE TABLE IF NOT EXISTS tags (id TEXT NOT NULL PRIMARY KEY) WITHOUT ROWID"],
    ..NOTES
};

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn an_index_is_waited_for_longer_than_a_table_that_comes_after_it() {
    let Some(schema) = Schema::new() else { return };
    let (lines, _keeping) = Lines::keep();
    let (mut writer, mut maker) = (schema.connect().await, schema.connect().await);
    let before = "CREATE TABLE notes (id TEXT COLLATE \"C\" PRIMARY KEY)";
    writer.execute(AssertSqlSafe(format!("CREATE SCHEMA {}; {before}", schema.name))).await.unwrap();
    writer.execute("BEGIN; INSERT INTO notes VALUES ('a')").await.unwrap();
    maker.execute("BEGIN; CREATE TABLE tags (id TEXT)").await.unwrap();
    let location = Location::Postgres { url: schema.url.clone(), schema: schema.name.clone() };
    let opened = tokio::spawn(async move { Journal::open(location, &[&NOTES, &TAGS]).await.map(drop) });
    let waits = async {
        while lines.that_say("this takes long").is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waits).await.expect("the index is waited for");
    writer.execute("COMMIT").await.unwrap();
    let opened = timeout(PATIENCE, opened).await.expect("an end").unwrap();
    let Err(OpenError::Database { source, .. }) = opened else { panic!("{opened:?}") };
    assert!(source.is_in_the_way(), "{source:?}");
}

/// What somebody who reads gets of a server.
fn reader(schema: &Schema, url: String) -> Reader {
    store::readers(&Location::Postgres { url, schema: schema.name.clone() }, 1).unwrap()
}

async fn read(reader: &Reader) -> Result<Vec<Record>, Error> {
    reader.fetch("SELECT COUNT(*) FROM aggregates", Vec::new()).await
}

/// Answers why it is that a caller is to try again.
fn unavailable(error: &Error) -> String {
    let refusal = error.refusal();
    assert_eq!((refusal.code, &*refusal.reason), (Code::Unavailable, "DATABASE_UNAVAILABLE"), "{error}");
    assert!(refusal.retry_after.is_some() && error.is_passing(), "{error}");
    error.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_is_told_to_try_again_while_the_server_lets_nobody_in_or_has_no_such_database() {
    let Some(schema) = Schema::new() else { return };
    drop(schema.open().await);
    let (name, role) = (&schema.name, format!("{}_clerk", schema.name));
    let mut session = schema.connect().await;
    let grant = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'known'; GRANT USAGE ON SCHEMA {name} TO {role};
        GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO {role}"
    );
    session.execute(AssertSqlSafe(grant)).await.unwrap();
    let (_, server) = schema.url.split_once('@').unwrap();
    let clerk = reader(&schema, format!("postgres://{role}:known@{server}"));
    read(&clerk).await.unwrap();
    session.execute(AssertSqlSafe(format!("ALTER ROLE {role} NOLOGIN"))).await.unwrap();
    let end = format!("SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{role}'");
    let ended = async {
        while sqlx::query_scalar::<_, i64>(AssertSqlSafe(end.as_str())).fetch_one(&mut session).await.unwrap() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("its sessions end");
    let error = read(&clerk).await.unwrap_err();
    let why = unavailable(&error);
    assert!(why.contains("not permitted to log in"), "{why}");
    assert!(error.mend().is_some_and(|mend| mend.contains("log in")), "nobody but a person mends it");
    session.execute(AssertSqlSafe(format!("DROP OWNED BY {role}; DROP ROLE {role}"))).await.unwrap();

    let (at, _) = schema.url.rsplit_once('/').unwrap();
    let error = read(&reader(&schema, format!("{at}/{name}_gone"))).await.unwrap_err();
    let why = unavailable(&error);
    assert!(why.contains("does not exist"), "{why}");
    assert!(error.mend().is_some_and(|mend| mend.contains("make that database")), "nor this");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_is_told_to_try_again_while_another_has_locked_the_table() {
    let Some(schema) = Schema::new() else { return };
    drop(schema.open().await);
    let (mut session, reader) = (schema.connect().await, reader(&schema, schema.url.clone()));
    session.execute("BEGIN; LOCK TABLE aggregates IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let why = unavailable(&timeout(PATIENCE, read(&reader)).await.expect("an end").unwrap_err());
    assert!(why.contains("lock timeout"), "{why}");
    session.execute("ROLLBACK").await.unwrap();
    let wrong = reader.fetch("SELECT nothing FROM aggregates", Vec::new()).await.unwrap_err();
    assert_eq!((wrong.refusal().code, wrong.is_passing()), (Code::Internal, false), "{wrong}");
}

/// As a deadline that is over drops whoever reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_nobody_waits_for_any_more_has_its_place_until_the_server_has_ended_it() {
    let Some(schema) = Schema::new() else { return };
    let (mut session, reader) = (schema.connect().await, reader(&schema, schema.url.clone()));
    let sleeping = format!(
        "SELECT COUNT(*) FROM pg_stat_activity
        WHERE application_name = 'trellis {}' AND state = 'active' AND query LIKE '%pg_sleep%'",
        schema.name
    );
    let mut sleeping =
        async || sqlx::query_scalar::<_, i64>(AssertSqlSafe(sleeping.as_str())).fetch_one(&mut session).await.unwrap();
    // On a machine that stalls the server may look a little later: that says nothing.
    for _ in 0..5 {
        let begins = async {
            while sleeping().await == 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            slept = reader.fetch("SELECT pg_sleep(600)::text", Vec::new()) => panic!("{slept:?}"),
            begun = timeout(PATIENCE, begins) => begun.expect("it is asked for"),
        }
        reader.fetch("SELECT 1::bigint", Vec::new()).await.unwrap();
        if sleeping().await == 0 {
            return;
        }
    }
    panic!("the server has more at work than there may be");
}

/// A COMMIT that waits for a standby would be cut off and answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_read_is_cut_off_by_the_server() {
    let Some(schema) = Schema::new() else { return };
    let location = Location::Postgres { url: schema.url.clone(), schema: schema.name.clone() };
    let (mut writer, reader) = (store::Store::open(&location, &[]).await.unwrap(), reader(&schema, schema.url.clone()));
    let asked = "SELECT current_setting('statement_timeout'), current_setting('client_connection_check_interval')";
    let reads = reader.fetch(asked, Vec::new()).await.unwrap();
    let writes = writer.begin().await.unwrap().fetch(asked, Vec::new()).await.unwrap();
    let set = [reads, writes].map(|set| [set[0].text(0).unwrap(), set[0].text(1).unwrap()]);
    assert_eq!(set, [["16s", "500ms"], ["0", "500ms"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gets_no_session_is_told_whether_all_are_at_work_or_none_can_be_begun() {
    let Some(schema) = Schema::new() else { return };
    drop(schema.open().await);
    let way = Way::to(&schema).await;
    let Location::Postgres { url, .. } = way.location.clone() else { panic!("a server") };
    let (mut session, only) = (schema.connect().await, reader(&schema, url.clone()));
    session.execute("BEGIN; LOCK TABLE aggregates IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let waits = async {
        let why = unavailable(&read(&only).await.unwrap_err());
        session.execute("ROLLBACK").await.unwrap();
        why
    };
    let (first, why) = tokio::join!(read(&only), waits);
    first.unwrap();
    assert!(why.contains("all are at work"), "{why}");

    way.manner.send_replace(Manner::Silent);
    let why = unavailable(&read(&reader(&schema, url)).await.unwrap_err());
    assert!(why.contains("lets nobody in") && !why.contains("at work"), "{why}");
}
