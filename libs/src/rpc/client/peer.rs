//! A neighbour, as this service sees it.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tokio::time::Instant;
use tonic::Status;
use tower::Service;

use super::{
    Measured, OnRequest, PeerOptions, Retry, TimeoutBody, TimeoutFuture, attempts::Attempts, bulkhead::Bulkhead,
    endpoints::Endpoints, guarded::Guarded,
};
use crate::{
    breaker::{Breaker, BreakerLayer, Methods, layer::CircuitBody},
    rpc::deadline::{self, GRPC_TIMEOUT, format_grpc_timeout, grpc_timeout},
    telemetry::ClientMetrics,
};

type Body = tonic::body::Body;
/// A response's body, under its deadline and watched by the breaker.
pub type PeerBody = Measured<TimeoutBody<CircuitBody<CircuitBody<Body>>>>;
/// A call to a peer.
pub type PeerFuture = Measured<TimeoutFuture<Attempts>>;

/// A neighbour, as this service sees it: give it to a generated client. Cheap to clone.
///
/// Every call has a deadline, the earliest of its own timeout (or the peer's default) and the one inherited from the call
/// being served. It covers connecting, queueing and the whole body, travels on as `grpc-timeout`, and ends a call as
/// DEADLINE_EXCEEDED. A call whose connection breaks, or doesn't come about, ends as UNAVAILABLE.
#[derive(Clone)]
pub struct Peer {
    name: Arc<str>,
    circuit: Guarded,
    methods: Option<Methods>,
    bulkhead: Option<Bulkhead>,
    retry: Option<Arc<Retry>>,
    breaker: Arc<Breaker>,
    timeout: Option<Duration>,
    on_request: Option<OnRequest>,
    metrics: Option<ClientMetrics>,
}

impl Peer {
    pub(super) fn new(
        name: &str,
        endpoints: Endpoints,
        layer: &BreakerLayer,
        methods: Option<Methods>,
        options: &PeerOptions,
        on_request: Option<OnRequest>,
        metrics: Option<ClientMetrics>,
    ) -> Self {
        let name: Arc<str> = name.into();
        Self {
            circuit: Guarded::new(layer.clone(), endpoints),
            methods,
            bulkhead: options.most_calls.map(|calls| Bulkhead::new(Arc::clone(&name), calls)),
            retry: options.retry.as_ref().map(|retry| Arc::new(retry.of_its_own())),
            breaker: Arc::clone(layer.breaker()),
            timeout: options.timeout,
            name,
            on_request,
            metrics,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its breaker: that of all its methods, unless they have their own. Forced open, it refuses for those as well, and its rules are those
    /// that a method's breaker begins with; a reset and other overrides are for methods without.
    #[must_use]
    pub const fn breaker(&self) -> &Arc<Breaker> {
        &self.breaker
    }
}

impl Service<Request<Body>> for Peer {
    type Response = Response<PeerBody>;
    type Error = Status;
    type Future = PeerFuture;

    /// Always ready: waiting for the connection is part of the call, and so under its deadline.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> PeerFuture {
        Measured::call(self.metrics.as_ref(), &self.name, request, |request| self.send(request))
    }
}

impl Peer {
    fn send(&self, mut request: Request<Body>) -> TimeoutFuture<Attempts> {
        let now = Instant::now();
        let own = grpc_timeout(request.headers()).or(self.timeout);
        let own = own.and_then(|timeout| now.checked_add(timeout));
        let deadline = deadline::earliest(own, deadline::current());
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() {
                return TimeoutFuture::expired();
            }
            request.headers_mut().insert(GRPC_TIMEOUT, format_grpc_timeout(left));
        }
        if let Some(hook) = &self.on_request {
            hook(request.headers_mut());
        }
        let place = match self.bulkhead.as_ref().map(Bulkhead::enter).transpose() {
            Ok(place) => place,
            Err(status) => return TimeoutFuture::refused(status),
        };
        let circuit = match &self.methods {
            None => self.circuit.clone(),
            Some(methods) => self.circuit.behind(methods.layer(request.uri().path())),
        };
        let attempts = match &self.retry {
            None => Attempts::once(circuit, request),
            Some(retry) => Attempts::more(circuit, Arc::clone(retry), request, deadline),
        };
        TimeoutFuture::new(attempts, deadline, place)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("name", &self.name).field("breaker", &self.breaker).finish_non_exhaustive()
    }
}
