//! The wait for response headers.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Response, StatusCode};
use pin_project_lite::pin_project;
use tonic::Status;

use super::{BoxError, CircuitBody, ending, watch::Watch};

pin_project! {
    /// A call before its response headers, or its refusal.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }

    impl<F> PinnedDrop for ResponseFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            if let StateProjected::UnderWay { watch, .. } = this.project().state.project() {
                watch.take().into_iter().for_each(ending::abandoned);
            }
        }
    }
}

pin_project! {
    #[project = StateProjected]
    #[derive(Debug)]
    enum State<F> {
        UnderWay { #[pin] inner: F, watch: Option<Watch> },
        Refused { status: Option<Status> },
    }
}

impl<F> ResponseFuture<F> {
    #[inline]
    pub(super) fn new(inner: F, watch: Watch) -> Self {
        Self { state: State::UnderWay { inner, watch: Some(watch) } }
    }

    /// A call that no breaker watches.
    pub fn unwatched(inner: F) -> Self {
        Self { state: State::UnderWay { inner, watch: None } }
    }

    pub(super) fn refused(status: Status) -> Self {
        Self { state: State::Refused { status: Some(status) } }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: http_body::Body,
{
    type Output = Result<Response<CircuitBody<B>>, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (inner, watch) = match self.project().state.project() {
            StateProjected::UnderWay { inner, watch } => (inner, watch),
            StateProjected::Refused { status } => {
                let status = status.take().unwrap_or_else(|| Status::internal("polled after it was done"));
                return Poll::Ready(Err(status.into()));
            }
        };
        let result = ready!(inner.poll(cx));
        let watch = watch.take();
        Poll::Ready(match result {
            Ok(response) => Ok(judge(response, watch)),
            Err(error) => {
                let error = error.into();
                if let Some(watch) = watch {
                    ending::by_error(watch, &*error);
                }
                Err(error)
            }
        })
    }
}

/// Ends the call if its headers say all, else has the body go on watching.
#[inline]
fn judge<B: http_body::Body>(response: Response<B>, watch: Option<Watch>) -> Response<CircuitBody<B>> {
    let watch = watch.and_then(|watch| match ending::grpc_status(response.headers()) {
        Some(code) => {
            ending::by_code(watch, code, response.headers());
            None
        }
        None if response.status() != StatusCode::OK => {
            ending::by_http(watch, response.status());
            None
        }
        None => Some(watch),
    });
    response.map(|body| CircuitBody::new(body, watch))
}
