//! What only a server can do to the journal: others who write, connections that break. Runs where `TEST_POSTGRES` names one.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod link;
mod schema;

use std::time::Duration;

use libs::{
    cqrs::{CommandSide, Decision, Method, State},
    journal::{
        AggregateId, Beside, Cause, Change, Decided, Entry, Journal, Location, NewEvent, OpenError, Outcome,
        RequestKey, Role, SubmitError, Table, events_after,
    },
    refusal::Violations,
};
use link::Cut;
use schema::Schema;
use sqlx::{AssertSqlSafe, PgConnection};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};
use tonic::{Code, metadata::MetadataMap};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

async fn open(folder: &TempDir) -> Journal {
    Journal::open(database::location(folder.path(), "test"), &[]).await.unwrap()
}

/// Takes one piece of stock, if there is any.
fn take(name: String) -> Entry {
    let stock = AggregateId::new("stock", "sku");
    let aggregate = stock.clone();
    let decide = move |loaded: &libs::journal::Loaded<'_>| {
        let before = loaded.aggregate("stock", "sku").cloned().unwrap_or_default();
        let taken = if before.state.is_empty() { 0 } else { i64::from(before.state[0]) };
        if taken == 50 {
            return Decided { rejected: true, ..Decided::default() };
        }
        let state = vec![u8::try_from(taken + 1).unwrap()].into();
        let event = NewEvent { name: "Taken", payload: name.into_bytes().into() };
        let change = Change { aggregate, state: Some(state), version: before.version + 1, events: vec![event] };
        Decided { changes: vec![change], ..Decided::default() }
    };
    Entry { request: None, aggregates: vec![stock], cause: Cause::default(), decide: Box::new(decide), size: 10 }
}

/// Notes something, under a key.
fn note(key: &str) -> Entry {
    let aggregate = AggregateId::new("note", key);
    let event = NewEvent { name: "Noted", payload: key.to_owned().into() };
    let change = Change { aggregate: aggregate.clone(), state: None, version: 1, events: vec![event] };
    let decide = move |_: &libs::journal::Loaded<'_>| Decided { changes: vec![change], ..Decided::default() };
    let request = Some(RequestKey { key: key.to_owned(), hash: [1; 32], other_hash: None, role: Role::Action });
    Entry { request, aggregates: vec![aggregate], cause: Cause::default(), decide: Box::new(decide), size: 10 }
}

