//! A service whose log is published to a NATS server and read from there, and views over it that write down all they saw.
#![allow(dead_code, clippy::unwrap_used, reason = "for tests, and not every one does all of it")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_nats::jetstream::{self, Context};
use libs::{
    cqrs::{Board, Documents, Event, JetStream, Log, Projection, ProjectionError, Projections, ReadSide, Views},
    journal::{
        AggregateId, Cause, Change, Decided, Entry, Journal, Loaded, NewEvent, OpenError, Table, sql::Transaction,
    },
};
use proto::projections::v1::{self as pb, projection_query_service_server::ProjectionQueryService as _};
use tempfile::TempDir;
use tokio::{
    sync::Semaphore,
    task::{AbortHandle, JoinHandle},
    time::{sleep, timeout},
};
use tonic::Request;

use crate::{broker::Broker, database, desk::Desk};

/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
pub(crate) const STREAM: &str = "trellis-source";

pub(crate) static SEEN: Table = Table {
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
#[derive(Clone)]
pub(crate) struct Seen {
    /// How long a batch takes beside the writing.
    pub(crate) pause: Duration,
    /// What a batch waits for, if it does.
    pub(crate) gate: Option<Arc<Semaphore>>,
}

impl Projection for Seen {
    const NAME: &'static str = "seen";
    const TABLES: &'static [&'static Table] = &[&SEEN];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        sleep(self.pause).await;
        if let Some(gate) = &self.gate {
            drop(gate.acquire().await.unwrap());
        }
        let mut seen = Documents::load(transaction, &SEEN, events.iter().map(|event| &event.id)).await?;
        for event in events {
            seen.update(&event.id, event.position, |list: &mut String| list.push_str(&format!("{} ", event.position)));
        }
        seen.save(transaction, |_| Vec::new()).await
    }
}

pub(crate) const fn at_once() -> Seen {
    slowly(0)
}

pub(crate) const fn slowly(millis: u64) -> Seen {
    Seen { pause: Duration::from_millis(millis), gate: None }
}

/// A service with a log, which it offers itself as well.
pub(crate) struct Source {
    pub(crate) folder: TempDir,
    pub(crate) journal: Journal,
    pub(crate) desk: Desk,
    pub(crate) written: i64,
    /// The last position that the views want.
    pub(crate) wanted: i64,
    /// What the views must say in the end.
    pub(crate) expected: BTreeMap<String, String>,
    pub(crate) relay: Option<AbortHandle>,
}

