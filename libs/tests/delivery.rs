//! Another service's events over a link that repeats, reorders, skips and breaks: the view ends as if each had come once.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use libs::{
    breaker::Registry,
    cqrs::{
        Aggregate, Board, CommandSide, Decision, Documents, Event, Log, Method, Outbox, Outgoing, Projection,
        ProjectionError, Projections, State, Upcasters, Views,
    },
    journal::{
        AggregateId, Cause, Change, Decided, Entry, Journal, Loaded, NewEvent, OpenError, Table, sql::Transaction,
    },
    refusal::Violations,
    rpc::client::{Peer, PeerOptions, Peers},
};
use prost::Message as _;
use proto::{
    events::v1::{
        self as pb, SubscribeRequest, SubscribeResponse,
        event_service_client::EventServiceClient,
        event_service_server::{EventService, EventServiceServer},
    },
    projections::v1::{
        ListProjectionsRequest, ResumeProjectionRequest,
        projection_command_service_server::ProjectionCommandService as _,
        projection_query_service_server::ProjectionQueryService as _,
    },
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap, transport::Server};

const EVENTS: i64 = 400;
/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Has events, and an unreliable way of sending them.
#[derive(Clone)]
struct Unreliable {
    seed: Arc<AtomicU64>,
}

fn event(position: i64) -> pb::Event {
    let (kind, id) = (if position % 3 == 0 { "other" } else { "thing" }, format!("id-{}", position % 7));
    pb::Event { position, kind: kind.to_owned(), id, name: "Happened".to_owned(), ..pb::Event::default() }
}

fn stretch(after_position: i64, position: i64) -> SubscribeResponse {
    SubscribeResponse {
        after_position,
        events: (after_position + 1..=position).map(event).collect(),
        position,
        head: 0,
    }
}

#[tonic::async_trait]
impl EventService for Unreliable {
    type SubscribeStream = Outgoing<SubscribeResponse>;

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let mut random = StdRng::seed_from_u64(self.seed.fetch_add(1, Ordering::SeqCst));
        let mut reached = request.into_inner().after_position;
        if random.random_bool(0.2) {
            return Err(Status::unavailable("not now"));
        }
        let stretches = async_stream::stream! {
            while reached < EVENTS {
                let next = (reached + random.random_range(1..20)).min(EVENTS);
                match random.random_range(0..10) {
                    // Twice.
                    0 => yield Ok(stretch(reached, next)),
                    // From before what was sent already.
                    1 => yield Ok(stretch((reached - 15).max(0), reached)),
                    // One is missing: what comes next doesn't begin where the last one ended.
                    2 => reached = next,
                    3 => {
                        yield Err(Status::unavailable("the link broke"));
                        return;
                    }
                    4 => return,
                    _ => {}
                }
                let next = next.max((reached + 1).min(EVENTS));
                yield Ok(stretch(reached, next));
                reached = next;
            }
            futures::future::pending::<()>().await;
        };
        Ok(Response::new(stretches.boxed()))
    }
}

static SEEN: Table = Table {
    name: "seen",
    create: &["CREATE TABLE IF NOT EXISTS seen (
        id TEXT NOT NULL PRIMARY KEY,
        position INTEGER,
        document BLOB
    ) WITHOUT ROWID"],
    columns: &["id", "position", "document"],
    key: 1,
    fixed: &[],
};

/// Writes down every position, in the order in which they come.
struct Seen;

impl Projection for Seen {
    const NAME: &'static str = "seen";
    const TABLES: &'static [&'static Table] = &[&SEEN];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let mut seen = Documents::load(transaction, &SEEN, events.iter().map(|event| &event.id)).await?;
        for event in events {
            seen.update(&event.id, event.position, |list: &mut String| list.push_str(&format!("{} ", event.position)));
        }
        seen.save(transaction, |_| Vec::new()).await
    }
}

