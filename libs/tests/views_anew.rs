//! Views that several processes make anew at once on the PostgreSQL that `TEST_POSTGRES` names.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod link;
mod schema;
mod squeamish;

use std::{
    sync::{Arc, atomic::Ordering, mpsc},
    time::Duration,
};

use futures::StreamExt as _;
use libs::{
    cli::{DatabaseUrl, Store},
    cqrs::{Board, Log, Projection, ProjectionError, Projections, Views},
    journal::{Event, Journal, Location, Outcome, Row, Table, sql::Transaction, store},
    service::Stores,
};
use link::Cut;
use proto::projections::v1::{
    ListProjectionsRequest, RebuildProjectionsRequest,
    projection_command_service_server::ProjectionCommandService as _,
    projection_query_service_server::ProjectionQueryService as _,
};
use schema::{PATIENCE, Schema, change, note, noted};
use sqlx::{AssertSqlSafe, Row as _};
use squeamish::Squeamish;
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::{AbortHandle, block_in_place},
    time::timeout,
};
use tonic::Request;

/// A row for each event.
static SEEN: Table = Table {
    name: "seen",
    create: &["CREATE TABLE IF NOT EXISTS seen (position INTEGER NOT NULL PRIMARY KEY, id TEXT)"],
    columns: &["position", "id"],
    key: 1,
    fixed: &[],
};

/// How often somebody began to fold, and how often they may go on.
#[derive(Clone)]
struct Gate {
    began: Arc<Semaphore>,
    may: Arc<Semaphore>,
}

impl Gate {
    fn new(may: usize) -> Self {
        Self { began: Arc::new(Semaphore::new(0)), may: Arc::new(Semaphore::new(may)) }
    }

    async fn begun(&self) {
        timeout(PATIENCE, self.began.acquire()).await.unwrap().unwrap().forget();
    }
}

struct Seen(Gate);

impl Projection for Seen {
    const NAME: &'static str = "seen";
    const TABLES: &'static [&'static Table] = &[&SEEN];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        self.0.began.add_permits(1);
        drop(self.0.may.acquire().await.unwrap());
        let rows =
            events.iter().map(|event| Row { table: &SEEN, values: vec![event.position.into(), (*event.id).into()] });
        Ok(transaction.upsert(rows.collect()).await?)
    }
}

async fn open(journal: &Journal, gate: &Gate) -> Views {
    let projections = Projections::new().with(Seen(gate.clone()));
    Views::open(journal.location().views(), Log::of(journal), &projections).await.unwrap()
}

async fn seen(journal: &Journal) -> i64 {
    let reader = store::readers(&journal.location().views(), 1).unwrap();
    reader.fetch("SELECT COUNT(*) FROM seen", Vec::new()).await.unwrap()[0].int(0).unwrap()
}

/// The schemas beside a test's own.
async fn beside(schema: &Schema) -> Vec<String> {
    let found = sqlx::query("SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname, $1)");
    let found = found.bind(format!("{}_anew", schema.name)).fetch_all(&mut schema.connect().await).await.unwrap();
    found.iter().map(|row| row.get(0)).collect()
}

