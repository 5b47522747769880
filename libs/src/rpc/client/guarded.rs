//! A peer's addresses behind its breaker.

use std::task::{Context, Poll};

use http::{Request, Response};
use tower::Service;

use super::endpoints::{EndpointFuture, Endpoints};
use crate::breaker::{
    BreakerLayer,
    layer::{BoxError, CircuitBody, ResponseFuture},
};

type Body = tonic::body::Body;

/// A peer's addresses, with a breaker before them. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Guarded {
    layer: BreakerLayer,
    endpoints: Endpoints,
}

impl Guarded {
    pub(super) const fn new(layer: BreakerLayer, endpoints: Endpoints) -> Self {
        Self { layer, endpoints }
    }

    /// Whether calls go to several addresses now.
    pub(super) fn are_several(&self) -> bool {
        self.endpoints.are_several()
    }

    /// The same addresses with another breaker before them.
    pub(super) fn behind(&self, layer: BreakerLayer) -> Self {
        Self { layer, endpoints: self.endpoints.clone() }
    }
}

impl Service<Request<Body>> for Guarded {
    type Response = Response<CircuitBody<CircuitBody<Body>>>;
    type Error = BoxError;
    type Future = ResponseFuture<EndpointFuture>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.layer.call_with_permit(request, |request, permit| self.endpoints.call(request, permit))
    }
}