async fn peer(service: impl EventService) -> Peer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let service = EventServiceServer::new(service);
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
    let peers = Peers::new(Registry::new(), &[("source", &*uri)], Vec::new()).unwrap();
    // A link as bad as this one would open any breaker: what comes over it is what is tested here.
    let never = libs::breaker::Config::builder().failure_rate(None).consecutive_failures(u32::MAX).build().unwrap();
    peers.connect_with("source", &PeerOptions::stream().breaker(never)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_counts_once_and_in_order_however_it_comes() {
    let expected = |id: i64| {
        let own = (1..=EVENTS).filter(|position| position % 7 == id);
        own.map(|position| format!("{position} ")).collect::<String>()
    };
    for seed in [1, 1000, 2000] {
        let folder = TempDir::new().unwrap();
        let location = database::location(folder.path(), "seen");
        let peer = peer(Unreliable { seed: Arc::new(AtomicU64::new(seed)) }).await;
        let mut random = StdRng::seed_from_u64(seed);
        let begun = Instant::now();
        let (mut reached, mut in_vain, mut longest) = (0, 0, 60);
        // The consumer is killed again and again, at any moment: between receiving, folding, committing and asking for more.
        loop {
            assert!(begun.elapsed() < 5 * PATIENCE, "seed {seed}: it has not seen all after {:?}", begun.elapsed());
            let views =
                Views::open(&location, Log::of_service(peer.clone(), &[]), &Projections::new().with(Seen)).await;
            let views = match views {
                // The killed one's last fold has not let go of the file yet.
                Err(OpenError::InUse { .. }) => continue,
                opened => opened.unwrap(),
            };
            let read = views.read_side("test", Duration::from_secs(1));
            let running = tokio::spawn(views.run());
            sleep(Duration::from_millis(random.random_range(1..longest))).await;
            running.abort();
            let _ = running.await;
            // Where so short a life is mostly for nothing, because the machine is slow, the next ones may be longer.
            in_vain = if read.position() > reached { 0 } else { in_vain + 1 };
            reached = read.position();
            if in_vain == 8 {
                (in_vain, longest) = (0, longest * 2);
            }
            if reached < EVENTS {
                continue;
            }
            for id in 0..7 {
                let seen: Option<String> = read.document(&SEEN, &format!("id-{id}")).await.unwrap();
                assert_eq!(seen, Some(expected(id)), "seed {seed}, id-{id}");
            }
            break;
        }
    }
}

/// Sends three events, ends, and tells after which position it was asked.
struct Brief {
    asked: mpsc::UnboundedSender<i64>,
}

#[tonic::async_trait]
impl EventService for Brief {
    type SubscribeStream = Outgoing<SubscribeResponse>;

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let after = request.into_inner().after_position;
        self.asked.send(after).unwrap();
        let left = (after < 3).then(|| Ok(stretch(after, 3)));
        Ok(Response::new(futures::stream::iter(left).boxed()))
    }
}

/// As [`Seen`], but can't fold the second event until it is mended.
struct Squeamish {
    mended: Arc<AtomicBool>,
}

