//! How the projections of a process stand, and the word that lets a parked one go on.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use opentelemetry::{KeyValue, metrics::Meter};
use parking_lot::{Mutex, RwLock};
use proto::projections::v1::{
    self as pb, ParkedEvent,
    projection_command_service_server::{ProjectionCommandService, ProjectionCommandServiceServer},
    projection_query_service_server::{ProjectionQueryService, ProjectionQueryServiceServer},
};
use tokio::sync::{Notify, mpsc, watch};
use tonic::{Code, Request, Response, Status};

use super::Outgoing;
use crate::refusal::Refusal;

/// More than any name has; it would be repeated in an answer's headers, and in the log.
const MOST_NAME: usize = 256;

/// One projection, as its projector tells.
#[derive(Debug)]
pub(super) struct Standing {
    name: &'static str,
    checkpoint: AtomicI64,
    /// False until it is known how far it is.
    is_known: AtomicBool,
    /// How many times it went back.
    times_back: AtomicU64,
    parked: Mutex<Option<ParkedEvent>>,
    /// How far the log is: told by the journal, or as far as the projector has seen.
    head: Option<watch::Receiver<i64>>,
    seen: AtomicI64,
    /// Somebody wants it to try again.
    wanted: AtomicBool,
    bell: Arc<Notify>,
}

impl Standing {
    pub(super) fn new(
        name: &'static str,
        checkpoint: i64,
        head: Option<watch::Receiver<i64>>,
        bell: Arc<Notify>,
    ) -> Arc<Self> {
        Self::begin(name, checkpoint, true, head, bell)
    }

    /// One that has to ask somebody else how far it is.
    pub(super) fn unknown(name: &'static str, head: Option<watch::Receiver<i64>>) -> Arc<Self> {
        Self::begin(name, 0, false, head, Arc::default())
    }

    fn begin(
        name: &'static str,
        checkpoint: i64,
        is_known: bool,
        head: Option<watch::Receiver<i64>>,
        bell: Arc<Notify>,
    ) -> Arc<Self> {
        let (checkpoint, seen, is_known) = (checkpoint.into(), checkpoint.into(), is_known.into());
        let (times_back, parked, wanted) = (AtomicU64::default(), Mutex::default(), AtomicBool::default());
        Arc::new(Self { name, checkpoint, is_known, times_back, parked, head, seen, wanted, bell })
    }

    pub(super) fn moved(&self, checkpoint: i64) {
        self.checkpoint.store(checkpoint, Ordering::Relaxed);
        if !self.is_known.swap(true, Ordering::Release)
            && let Some(parked) = &mut *self.parked.lock()
        {
            parked.position = checkpoint + 1;
        }
    }

    pub(super) fn saw(&self, position: i64) {
        self.seen.fetch_max(position, Ordering::Relaxed);
    }

    /// The log ends there, for all that is known now.
    pub(super) fn ends(&self, head: i64) {
        self.seen.store(head, Ordering::Relaxed);
    }

    pub(super) fn park(&self, position: i64, error: String) {
        *self.parked.lock() = Some(ParkedEvent { position, error });
    }

    /// Parks it at whatever comes next, which is no event's position as long as it is not known how far it is.
    pub(super) fn park_at_next(&self, error: String) {
        let next = if self.is_known() { self.checkpoint() + 1 } else { 0 };
        self.park(next, error);
    }

    fn is_known(&self) -> bool {
        self.is_known.load(Ordering::Acquire)
    }

    pub(super) fn parked(&self) -> Option<ParkedEvent> {
        self.parked.lock().clone()
    }

    /// It goes on from a position, which may be further back, and is not parked.
    pub(super) fn go_on(&self, checkpoint: i64) {
        if checkpoint < self.checkpoint() {
            self.times_back.fetch_add(1, Ordering::Relaxed);
        }
        self.moved(checkpoint);
        *self.parked.lock() = None;
    }

    pub(super) fn times_back(&self) -> u64 {
        self.times_back.load(Ordering::Relaxed)
    }

