//! The layer and its service.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tower::{Layer, Service};

use super::{
    super::{Breaker, Classes, rejection::Refusals},
    BoxError, CircuitBody, ResponseFuture,
    grpc_timeout::grpc_timeout,
    watch::{Handle, Shared},
};

/// Puts a breaker before a channel.
#[derive(Clone, Debug)]
pub struct BreakerLayer(Handle);

impl BreakerLayer {
    /// A layer on this breaker, with the usual classes.
    #[must_use]
    pub fn new(breaker: Arc<Breaker>) -> Self {
        Self::with(breaker, Classes::default(), Duration::from_secs(5))
    }

    fn with(breaker: Arc<Breaker>, classes: Classes, stream_commit: Duration) -> Self {
        let refusals = Refusals::new(Arc::clone(breaker.name()));
        Self(Handle(Arc::new(Shared { breaker, refusals, classes, stream_commit })))
    }

    /// The breaker.
    #[must_use]
    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.0.0.breaker
    }

    /// Makes a call if the breaker lets it, and takes the request only then.
    pub fn try_call<B, F>(
        &self,
        request: &mut Option<Request<B>>,
        call: impl FnOnce(Request<B>) -> F,
    ) -> Option<ResponseFuture<F>> {
        let watch = Breaker::admit_by(self.0.clone(), grpc_timeout(request.as_ref()?.headers())).ok()?;
        Some(ResponseFuture::new(call(request.take()?), watch))
    }

    /// Judges codes by other classes.
    #[must_use]
    pub fn classes(self, classes: Classes) -> Self {
        Self::with(Arc::clone(self.breaker()), classes, self.0.0.stream_commit)
    }

    /// The classes it judges by.
    #[must_use]
    pub fn judged_by(&self) -> Classes {
        self.0.0.classes
    }

    /// Takes a stream that has sent something for a success once it is so old; by default 5 s. How it ends counts again.
    #[must_use]
    pub fn stream_commit(self, age: Duration) -> Self {
        Self::with(Arc::clone(self.breaker()), self.0.0.classes, age)
    }
}

/// Whether anybody else holds this layer: a channel, or a call under way.
pub(super) fn is_held(layer: &BreakerLayer) -> bool {
    Arc::strong_count(&layer.0.0) > 1
}

impl<S> Layer<S> for BreakerLayer {
    type Service = Circuit<S>;

    fn layer(&self, inner: S) -> Circuit<S> {
        Circuit { inner, layer: self.clone() }
    }
}

/// A channel with a breaker before it.
#[derive(Clone, Debug)]
pub struct Circuit<S> {
    inner: S,
    layer: BreakerLayer,
}

impl<S: Clone> Circuit<S> {
    /// The same channel with another breaker before it.
    #[must_use]
    pub fn behind(&self, layer: BreakerLayer) -> Self {
        Self { inner: self.inner.clone(), layer }
    }
}

impl<S, RequestBody, ResponseBody> Service<Request<RequestBody>> for Circuit<S>
where
    S: Service<Request<RequestBody>, Response = Response<ResponseBody>>,
    S::Error: Into<BoxError>,
    ResponseBody: http_body::Body,
    ResponseBody::Error: Into<BoxError>,
{
    type Response = Response<CircuitBody<ResponseBody>>;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future>;

    /// The channel's readiness. The breaker is asked in `call`: an error from here would end what stands before.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let BreakerLayer(handle) = &self.layer;
        match Breaker::admit_by(handle.clone(), grpc_timeout(request.headers())) {
            Ok(watch) => ResponseFuture::new(self.inner.call(request), watch),
            Err(rejected) => ResponseFuture::refused(handle.0.refusals.status(rejected)),
        }
    }
}
