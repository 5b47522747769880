//! How views that were made anew take the place of those that are read.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod link;
mod schema;
mod squeamish;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _};
use libs::{
    breaker::Registry,
    cqrs::{Board, Log, Outbox, Outgoing, Projection, ProjectionError, Projections, ReadSide, Views},
    journal::{
        self as events, Journal, Location, Row, Table,
        sql::{Transaction, Value},
        store,
    },
    refusal::Refusal,
    rpc::client::{PeerOptions, Peers},
};
use link::Cut;
use prost::Message as _;
use proto::{
    events::v1::{
        Event, SubscribeRequest, SubscribeResponse,
        event_service_server::{EventService, EventServiceServer},
    },
    projections::v1::{
        RebuildProjectionsRequest, RebuildProjectionsResponse,
        projection_command_service_server::ProjectionCommandService as _,
    },
};
use schema::{PATIENCE, Schema, change, note};
use sqlx::{AssertSqlSafe, PgConnection};
use squeamish::{SEEN, Squeamish};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, transport::Server};

/// Less than a statement may wait for a lock.
const SOON: Duration = Duration::from_secs(8);

/// Views that run, over the events of `source`.
struct Running {
    read: ReadSide,
    board: Board,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(location: Location, log: Log, projections: &Projections) -> Self {
        let views = Views::open(location, log, projections).await.unwrap();
        let (read, board) = (views.read_side("test", PATIENCE), Board::default());
        views.show_on(&board, "source");
        Self { read, board, task: tokio::spawn(async { views.run().await.unwrap() }) }
    }

    async fn count(location: Location, log: Log) -> Self {
        Self::start(location, log, &Projections::new().with(Squeamish::default())).await
    }

    /// Has the views made anew. What was told of it last comes when it has ended.
    async fn anew(&self) -> JoinHandle<Result<Vec<RebuildProjectionsResponse>, Status>> {
        let request = Request::new(RebuildProjectionsRequest { source: "source".to_owned() });
        let told = self.board.service("test").rebuild_projections(request).await.unwrap().into_inner();
        tokio::spawn(async { timeout(PATIENCE, told.try_collect()).await.expect("it has no end") })
    }

