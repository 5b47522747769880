//! An answer's body, watched to its end.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::call::{Call, Ending, Quiet};
use crate::{breaker::DRAINING, refusal::Refusal};

/// An answer's body: its trailers say what became of the call. A stream that waits when its server drains ends UNAVAILABLE,
/// so that its client goes on elsewhere.
pub struct ServerBody<B> {
    inner: B,
    /// Gone once the call is finished; then nothing follows.
    call: Option<Call>,
    /// Made when the body first has to wait. The answer to a unary call never does.
    draining: Option<BoxFuture<'static, ()>>,
}

impl<B> ServerBody<B> {
    /// A body that follows no headers of success: there is nothing to watch.
    pub(super) const fn finished(inner: B) -> Self {
        Self { inner, call: None, draining: None }
    }

    pub(super) const fn watched(inner: B, call: Call) -> Self {
        Self { inner, call: Some(call), draining: None }
    }

    /// Ends the answer here, whatever it had still to say.
    fn end(&mut self, refusal: Refusal, quiet: Option<Quiet>) -> Poll<Option<Result<Frame<Bytes>, Status>>>
    where
        B: Default,
    {
        self.inner = B::default();
        let trailers = self.call.take().map(|mut call| {
            call.quiet = quiet;
            let status = refusal.into_status(call.shared.service);
            Ok(Frame::trailers(call.fail(&status)))
        });
        Poll::Ready(trailers)
    }

    fn must_end(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(call) = &self.call else { return false };
        let draining = self.draining.get_or_insert_with(|| {
            let mut ending = call.shared.ending.clone();
            Box::pin(async move {
                if ending.wait_for(|ending| *ending >= Ending::Streams).await.is_err() {
                    std::future::pending().await
                }
            })
        });
        draining.as_mut().poll(cx).is_ready()
    }
}

impl<B: Body<Data = Bytes, Error = Status> + Default + Unpin> Body for ServerBody<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(call) = &this.call else { return Pin::new(&mut this.inner).poll_frame(cx) };
        let polled = call.scope(|| {
            let inner = Pin::new(&mut this.inner);
            catch_unwind(AssertUnwindSafe(|| inner.poll_frame(cx)))
        });
        match polled {
            Err(_) => this.end(Refusal::internal(), None),
            // What was to be said is said before the stream ends.
            Ok(Poll::Pending) if this.must_end(cx) => {
                let why = "this server is about to stop, or the connection is old: call again";
                this.end(Refusal::unavailable(DRAINING, why, Duration::ZERO), Some(Quiet::Drained))
            }
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Some(Ok(frame)))) => match frame.into_trailers() {
                Ok(mut trailers) => {
                    if let Some(call) = this.call.take() {
                        call.finish(&mut trailers);
                    }
                    Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                }
                Err(frame) => Poll::Ready(Some(Ok(frame))),
            },
            Ok(Poll::Ready(Some(Err(status)))) => {
                if let Some(call) = this.call.take() {
                    call.fail(&status);
                }
                Poll::Ready(Some(Err(status)))
            }
            Ok(Poll::Ready(None)) => {
                if let Some(call) = this.call.take() {
                    call.fail(&Status::internal("the answer had no end"));
                }
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B> fmt::Debug for ServerBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBody").field("call", &self.call).finish_non_exhaustive()
    }
}
