//! Refuses work that would only wait: a bound on the calls being worked on, at the door of a server.
//!
//! What does not fit is answered at once with RESOURCE_EXHAUSTED, ErrorInfo `OVERLOADED`, RetryInfo and
//! `grpc-retry-pushback-ms`: a breaker takes it for overload rather than failure and rests as long as it says, and a retry waits
//! as long. Health and reflection always pass. A call is worked on until its response begins; a stream then holds no place.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tonic::{Code, Status, metadata::MetadataValue, server::NamedService};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::{Layer, Service};

use super::server::shown;

/// How often refusals are told of at the most: a flood of calls must not become one of lines.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Bounds the calls being worked on. Clones share the bound, so one layer serves all connections.
#[derive(Clone, Debug)]
pub struct ShedLayer {
    places: Arc<Semaphore>,
    overloaded: Status,
    refused: Arc<Refused>,
}

/// The calls that found no place.
#[derive(Debug)]
struct Refused {
    service: String,
    calls: AtomicU64,
    /// When they were told of last.
    told: Mutex<Option<Instant>>,
}

/// Marks an answer that says nothing but that there was no place.
#[derive(Clone, Copy, Debug)]
struct NoPlace;

impl ShedLayer {
    /// No more than so many calls at once, and those refused should come back after `pause`. `service` is the bare name, such
    /// as `inventory`.
    #[must_use]
    pub fn new(service: &str, calls: usize, pause: Duration) -> Self {
        let places = Arc::new(Semaphore::new(calls.clamp(1, Semaphore::MAX_PERMITS)));
        let refused = Refused { service: service.to_owned(), calls: AtomicU64::new(0), told: Mutex::new(None) };
        Self { places, overloaded: overloaded(service, pause), refused: Arc::new(refused) }
    }

    /// Places that are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.places.available_permits()
    }
}

impl Refused {
    /// Counts a call that is refused, and tells of it, unless one was told of just now.
    fn count(&self, path: &str) {
        let refused = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let mut told = self.told.lock();
        if told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        *told = Some(Instant::now());
        let (service, method) = (&self.service, shown(path.trim_start_matches('/')));
        tracing::warn!(service, method, refused, "too many calls are being worked on: others are refused");
    }
}

/// Whether an answer says nothing but that there was no place. Such refusals are told of here.
pub(super) fn was_shed<B>(response: &Response<B>) -> bool {
    response.extensions().get::<NoPlace>().is_some()
}

/// The answer to what does not fit, made once.
fn overloaded(service: &str, pause: Duration) -> Status {
    let mut details = ErrorDetails::with_error_info("OVERLOADED", format!("trellis.{service}"), HashMap::new());
    details.set_retry_info(Some(pause));
    let mut status = Status::with_error_details(Code::ResourceExhausted, "too many calls are being worked on", details);
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
    ResponseBody: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ShedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        if is_exempt(request.uri().path()) {
            return ShedFuture { place: None, kind: Kind::Working { call: self.inner.call(request) } };
        }
        match Arc::clone(&self.layer.places).try_acquire_owned() {
            Ok(place) => ShedFuture { place: Some(place), kind: Kind::Working { call: self.inner.call(request) } },
            Err(_) => {
                self.layer.refused.count(request.uri().path());
                ShedFuture { place: None, kind: Kind::Refused { status: Some(self.layer.overloaded.clone()) } }
            }
        }
    }
}

impl<S: NamedService> NamedService for Shed<S> {
    const NAME: &'static str = S::NAME;
}

/// Health and reflection: what must be answered most of all when there is too much to do, and whoever asks.
pub(crate) fn is_exempt(path: &str) -> bool {
    path.starts_with("/grpc.health.") || path.starts_with("/grpc.reflection.")
}

pin_project! {
    /// A call that has a place, or the answer that there is none.
    #[derive(Debug)]
    pub struct ShedFuture<F> {
        place: Option<OwnedSemaphorePermit>,
        #[pin]
        kind: Kind<F>,
    }
}

pin_project! {
    #[project = KindProjected]
    #[derive(Debug)]
    enum Kind<F> {
        Working { #[pin] call: F },
        Refused { status: Option<Status> },
    }
}

impl<F, B, E> Future for ShedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Default,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.kind.project() {
            KindProjected::Working { call } => call.poll(cx).map(|result| {
                *this.place = None;
                result
            }),
            KindProjected::Refused { status } => {
                let status = status.take().unwrap_or_else(|| Status::internal("polled after it was done"));
                let mut response = status.into_http();
                response.extensions_mut().insert(NoPlace);
                Poll::Ready(Ok(response))
            }
        }
    }
}