    /// Waits until they have come so far, and answers what they count of `a`.
    async fn at(&self, position: i64) -> i64 {
        let comes = timeout(SOON, self.read.wait_for_position(position)).await;
        comes.unwrap_or_else(|_| panic!("the views stand still before {position}")).unwrap();
        let read = timeout(SOON, self.read.document(&SEEN, "a")).await;
        read.expect("queries are answered").unwrap().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits until the server says that it is so.
async fn until(session: &mut PgConnection, so: &str) {
    let sql = format!("SELECT {so}");
    let is_so = async {
        while !sqlx::query_scalar::<_, bool>(AssertSqlSafe(&*sql)).fetch_one(&mut *session).await.unwrap() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, is_so).await.unwrap_or_else(|_| panic!("it never came to {so}"));
}

async fn run(session: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(session).await.unwrap();
}

/// A view whose last column holds a number, or in the program's next version a text.
struct Numbered<const TEXT: bool>;

static NUMBERED: [Table; 2] = [
    Table {
        name: "seen",
        create: &["CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, position INTEGER, document BLOB, n INTEGER)"],
        columns: &["id", "position", "document", "n"],
        key: 1,
        fixed: &[],
    },
    Table {
        name: "seen",
        create: &["CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, position INTEGER, document BLOB, n TEXT)"],
        columns: &["id", "position", "document", "n"],
        key: 1,
        fixed: &[],
    },
];

impl<const TEXT: bool> Projection for Numbered<TEXT> {
    const NAME: &'static str = "numbered";
    const TABLES: &'static [&'static Table] = &[&NUMBERED[TEXT as usize]];

    async fn project(
        &self,
        events: &[events::Event],
        transaction: &mut Transaction<'_>,
    ) -> Result<(), ProjectionError> {
        let n = |position: i64| if TEXT { Value::from(position.to_string()) } else { position.into() };
        let rows = events.iter().map(|event| {
            let document = event.position.encode_to_vec();
            let values = vec![(*event.id).into(), event.position.into(), document.into(), n(event.position)];
            Row { table: Self::TABLES[0], values }
        });
        Ok(transaction.upsert(rows.collect()).await?)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_one_of_whose_columns_is_of_another_type_since_is_read_on() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    journal.submit(note("a")).await.unwrap();
    let location = journal.location().views();
    let older = Projections::new().with(Numbered::<false>);
    Views::open(&location, Log::of(&journal), &older).await.unwrap().catch_up(|_, _| {}).await.unwrap();
    let newer = Projections::new().with(Numbered::<true>);
    let running = Running::start(location.clone(), Log::of(&journal), &newer).await;
    let read = async || running.read.document::<i64>(&NUMBERED[1], "a").await;
    assert_eq!(read().await.unwrap(), Some(1));
    let other = Views::open(&location, Log::of(&journal), &newer).await.unwrap();
    other.rebuild(|_, _| {}).await.unwrap();
    assert_eq!(read().await.unwrap(), Some(1));
    // Nor is it a reason not to fold.
    journal.submit(change("a")).await.unwrap();
    running.read.wait_for_position(2).await.unwrap();
    assert_eq!(read().await.unwrap(), Some(2));
}

/// As `pg_dump` does, or a transaction that somebody has left open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_the_old_views_on_holds_up_no_query_and_the_new_ones_take_their_place_afterwards() {
    const TRIED: &str = "EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'seen'::regclass)";
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    let running = Running::count(journal.location().views(), Log::of(&journal)).await;
    journal.submit(note("a")).await.unwrap();
    assert_eq!(running.at(1).await, 1);
    let (mut reader, mut session) = (schema.connect().await, schema.connect().await);
    run(&mut reader, "BEGIN; SELECT count(*) FROM seen").await;
    let told = running.anew().await;
    for position in 2..4 {
        until(&mut session, TRIED).await;
        journal.submit(change("a")).await.unwrap();
        assert_eq!(running.at(position).await, position);
        until(&mut session, &format!("NOT {TRIED}")).await;
    }
    run(&mut reader, "COMMIT").await;
    told.await.unwrap().expect("they are made anew");
    journal.submit(change("a")).await.unwrap();
    assert_eq!(running.at(4).await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_what_a_killed_process_left_does_not_keep_views_from_being_made_anew() {
    let Some(schema) = Schema::new() else { return };
    let journal = schema.open().await;
    let running = Running::count(journal.location().views(), Log::of(&journal)).await;
    let (mut reader, left) = (schema.connect().await, format!("{}_anew_left", schema.name));
    run(&mut reader, &format!("CREATE SCHEMA {left}; CREATE TABLE {left}.seen (id TEXT)")).await;
    run(&mut reader, &format!("BEGIN; SELECT FROM {left}.seen")).await;
    running.anew().await.await.unwrap().expect("they are made anew");
    run(&mut reader, &format!("COMMIT; DROP SCHEMA {left} CASCADE")).await;
}

/// A vacuum makes way only to who has waited for so long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_puts_new_views_in_place_waits_for_longer_than_it_takes_to_be_looked_at_for_a_deadlock() {
    let Some(schema) = Schema::new() else { return };
    let place = |name: String| Location::Postgres { url: schema.url.clone(), schema: name };
    let (here, beside) = (place(schema.name.clone()), place(format!("{}_anew", schema.name)));
    let statements = store::replacing(&SEEN, &here, &beside);
    let mut session = schema.connect().await;
    // As the server has it, and as somebody may have set it.
    for set in ["", "SET LOCAL deadlock_timeout = '3s'"] {
        run(&mut session, &format!("BEGIN; {set}; {}", statements[0])).await;
        let settings = "SELECT current_setting('lock_timeout'), current_setting('deadlock_timeout'),
            current_setting('lock_timeout')::interval > current_setting('deadlock_timeout')::interval";
        let (waits, looked_at, longer): (String, String, bool) =
            sqlx::query_as(settings).fetch_one(&mut session).await.unwrap();
        assert!(longer, "it waits for {waits}, and is looked at after {looked_at}");
        run(&mut session, "ROLLBACK").await;
    }
}

/// As [`Squeamish`], but who folds the first event waits until it may.
struct Held {
    begun: Arc<AtomicUsize>,
    may: Arc<Semaphore>,
}

impl Projection for Held {
    const NAME: &'static str = "held";
    const TABLES: &'static [&'static Table] = &[&SEEN];

    async fn project(
        &self,
        events: &[events::Event],
        transaction: &mut Transaction<'_>,
    ) -> Result<(), ProjectionError> {
        if events.iter().any(|event| event.position == 1) {
            self.begun.fetch_add(1, Ordering::SeqCst);
            drop(self.may.acquire().await.unwrap());
        }
        Squeamish::default().project(events, transaction).await
    }
}

/// Views that are being made anew, for as long as they may not go on: how often they were begun, what lets them go on, and what is told.
struct Making {
    /// Views end with their log.
    _journal: Journal,
    running: Running,
    begun: Arc<AtomicUsize>,
    may: Arc<Semaphore>,
    told: JoinHandle<Result<Vec<RebuildProjectionsResponse>, Status>>,
}

impl Making {
    async fn begin(folder: &TempDir) -> Self {
        let journal = Journal::open(database::location(folder.path(), "source"), &[]).await.unwrap();
        let (begun, may) = (Arc::<AtomicUsize>::default(), Arc::new(Semaphore::new(1)));
        let held = Projections::new().with(Held { begun: Arc::clone(&begun), may: Arc::clone(&may) });
        let running = Running::start(journal.location().views(), Log::of(&journal), &held).await;
        journal.submit(note("a")).await.unwrap();
        assert_eq!(running.at(1).await, 1);
        may.acquire().await.unwrap().forget();
        let told = running.anew().await;
        let begins = async {
            while begun.load(Ordering::SeqCst) < 2 {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, begins).await.expect("they are made anew");
        Self { _journal: journal, running, begun, may, told }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_are_not_made_anew_once_more_for_who_has_left_before_it_is_begun() {
    let folder = TempDir::new().unwrap();
    let Making { _journal, running, begun, may, told } = Making::begin(&folder).await;
    let left = running.anew().await;
    left.abort();
    let _ = left.await;
    may.add_permits(1);
    told.await.unwrap().expect("they are made anew");
    // One comes after the other: whoever asks last is told when nothing is left to do.
    running.anew().await.await.unwrap().expect("they are made anew");
    assert_eq!(begun.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_views_made_anew_is_told_where_nobody_is_left_to_make_them() {
    let folder = TempDir::new().unwrap();
    let Making { _journal, running, may, told, .. } = Making::begin(&folder).await;
    running.task.abort();
    may.add_permits(1);
    let error = told.await.unwrap().expect_err("nobody knows");
    assert_eq!((error.code(), &*Refusal::from_status(&error).reason), (Code::Aborted, "REBUILD_FAILED"));
}

/// A service that is out once somebody makes views of it anew, but for who follows it already.
struct Leaving {
    outbox: Outbox,
    asked: Arc<AtomicUsize>,
    is_out: Arc<AtomicBool>,
    may: Arc<Semaphore>,
}

#[tonic::async_trait]
impl EventService for Leaving {
    type SubscribeStream = Outgoing<SubscribeResponse>;

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        if self.asked.fetch_add(1, Ordering::SeqCst) == 1 {
            let event = |position| Event { position, kind: "note".to_owned(), id: "a".to_owned(), ..Event::default() };
            let events = (1..=2).map(event).collect();
            let stretch = SubscribeResponse { after_position: 0, events, position: 2, head: 2 };
            self.may.acquire().await.unwrap().forget();
            return Ok(Response::new(futures::stream::iter([Ok(stretch)]).chain(futures::stream::pending()).boxed()));
        }
        if self.is_out.load(Ordering::SeqCst) {
            return Err(Status::unavailable("it is stopped"));
        }
        self.outbox.subscribe(request).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_out_once_views_of_it_are_made_anew_holds_up_none_that_follow() {
    let folder = TempDir::new().unwrap();
    let journal = Journal::open(database::location(folder.path(), "source"), &[]).await.unwrap();
    let (asked, is_out, may) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default(), Semaphore::new(0));
    let may = Arc::new(may);
    let outbox = Outbox::new("source", Log::of(&journal));
    let leaving = Leaving { outbox, asked: Arc::clone(&asked), is_out: Arc::clone(&is_out), may: Arc::clone(&may) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder().add_service(EventServiceServer::new(leaving));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let peers = Peers::new(Registry::new(), &[("source", &*uri)], Vec::new()).unwrap();
    let peer = peers.connect_with("source", &PeerOptions::stream()).unwrap();
    let log = Log::of_service(peer, &["note"]);
    let running = Running::count(database::location(folder.path(), "views"), log).await;
    let come = async |times: usize| {
        let come = async {
            while asked.load(Ordering::SeqCst) < times {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, come).await.unwrap_or_else(|_| panic!("it is not asked {times} times"));
    };

    journal.submit(note("a")).await.unwrap();
    journal.submit(change("a")).await.unwrap();
    assert_eq!(running.at(2).await, 2);
    let told = running.anew().await;
    come(2).await;
    journal.submit(change("a")).await.unwrap();
    assert_eq!(running.at(3).await, 3);
    is_out.store(true, Ordering::SeqCst);
    may.add_permits(1);
    // The new ones lack the last one.
    come(3).await;
    journal.submit(change("a")).await.unwrap();
    assert_eq!(running.at(4).await, 4);
    is_out.store(false, Ordering::SeqCst);
    told.await.unwrap().expect("they are made anew");
    journal.submit(change("a")).await.unwrap();
    assert_eq!(running.at(5).await, 5);
}

/// A large row for each event.
struct Large;

static LARGE: Table = Table {
    name: "large",
    create: &["CREATE TABLE IF NOT EXISTS large (position INTEGER NOT NULL PRIMARY KEY, document BLOB)"],
    columns: &["position", "document"],
    key: 1,
    fixed: &[],
};

impl Projection for Large {
    const NAME: &'static str = "large";
    const TABLES: &'static [&'static Table] = &[&LARGE];

    async fn project(
        &self,
        events: &[events::Event],
        transaction: &mut Transaction<'_>,
    ) -> Result<(), ProjectionError> {
        let values = |event: &events::Event| vec![event.position.into(), vec![7; 1 << 20].into()];
        let rows = events.iter().map(|event| Row { table: &LARGE, values: values(event) });
        Ok(transaction.upsert(rows.collect()).await?)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_room_it_took_in_a_file_to_make_views_anew_is_there_again() {
    let folder = TempDir::new().unwrap();
    let journal = Journal::open(&folder.path().join("test.db"), &[]).await.unwrap();
    let views = folder.path().join("views.db");
    let running = Running::start((&views).into(), Log::of(&journal), &Projections::new().with(Large)).await;
    for key in 0..24 {
        journal.submit(note(&key.to_string())).await.unwrap();
    }
    running.read.wait_for_position(24).await.unwrap();
    running.anew().await.await.unwrap().expect("they are made anew");
    let left = std::fs::metadata(folder.path().join("views.db-wal")).unwrap().len();
    assert!(left < 1 << 20, "{left} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whether_views_are_made_anew_is_not_known_where_the_last_answer_does_not_come() {
    let Some(schema) = Schema::new() else { return };
    let (journal, (linked, cut)) = (schema.open().await, link::to(&schema).await);
    let running = Running::count(linked.views(), Log::of(&journal)).await;
    journal.submit(note("a")).await.unwrap();
    assert_eq!(running.at(1).await, 1);
    // Whoever puts them in place waits for a turn.
    let (mut other, mut session) = (schema.connect().await, schema.connect().await);
    let key = format!("hashtextextended('trellis/{}/views', 0)", schema.name);
    run(&mut other, &format!("SELECT pg_advisory_lock({key})")).await;
    let told = running.anew().await;
    let waits = format!(
        "EXISTS (SELECT FROM pg_locks
            WHERE locktype = 'advisory' AND NOT granted AND objid::bigint = ({key} & 4294967295))"
    );
    until(&mut session, &waits).await;
    *cut.lock().unwrap() = Cut::Silent("COMMIT");
    run(&mut other, &format!("SELECT pg_advisory_unlock({key})")).await;
    let error = told.await.unwrap().expect_err("there is no answer");
    assert!(error.message().starts_with("it is not known whether the views were made anew"), "{error:?}");
    journal.submit(change("a")).await.unwrap();
    timeout(PATIENCE, running.read.wait_for_position(2)).await.expect("they go on").unwrap();
}
