//! A neighbour, as this service sees it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tokio::time::Instant;
use tonic::{Status, transport::Channel};
use tower::{Layer as _, Service, util::Oneshot};

use super::{OnRequest, TimeoutBody, TimeoutFuture};
use crate::{
    breaker::{Breaker, BreakerLayer, Circuit, layer},
    rpc::deadline::{self, GRPC_TIMEOUT, format_grpc_timeout, grpc_timeout},
};

type Body = tonic::body::Body;
/// A response's body, under its deadline and watched by the breaker.
pub type PeerBody = TimeoutBody<layer::CircuitBody<Body>>;
/// A call to a peer.
pub type PeerFuture = TimeoutFuture<layer::ResponseFuture<Oneshot<Channel, Request<Body>>>>;

/// A neighbour, as this service sees it: give it to a generated client. Cheap to clone.
///
/// Every call has a deadline, the earliest of its own timeout (or the peer's default) and the one inherited from the call
/// being served. It covers connecting, queueing and the whole body, travels on as `grpc-timeout`, and ends a call as
/// DEADLINE_EXCEEDED.
#[derive(Clone)]
pub struct Peer {
    name: Arc<str>,
    circuit: Circuit<Connections>,
    breaker: Arc<Breaker>,
    timeout: Option<Duration>,
    on_request: Option<OnRequest>,
}

impl Peer {
    pub(super) fn new(
        name: &str,
        channels: Vec<Channel>,
        layer: &BreakerLayer,
        timeout: Option<Duration>,
        on_request: Option<OnRequest>,
    ) -> Self {
        let next = Arc::new(AtomicUsize::new(0));
        let circuit = layer.layer(Connections { channels: channels.into(), next });
        Self { name: name.into(), circuit, breaker: Arc::clone(layer.breaker()), timeout, on_request }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its breaker.
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

    fn call(&mut self, mut request: Request<Body>) -> PeerFuture {
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
        TimeoutFuture::new(self.circuit.call(request), deadline)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("name", &self.name).field("breaker", &self.breaker).finish_non_exhaustive()
    }
}

/// Connections to one address, used in turn.
#[derive(Clone, Debug)]
struct Connections {
    channels: Arc<[Channel]>,
    next: Arc<AtomicUsize>,
}

impl Service<Request<Body>> for Connections {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Oneshot<Channel, Request<Body>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let turn = match self.channels.len() {
            1 => 0,
            many => self.next.fetch_add(1, Ordering::Relaxed) % many,
        };
        Oneshot::new(self.channels[turn].clone(), request)
    }
}