impl Projection for Squeamish {
    const NAME: &'static str = "seen";
    const TABLES: &'static [&'static Table] = &[&SEEN];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        if !self.mended.load(Ordering::SeqCst) && events.iter().any(|event| event.position == 2) {
            let source = <i64 as prost::Message>::decode(&[255_u8][..]).unwrap_err();
            return Err(ProjectionError::Decode { what: "the second".to_owned(), source });
        }
        Seen.project(events, transaction).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_are_parked_nothing_is_asked_for_until_one_is_to_go_on() {
    let folder = TempDir::new().unwrap();
    let (asked, mut told) = mpsc::unbounded_channel();
    let (log, mended) = (Log::of_service(peer(Brief { asked }).await, &[]), Arc::<AtomicBool>::default());
    let projections = Projections::new().with(Squeamish { mended: Arc::clone(&mended) });
    let views = Views::open(database::location(folder.path(), "parked"), log, &projections).await.unwrap();
    let (read, board) = (views.read_side("test", PATIENCE), Board::default());
    views.show_on(&board, "source");
    let running = tokio::spawn(views.run());
    let service = board.service("test");
    let parked = async || {
        let listed = service.list_projections(Request::new(ListProjectionsRequest {})).await.unwrap().into_inner();
        listed.projections[0].parked.is_some()
    };
    let is_parked = async {
        while !parked().await {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, is_parked).await.unwrap();
    assert_eq!(told.recv().await, Some(0));
    // Longer than a service that is out is left alone.
    let again = timeout(Duration::from_secs(1), told.recv()).await;
    assert!(again.is_err(), "it was asked for what comes after {again:?}");

    mended.store(true, Ordering::SeqCst);
    let request = ResumeProjectionRequest { name: "seen".to_owned() };
    service.resume_projection(Request::new(request)).await.unwrap();
    read.wait_for_position(3).await.unwrap();
    for id in 1..=3 {
        let seen: Option<String> = read.document(&SEEN, &format!("id-{id}")).await.unwrap();
        assert_eq!(seen, Some(format!("{id} ")));
    }
    // The service may be what was mended: it is asked again for what could not be folded.
    assert_eq!(told.recv().await, Some(1));
    running.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_projection_over_another_service_goes_on_with_the_next_event_once_another_process_has_passed_its_own()
{
    if !database::has_server() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let journal = Journal::open(database::location(folder.path(), "source"), &[]).await.unwrap();
    for at in 1..=3 {
        journal.submit(large(at)).await.unwrap();
    }
    let peer = peer(Outbox::new("source", Log::of(&journal))).await;
    let open = async |mended: bool, others: fn(Projections) -> Projections| {
        let squeamish = Squeamish { mended: Arc::new(AtomicBool::new(mended)) };
        let projections = others(Projections::new().with(squeamish));
        let location = database::location(folder.path(), "there");
        let views = Views::open(location, Log::of_service(peer.clone(), &[]), &projections).await.unwrap();
        let board = Board::default();
        views.show_on(&board, "source");
        tokio::spawn(views.run());
        board
    };
    let stands = async |board: &Board, at: i64, parked: bool| {
        let service = board.service("test");
        let stands = async {
            loop {
                let listed = service.list_projections(Request::new(ListProjectionsRequest {})).await.unwrap();
                let seen = &listed.into_inner().projections[0];
                if (seen.position, seen.parked.is_some()) == (at, parked) {
                    break;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, stands).await.unwrap_or_else(|_| panic!("not at {at}, parked {parked}: {board:?}"));
    };
    let board = open(false, |squeamish| squeamish.with(Sources)).await;
    stands(&board, 1, true).await;
    let mended = open(true, |squeamish| squeamish).await;
    stands(&mended, 3, false).await;
    journal.submit(large(4)).await.unwrap();
    stands(&board, 4, false).await;
}

/// Sends two events that are wanted and passes one that is not. Its log ends somewhere, and what else there is never comes.
struct Stuck {
    head: i64,
}

#[tonic::async_trait]
impl EventService for Stuck {
    type SubscribeStream = Outgoing<SubscribeResponse>;

    async fn subscribe(&self, _: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let first = SubscribeResponse { position: 3, head: self.head, ..stretch(0, 2) };
        Ok(Response::new(futures::stream::iter([Ok(first)]).chain(futures::stream::pending()).boxed()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_another_services_log_is_is_shown_and_what_nobody_wants_is_no_lag() {
    // One has more, one has nothing more that is wanted, and one doesn't say.
    for (head, shown) in [(1_000, (2, 1_000)), (3, (2, 2)), (0, (2, 2))] {
        let folder = TempDir::new().unwrap();
        let log = Log::of_service(peer(Stuck { head }).await, &["thing"]);
        let location = database::location(folder.path(), "stuck");
        let views = Views::open(location, log, &Projections::new().with(Seen)).await.unwrap();
        let (read, board) = (views.read_side("test", PATIENCE), Board::default());
        views.show_on(&board, "source");
        let running = tokio::spawn(views.run());
        read.wait_for_position(2).await.unwrap();
        let service = board.service("test");
        let shows = async {
            loop {
                let listed = service.list_projections(Request::new(ListProjectionsRequest {})).await.unwrap();
                let seen = &listed.into_inner().projections[0];
                if (seen.position, seen.head) == shown {
                    break;
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, shows).await.unwrap_or_else(|_| panic!("not {shown:?}: {board:?}"));
        running.abort();
    }
}

static SOURCES: Table = Table {
    name: "sources",
    create: &["CREATE TABLE IF NOT EXISTS sources (id TEXT NOT NULL PRIMARY KEY, position INTEGER, document BLOB)"],
    columns: &["id", "position", "document"],
    key: 1,
    fixed: &[],
};

/// Writes down what each event came of.
struct Sources;

impl Projection for Sources {
    const NAME: &'static str = "sources";
    const TABLES: &'static [&'static Table] = &[&SOURCES];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let mut sources = Documents::load(transaction, &SOURCES, events.iter().map(|event| &event.id)).await?;
        for event in events {
            let Event { cause, traceparent, .. } = event;
            sources.update(&event.id, event.position, |source: &mut String| *source = format!("{cause} {traceparent}"));
        }
        sources.save(transaction, |_| Vec::new()).await
    }
}

/// A service's log over a socket.
async fn serve(outbox: Outbox) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(
        Server::builder().add_service(outbox.into_server()).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    uri
}

#[tokio::test]
async fn another_service_sees_what_request_and_what_trace_an_event_came_of() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    static NOTE: Method = Method { name: "test.v1.NoteCommandService/Note", compensates: false };
    let folder = TempDir::new().unwrap();
    let journal = Journal::open(database::location(folder.path(), "caused"), &[]).await.unwrap();
    let side = CommandSide::new("test", journal.clone());
    let saga = [("saga-id", "s1"), ("saga-type", "tour"), ("saga-step", "note"), ("saga-op", "action")];
    for (id, carried) in [("by-client", &[][..]), ("by-saga", &saga[..])] {
        let mut metadata = MetadataMap::new();
        metadata.insert("traceparent", TRACE.parse().unwrap());
        carried.iter().for_each(|(key, value)| drop(metadata.insert(*key, value.parse().unwrap())));
        let accepted = side.accept(&NOTE, &metadata, &(), "request-1", Violations::default()).await.unwrap();
        let decide = move |_: &State<'_>| Ok(Decision::reply(()).event::<Note>(id, &vec![0]));
        side.submit(accepted, vec![AggregateId::new(Note::KIND, id)], decide).await.unwrap();
    }
    let uri = serve(Outbox::new("test", Log::of(&journal))).await;
    let peers = Peers::new(Registry::new(), &[("source", &*uri)], Vec::new()).unwrap();
    let log = Log::of_service(peers.connect_with("source", &PeerOptions::stream()).unwrap(), &[]);
    let views = Views::open(database::location(folder.path(), "there"), log, &Projections::new().with(Sources)).await;
    let views = views.unwrap();
    let read = views.read_side("test", PATIENCE);
    let running = tokio::spawn(views.run());
    read.wait_for_position(2).await.unwrap();
    let source = async |id| read.document::<String>(&SOURCES, id).await.unwrap().unwrap();
    assert_eq!(source("by-client").await, format!("test.v1.NoteCommandService/Note/request-1 {TRACE}"));
    assert_eq!(source("by-saga").await, format!("saga/s1/note/action {TRACE}"));
    running.abort();
}

/// A log of notes that were written in a form of before, so that it is seen when one is read.
struct Note;

/// How many of them were, each time counted.
static READ: AtomicUsize = AtomicUsize::new(0);
const NOTES: u8 = 40;
/// How many are read at once: 8 MiB of them.
const AT_ONCE: usize = 12;

impl Aggregate for Note {
    const KIND: &'static str = "note";
    type State = ();
    type Event = Vec<u8>;

    const OLD_FORMS: &'static [&'static str] = &["Noted"];

    fn evolve((): &mut (), _: &Vec<u8>) {}

    fn upcast(_: &mut Vec<u8>) {
        READ.fetch_add(1, Ordering::SeqCst);
    }

    fn event_name(_: &Vec<u8>) -> &'static str {
        "Noted"
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_who_reads_nothing_hardly_anything_is_taken_from_the_log() {
    let folder = TempDir::new().unwrap();
    let journal = Journal::open(database::location(folder.path(), "flow"), &[]).await.unwrap();
    for at in 1..=NOTES {
        let aggregate = AggregateId::new(Note::KIND, at.to_string());
        let events = vec![NewEvent { name: "Noted", payload: vec![at; 700 << 10].encode_to_vec().into() }];
        let change = Change { aggregate, state: None, version: 1, events };
        journal
            .submit(Entry { decide: Box::new(|_| Decided { changes: vec![change], ..Decided::default() }), ..large(0) })
            .await
            .unwrap();
    }
    let uri = serve(Outbox::new("test", Log::of(&journal).upcast(Upcasters::new().with::<Note>()))).await;
    let subscribe = async || {
        let mut client = EventServiceClient::connect(uri.clone()).await.unwrap();
        client.subscribe(SubscribeRequest::default()).await.unwrap().into_inner()
    };
    let read_all = async |mut stretches: Streaming<SubscribeResponse>| {
        let mut reached = 0;
        while reached < i64::from(NOTES) {
            let stretch = stretches.message().await.unwrap().unwrap();
            assert_eq!((stretch.after_position, stretch.events.len() as i64), (reached, stretch.position - reached));
            reached = stretch.position;
        }
    };
    // A stretch of two is cut from what is read at once; the last ones from what is left.
    read_all(subscribe().await).await;
    let whole = READ.swap(0, Ordering::SeqCst);
    assert_eq!(whole, 15 * AT_ONCE + 10 + 8 + 6 + 4 + 2);
    let idle = subscribe().await;
    // Somebody else gets all of it meanwhile.
    read_all(subscribe().await).await;
    let for_idle = READ.swap(0, Ordering::SeqCst) - whole;
    assert!(for_idle <= 3 * AT_ONCE, "{for_idle} of {whole} were read for somebody who reads nothing");
    read_all(idle).await;
    assert_eq!(READ.load(Ordering::SeqCst) + for_idle, whole, "it goes on where it was, each stretch once");
}

/// Notes something large.
fn large(at: u8) -> Entry {
    let aggregate = AggregateId::new("note", at.to_string());
    let events = vec![NewEvent { name: "Noted", payload: vec![at; 700 << 10].into() }];
    let change = Change { aggregate, state: None, version: 1, events };
    let decide = Box::new(move |_: &Loaded<'_>| Decided { changes: vec![change], ..Decided::default() });
    Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size: 700 << 10 }
}

#[tokio::test]
async fn large_events_come_in_messages_that_any_reader_takes_and_none_is_left_out() {
    let folder = TempDir::new().unwrap();
    let journal = Journal::open(database::location(folder.path(), "large"), &[]).await.unwrap();
    for at in 0..6 {
        journal.submit(large(at)).await.unwrap();
    }
    let outbox = Outbox::new("test", Log::of(&journal));
    let mut stretches = outbox.subscribe(Request::new(SubscribeRequest::default())).await.unwrap().into_inner();
    let (mut reached, mut payloads) = (0, Vec::new());
    while reached < 6 {
        let stretch = stretches.next().await.unwrap().unwrap();
        assert_eq!((stretch.after_position, stretch.head), (reached, 6));
        assert!(stretch.encoded_len() < 2 << 20, "a message of {} bytes", stretch.encoded_len());
        payloads.extend(stretch.events.iter().map(|event| event.payload[0]));
        reached = stretch.position;
    }
    assert_eq!(payloads, [0, 1, 2, 3, 4, 5]);
}
