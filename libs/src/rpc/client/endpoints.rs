//! Where calls go: one address, or several in turn. Of several, one that keeps failing is passed over for a while.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::transport::Channel;
use tower::{Service, util::Oneshot};

use crate::breaker::{
    BreakerLayer,
    layer::{BoxError, CircuitBody, ResponseFuture},
};

type Body = tonic::body::Body;
/// A call to one address.
pub type EndpointFuture = ResponseFuture<Oneshot<Channel, Request<Body>>>;

/// The addresses of a peer.
#[derive(Clone, Debug)]
pub(super) struct Endpoints {
    all: Arc<[Endpoint]>,
    next: Arc<AtomicUsize>,
}

/// One address.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Connections to it, used in turn.
    pub(super) channels: Box<[Channel]>,
    /// What passes it over. A single address has none: the peer's breaker is enough.
    pub(super) ejection: BreakerLayer,
}

impl Endpoints {
    /// With more of the addresses than this out, in per cent, being out means nothing: the fault is not theirs alone, and
    /// those left must not take all the load.
    const PANIC: usize = 50;

    pub(super) fn new(all: Vec<Endpoint>) -> Self {
        Self { all: all.into(), next: Arc::new(AtomicUsize::new(0)) }
    }

    fn is_out(endpoint: &Endpoint) -> bool {
        endpoint.ejection.breaker().refuses_now()
    }

    fn pick(&self, request: Request<Body>) -> EndpointFuture {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let connect = |endpoint: &Endpoint, request| {
            let channel = &endpoint.channels[turn / self.all.len() % endpoint.channels.len()];
            Oneshot::new(channel.clone(), request)
        };
        if let [only] = &*self.all {
            return ResponseFuture::unwatched(connect(only, request));
        }
        let out = self.all.iter().filter(|endpoint| Self::is_out(endpoint)).count();
        let panic = out * 100 > self.all.len() * Self::PANIC;
        let mut request = Some(request);
        for step in 0..self.all.len() {
            let endpoint = &self.all[turn.wrapping_add(step) % self.all.len()];
            if panic || Self::is_out(endpoint) {
                continue;
            }
            if let Some(call) = endpoint.ejection.try_call(&mut request, |request| connect(endpoint, request)) {
                return call;
            }
        }
        // Nobody is in, or too few are: everybody takes part.
        let request = request.unwrap_or_default();
        ResponseFuture::unwatched(connect(&self.all[turn % self.all.len()], request))
    }
}

impl Service<Request<Body>> for Endpoints {
    type Response = Response<CircuitBody<Body>>;
    type Error = BoxError;
    type Future = EndpointFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> EndpointFuture {
        self.pick(request)
    }
}
