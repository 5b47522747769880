//! A message that can't be read is its sender's mistake. Tonic says INTERNAL, which says that it is ours.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::details;
use crate::refusal::Refusal;

/// What tonic and prost begin with where a message or its frame can't be read.
const UNREADABLE: [&str; 2] = ["failed to decode Protobuf message", "protocol error: received message with"];

/// Answers INVALID_ARGUMENT, `MALFORMED_MESSAGE`, where a request can't be read.
#[derive(Clone, Copy, Debug)]
pub struct MalformedLayer(&'static str);

impl MalformedLayer {
    /// A layer for the service of this bare name.
    #[must_use]
    pub const fn new(service: &'static str) -> Self {
        Self(service)
    }
}

impl<S> Layer<S> for MalformedLayer {
    type Service = Malformed<S>;

    fn layer(&self, inner: S) -> Malformed<S> {
        Malformed { inner, service: self.0 }
    }
}

/// The service that [`MalformedLayer`] makes.
#[derive(Clone, Debug)]
pub struct Malformed<S> {
    inner: S,
    service: &'static str,
}

impl<S> Service<Request<Body>> for Malformed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = MalformedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> MalformedFuture<S::Future> {
        let read = Arc::new(AtomicBool::new(false));
        let request = request.map(|inner| Body::new(Reading { inner, read: Arc::clone(&read) }));
        MalformedFuture { inner: self.inner.call(request), read, service: self.service }
    }
}

pin_project! {
    /// The future that [`Malformed`] makes.
    #[derive(Debug)]
    pub struct MalformedFuture<F> {
        #[pin]
        inner: F,
        read: Arc<AtomicBool>,
        service: &'static str,
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for MalformedFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.inner.poll(cx));
        // A unary surface is asked once the request is at its end: what it says then is about something else, such as another
        // service's answer that it couldn't read.
        if details::code(response.headers()) != Some(Code::Internal) || this.read.load(Relaxed) {
            return Poll::Ready(Ok(response));
        }
        let status = Status::from_header_map(response.headers()).filter(|status| {
            status.details().is_empty() && UNREADABLE.iter().any(|words| status.message().starts_with(words))
        });
        Poll::Ready(Ok(match status {
            Some(status) => {
                let refusal = Refusal::new(Code::InvalidArgument, "MALFORMED_MESSAGE", status.message());
                refusal.into_status(this.service).into_http()
            }
            None => response,
        }))
    }
}

/// A request's body that says whether somebody has come to its end.
struct Reading {
    inner: Body,
    read: Arc<AtomicBool>,
}

impl http_body::Body for Reading {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if !matches!(&frame, Some(Ok(frame)) if frame.is_data()) {
            self.read.store(true, Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
