//! What queries are answered from: the views, whatever became of what commands write.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod saga_world;

use futures::TryStreamExt as _;
use libs::{
    cqrs::{Board, Log, Projections, Views},
    journal::{Journal, Location},
    saga::{Options, SagaQueries, SagasView, TABLES, testing::Participants},
};
use proto::{
    projections::v1::{ListProjectionsRequest, projection_query_service_server::ProjectionQueryService as _},
    saga::v1::{
        GetSagaRequest, ListSagasRequest, SagaPhase, WatchSagasRequest,
        saga_query_service_server::SagaQueryService as _,
    },
};
use saga_world::{PATIENCE, Process, place_order};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::Request;

/// The tables that commands write, as long as nothing else is in the database.
async fn tables(location: &Location) -> Vec<String> {
    match location {
        Location::Sqlite(path) => {
            let file = rusqlite::Connection::open(path).unwrap();
            let mut names = file.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").unwrap();
            names.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
        }
        Location::Postgres { url, schema } => {
            let mut server = PgConnection::connect(url).await.unwrap();
            let names = "SELECT tablename::text FROM pg_tables WHERE schemaname = $1";
            sqlx::query_scalar(names).bind(schema).fetch_all(&mut server).await.unwrap()
        }
    }
}

async fn drop_all(tables: &[String], location: &Location) {
    for table in tables {
        match location {
            Location::Sqlite(path) => {
                let file = rusqlite::Connection::open(path).unwrap();
                file.execute_batch(&format!("DROP TABLE {table}")).unwrap();
            }
            Location::Postgres { url, schema } => {
                let mut server = PgConnection::connect(url).await.unwrap();
                server.execute(AssertSqlSafe(format!("DROP TABLE {schema}.{table} CASCADE"))).await.unwrap();
            }
        }
    }
}

/// The same request, with the token of a command.
fn after<T>(position: i64, request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("consistency-token", format!("order:{position:x}").parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_are_answered_though_what_commands_write_is_gone() {
    let folder = TempDir::new().unwrap();
    let journal = Journal::open(database::location(folder.path(), "order"), TABLES).await.unwrap();
    let written = tables(journal.location()).await;
    assert!(["events", "aggregates", "requests"].iter().all(|table| written.iter().any(|name| name == table)));
    let process = Process::on(journal.clone(), vec![place_order()], Participants::new(), Options::default());
    process.run("tea").await;
    let projections = Projections::new().with(SagasView);
    let views = Views::open(journal.location().views(), Log::of(&journal), &projections).await.unwrap();
    let (read, board) = (views.read_side("order", PATIENCE), Board::default());
    views.show_on(&board, "order");
    let following = tokio::spawn(views.run());
    let head = *journal.head().borrow();
    read.wait_for_position(head).await.unwrap();
    // Who folds reads the log. Who is asked does not.
    following.abort();
    let _ = following.await;
    process.crash().await;
    drop_all(&written, journal.location()).await;

    let queries = SagaQueries::new(read.clone(), [place_order()]).unwrap();
    let asked = async {
        let request = GetSagaRequest { saga_id: "tea".to_owned() };
        let one = queries.get_saga(after(head, request)).await.unwrap().into_inner().saga.unwrap();
        let listed = queries.list_sagas(after(head, ListSagasRequest::default())).await.unwrap().into_inner().sagas;
        let request = WatchSagasRequest { saga_id: "tea".to_owned(), after_position: 0 };
        let watched = queries.watch_sagas(after(head, request)).await.unwrap().into_inner();
        let watched: Vec<_> = watched.try_collect().await.unwrap();
        let last = watched.into_iter().next_back().unwrap().saga.unwrap();
        let phases = [one.phase(), listed[0].phase(), last.phase()];
        assert_eq!(phases, [SagaPhase::Completed; 3]);
        let stand = board.service("order").list_projections(Request::new(ListProjectionsRequest {})).await;
        assert_eq!(stand.unwrap().into_inner().projections[0].position, head);
    };
    timeout(PATIENCE, asked).await.expect("they are answered");
}
