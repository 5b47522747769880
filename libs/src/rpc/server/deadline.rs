//! Every call has a deadline: its client's, or ours where that is sooner.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, body::Body};
use tower::{Layer, Service};

use crate::{
    refusal::Refusal,
    rpc::deadline::{Scoped, grpc_timeout, scope},
};

/// Answers DEADLINE_EXCEEDED where a call takes too long. The cap holds until an answer begins: a stream may then go on, and what isn't one
/// has as long again to be taken, by the connection's own clock.
///
/// Tonic measures `grpc-timeout` too, and would answer CANCELLED; it asks this layer first, whose deadline is never the later.
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer {
    service: &'static str,
    max: Duration,
}

impl DeadlineLayer {
    /// A layer for the service of this bare name, that allows no call more than `max`.
    #[must_use]
    pub const fn new(service: &'static str, max: Duration) -> Self {
        Self { service, max }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner, layer: *self }
    }
}

/// The service that [`DeadlineLayer`] makes.
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
    layer: DeadlineLayer,
}

impl<S> Service<Request<Body>> for Deadline<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> DeadlineFuture<S::Future> {
        let DeadlineLayer { service, max } = self.layer;
        let allowed = grpc_timeout(request.headers()).map_or(max, |timeout| timeout.min(max));
        let deadline = Instant::now() + allowed;
        let inner = scope(deadline, self.inner.call(request));
        DeadlineFuture { inner, expired: sleep_until(deadline), service }
    }
}

pin_project! {
    /// The future that [`Deadline`] makes.
    #[derive(Debug)]
    pub struct DeadlineFuture<F> {
        #[pin]
        inner: Scoped<F>,
        #[pin]
        expired: Sleep,
        service: &'static str,
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for DeadlineFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if let answered @ Poll::Ready(_) = this.inner.poll(cx) {
            return answered;
        }
        this.expired.poll(cx).map(|()| {
            let late = Refusal::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "no answer within the time allowed");
            Ok(late.into_status(this.service).into_http())
        })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use tonic::Status;
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::rpc::deadline::{GRPC_TIMEOUT, current};

    const SECOND: Duration = Duration::from_secs(1);

    async fn asked(timeout: Option<&'static str>, takes: Duration) -> (Code, Duration) {
        let surface = service_fn(move |_| async move {
            assert!(current().is_some(), "the deadline is handed down");
            tokio::time::sleep(takes).await;
            Ok(Status::ok("").into_http())
        });
        let mut request = Request::new(Body::empty());
        if let Some(timeout) = timeout {
            request.headers_mut().insert(GRPC_TIMEOUT, HeaderValue::from_static(timeout));
        }
        let start = Instant::now();
        let layered = DeadlineLayer::new("tea", 10 * SECOND).layer(surface);
        let Ok(response) = layered.oneshot(request).await;
        let code = Status::from_header_map(response.headers()).map(|status| status.code());
        (code.expect("a status"), start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_may_allow_less_time_but_not_more() {
        assert_eq!(asked(Some("2S"), 60 * SECOND).await, (Code::DeadlineExceeded, 2 * SECOND));
        assert_eq!(asked(Some("99999999H"), 60 * SECOND).await, (Code::DeadlineExceeded, 10 * SECOND));
        assert_eq!(asked(Some("soon"), 60 * SECOND).await, (Code::DeadlineExceeded, 10 * SECOND));
        assert_eq!(asked(None, 60 * SECOND).await, (Code::DeadlineExceeded, 10 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_time_stands() {
        assert_eq!(asked(Some("2S"), SECOND).await, (Code::Ok, SECOND));
    }
}
