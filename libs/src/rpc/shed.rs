//! Refuses work that would only wait: a bound on the calls being worked on, at the door of a server.
//!
//! What does not fit is answered at once with RESOURCE_EXHAUSTED, ErrorInfo `OVERLOADED`, RetryInfo and
//! `grpc-retry-pushback-ms`: a breaker takes it for overload rather than failure and rests as long as it says, and a retry waits
//! as long. Health and reflection need no place, and operators have places of their own: what they ask for puts right what the others wait
//! for. A call has its place until its answer is taken: what its client leaves lying is in memory.
//! A stream has none once it has begun. Of those that need none a connection has a few at a time, to their end, and so have all connections
//! together of reflection. Who has a place and finds no room behind it, such as in a queue, is told of as who has found none.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status, metadata::MetadataValue, server::NamedService};
use tower::{Layer, Service};

use super::{
    in_flight::{Flight, InFlight},
    server::{Methods, shown},
};
use crate::{breaker::layer::grpc_status, refusal::Refusal, told::Told};

/// An answer as large as this has its place until it was written, which takes an allocation. A smaller one has it until HTTP/2 has taken
/// it: of a client with little room for each of 256 streams it then holds 2 MiB at the most.
const LARGE: usize = 8 << 10;

/// Of so many places one is for operators alone, and no more than [`OPERATORS`] are.
const OTHERS: usize = 16;
/// More than people are.
const OPERATORS: usize = 64;

/// A connection's calls at a time that need no place. A client watches the health of a few services, and reflection is one stream: more are
/// one's who wants this process to hold what it can.
const PASSES: usize = 16;
/// The streams of reflection at a time, of all connections: each may have a connection's window full of what was not read yet, 1 MiB.
const REFLECTIONS: usize = 16;

/// Bounds the calls being worked on. Clones share the bound, so one layer serves all connections.
#[derive(Clone, Debug)]
pub struct ShedLayer {
    places: Arc<Semaphore>,
    /// Those for operators, where nobody else has left any.
    operators: Arc<Semaphore>,
    reflections: Arc<Semaphore>,
    overloaded: Status,
    refused: Arc<Refused>,
    /// Those that had a place and found no room behind it, such as in a queue.
    full: Arc<Refused>,
    connection: Option<Connection>,
}

/// What a connection has of its own.
#[derive(Clone, Debug)]
struct Connection {
    calls: Arc<InFlight>,
    methods: Methods,
    passes: Arc<Semaphore>,
}

/// The calls that found no place, or no room.
#[derive(Debug)]
struct Refused {
    service: String,
    calls: AtomicU64,
    /// A flood of calls must not become one of lines.
    told: Told,
}

/// Marks an answer that says nothing but that there was no place, or no room.
#[derive(Clone, Copy, Debug)]
struct NoPlace;

impl ShedLayer {
    /// No more than so many calls at once, and those refused should come back after `pause`. `service` is the bare name, such
    /// as `inventory`.
    #[must_use]
    pub fn new(service: &str, calls: usize, pause: Duration) -> Self {
        let calls = calls.clamp(1, Semaphore::MAX_PERMITS);
        let operators = (calls / OTHERS).min(OPERATORS);
        let [places, operators, reflections] =
            [calls - operators, operators, REFLECTIONS].map(|places| Arc::new(Semaphore::new(places)));
        let none = || Refused { service: service.to_owned(), calls: AtomicU64::new(0), told: Told::default() };
        let [refused, full] = [none(), none()].map(Arc::new);
        let overloaded = overloaded(service, pause);
        Self { places, operators, reflections, overloaded, refused, full, connection: None }
    }

    /// The same for one connection, whose calls are counted, and whose answers have their places until they are taken. Without it any may
    /// be a stream, and however many need no place.
    #[must_use]
    pub fn on(self, calls: Arc<InFlight>, methods: Methods) -> Self {
        let passes = Arc::new(Semaphore::new(PASSES));
        Self { connection: Some(Connection { calls, methods, passes }), ..self }
    }

    /// Places that are free for any call.
    #[must_use]
    pub fn free(&self) -> usize {
        self.places.available_permits()
    }

    /// What a call has until it is over, if there is room for it.
    fn admit(&self, path: &str) -> Option<Held> {
        let of = |places: &Arc<Semaphore>| Arc::clone(places).try_acquire_owned().ok();
        let connection = self.connection.as_ref();
        let mut held = Held::default();
        if is_exempt(path) {
            if let Some(Connection { passes, .. }) = connection {
                held.pass = Some(of(passes)?);
            }
            if is_reflection(path) {
                held.reflection = Some(of(&self.reflections)?);
            }
        } else {
            let operators = || if is_operators(path) { of(&self.operators) } else { None };
            held.place = Some(of(&self.places).or_else(operators)?);
        }
        held.flight = connection.map(|of| of.calls.begin());
        Some(held)
    }
}

