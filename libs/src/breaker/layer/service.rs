//! The layer and its service.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::Status;
use tower::{Layer, Service};

use super::{
    super::{Breaker, Class, Classes, rejection::Refusals},
    BoxError, CircuitBody, ResponseFuture,
    grpc_timeout::grpc_timeout,
    watch::{Handle, Judge, Rules, Shared, Watch},
};

/// Puts a breaker before a channel.
#[derive(Clone, Debug)]
pub struct BreakerLayer(Handle);

impl BreakerLayer {
    /// A layer on this breaker, with the usual classes.
    #[must_use]
    pub fn new(breaker: Arc<Breaker>) -> Self {
        Self::with(breaker, Rules { classes: Classes::default(), judge: None, punctual: false })
    }

    fn with(breaker: Arc<Breaker>, rules: Rules) -> Self {
        Self(Handle(Arc::new(Shared { breaker, refusals: Refusals::default(), rules })))
    }

    fn changed(&self, change: impl FnOnce(&mut Rules)) -> Self {
        let mut rules = self.0.0.rules.clone();
        change(&mut rules);
        Self::with(Arc::clone(self.breaker()), rules)
    }

    /// A layer that judges as this one does, on another breaker.
    #[must_use]
    pub fn on(&self, breaker: Arc<Breaker>) -> Self {
        Self::with(breaker, self.0.0.rules.clone())
    }

    /// The breaker.
    #[must_use]
    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.0.0.breaker
    }

    /// Makes a call if the breaker lets it, and refuses it otherwise.
    #[inline]
    pub fn call<B, F>(&self, request: Request<B>, call: impl FnOnce(Request<B>) -> F) -> ResponseFuture<F> {
        self.call_with_permit(request, |request, _| call(request))
    }

    /// Makes a call if the breaker lets it, by its permit: whoever finds the way may have to [excuse](super::super::Permit::excuse) it.
    #[inline]
    pub(crate) fn call_with_permit<B, F>(
        &self,
        request: Request<B>,
        call: impl FnOnce(Request<B>, &mut Watch) -> F,
    ) -> ResponseFuture<F> {
        let Self(handle) = self;
        match Breaker::admit_by(handle.clone(), grpc_timeout(request.headers())) {
            Ok(mut watch) => ResponseFuture::new(call(request, &mut watch), watch),
            Err(rejected) => ResponseFuture::refused(handle.0.refusals.status(handle, rejected)),
        }
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
        self.changed(|rules| rules.classes = classes)
    }

    /// Asks this about every error before its code is looked up: details may tell what the code doesn't. `None` leaves it to the
    /// code.
    #[must_use]
    pub fn judge(self, judge: impl Fn(&Status) -> Option<Class> + Send + Sync + 'static) -> Self {
        self.judge_by(Judge::new(judge))
    }

    pub(crate) fn judge_by(self, judge: Judge) -> Self {
        self.changed(|rules| rules.judge = Some(judge))
    }

    /// Counts on its calls being given up when their deadlines come: one that ends long after shows that this process was stopped.
    #[cfg(any(test, feature = "rpc"))]
    pub(crate) fn punctual(self) -> Self {
        self.changed(|rules| rules.punctual = true)
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
        self.layer.call(request, |request| self.inner.call(request))
    }
}
