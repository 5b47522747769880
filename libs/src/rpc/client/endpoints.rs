//! Where calls go: one address, or several in turn. Of several, one that keeps failing is passed over for a while.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use http::{Request, Response};
use parking_lot::RwLock;
use tokio::sync::Notify;
use tonic::transport::Channel;
use tower::{Service, util::Oneshot};

use super::place::Place;
use crate::breaker::{
    BreakerLayer,
    layer::{BoxError, CircuitBody, ResponseFuture},
};

type Body = tonic::body::Body;
/// A call to one address.
pub type EndpointFuture = ResponseFuture<Oneshot<Channel, Request<Body>>>;

/// The addresses of a peer. Cheap to clone.
#[derive(Clone)]
pub(super) struct Endpoints(Arc<Shared>);

pub(super) struct Shared {
    all: RwLock<Arc<[Endpoint]>>,
    next: AtomicUsize,
    /// Told when an address is out: it may be gone, and others come.
    doubts: Notify,
}

/// One address.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub(super) place: Place,
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
        Self(Arc::new(Shared { all: RwLock::new(all.into()), next: AtomicUsize::new(0), doubts: Notify::new() }))
    }

    /// What they share, for whoever keeps the addresses current.
    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    fn is_out(endpoint: &Endpoint) -> bool {
        endpoint.ejection.breaker().refuses_now()
    }

    fn pick(&self, request: Request<Body>) -> EndpointFuture {
        let all = self.0.all();
        let turn = self.0.next.fetch_add(1, Ordering::Relaxed);
        let connect = |endpoint: &Endpoint, request| {
            let channel = &endpoint.channels[turn / all.len() % endpoint.channels.len()];
            Oneshot::new(channel.clone(), request)
        };
        if let [only] = &*all {
            return ResponseFuture::unwatched(connect(only, request));
        }
        let out = all.iter().filter(|endpoint| Self::is_out(endpoint)).count();
        if out > 0 {
            self.0.doubts.notify_one();
        }
        let panic = out * 100 > all.len() * Self::PANIC;
        let mut request = Some(request);
        for step in 0..all.len() {
            let endpoint = &all[turn.wrapping_add(step) % all.len()];
            if panic || Self::is_out(endpoint) {
                continue;
            }
            if let Some(call) = endpoint.ejection.try_call(&mut request, |request| connect(endpoint, request)) {
                return call;
            }
        }
        // Nobody is in, or too few are: everybody takes part.
        let request = request.unwrap_or_default();
        ResponseFuture::unwatched(connect(&all[turn % all.len()], request))
    }
}

impl Shared {
    /// The addresses as they are now.
    pub(super) fn all(&self) -> Arc<[Endpoint]> {
        Arc::clone(&self.all.read())
    }

    /// Sends calls to these from now on, of which there is at least one. Calls under way stay where they are.
    pub(super) fn replace(&self, all: Vec<Endpoint>) {
        if !all.is_empty() {
            *self.all.write() = all.into();
        }
    }

    /// Resolves when an address was found to be out.
    pub(super) async fn doubted(&self) {
        self.doubts.notified().await;
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.all().iter().map(|endpoint| &endpoint.place)).finish()
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