impl Refused {
    /// Counts a call that is refused, and answers how many those are if it is to be told: none was just now.
    fn count(&self) -> Option<u64> {
        let refused = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        self.told.is_due().then_some(refused)
    }

    fn no_place(&self, path: &str) {
        let Some(refused) = self.count() else { return };
        let (service, method) = (&self.service, shown(path.trim_start_matches('/')));
        // More of `--max-calls` would help those alone that need a place.
        let what = match is_exempt(path) {
            true => "too many calls of health or reflection at a time: others are refused",
            false => "too many calls are being worked on: others are refused",
        };
        tracing::warn!(service, method, refused, "{what}");
    }

    fn no_room(&self, refusal: &Refusal) {
        let Some(refused) = self.count() else { return };
        let (service, reason, why) = (&self.service, &*refusal.reason, &*refusal.message);
        tracing::warn!(service, reason, why, refused, "there is no room for what calls ask for: they are refused");
    }
}

/// What an answer refuses for want of room behind the places. A stream that has begun is not looked at.
fn of_room(headers: &HeaderMap) -> Option<Refusal> {
    grpc_status(headers).filter(|code| *code == Code::ResourceExhausted)?;
    let refusal = Refusal::from_status(&Status::from_header_map(headers)?);
    refusal.retry_after.is_some_and(|after| !after.is_zero()).then_some(refusal)
}

/// Whether an answer says nothing but that there was no place, or no room. Such refusals are told of here.
pub(super) fn was_shed<B>(response: &Response<B>) -> bool {
    response.extensions().get::<NoPlace>().is_some()
}

/// The answer to what does not fit, made once.
fn overloaded(service: &str, pause: Duration) -> Status {
    let mut status = Refusal::exhausted("OVERLOADED", "too many calls are being worked on", pause).into_status(service);
    let millis = u32::try_from(pause.as_millis()).unwrap_or(u32::MAX);
    status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from(millis));
    status
}

impl<S> Layer<S> for ShedLayer {
    type Service = Shed<S>;

    fn layer(&self, inner: S) -> Shed<S> {
        Shed { inner, layer: self.clone() }
    }
}

/// A server whose calls are bounded.
#[derive(Clone, Debug)]
pub struct Shed<S> {
    inner: S,
    layer: ShedLayer,
}

impl<S, RequestBody, ResponseBody> Service<Request<RequestBody>> for Shed<S>
where
    S: Service<Request<RequestBody>, Response = Response<ResponseBody>>,
    ResponseBody: Body + Default,
{
    type Response = Response<ShedBody<ResponseBody>>;
    type Error = S::Error;
    type Future = ShedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let path = request.uri().path();
        let Some(held) = self.layer.admit(path) else {
            self.layer.refused.no_place(path);
            let kind = Kind::Refused { status: Some(self.layer.overloaded.clone()) };
            return ShedFuture { held: None, is_stream: false, kind };
        };
        let connection = self.layer.connection.as_ref();
        let is_stream = connection.is_none_or(|of| of.methods.may_stream(path.trim_start_matches('/')));
        ShedFuture {
            held: Some(held),
            is_stream,
            kind: Kind::Working { call: self.inner.call(request), full: Arc::clone(&self.layer.full) },
        }
    }
}

impl<S: NamedService> NamedService for Shed<S> {
    const NAME: &'static str = S::NAME;
}

/// Health and reflection: what must be answered most of all when there is too much to do, and whoever asks.
pub(crate) fn is_exempt(path: &str) -> bool {
    path.starts_with("/grpc.health.") || is_reflection(path)
}

fn is_reflection(path: &str) -> bool {
    path.starts_with("/grpc.reflection.")
}

/// By these operators see what has stopped, and have it go on. Sagas that go on are looked at by customers, too.
fn is_operators(path: &str) -> bool {
    ["/breaker.v1.", "/projections.v1.", "/saga.v1.SagaCommandService/", "/saga.v1.ParkedSagaQueryService/"]
        .iter()
        .any(|of| path.starts_with(of))
}

/// What a call has until it is over.
#[derive(Debug, Default)]
struct Held {
    /// None for what needs none, and for a stream that has begun.
    place: Option<OwnedSemaphorePermit>,
    /// Of the connection's, for what needs no place: a stream has it, too.
    pass: Option<OwnedSemaphorePermit>,
    reflection: Option<OwnedSemaphorePermit>,
    flight: Option<Flight>,
}