    pub(super) fn checkpoint(&self) -> i64 {
        self.checkpoint.load(Ordering::Relaxed)
    }

    /// Whether somebody wants it to try again; it is not parked any more then.
    pub(super) fn take_wanted(&self) -> bool {
        let wanted = self.wanted.swap(false, Ordering::AcqRel);
        if wanted {
            *self.parked.lock() = None;
        }
        wanted
    }

    fn head(&self) -> i64 {
        let told = self.head.as_ref().map_or(0, |head| *head.borrow());
        told.max(self.seen.load(Ordering::Relaxed)).max(self.checkpoint())
    }
}

/// What tells how far a rebuild is: (position, head), or why it came to nothing.
pub(super) type Telling = mpsc::UnboundedSender<Result<(i64, i64), String>>;

/// What is told where nobody can tell what a rebuild came to.
pub(super) const UNKNOWN_END: &str =
    "it is not known whether the views were made anew: the service's log says why; make them anew once more";

/// The projections of a process. Clones share them.
#[derive(Clone, Default)]
pub struct Board {
    places: Arc<RwLock<Vec<Place>>>,
    rebuilders: Arc<RwLock<Vec<Rebuilder>>>,
}

/// Who makes the views over one source's events anew.
struct Rebuilder {
    source: String,
    ask: mpsc::Sender<Telling>,
}

struct Place {
    source: String,
    standing: Arc<Standing>,
}

impl Place {
    fn shown(&self) -> pb::Projection {
        let Self { source, standing } = self;
        pb::Projection {
            name: standing.name.to_owned(),
            source: source.clone(),
            position: standing.checkpoint(),
            head: standing.head(),
            parked: standing.parked(),
        }
    }

    fn attributes(&self) -> [KeyValue; 2] {
        let source = KeyValue::new("projection.source", self.source.clone());
        [KeyValue::new("projection.name", self.standing.name), source]
    }
}

impl Board {
    /// Adds projections over the events of this service.
    pub(super) fn add(&self, source: &str, standings: impl IntoIterator<Item = Arc<Standing>>) {
        let place = |standing| Place { source: source.to_owned(), standing };
        self.places.write().extend(standings.into_iter().map(place));
    }

    /// Adds who makes the views over the events of this service anew.
    pub(super) fn add_rebuilder(&self, source: &str, ask: mpsc::Sender<Telling>) {
        self.rebuilders.write().push(Rebuilder { source: source.to_owned(), ask });
    }

    fn rebuilder(&self, source: &str) -> Option<mpsc::Sender<Telling>> {
        let rebuilders = self.rebuilders.read();
        rebuilders.iter().find(|rebuilder| rebuilder.source == source).map(|rebuilder| rebuilder.ask.clone())
    }

    /// Whose events there are views over, in words.
    fn sources(&self) -> String {
        let rebuilders = self.rebuilders.read();
        let sources: Vec<&str> = rebuilders.iter().map(|rebuilder| &*rebuilder.source).collect();
        sources.join(", ")
    }

    /// Has them observed by a meter.
    pub fn observe(&self, meter: &Meter) {
        // The instruments live as long as their meter's provider; these handles are not needed.
        let board = self.clone();
        let _lag = meter
            .i64_observable_gauge("projection.lag")
            .with_unit("{event}")
            .with_description("Events that a projection has not folded yet.")
            .with_callback(move |observer| {
                for place in board.places.read().iter().filter(|place| place.standing.is_known()) {
                    let shown = place.shown();
                    observer.observe(shown.head - shown.position, &place.attributes());
                }
            })
            .build();
        let board = self.clone();
        let _parked = meter
            .u64_observable_gauge("projection.parked")
            .with_description("1 where a projection stands still at an event it can't fold.")
            .with_callback(move |observer| {
                for place in board.places.read().iter() {
                    let parked = place.standing.parked().is_some();
                    observer.observe(u64::from(parked), &place.attributes());
                }
            })
            .build();
    }