/// Waits until nobody is at work in a schema.
async fn deserted(schema: &Schema, name: &str) {
    let mut connection = schema.connect().await;
    let application = format!("trellis {name}");
    let count = async || {
        let sql = "SELECT COUNT(*) FROM pg_stat_activity WHERE application_name = $1";
        sqlx::query(sql).bind(&application).fetch_one(&mut connection).await.unwrap().get::<i64, _>(0)
    };
    let mut count = count;
    timeout(PATIENCE, async { while count().await > 0 {} }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_make_the_same_views_anew_at_once_are_not_in_each_others_way() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    for at in 0..20 {
        assert_eq!(journal.submit(note(&format!("note {at}"))).await.unwrap().outcome, Outcome::Done);
    }
    open(&journal, &Gate::new(1)).await.catch_up(|_, _| {}).await.unwrap();
    assert_eq!(seen(&journal).await, 20);

    // One that was killed has left its tables.
    let shut = Gate::new(0);
    let killed = tokio::spawn(open(&journal, &shut).await.rebuild(|_, _| {}));
    shut.begun().await;
    killed.abort();
    assert!(killed.await.unwrap_err().is_cancelled());
    let abandoned = beside(&schema).await;
    assert_eq!(abandoned.len(), 1);
    deserted(&schema, &abandoned[0]).await;

    // The second begins when the first has folded all and is about to put it in place.
    let ((tell, folded), (go, may)) = (mpsc::channel(), mpsc::channel::<()>());
    let first = open(&journal, &Gate::new(1)).await.rebuild(move |_, _| {
        block_in_place(|| {
            // Nobody listens any more once it is in place.
            let _ = tell.send(());
            let _ = may.recv();
        });
    });
    let first = tokio::spawn(first);
    block_in_place(|| folded.recv_timeout(PATIENCE)).unwrap();
    let second = tokio::spawn(open(&journal, &shut).await.rebuild(|_, _| {}));
    shut.begun().await;
    drop((go, folded));
    timeout(PATIENCE, first).await.unwrap().unwrap().unwrap();
    assert_eq!(seen(&journal).await, 20, "the first one's");

    // A third comes and goes.
    open(&journal, &Gate::new(1)).await.rebuild(|_, _| {}).await.unwrap();
    shut.may.add_permits(1);
    timeout(PATIENCE, second).await.unwrap().unwrap().unwrap();
    assert_eq!(seen(&journal).await, 20, "the second one's");
    assert_eq!(beside(&schema).await, [""; 0], "nothing is left, of the one that was killed neither");
}

/// As where a server takes over that had not come so far.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_made_anew_whose_last_fold_is_lost_take_nobodys_place() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    for key in ["first", "second", "third"] {
        journal.submit(note(key)).await.unwrap();
    }
    open(&journal, &Gate::new(1)).await.catch_up(|_, _| {}).await.unwrap();
    let lose = async || {
        for anew in beside(&schema).await {
            let sql = format!(
                "DELETE FROM {anew}.seen WHERE position > 1;
                UPDATE {anew}.checkpoints SET position = 1"
            );
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut schema.connect().await).await.unwrap();
        }
    };
    let lost =
        open(&journal, &Gate::new(1)).await.rebuild(|_, _| block_in_place(|| Handle::current().block_on(lose())));
    let error = lost.await.expect_err("there is less than was made").to_string();
    assert!(error.contains("has lost the last of them; make them anew once more"), "{error}");
    assert_eq!(seen(&journal).await, 3, "they are as they were");
    assert_eq!(beside(&schema).await, [""; 0]);
    open(&journal, &Gate::new(1)).await.rebuild(|_, _| {}).await.unwrap();
    assert_eq!(seen(&journal).await, 3);
}

/// Views of a process of its own that follow, where they are shown, and what ends them.
async fn run(journal: &Journal, mended: bool) -> (Board, AbortHandle) {
    run_at(journal.location().views(), journal, mended).await
}

/// The same, where that is reached in another way.
async fn run_at(views: Location, journal: &Journal, mended: bool) -> (Board, AbortHandle) {
    let squeamish = Squeamish::default();
    squeamish.mended.store(mended, Ordering::SeqCst);
    let (projections, board) = (Projections::new().with(squeamish), Board::default());
    let views = Views::open(views, Log::of(journal), &projections).await.unwrap();
    views.show_on(&board, "test");
    (board, tokio::spawn(async { views.run().await.unwrap() }).abort_handle())
}