pin_project! {
    /// A call that has a place, or the answer that there is none.
    #[derive(Debug)]
    pub struct ShedFuture<F> {
        held: Option<Held>,
        is_stream: bool,
        #[pin]
        kind: Kind<F>,
    }
}

pin_project! {
    #[project = KindProjected]
    #[derive(Debug)]
    enum Kind<F> {
        Working { #[pin] call: F, full: Arc<Refused> },
        Refused { status: Option<Status> },
    }
}

impl<F, B, E> Future for ShedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body + Default,
{
    type Output = Result<Response<ShedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.kind.project() {
            KindProjected::Working { call, full } => {
                let mut answered = ready!(call.poll(cx));
                if let Ok(response) = &mut answered
                    && let Some(refusal) = of_room(response.headers())
                {
                    full.no_room(&refusal);
                    response.extensions_mut().insert(NoPlace);
                }
                let held = this.held.take();
                Poll::Ready(answered.map(|response| response.map(|body| ShedBody::new(body, held, *this.is_stream))))
            }
            KindProjected::Refused { status } => {
                let status = status.take().unwrap_or_else(|| Status::internal("polled after it was done"));
                let mut response = status.into_http();
                response.extensions_mut().insert(NoPlace);
                Poll::Ready(Ok(response))
            }
        }
    }
}

/// An answer that has its place for as long as it is in memory.
#[derive(Debug, Default)]
pub struct ShedBody<B> {
    inner: B,
    held: Option<Held>,
    is_stream: bool,
}

impl<B: Body> ShedBody<B> {
    fn new(inner: B, held: Option<Held>, is_stream: bool) -> Self {
        // What is all said with its head is in nobody's memory.
        let mut held = held.filter(|_| !inner.is_end_stream());
        match &mut held {
            Some(held) if is_stream => held.place = None,
            Some(Held { flight: Some(flight), .. }) => flight.owe(),
            _ => {}
        }
        Self { inner, held, is_stream }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for ShedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            Some(Ok(frame)) if frame.is_data() => {
                // There is one message, so nothing follows it but trailers.
                let kept = |data: Bytes| match this.is_stream || data.len() < LARGE {
                    true => data,
                    false => Bytes::from_owner(Untaken { data, _held: this.held.take() }),
                };
                Poll::Ready(Some(Ok(frame.map_data(kept))))
            }
            end => {
                this.held = None;
                Poll::Ready(end)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer that HTTP/2 has and whose client may not have taken it. It is dropped once it was written.
struct Untaken {
    data: Bytes,
    _held: Option<Held>,
}

impl AsRef<[u8]> for Untaken {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending};

    use futures::FutureExt as _;
    use http_body_util::Full;
    use proto::{
        breaker::v1::breaker_command_service_server as breakers,
        inventory::v1::inventory_query_service_server as stock,
        projections::v1::projection_command_service_server as projections,
        saga::v1::{parked_saga_query_service_server as parked, saga_command_service_server as sagas},
    };
    use tower::service_fn;

    use super::*;

    #[test]
    fn operators_have_places_that_others_do_not_take() {
        let answer = || pending::<Result<Response<Full<Bytes>>, Infallible>>();
        let layer = ShedLayer::new("tea", 64, Duration::from_secs(1));
        let mut shed = layer.layer(service_fn(|_: Request<()>| answer()));
        // What has a place is never answered.
        let mut ask = |of: &str| {
            let call = Request::post(format!("/{of}/Any")).body(()).expect("a request");
            let mut call = Box::pin(shed.call(call));
            (&mut call).now_or_never().is_none().then_some(call)
        };
        let others: Vec<_> = std::iter::from_fn(|| ask(stock::SERVICE_NAME)).collect();
        assert_eq!((others.len(), layer.free()), (60, 0));
        let operators = [sagas::SERVICE_NAME, parked::SERVICE_NAME, breakers::SERVICE_NAME, projections::SERVICE_NAME];
        let working: Vec<_> = operators.iter().filter_map(|of| ask(of)).collect();
        assert_eq!(working.len(), operators.len(), "each has one");
        assert!(ask(operators[0]).is_none(), "they have no more than those");
        drop(working);
        assert!(ask(stock::SERVICE_NAME).is_none(), "nor has anybody else");
        drop(others);
        assert!(ask(stock::SERVICE_NAME).is_some(), "who has gone has left a place");
    }
}