    /// The service that shows and steers them. `service` is this one's bare name, for the domain of errors.
    #[must_use]
    pub fn service(&self, service: &'static str) -> ProjectionService {
        ProjectionService { service, board: self.clone() }
    }
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.places.read().iter().map(Place::shown)).finish()
    }
}

/// `projections.v1`: shows and steers a process's projections.
#[derive(Clone, Debug)]
pub struct ProjectionService {
    service: &'static str,
    board: Board,
}

impl ProjectionService {
    /// The query side, ready to serve.
    #[must_use]
    pub fn queries(&self) -> ProjectionQueryServiceServer<Self> {
        ProjectionQueryServiceServer::new(self.clone())
    }

    /// The command side, ready to serve. It belongs where the projections are, which is the process that answers queries.
    #[must_use]
    pub fn commands(&self) -> ProjectionCommandServiceServer<Self> {
        ProjectionCommandServiceServer::new(self.clone())
    }
}

#[tonic::async_trait]
impl ProjectionQueryService for ProjectionService {
    async fn list_projections(
        &self,
        _: Request<pb::ListProjectionsRequest>,
    ) -> Result<Response<pb::ListProjectionsResponse>, Status> {
        let projections = self.board.places.read().iter().map(Place::shown).collect();
        Ok(Response::new(pb::ListProjectionsResponse { projections }))
    }
}

#[tonic::async_trait]
impl ProjectionCommandService for ProjectionService {
    async fn resume_projection(
        &self,
        request: Request<pb::ResumeProjectionRequest>,
    ) -> Result<Response<pb::ResumeProjectionResponse>, Status> {
        let name = request.into_inner().name;
        let board = self.board.places.read();
        let Some(place) = board.iter().find(|place| place.standing.name == name) else {
            if name.len() > MOST_NAME {
                let refusal = Refusal::invalid("name", "is longer than any projection's");
                return Err(refusal.into_status(self.service));
            }
            let known: Vec<&str> = board.iter().map(|place| place.standing.name).collect();
            let message = format!("no projection is named {name:?} here; there are: {}", known.join(", "));
            return Err(Refusal::not_found("UNKNOWN_PROJECTION", message).into_status(self.service));
        };
        let shown = place.shown();
        if shown.parked.is_some() {
            tracing::info!(projection = name, "told to try again");
            place.standing.wanted.store(true, Ordering::Release);
            place.standing.bell.notify_one();
        }
        Ok(Response::new(pb::ResumeProjectionResponse { projection: Some(shown) }))
    }

    type RebuildProjectionsStream = Outgoing<pb::RebuildProjectionsResponse>;

    async fn rebuild_projections(
        &self,
        request: Request<pb::RebuildProjectionsRequest>,
    ) -> Result<Response<Self::RebuildProjectionsStream>, Status> {
        let (service, source) = (self.service, request.into_inner().source);
        if source.is_empty() || source.len() > MOST_NAME {
            let refusal = Refusal::invalid("source", "must be the service whose events the views are made of");
            return Err(refusal.into_status(service));
        }
        let (telling, mut told) = mpsc::unbounded_channel();
        let asked = match self.board.rebuilder(&source) {
            Some(rebuilder) => rebuilder.send(telling).await.is_ok(),
            None => false,
        };
        if !asked {
            let known = self.board.sources();
            let message = format!("no views over the events of {source:?} are kept here; there are: {known}");
            return Err(Refusal::not_found("UNKNOWN_SOURCE", message).into_status(service));
        }
        tracing::info!(source, "told to make the views anew");
        let failed = move |why: String| Refusal::new(Code::Aborted, "REBUILD_FAILED", why).into_status(service);
        let stretches = async_stream::try_stream! {
            let mut is_whole = false;
            while let Some(stretch) = told.recv().await {
                let (position, head) = stretch.map_err(failed)?;
                is_whole = position == head;
                yield pb::RebuildProjectionsResponse { position, head };
            }
            // Whoever made them has panicked, or ended with the views.
            if !is_whole {
                Err(failed(UNKNOWN_END.to_owned()))?;
            }
        };
        Ok(Response::new(Box::pin(stretches)))
    }
}
