//! Views over another service whose log is another one since a backup was put back: they can be made anew of the one that is there.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;
mod desk;
mod squeamish;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use desk::{Desk, made_anew};
use futures::StreamExt as _;
use libs::{
    breaker::Registry,
    cqrs::{Board, Log, Outbox, Outgoing, Projection, ProjectionError, Projections, ReadSide, Views},
    journal::{
        self as events, AggregateId, Cause, Change, Decided, Entry, Journal, Loaded, Location, NewEvent, OpenError,
        Table, sql::Transaction,
    },
    refusal::Refusal,
    rpc::client::{Peer, PeerOptions, Peers},
};
use proto::{
    events::v1::{
        Event, SubscribeRequest, SubscribeResponse,
        event_service_server::{EventService, EventServiceServer},
    },
    projections::v1::{ListProjectionsRequest, projection_query_service_server::ProjectionQueryService as _},
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use squeamish::{SEEN, Squeamish};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    task::{AbortHandle, block_in_place},
    time::timeout,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, transport::Server};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A log to which this happened, a kind of aggregate each, and the service that has it.
async fn source(folder: &TempDir, name: &str, kinds: &[&'static str]) -> (Journal, Peer) {
    let journal = Journal::open(database::location(folder.path(), name), &[]).await.unwrap();
    for kind in kinds {
        happen(&journal, kind).await;
    }
    let outbox = Outbox::new("source", Log::of(&journal)).into_server();
    (journal, serve(outbox).await)
}

/// A service that tells of its log.
async fn serve<S: EventService>(outbox: EventServiceServer<S>) -> Peer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(Server::builder().add_service(outbox).serve_with_incoming(TcpListenerStream::new(listener)));
    let peers = Peers::new(Registry::new(), &[("source", &*uri)], Vec::new()).unwrap();
    peers.connect_with("source", &PeerOptions::stream()).unwrap()
}

async fn happen(journal: &Journal, kind: &'static str) {
    happen_to(journal, kind, "a").await;
}

async fn happen_to(journal: &Journal, kind: &'static str, id: &str) {
    let event = NewEvent { name: "Happened", payload: Vec::new().into() };
    let (aggregate, events) = (AggregateId::new(kind, id), vec![event]);
    let change = Change { aggregate, state: None, version: 1, events };
    let decide = Box::new(|_: &Loaded<'_>| Decided { changes: vec![change], ..Decided::default() });
    let entry = Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size: 0 };
    journal.submit(entry).await.unwrap();
}

/// Views over a service's things, once those before them have let go of the file: they may be in the midst of a fold, which nobody cuts
/// off.
async fn views(folder: &TempDir, peer: &Peer) -> Views {
    let squeamish = Squeamish::default();
    squeamish.mended.store(true, Ordering::SeqCst);
    let (location, projections) = (database::location(folder.path(), "views"), Projections::new().with(squeamish));
    let open = async {
        loop {
            match Views::open(&location, Log::of_service(peer.clone(), &["thing"]), &projections).await {
                Err(OpenError::InUse { .. }) => tokio::task::yield_now().await,
                opened => break opened.unwrap(),
            }
        }
    };
    timeout(PATIENCE, open).await.expect("they let go")
}

