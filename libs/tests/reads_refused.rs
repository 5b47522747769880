//! What is said of reads while PostgreSQL is out, or denies them. Runs where `TEST_POSTGRES` names a server.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod lines;
mod saga_world;
mod schema;
mod squeamish;

use std::time::{Duration, Instant};

use futures::{FutureExt as _, future::join_all};
use libs::{
    cqrs::{Aggregate, CommandSide, Log, Outbox, Projections, Views},
    journal::{Journal, Location},
    refusal::Refusal,
    saga::{Coordinator, Options, TABLES, testing::Participants},
};
use lines::Lines;
use proto::events::v1::{SubscribeRequest, event_service_server::EventService as _};
use saga_world::place_order;
use schema::{PATIENCE, Schema};
use sqlx::AssertSqlSafe;
use squeamish::{SEEN, Squeamish};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tonic::{Code, Request, metadata::MetadataMap};

/// How often each is asked for.
const TIMES: usize = 40;

enum Note {}

impl Aggregate for Note {
    const KIND: &'static str = "note";
    type State = ();
    type Event = ();

    fn evolve((): &mut (), (): &()) {}

    fn event_name((): &()) -> &'static str {
        "Noted"
    }
}

/// A schema as it is reached by a way, which is gone once that is aborted.
async fn by_a_way(schema: &Schema) -> (Location, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = listener.local_addr().unwrap();
    let (before, server) = schema.url.split_once('@').unwrap();
    let (server, name) = server.split_once('/').unwrap();
    let location =
        Location::Postgres { url: format!("{before}@{near}/{name}?sslmode=disable"), schema: schema.name.clone() };
    let server = server.to_owned();
    let way = async move {
        let mut carried = JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(&server).await.unwrap();
            carried.spawn(async move { copy_bidirectional(&mut near, &mut far).await });
        }
    };
    (location, tokio::spawn(way))
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn a_server_that_is_out_is_a_line_a_second_of_who_reads_and_nothing_is_called_damaged() {
    let Some(schema) = Schema::new() else { return };
    let (lines, _keeping) = Lines::keep();
    let (location, way) = by_a_way(&schema).await;
    let journal = Journal::open(&location, TABLES).await.unwrap();
    let projections = Projections::new().with(Squeamish::default());
    let views = Views::open(&location, Log::of(&journal), &projections).await.unwrap();
    let (read, side) = (views.read_side("test", Duration::ZERO), CommandSide::new("test", journal.clone()));
    let outbox = Outbox::new("test", Log::of(&journal));
    let coordinator =
        Coordinator::new(journal.clone(), [place_order()], Participants::new(), Options::default()).unwrap();

    way.abort();
    assert!(way.await.unwrap_err().is_cancelled());
    let began = Instant::now();
    let subscribe = async || outbox.subscribe(Request::new(SubscribeRequest::default())).await.map(drop);
    let stamp = async || side.stamp(&mut MetadataMap::new()).await;
    let asked = join_all((0..TIMES).flat_map(|_| {
        [
            async { read.document::<i64>(&SEEN, "a").await.map(drop) }.boxed_local(),
            read.wait_for_position(1).boxed_local(),
            side.state::<Note>("a").boxed_local(),
            stamp().boxed_local(),
            async { subscribe().await.map_err(|status| Refusal::from_status(&status)) }.boxed_local(),
            async { coordinator.finished("a").await.map(drop) }.boxed_local(),
        ]
    }));
    for answer in timeout(PATIENCE, asked).await.expect("they are answered") {
        let refusal = answer.unwrap_err();
        assert_eq!((refusal.code, &*refusal.reason), (Code::Unavailable, "DATABASE_UNAVAILABLE"));
    }
    let seconds = began.elapsed().as_secs() as usize;
    let errors = lines.that_say("ERROR");
    assert!(errors.is_empty(), "{} errors, such as {}", errors.len(), errors[0]);
    let told = lines.that_say("the database can't be read now");
    let most = 4 * (seconds + 1);
    assert!((4..=most).contains(&told.len()), "4 who read, {seconds} s: {told:?}");
    assert!(told.iter().all(|line| line.starts_with("WARN") && line.contains("reads=")), "{told:?}");
    for what in ["what=\"the log\"", "what=\"a saga\""] {
        assert!(told.iter().any(|line| line.contains(what)), "{what}: {told:?}");
    }
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn a_right_that_was_taken_away_is_an_error_that_says_what_a_person_does() {
    let Some(schema) = Schema::new() else { return };
    let (lines, _keeping) = Lines::keep();
    let (name, journal) = (&schema.name, schema.open().await);
    let projections = Projections::new().with(Squeamish::default());
    Views::make(&journal.location().views(), &projections).await.unwrap();
    let role = format!("{name}_clerk");
    let mut session = schema.connect().await;
    let mut does = async |sql: String| sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut session).await.map(drop).unwrap();
    does(format!(
        "CREATE ROLE {role}; GRANT USAGE ON SCHEMA {name} TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO {role}"
    ))
    .await;
    // It is another's session that has the clerk's rights, so the clerk needs no password.
    let and = if schema.url.contains('?') { '&' } else { '?' };
    let url = format!("{}{and}options=-c%20role%3D{role}", schema.url);
    let views = Location::Postgres { url, schema: name.clone() }.views();
    let read = Views::open(views, Log::of(&journal), &projections).await.unwrap().read_side("test", Duration::ZERO);
    read.document::<i64>(&SEEN, "a").await.unwrap();
    does(format!("REVOKE SELECT ON seen FROM {role}")).await;
    let refusal = read.document::<i64>(&SEEN, "a").await.unwrap_err();
    assert_eq!((refusal.code, &*refusal.reason), (Code::Unavailable, "DATABASE_UNAVAILABLE"));
    does(format!("GRANT SELECT ON seen TO {role}")).await;
    read.document::<i64>(&SEEN, "a").await.expect("it goes on by itself");
    does(format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    let told = lines.that_say("the database can't be read");
    let says = ["ERROR", "what=\"seen\"", "permission denied", "reads=1", "grant"];
    assert!(told.len() == 1 && says.iter().all(|said| told[0].contains(said)), "{told:?}");
}
