//! A panic while serving a call ends that call, and nothing else.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::refusal::Refusal;

/// Answers INTERNAL where a call panics. The panic itself is logged by the process's panic hook, once.
#[derive(Clone, Copy, Debug)]
pub struct CatchLayer(&'static str);

impl CatchLayer {
    /// A layer for the service of this bare name.
    #[must_use]
    pub const fn new(service: &'static str) -> Self {
        Self(service)
    }
}

impl<S> Layer<S> for CatchLayer {
    type Service = Catch<S>;

    fn layer(&self, inner: S) -> Catch<S> {
        Catch { inner, service: self.0 }
    }
}

/// The service that [`CatchLayer`] makes.
#[derive(Clone, Debug)]
pub struct Catch<S> {
    inner: S,
    service: &'static str,
}

impl<S, B> Service<Request<Body>> for Catch<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    B: Default,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = CatchFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> CatchFuture<S::Future> {
        // Tonic's handlers run when they are polled, but a guard looks at once.
        let inner = catch_unwind(AssertUnwindSafe(|| self.inner.call(request))).ok();
        CatchFuture { inner, service: self.service }
    }
}

pin_project! {
    /// The future that [`Catch`] makes.
    #[derive(Debug)]
    pub struct CatchFuture<F> {
        #[pin]
        // None if it panicked before there was anything to poll.
        inner: Option<F>,
        service: &'static str,
    }
}

impl<F: Future<Output = Result<Response<B>, Infallible>>, B: Default> Future for CatchFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        // What a panic left half done belongs to this call, and is dropped with it.
        let polled = this.inner.as_pin_mut().map(|inner| catch_unwind(AssertUnwindSafe(|| inner.poll(cx))));
        match polled {
            Some(Ok(polled)) => polled,
            None | Some(Err(_)) => Poll::Ready(Ok(Refusal::internal().into_status(this.service).into_http())),
        }
    }
}