impl Source {
    pub(crate) async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let journal = Journal::open(database::location(folder.path(), "source"), &[]).await.unwrap();
        let desk = Desk::open().await;
        desk.has(&journal);
        Self { folder, journal, desk, written: 0, wanted: 0, expected: BTreeMap::new(), relay: None }
    }

    /// Writes events of some kilobyte in all, or of this size.
    pub(crate) async fn write(&mut self, events: i64, size: usize) {
        for _ in 0..events {
            // A third is of a kind that nobody asked for.
            let kind = if (self.written + 1) % 3 == 0 { "other" } else { "thing" };
            self.happen(kind, size).await;
        }
    }

    /// Writes an event of that kind and size.
    pub(crate) async fn happen(&mut self, kind: &'static str, size: usize) {
        self.written += 1;
        let (position, id) = (self.written, format!("id-{}", self.written % 7));
        if kind == "thing" {
            self.wanted = position;
            self.expected.entry(id.clone()).or_default().push_str(&format!("{position} "));
        }
        let aggregate = AggregateId::new(kind, id);
        let event = NewEvent { name: "Happened", payload: vec![7; size].into() };
        let change = Change { aggregate, state: None, version: position.unsigned_abs(), events: vec![event] };
        let decide = Box::new(move |_: &Loaded<'_>| Decided { changes: vec![change], ..Decided::default() });
        let entry = Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size };
        // It may be larger than a command.
        self.journal.submit_admitted(entry).await.unwrap();
    }

    /// Is stopped, and comes back with another log, to which this happened. Nobody publishes that yet.
    pub(crate) async fn restore(&mut self, kinds: &[&'static str], size: usize) {
        self.desk.is_out();
        if let Some(relay) = self.relay.take() {
            relay.abort();
        }
        self.journal = Journal::open(database::location(self.folder.path(), "restored"), &[]).await.unwrap();
        (self.written, self.wanted) = (0, 0);
        self.expected.clear();
        for kind in kinds {
            self.happen(kind, size).await;
        }
        self.desk.has(&self.journal);
    }

    /// Publishes from now on, instead of who did.
    pub(crate) async fn publish(&mut self, broker: &Broker) -> Board {
        self.publish_as(broker, Log::of(&self.journal)).await
    }

    /// The same, as some version of the service reads its log.
    pub(crate) async fn publish_as(&mut self, broker: &Broker, log: Log) -> Board {
        if let Some(relay) = self.relay.take() {
            relay.abort();
        }
        let board = Board::default();
        let relay = connect(broker).await.relay("source", log);
        relay.show_on(&board);
        self.relay = Some(tokio::spawn(relay.run()).abort_handle());
        board
    }

    /// Views over its events by the stream, kept in a file of that name.
    pub(crate) async fn open(&self, broker: &Broker, name: &str, seen: impl Projection) -> Views {
        let location = database::location(self.folder.path(), name);
        let (jetstream, projections) = (connect(broker).await, Projections::new().with(seen));
        let open = async {
            loop {
                let (jetstream, peer) = (jetstream.clone(), self.desk.peer.clone());
                let log = Log::of_stream(jetstream, peer, &["thing"], name, database::is_shared());
                match Views::open(&location, log, &projections).await {
                    // The killed one's last fold has not let go of the file yet.
                    Err(OpenError::InUse { .. }) => sleep(Duration::from_millis(1)).await,
                    opened => return opened.unwrap(),
                }
            }
        };
        timeout(PATIENCE, open).await.expect("the file is never let go of")
    }

    /// The same, and they run.
    pub(crate) async fn views(&self, broker: &Broker, name: &str, seen: Seen) -> (ReadSide, Running) {
        let views = self.open(broker, name, seen).await;
        let read = views.read_side("source", Duration::from_secs(1));
        (read, Running(tokio::spawn(views.run())))
    }

    /// Waits until the views have all, and checks that each event was folded once and in order.
    pub(crate) async fn check(&self, read: &ReadSide) {
        let arrived = async {
            while read.position() < self.wanted {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let arrived = timeout(PATIENCE, arrived).await;
        assert!(arrived.is_ok(), "it stands still at {} of {}", read.position(), self.wanted);
        for id in (0..7).map(|id| format!("id-{id}")) {
            assert_eq!(read.document::<String>(&SEEN, &id).await.unwrap().as_ref(), self.expected.get(&id), "{id}");
        }
    }
}

type Ended = Result<(), libs::cqrs::ViewsError>;

/// A projector that stops when this goes.
pub(crate) struct Running(pub(crate) JoinHandle<Ended>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) async fn connect(broker: &Broker) -> JetStream {
    JetStream::connect(&broker.url(), "test", None).await.unwrap()
}

/// The broker as an operator has it.
pub(crate) async fn operator(broker: &Broker) -> Context {
    let mut context = jetstream::new(async_nats::connect(broker.url()).await.unwrap());
    context.set_timeout(PATIENCE);
    context
}

pub(crate) async fn shown(board: &Board) -> pb::Projection {
    let request = Request::new(pb::ListProjectionsRequest {});
    board.service("source").list_projections(request).await.unwrap().into_inner().projections.remove(0)
}

pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waits = async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(PATIENCE, waits).await.is_ok(), "it never came: {what}");
}