#[tokio::test]
async fn a_server_that_answers_before_it_has_synced_is_refused() {
    if !database::has_server() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let Location::Postgres { url, schema } = database::location(folder.path(), "test") else { panic!("a server") };
    let url = format!("{url}?options[synchronous_commit]=off");
    let refused = Journal::open(Location::Postgres { url, schema }, &[]).await.map(drop);
    let Err(OpenError::NotDurable { pragma, found, wanted, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!((pragma, &*found, wanted), ("synchronous_commit", "off", "on"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_write_take_turns_and_oversell_nothing() {
    if !database::has_server() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (one, two) = (open(&folder).await, open(&folder).await);
    let takes = (0..80).map(|at| {
        let journal = if at % 2 == 0 { one.clone() } else { two.clone() };
        tokio::spawn(async move { journal.submit(take(format!("take {at}"))).await.unwrap().outcome })
    });
    let outcomes = futures::future::join_all(takes).await;
    let done = outcomes.iter().filter(|outcome| *outcome.as_ref().unwrap() == Outcome::Done).count();
    assert_eq!(done, 50);
    assert!(one.stats().commits > 0 && two.stats().commits > 0, "both wrote");
    let events = events_after(one.reader(), 0, 1000).await.unwrap();
    assert_eq!(events.iter().map(|event| event.position).collect::<Vec<_>>(), (1..=50).collect::<Vec<_>>());
    assert_eq!(events.iter().map(|event| event.version).collect::<Vec<_>>(), (1..=50).collect::<Vec<_>>());
}

/// A plan is kept when the table has grown, so the one that is made while it is empty must be good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_found_by_their_index_in_a_table_that_is_still_empty() {
    if !database::has_server() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let sql = "EXPLAIN SELECT reply FROM generate_series(1, 1000) AS wanted(k) JOIN requests ON key = k::text";
    let plan = journal.reader().fetch(sql, Vec::new()).await.unwrap();
    let plan: Vec<String> = plan.iter().map(|line| line.text(0).unwrap()).collect();
    let plan = plan.join("\n");
    assert!(plan.contains("requests_pkey") && !plan.contains("Seq Scan"), "{plan}");
    // What has no other way than through the whole table is dear in the server's eyes, and would be compiled each time.
    let plan =
        journal.reader().fetch("EXPLAIN (ANALYZE) SELECT MAX(seen_until) FROM members", Vec::new()).await.unwrap();
    let plan: Vec<String> = plan.iter().map(|line| line.text(0).unwrap()).collect();
    let plan = plan.join("\n");
    assert!(plan.contains("Seq Scan") && !plan.contains("JIT"), "{plan}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_ended_while_they_had_nothing_to_do_are_not_missed() {
    if !database::has_server() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (journal, killer) = (open(&folder).await, Journal::open(database::location(folder.path(), "other"), &[]).await);
    let (killer, Location::Postgres { schema, .. }) = (killer.unwrap(), journal.location().clone()) else {
        panic!("a server")
    };
    for silence in [Duration::ZERO, Duration::from_millis(1100)] {
        // All of its readers have been at work, and its committer.
        let read = || journal.reader().fetch("SELECT COUNT(pg_sleep(0.05))", Vec::new());
        futures::future::try_join_all((0..4).map(|_| read())).await.unwrap();
        journal.submit(note(&format!("before {silence:?}"))).await.unwrap();
        let of_it = format!("FROM pg_stat_activity WHERE application_name = 'trellis {schema}'");
        let count = async |what: &str| {
            let found = killer.reader().fetch(&format!("SELECT COUNT({what}) {of_it}"), Vec::new()).await.unwrap();
            found[0].int(0).unwrap()
        };
        assert!(count("pg_terminate_backend(pid)").await >= 5);
        let gone = async { while count("*").await > 0 {} };
        timeout(PATIENCE, gone).await.expect("the server's sessions end");
        tokio::time::sleep(silence).await;
        journal.submit(note(&format!("after {silence:?}"))).await.unwrap();
        futures::future::try_join_all((0..4).map(|_| read())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_at_any_moment_lose_nothing_that_was_answered() {
    if !database::has_server() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let killer = {
        let reader = journal.reader().clone();
        let Location::Postgres { schema, .. } = journal.location().clone() else { panic!("a server") };
        tokio::spawn(async move {
            const SQL: &str = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE application_name = $1 AND pid <> pg_backend_pid() AND state <> 'idle'";
            // So many and no more: on a slow disk every commit is in its way, and none would ever end.
            let mut killed = 0;
            while killed < 40 {
                let name = format!("trellis {schema}");
                let records = reader.fetch(SQL, vec![name.into()]).await;
                killed += records.map_or(0, |records| records[0].int(0).unwrap());
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        })
    };
    let mut answered = Vec::new();
    let begun = Instant::now();
    while !killer.is_finished() {
        let key = format!("request {}", answered.len());
        let unsure = loop {
            assert!(begun.elapsed() < PATIENCE, "it still breaks connections after {PATIENCE:?}: {key}");
            match journal.submit(note(&key)).await {
                Ok(committed) => break committed,
                Err(SubmitError::Unavailable) => {}
                Err(error) => panic!("{error}"),
            }
        };
        // "Unavailable" means that nothing was written: what is asked again is never found done before.
        assert_eq!(unsure.outcome, Outcome::Done, "{key}");
        answered.push(key);
    }
    killer.await.unwrap();
    let noted: Vec<_> = loop {
        assert!(begun.elapsed() < 2 * PATIENCE, "it can't be read");
        if let Ok(events) = events_after(journal.reader(), 0, 1_000_000).await {
            break events.into_iter().map(|event| String::from_utf8(event.payload.to_vec()).unwrap()).collect();
        }
    };
    assert_eq!(noted, answered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_who_stops_in_its_turn_is_not_waited_for() {
    if !database::has_server() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (stopped, other) = (open(&folder).await, open(&folder).await);
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel();
    // It stands still while it decides, with the turn in its hands, as a process does that is stopped there.
    let stands_still = Entry {
        decide: Box::new(move |_| {
            begun.send(()).unwrap();
            may_go_on.recv().unwrap();
            Decided::default()
        }),
        ..note("stopped")
    };
    let standing = tokio::spawn({
        let stopped = stopped.clone();
        async move { stopped.submit(stands_still).await }
    });
    has_begun.await.unwrap();
    let noted = timeout(PATIENCE, other.submit(note("other"))).await;
    assert_eq!(noted.expect("it waits for one that is stopped").unwrap().outcome, Outcome::Done);

    go_on.send(()).unwrap();
    assert_eq!(standing.await.unwrap(), Err(SubmitError::Unavailable), "its turn was over");
    assert_eq!(stopped.submit(note("stopped")).await.unwrap().outcome, Outcome::Done, "and nothing of it was written");
}

/// The service's tables beside the journal's, as one that drives sagas has them: with an index.
static LOANS: Table = Table {
    name: "loans",
    columns: &["id", "due"],
    key: 1,
    fixed: &[],
    create: &[
        "CREATE TABLE IF NOT EXISTS loans (id TEXT NOT NULL PRIMARY KEY, due INTEGER NOT NULL) WITHOUT ROWID",
        "CREATE INDEX IF NOT EXISTS loans_by_due ON loans (due)",
    ],
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_only_read_and_write_opens_what_its_owner_made() {
    let Some(schema) = Schema::new() else { return };
    let name = &schema.name;
    let role = format!("{name}_clerk");
    // It is another's session that has the clerk's rights, so the clerk needs no password.
    let and = if schema.url.contains('?') { '&' } else { '?' };
    let url = format!("{}{and}options=-c%20role%3D{role}", schema.url);
    let clerk = Location::Postgres { url, schema: name.clone() };
    let owner = Location::Postgres { url: schema.url.clone(), schema: name.clone() };

    drop(Journal::open(owner.clone(), &[]).await.unwrap());
    let mut session = schema.connect().await;
    let grant = format!(
        "CREATE ROLE {role};
        GRANT USAGE ON SCHEMA {name} TO {role};
        ALTER DEFAULT PRIVILEGES IN SCHEMA {name} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role};
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO {role}"
    );
    sqlx::raw_sql(AssertSqlSafe(grant)).execute(&mut session).await.unwrap();
    let early = Journal::open(clerk.clone(), &[&LOANS]).await.expect_err("a table is missing").to_string();
    assert!(early.contains("permission denied"), "{early}");

    drop(Journal::open(owner, &[&LOANS]).await.unwrap());
    let journal = Journal::open(clerk, &[&LOANS]).await.unwrap();
    assert_eq!(journal.submit(note("clerk")).await.unwrap().outcome, Outcome::Done);
    let who = journal.reader().fetch("SELECT current_user::text", Vec::new()).await.unwrap();
    assert_eq!(who[0].text(0).unwrap(), role);
    journal.close();
    let revoke = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    sqlx::raw_sql(AssertSqlSafe(revoke)).execute(&mut session).await.unwrap();
}

/// A server takes no such text, and an index no such row: whoever is in the batch would be told each time that the database is out of
/// reach.
#[tokio::test]
async fn a_command_that_names_what_can_have_no_row_is_refused_alone() {
    static NOTE: Method = Method { name: "test.v1.NoteCommandService/Note", compensates: false };
    let folder = TempDir::new().unwrap();
    let journal = open(&folder).await;
    let side = CommandSide::new("test", journal.clone());
    let command = async |request: &str, id: String, metadata: MetadataMap| {
        let accepted = side.accept(&NOTE, &metadata, &(), request, Violations::default()).await.unwrap();
        side.submit(accepted, vec![AggregateId::new("note", id)], |_: &State<'_>| Ok(Decision::reply(()))).await
    };
    let unrelated = (0..4096_u32).map(|at| char::from_u32(0x4e00 + at * 7919 % 20_000).unwrap()).collect::<String>();
    for (at, id) in ["a\0b".to_owned(), "a\nb".to_owned(), unrelated, "x".repeat(513)].into_iter().enumerate() {
        // One task, so that both wait when the committer looks.
        let (bad, good) = (format!("bad-{at}"), format!("good-{at}"));
        let (refused, done) = tokio::join!(
            command(&bad, id.clone(), MetadataMap::new()),
            command(&good, good.clone(), MetadataMap::new())
        );
        done.unwrap();
        let refused = refused.unwrap_err();
        assert_eq!((refused.code(), refused.message().contains("note")), (Code::InvalidArgument, true), "{refused}");
        // A saga's is told by a verdict that it can have no effect, and so the next time.
        let mut metadata = MetadataMap::new();
        for (key, value) in [("saga-id", &*bad), ("saga-type", "tour"), ("saga-step", "note"), ("saga-op", "action")] {
            metadata.insert(key, value.parse().unwrap());
        }
        for _ in 0..2 {
            let refused = command("", id.clone(), metadata.clone()).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
            assert_eq!(refused.metadata().get("saga-verdict").unwrap(), "rejected");
        }
    }
    command("longest", "x".repeat(512), MetadataMap::new()).await.unwrap();
}

#[tokio::test]
async fn a_way_that_loses_the_schema_is_refused_and_nothing_is_made_elsewhere() {
    let Some(schema) = Schema::new() else { return };
    let (linked, cut) = link::to(&schema).await;
    *cut.lock().unwrap() = Cut::Schemaless;
    let refused = Journal::open(linked, &[]).await.map(drop);
    let elsewhere = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'");
    assert_eq!(elsewhere.fetch_one(&mut schema.connect().await).await.unwrap(), 0);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("a pooler") && refused.contains("public") && !refused.contains('\n'), "{refused}");
}

/// As on a server where not everybody may make tables in `public`.
#[tokio::test]
async fn a_way_that_loses_the_schema_is_named_where_it_leads_to_one_in_which_nothing_may_be_made() {
    let Some(schema) = Schema::new() else { return };
    let role = format!("{}_owner", schema.name);
    let mut session = schema.connect().await;
    let database: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&mut session).await.unwrap();
    let grant = format!("CREATE ROLE {role}; GRANT CREATE ON DATABASE {database} TO {role}");
    sqlx::raw_sql(AssertSqlSafe(grant)).execute(&mut session).await.unwrap();
    let (linked, cut) = link::to(&schema).await;
    *cut.lock().unwrap() = Cut::Schemaless;
    let Location::Postgres { url, schema: name } = linked else { panic!("a server") };
    let url = format!("{url}&options=-c%20role%3D{role}");
    let refused = Journal::open(Location::Postgres { url, schema: name }, &[]).await.map(drop);
    let drop_role = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    sqlx::raw_sql(AssertSqlSafe(drop_role)).execute(&mut session).await.unwrap();
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("a pooler") && !refused.contains('\n'), "{refused}");
}

/// Makes the schema of a place beside a database, and answers its name.
async fn filled(place: &Beside, session: &mut PgConnection) -> String {
    let Location::Postgres { schema, .. } = place.location() else { panic!("a server") };
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).execute(session).await.unwrap();
    schema.clone()
}

/// How the session is that keeps a place, once it is in the midst of nothing. None where the server has ended it.
async fn rests(place: &str, session: &mut PgConnection) -> Option<String> {
    let state = "SELECT state FROM pg_stat_activity WHERE application_name = $1";
    let rests = async {
        loop {
            let name = format!("trellis {place}");
            let state = sqlx::query_scalar::<_, String>(state).bind(name).fetch_optional(&mut *session).await.unwrap();
            if !state.as_deref().is_some_and(|state| state == "active" || state.starts_with("idle in transaction")) {
                break state;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, rests).await.expect("an end")
}

/// Else the server ends the session that keeps it, as that of one who is stopped in its turn, and whoever comes next removes what is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_beside_a_database_is_kept_whatever_else_was_found_there() {
    let Some(schema) = Schema::new() else { return };
    let (name, role) = (&schema.name, format!("{}_clerk", schema.name));
    let mut session = schema.connect().await;
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE ROLE {role}"))).execute(&mut session).await.unwrap();
    let and = if schema.url.contains('?') { '&' } else { '?' };
    let owner = Location::Postgres { url: schema.url.clone(), schema: name.clone() };
    let url = format!("{}{and}options=-c%20role%3D{role}", schema.url);
    let clerk = Location::Postgres { url, schema: name.clone() };

    let first = Beside::make(&owner).await.unwrap();
    filled(&first, &mut session).await;
    // At work beside another.
    let second = Beside::make(&owner).await.unwrap();
    let second_name = filled(&second, &mut session).await;
    assert_eq!(rests(&second_name, &mut session).await.as_deref(), Some("idle"));
    first.remove().await.unwrap();
    second.remove().await.unwrap();
    // Beside what it may not remove.
    let left = format!("CREATE SCHEMA {name}_anew_left");
    sqlx::raw_sql(AssertSqlSafe(left)).execute(&mut session).await.unwrap();
    let third = Beside::make(&clerk).await.unwrap();
    let third_name = filled(&third, &mut session).await;
    assert_eq!(rests(&third_name, &mut session).await.as_deref(), Some("idle"));

    let fourth = Beside::make(&owner).await.unwrap();
    let there = "SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname, $1)";
    let there = sqlx::query_scalar::<_, String>(there).bind(format!("{name}_anew"));
    assert_eq!(there.fetch_all(&mut session).await.unwrap(), std::slice::from_ref(&third_name));
    fourth.remove().await.unwrap();
    drop(third);
    let drop_all = format!("DROP SCHEMA {third_name}; DROP ROLE {role}");
    sqlx::raw_sql(AssertSqlSafe(drop_all)).execute(&mut session).await.unwrap();
}