/// Waits until a projection stands at a position, parked or not.
async fn stands(board: &Board, position: i64, parked: bool) {
    let service = board.service("test");
    let stands = async {
        loop {
            let all = service.list_projections(Request::new(ListProjectionsRequest {})).await.unwrap().into_inner();
            if all.projections[0].position == position && all.projections[0].parked.is_some() == parked {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, stands).await.unwrap_or_else(|_| panic!("at {position}, parked: {parked}; it is {board:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_projection_goes_on_once_another_process_has_passed_its_event_or_made_the_views_anew() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    for key in ["a", "poison", "b"] {
        journal.submit(note(key)).await.unwrap();
    }
    let (board, _) = run(&journal, false).await;
    stands(&board, 1, true).await;
    let another = schema.open().await;
    let (other, end) = run(&another, true).await;
    stands(&other, 3, false).await;
    stands(&board, 3, false).await;

    end.abort();
    journal.submit(change("poison")).await.unwrap();
    stands(&board, 3, true).await;
    let squeamish = Squeamish::default();
    squeamish.mended.store(true, Ordering::SeqCst);
    let projections = Projections::new().with(squeamish);
    let views = Views::open(journal.location().views(), Log::of(&journal), &projections).await.unwrap();
    views.rebuild(|_, _| {}).await.unwrap();
    stands(&board, 4, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_only_read_and_write_goes_on_when_the_owner_has_made_the_views_anew() {
    let Some(schema) = Schema::new() else { return };
    let (name, journal) = (&schema.name, schema.open().await);
    let projections = || {
        let squeamish = Squeamish::default();
        squeamish.mended.store(true, Ordering::SeqCst);
        Projections::new().with(squeamish)
    };
    Views::make(&journal.location().views(), &projections()).await.unwrap();
    let role = format!("{name}_clerk");
    let grant = format!(
        "CREATE ROLE {role};
        GRANT USAGE ON SCHEMA {name} TO {role};
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO {role};
        GRANT SELECT ON seen TO PUBLIC"
    );
    let mut session = schema.connect().await;
    sqlx::raw_sql(AssertSqlSafe(grant)).execute(&mut session).await.unwrap();
    // It is another's session that has the clerk's rights, so the clerk needs no password.
    let and = if schema.url.contains('?') { '&' } else { '?' };
    let url = format!("{}{and}options=-c%20role%3D{role}", schema.url);
    let views = Location::Postgres { url, schema: name.clone() }.views();
    let (board, end) = run_at(views, &journal, true).await;
    journal.submit(note("a")).await.unwrap();
    stands(&board, 1, false).await;

    let views = Views::open(journal.location().views(), Log::of(&journal), &projections()).await.unwrap();
    views.rebuild(|_, _| {}).await.unwrap();
    journal.submit(note("b")).await.unwrap();
    stands(&board, 2, false).await;
    let public = "SELECT count(*) FROM pg_class, aclexplode(relacl) WHERE oid = 'seen'::regclass AND grantee = 0";
    assert_eq!(sqlx::query_scalar::<_, i64>(public).fetch_one(&mut session).await.unwrap(), 1);

    // A right that is taken away is nobody's poison: what was parked for want of it goes on by itself once it is there again.
    let change_rights = async |what: &str| {
        let mut session = schema.connect().await;
        sqlx::raw_sql(AssertSqlSafe(format!("{what} {role}"))).execute(&mut session).await.unwrap();
    };
    change_rights("REVOKE INSERT, UPDATE ON seen FROM").await;
    journal.submit(note("c")).await.unwrap();
    stands(&board, 2, true).await;
    change_rights("GRANT INSERT, UPDATE ON seen TO").await;
    stands(&board, 3, false).await;
    end.abort();
    let revoke = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    sqlx::raw_sql(AssertSqlSafe(revoke)).execute(&mut session).await.unwrap();
}

static APART: Table = Table {
    name: "apart",
    create: &["CREATE TABLE IF NOT EXISTS apart (position INTEGER NOT NULL PRIMARY KEY, id TEXT)"],
    ..SEEN
};

/// A row for each event, in a table that a later version has brought.
struct Apart;

impl Projection for Apart {
    const NAME: &'static str = "apart";
    const TABLES: &'static [&'static Table] = &[&APART];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let row = |event: &Event| Row { table: &APART, values: vec![event.position.into(), (*event.id).into()] };
        Ok(transaction.upsert(events.iter().map(row).collect()).await?)
    }
}

/// As where the owner has made a new version's tables, and whoever serves has no rights on them yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projection_that_may_not_write_its_table_holds_up_no_other_and_goes_on_once_it_may() {
    let Some(schema) = Schema::new() else { return };
    let (name, journal) = (&schema.name, schema.open().await);
    let projections = || Projections::new().with(Squeamish::default()).with(Apart);
    Views::make(&journal.location().views(), &projections()).await.unwrap();
    let role = format!("{name}_server");
    let rights = async |sql: String| {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut schema.connect().await).await.unwrap();
    };
    rights(format!(
        "CREATE ROLE {role};
        GRANT USAGE ON SCHEMA {name} TO {role};
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO {role};
        REVOKE ALL ON apart FROM {role}"
    ))
    .await;
    let and = if schema.url.contains('?') { '&' } else { '?' };
    let url = format!("{}{and}options=-c%20role%3D{role}", schema.url);
    let views = Location::Postgres { url, schema: name.clone() }.views();
    let views = Views::open(views, Log::of(&journal), &projections()).await.unwrap();
    let board = Board::default();
    views.show_on(&board, "test");
    let end = tokio::spawn(async { views.run().await.unwrap() }).abort_handle();
    let standing = async || {
        let request = Request::new(ListProjectionsRequest {});
        let all = board.service("test").list_projections(request).await.unwrap().into_inner().projections;
        all.into_iter().map(|one| (one.position, one.parked)).collect::<Vec<_>>()
    };

    for (position, key) in (1..).zip(["a", "b"]) {
        journal.submit(note(key)).await.unwrap();
        stands(&board, position, false).await;
    }
    let parked = standing().await[1].clone();
    let (0, Some(parked)) = parked else { panic!("it is {parked:?}") };
    assert_eq!(parked.position, 1);
    let why = parked.error;
    assert!(why.contains("permission denied for table apart") && why.contains("grant whoever serves"), "{why}");

    rights(format!("GRANT SELECT, INSERT, UPDATE ON apart TO {role}")).await;
    let goes_on = async {
        while standing().await[1] != (2, None) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, goes_on).await.unwrap();
    end.abort();
    rights(format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_read_or_write_some_columns_may_when_the_views_are_made_anew() {
    let Some(schema) = Schema::new() else { return };
    let (name, journal) = (&schema.name, schema.open().await);
    open(&journal, &Gate::new(1)).await.catch_up(|_, _| {}).await.unwrap();
    let (mut session, role) = (schema.connect().await, format!("{name}_clerk"));
    // A column that there is no more has no rights.
    let grant = format!(
        "CREATE ROLE {role};
        GRANT SELECT (id), UPDATE (position) ON seen TO {role};
        GRANT INSERT (id) ON seen TO {role} WITH GRANT OPTION;
        GRANT SELECT (position) ON seen TO PUBLIC;
        ALTER TABLE seen ADD COLUMN former TEXT;
        GRANT SELECT (former) ON seen TO {role}"
    );
    sqlx::raw_sql(AssertSqlSafe(grant)).execute(&mut session).await.unwrap();
    let rights = "SELECT attname || attacl::text FROM pg_attribute
        WHERE attrelid = 'seen'::regclass AND attacl IS NOT NULL AND attname <> 'former' ORDER BY attname";
    let before: Vec<String> = sqlx::query_scalar(rights).fetch_all(&mut session).await.unwrap();
    assert_eq!(before.len(), 2);
    open(&journal, &Gate::new(1)).await.rebuild(|_, _| {}).await.unwrap();
    let after: Vec<String> = sqlx::query_scalar(rights).fetch_all(&mut session).await.unwrap();
    assert_eq!(after, before);
    let revoke = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    sqlx::raw_sql(AssertSqlSafe(revoke)).execute(&mut session).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_whose_rows_are_not_for_everybody_are_not_replaced_by_those_whose_are() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    open(&journal, &Gate::new(1)).await.catch_up(|_, _| {}).await.unwrap();
    let mut session = schema.connect().await;
    let mut secure = async |whether: &str| {
        let sql = AssertSqlSafe(format!("ALTER TABLE seen {whether} ROW LEVEL SECURITY"));
        sqlx::raw_sql(sql).execute(&mut session).await.unwrap();
    };
    secure("ENABLE").await;
    let error = open(&journal, &Gate::new(1)).await.rebuild(|_, _| {}).await.expect_err("it is told").to_string();
    assert!(error.contains("are as they were") && error.contains("seen has row security"), "{error}");
    secure("DISABLE").await;
    open(&journal, &Gate::new(1)).await.rebuild(|_, _| {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_the_views_were_goes_on_when_somebody_else_has_made_them_anew() {
    let Some(schema) = Schema::new() else { return };
    let (name, journal) = (&schema.name, schema.open().await);
    let role = format!("{name}_clerk");
    let grant = format!(
        "CREATE ROLE {role};
        GRANT USAGE, CREATE ON SCHEMA {name} TO {role};
        GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO {role}"
    );
    let mut session = schema.connect().await;
    sqlx::raw_sql(AssertSqlSafe(grant)).execute(&mut session).await.unwrap();
    // They are the clerk's, and nothing is granted on them.
    let and = if schema.url.contains('?') { '&' } else { '?' };
    let url = format!("{}{and}options=-c%20role%3D{role}", schema.url);
    let views = Location::Postgres { url, schema: name.clone() }.views();
    let (board, end) = run_at(views, &journal, true).await;
    journal.submit(note("a")).await.unwrap();
    stands(&board, 1, false).await;

    let squeamish = Squeamish::default();
    squeamish.mended.store(true, Ordering::SeqCst);
    let projections = Projections::new().with(squeamish);
    let views = Views::open(journal.location().views(), Log::of(&journal), &projections).await.unwrap();
    views.rebuild(|_, _| {}).await.unwrap();
    journal.submit(note("b")).await.unwrap();
    stands(&board, 2, false).await;
    end.abort();
    let revoke = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    sqlx::raw_sql(AssertSqlSafe(revoke)).execute(&mut session).await.unwrap();
}

/// As where what is on the way drops the flow of a session that has said nothing for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_falls_silent_at_either_end_of_a_rebuild_holds_up_no_view() {
    let falls_silent = async |from: &'static str, within: Duration, is_left: bool| {
        let Some(schema) = Schema::new() else { return };
        let (journal, (linked, cut)) = (schema.open().await, link::to(&schema).await);
        if is_left && let Location::Postgres { schema: left, .. } = linked.anew("left") {
            let sql = AssertSqlSafe(format!("CREATE SCHEMA {left}"));
            sqlx::raw_sql(sql).execute(&mut schema.connect().await).await.unwrap();
        }
        let (board, _) = run_at(linked.views(), &journal, true).await;
        journal.submit(note("before")).await.unwrap();
        stands(&board, 1, false).await;
        *cut.lock().unwrap() = Cut::Silent(from);
        let request = Request::new(RebuildProjectionsRequest { source: "test".to_owned() });
        let told = board.service("test").rebuild_projections(request).await.unwrap().into_inner();
        let fell = async {
            while *cut.lock().unwrap() != Cut::Never {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, fell).await.expect("it comes to that");
        journal.submit(note("after")).await.unwrap();
        let stands = timeout(within, stands(&board, 2, false)).await;
        assert!(stands.is_ok(), "the views stand still since {from}");
        let told = timeout(PATIENCE, told.collect::<Vec<_>>()).await.expect("whoever asked is told");
        assert_eq!(told.last().unwrap().is_ok(), from == "DROP SCHEMA" && !is_left, "{told:?}");
    };
    // What goes on beside the views concerns none of them; for what puts the new ones in place they wait as for any statement.
    tokio::join!(
        falls_silent("DROP SCHEMA", Duration::from_secs(12), false),
        falls_silent("DROP SCHEMA", Duration::from_secs(12), true),
        falls_silent("pg_advisory_lock(", Duration::from_secs(12), false),
        falls_silent("ALTER TABLE", Duration::from_secs(30), false)
    );
}

/// One whose table has the name of the journal's.
struct Greedy;

static EVENTS: Table = Table {
    name: "events",
    create: &["CREATE TABLE IF NOT EXISTS events (position INTEGER NOT NULL PRIMARY KEY, id TEXT)"],
    ..SEEN
};

impl Projection for Greedy {
    const NAME: &'static str = "greedy";
    const TABLES: &'static [&'static Table] = &[&EVENTS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let rows =
            events.iter().map(|event| Row { table: &EVENTS, values: vec![event.position.into(), (*event.id).into()] });
        Ok(transaction.upsert(rows.collect()).await?)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_that_would_take_the_journals_place_are_not_opened_and_the_log_stays() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    journal.submit(note("a")).await.unwrap();
    let opened = Views::open(journal.location().views(), Log::of(&journal), &Projections::new().with(Greedy)).await;
    let refused = match opened {
        Ok(views) => views.rebuild(|_, _| {}).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    assert_eq!(noted(&journal).await, ["a"], "{refused:?}");
    let refused = refused.unwrap_err();
    assert!(refused.starts_with("events is the name of two tables") && !refused.contains('\n'), "{refused}");
}

/// What [`Seen`] is in the program's next version.
struct Wider;

static WIDER: Table = Table {
    name: "seen",
    create: &[
        "CREATE TABLE IF NOT EXISTS seen (position INTEGER NOT NULL PRIMARY KEY, id TEXT, kind TEXT)",
        "CREATE INDEX IF NOT EXISTS seen_by_kind ON seen (kind, position)",
    ],
    columns: &["position", "id", "kind"],
    ..SEEN
};

impl Projection for Wider {
    const NAME: &'static str = "seen";
    const TABLES: &'static [&'static Table] = &[&WIDER];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let row = |event: &Event| vec![event.position.into(), (*event.id).into(), (*event.kind).into()];
        let rows = events.iter().map(|event| Row { table: &WIDER, values: row(event) });
        Ok(transaction.upsert(rows.collect()).await?)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_programs_own_rebuild_makes_views_anew_whose_index_is_on_a_column_that_they_lack() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    for key in ["first", "second"] {
        journal.submit(note(key)).await.unwrap();
    }
    open(&journal, &Gate::new(1)).await.catch_up(|_, _| {}).await.unwrap();
    let service: &'static str = schema.name.clone().leak();
    let stores = || Stores { projections: Projections::new().with(Wider), ..Stores::default() };
    let kept = Store { database_url: DatabaseUrl::Postgres(schema.url.clone()) };
    let refused = stores().migrate(service, &kept).await.unwrap_err().to_string();
    stores().rebuild(service, &kept).await.unwrap();
    assert!(refused.contains("rebuild") && !refused.contains('\n'), "{refused}");
    journal.submit(note("third")).await.unwrap();
    stores().migrate(service, &kept).await.unwrap();
    let count = async |what: &str| {
        let count = format!("SELECT count(*) FROM {what}");
        sqlx::query_scalar::<_, i64>(AssertSqlSafe(count)).fetch_one(&mut schema.connect().await).await.unwrap()
    };
    assert_eq!(count("seen WHERE kind = 'note'").await, 3);
    assert_eq!(count(&format!("pg_indexes WHERE indexname = 'seen_by_kind' AND schemaname = '{service}'")).await, 1);
}