async fn count(read: &ReadSide) -> Option<i64> {
    read.document(&SEEN, "a").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_that_went_further_than_another_services_log_are_made_anew_to_where_it_ends() {
    // Shorter than what was read, without anything, and longer but without anything that is wanted behind it.
    for restored in [&["thing"; 3][..], &[], &["thing", "thing", "other", "other", "other", "other", "other"]] {
        let folder = TempDir::new().unwrap();
        let (_, lost) = source(&folder, "lost", &["thing"; 5]).await;
        let followed = views(&folder, &lost).await;
        let read = followed.read_side("test", PATIENCE);
        let following = tokio::spawn(followed.run());
        read.wait_for_position(5).await.unwrap();
        following.abort();
        let _ = following.await;
        assert_eq!(count(&read).await, Some(5));

        let (journal, there) = source(&folder, "restored", restored).await;
        let mut told = Vec::new();
        let rebuilt = views(&folder, &there).await.rebuild(|position, head| told.push((position, head)));
        timeout(PATIENCE, rebuilt).await.unwrap_or_else(|_| panic!("no end to {restored:?}")).unwrap();
        let left = restored.iter().filter(|kind| **kind == "thing").count() as i64;
        assert_eq!(told.last(), Some(&(left, left)), "{told:?} of {restored:?}");
        assert!(told.iter().all(|(position, head)| position <= head), "{told:?} of {restored:?}");

        let followed = views(&folder, &there).await;
        let read = followed.read_side("test", PATIENCE);
        assert_eq!(count(&read).await.unwrap_or_default(), left, "{restored:?}");
        let following = tokio::spawn(followed.run());
        happen(&journal, "thing").await;
        read.wait_for_position(restored.len() as i64 + 1).await.unwrap();
        assert_eq!(count(&read).await, Some(left + 1), "{restored:?}");
        following.abort();
        let _ = following.await;
    }
}

/// How the views stand: where they are, and where the log ends that they are of.
async fn stands(board: &Board) -> (i64, i64) {
    let listed = board.service("test").list_projections(Request::new(ListProjectionsRequest {})).await;
    let shown = &listed.unwrap().into_inner().projections[0];
    (shown.position, shown.head)
}

/// Views that are at 5, and the service whose log has 3 since it was restored.
async fn at_five_of_three(folder: &TempDir) -> (Journal, Peer) {
    let (_, lost) = source(folder, "lost", &["thing"; 5]).await;
    let followed = views(folder, &lost).await;
    let read = followed.read_side("test", PATIENCE);
    let following = tokio::spawn(followed.run());
    read.wait_for_position(5).await.unwrap();
    following.abort();
    let _ = following.await;
    source(folder, "restored", &["thing"; 3]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_that_were_made_anew_to_where_another_services_log_ends_lag_behind_nothing() {
    let folder = TempDir::new().unwrap();
    let (_journal, there) = at_five_of_three(&folder).await;
    let (followed, board) = (views(&folder, &there).await, Board::default());
    followed.show_on(&board, "source");
    let following = tokio::spawn(followed.run());
    made_anew(&board).await;
    assert_eq!(stands(&board).await, (3, 3));
    following.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_views_that_go_back_is_told_to_watch_from_0() {
    let folder = TempDir::new().unwrap();
    let (_journal, there) = at_five_of_three(&folder).await;
    let (followed, board) = (views(&folder, &there).await, Board::default());
    followed.show_on(&board, "source");
    let read = followed.read_side("test", PATIENCE);
    let mut changes = Box::pin(read.follow::<i64>(&SEEN, Vec::new(), 0));
    let following = tokio::spawn(followed.run());
    assert_eq!(changes.next().await.unwrap().unwrap(), (5, 5));
    made_anew(&board).await;
    let told = timeout(PATIENCE, changes.next()).await.expect("it is told").unwrap();
    let refusal = told.expect_err("it is over");
    assert_eq!((refusal.code, &*refusal.reason), (Code::FailedPrecondition, "AHEAD_OF_LOG"), "{refusal:?}");
    assert!(refusal.message.contains("watch from 0"), "{refusal:?}");

    let mut changes = Box::pin(read.follow::<i64>(&SEEN, Vec::new(), 0));
    assert_eq!(changes.next().await.unwrap().unwrap(), (3, 3));
    following.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_those_who_share_views_goes_on_from_where_another_has_made_them_anew() {
    if !database::has_server() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (journal, there) = at_five_of_three(&folder).await;
    let (one, board) = (views(&folder, &there).await, Board::default());
    one.show_on(&board, "source");
    let (other, others) = (views(&folder, &there).await, Board::default());
    other.show_on(&others, "source");
    let read = other.read_side("test", PATIENCE);
    let mut changes = Box::pin(read.follow::<i64>(&SEEN, Vec::new(), 0));
    assert_eq!(changes.next().await.unwrap().unwrap(), (5, 5));
    let (one, _other) = (tokio::spawn(one.run()), tokio::spawn(other.run()));
    made_anew(&board).await;
    one.abort();
    let _ = one.await;
    let told = timeout(PATIENCE, changes.next()).await.expect("who watches is told").unwrap();
    assert_eq!(told.expect_err("it is over").reason, "AHEAD_OF_LOG");
    for position in 4..=7 {
        happen(&journal, "thing").await;
        let goes_on = async {
            while count(&read).await != Some(position) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, goes_on).await.unwrap_or_else(|_| panic!("{position} never came: {others:?}"));
    }
}

/// Keeps nothing, and is never parked.
struct Idle;

impl Projection for Idle {
    const NAME: &'static str = "idle";
    const TABLES: &'static [&'static Table] = &[];

    async fn project(&self, _: &[events::Event], _: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        Ok(())
    }
}

/// News that come all the time are no reason not to look what others have done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_parked_over_a_busy_log_goes_on_once_another_has_passed_the_event() {
    if !database::has_server() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (journal, there) = source(&folder, "source", &["thing"]).await;
    let open = async |mended: bool| {
        let squeamish = Squeamish::default();
        squeamish.mended.store(mended, Ordering::SeqCst);
        let log = Log::of_service(there.clone(), &["thing"]);
        let projections = Projections::new().with(squeamish).with(Idle);
        let views = Views::open(database::location(folder.path(), "views"), log, &projections).await.unwrap();
        let board = Board::default();
        views.show_on(&board, "source");
        (board, tokio::spawn(views.run()))
    };
    let is_parked = async |board: &Board| {
        let shown = board.service("test").list_projections(Request::new(ListProjectionsRequest {})).await.unwrap();
        shown.into_inner().projections[0].parked.is_some()
    };
    let becomes = async |board: &Board, parked: bool| {
        let waits = async {
            while is_parked(board).await != parked {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, waits).await.unwrap_or_else(|_| panic!("it is never so that parked is {parked}"));
    };
    let (board, _one) = open(false).await;
    happen_to(&journal, "thing", "poison").await;
    becomes(&board, true).await;
    let busy = tokio::spawn(async move {
        loop {
            happen(&journal, "thing").await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let (_, _other) = open(true).await;
    becomes(&board, false).await;
    assert!(!busy.is_finished(), "news come all the time");
    busy.abort();
}

/// As where a server takes over that had not come so far. The service whose events they are of has lost nothing, and nothing to tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_views_that_have_lost_what_was_folded_last_have_it_again() {
    let folder = TempDir::new().unwrap();
    let Location::Postgres { url, schema } = database::location(folder.path(), "views") else { return };
    let (_journal, there) = source(&folder, "source", &["thing", "thing", "thing"]).await;
    let views = views(&folder, &there).await;
    let read = views.read_side("test", PATIENCE);
    let following = tokio::spawn(views.run());
    read.wait_for_position(3).await.unwrap();
    let lost = format!(
        "UPDATE {schema}.checkpoints SET position = 1;
        DELETE FROM {schema}.seen"
    );
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(lost)).execute(&mut connection).await.unwrap();
    let whole = async {
        while count(&read).await != Some(2) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, whole).await.expect("what came after the first is counted again");
    following.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_who_make_shared_views_anew_the_later_one_takes_nothing_away() {
    if !database::has_server() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (journal, there) = at_five_of_three(&folder).await;
    let (one, board) = (views(&folder, &there).await, Board::default());
    one.show_on(&board, "source");
    let read = one.read_side("test", PATIENCE);
    // The other has folded all and is about to put it in place.
    let ((tell, folded), (go, may)) = (mpsc::channel(), mpsc::channel::<()>());
    let later = views(&folder, &there).await.rebuild(move |_, _| {
        block_in_place(|| {
            // Nobody listens any more once it is in place.
            let _ = tell.send(());
            let _ = may.recv();
        });
    });
    let later = tokio::spawn(later);
    block_in_place(|| folded.recv_timeout(PATIENCE)).unwrap();
    let one = tokio::spawn(one.run());
    made_anew(&board).await;
    happen(&journal, "thing").await;
    read.wait_for_position(4).await.unwrap();
    drop((go, folded));
    timeout(PATIENCE, later).await.unwrap().unwrap().unwrap();
    assert_eq!(count(&read).await, Some(4));
    one.abort();
}

/// A service whose log ended at 5 when it was asked first, and whose backup is put back once it has told of 3.
struct PutBack;

#[tonic::async_trait]
impl EventService for PutBack {
    type SubscribeStream = Outgoing<SubscribeResponse>;

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        if request.into_inner().after_position > 0 {
            return Err(Refusal::precondition("AHEAD_OF_LOG", "the log ends at 2").into_status("source"));
        }
        let thing = |position| Event { position, kind: "thing".to_owned(), id: "a".to_owned(), ..Event::default() };
        let events = (1..=3).map(thing).collect();
        let stretch = SubscribeResponse { after_position: 0, events, position: 3, head: 5 };
        let ended = Err(Status::unavailable("it is stopped"));
        Ok(Response::new(futures::stream::iter([Ok(stretch), ended]).boxed()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_that_are_made_anew_while_the_backup_is_put_back_come_to_an_end() {
    let folder = TempDir::new().unwrap();
    at_five_of_three(&folder).await;
    let followed = views(&folder, &serve(EventServiceServer::new(PutBack)).await).await;
    let read = followed.read_side("test", PATIENCE);
    let ended = timeout(PATIENCE, followed.rebuild(|_, _| {})).await.expect("an end");
    let error = ended.expect_err("the log is another one").to_string();
    assert!(error.contains("ends before 3"), "{error}");
    assert_eq!(count(&read).await, Some(5), "the old ones");
}

/// A log to which this happened, by kind and id.
async fn log_of(folder: &TempDir, name: &str, events: &[(&'static str, &str)]) -> Journal {
    let journal = Journal::open(database::location(folder.path(), name), &[]).await.unwrap();
    for (kind, id) in events {
        happen_to(&journal, kind, id).await;
    }
    journal
}

/// Views over a service's things that run until this stops them.
struct Followed {
    read: ReadSide,
    board: Board,
    mended: Arc<AtomicBool>,
    running: AbortHandle,
}

impl Followed {
    async fn start(folder: &TempDir, peer: &Peer) -> Self {
        let squeamish = Squeamish::default();
        let mended = Arc::clone(&squeamish.mended);
        let (location, log) = (database::location(folder.path(), "views"), Log::of_service(peer.clone(), &["thing"]));
        let views = Views::open(location, log, &Projections::new().with(squeamish)).await.unwrap();
        let (read, board) = (views.read_side("test", PATIENCE), Board::default());
        views.show_on(&board, "source");
        Self { read, board, mended, running: tokio::spawn(views.run()).abort_handle() }
    }

    async fn is_parked(&self) {
        let parked = async {
            let service = self.board.service("test");
            loop {
                let listed = service.list_projections(Request::new(ListProjectionsRequest {})).await.unwrap();
                if listed.into_inner().projections[0].parked.is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, parked).await.unwrap_or_else(|_| panic!("not parked: {:?}", self.board));
    }

    /// How often something happened to the good one and to the one that parks, once what was last is folded.
    async fn counts(&self, last: i64) -> (Option<i64>, Option<i64>) {
        self.read.wait_for_position(last).await.unwrap();
        (count(&self.read).await, self.read.document(&SEEN, "poison").await.unwrap())
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.running.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_of_a_lost_log_while_all_were_parked_is_not_folded_into_views_that_were_made_anew() {
    let (folder, desk) = (TempDir::new().unwrap(), Desk::open().await);
    let lost = [("thing", "a"), ("thing", "poison"), ("thing", "a"), ("thing", "a"), ("thing", "a")];
    desk.has(&log_of(&folder, "lost", &lost).await);
    let followed = Followed::start(&folder, &desk.peer).await;
    followed.is_parked().await;

    let restored = log_of(&folder, "restored", &lost[..1]).await;
    desk.has(&restored);
    followed.mended.store(true, Ordering::SeqCst);
    made_anew(&followed.board).await;
    happen(&restored, "thing").await;
    assert_eq!(followed.counts(2).await, (Some(2), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_of_a_lost_log_while_all_were_parked_is_not_folded_into_views_that_another_process_has_made_anew() {
    if !database::has_server() {
        return;
    }
    let (folder, desk) = (TempDir::new().unwrap(), Desk::open().await);
    // What nobody wants leaves room for what comes in its place.
    let lost = [("thing", "a"), ("other", "a"), ("thing", "poison"), ("thing", "a"), ("thing", "a"), ("thing", "a")];
    desk.has(&log_of(&folder, "lost", &lost).await);
    let followed = Followed::start(&folder, &desk.peer).await;
    followed.is_parked().await;

    let restored = log_of(&folder, "restored", &[("thing", "a"), ("thing", "a")]).await;
    desk.has(&restored);
    followed.mended.store(true, Ordering::SeqCst);
    views(&folder, &desk.peer).await.rebuild(|_, _| {}).await.unwrap();
    happen(&restored, "thing").await;
    assert_eq!(followed.counts(3).await, (Some(3), None));
}
