//! The outermost layer: every call is seen to its end, whatever becomes of it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::sync::watch;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{
    ServerBody,
    call::{Call, Shared},
    details,
};
use crate::telemetry::ServerMetrics;

/// Traces, logs and measures calls, completes their errors, and ends their streams when the server drains.
#[derive(Clone, Debug)]
pub struct ObserveLayer(Arc<Shared>);

impl ObserveLayer {
    /// A layer for the service of this bare name. Streams end once `draining` is true.
    #[must_use]
    pub fn new(service: &'static str, metrics: Option<ServerMetrics>, draining: watch::Receiver<bool>) -> Self {
        Self(Arc::new(Shared { service, metrics, draining }))
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, shared: Arc::clone(&self.0) }
    }
}

/// The service that [`ObserveLayer`] makes.
#[derive(Clone, Debug)]
pub struct Observe<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Observe<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<ServerBody>;
    type Error = Infallible;
    type Future = ObserveFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> ObserveFuture<S::Future> {
        let call = Call::new(Arc::clone(&self.shared), &request);
        let inner = call.span.in_scope(|| self.inner.call(request));
        ObserveFuture { inner, call: Some(call) }
    }
}

pin_project! {
    /// The future that [`Observe`] makes.
    #[derive(Debug)]
    pub struct ObserveFuture<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for ObserveFuture<F> {
    type Output = Result<Response<ServerBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = match this.call {
            Some(call) => ready!(call.span.in_scope(|| this.inner.poll(cx))),
            None => ready!(this.inner.poll(cx)),
        };
        let Ok(mut response) = response;
        let Some(call) = this.call.take() else { return Poll::Ready(Ok(response.map(ServerBody::finished))) };
        // A status among the headers is the whole answer: tonic sends the errors of unary calls so.
        if details::code(response.headers()).is_some() {
            call.finish(response.headers_mut());
            return Poll::Ready(Ok(response.map(ServerBody::finished)));
        }
        Poll::Ready(Ok(response.map(|body| ServerBody::watched(body, call))))
    }
}
