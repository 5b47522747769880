//! The body, which is watched to its end.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

use super::{super::Class, BoxError, ending, watch::Watch};

/// A stream that has sent something is taken for a success once it is so old. How it ends counts again.
const STREAM_COMMIT: Duration = Duration::from_secs(5);

pin_project! {
    /// A response body whose trailers tell the breaker how the call went.
    #[derive(Debug)]
    pub struct CircuitBody<B>
    where
        B: Body,
    {
        #[pin]
        inner: B,
        watch: Option<Watch>,
        messages: Messages,
    }

    impl<B: Body> PinnedDrop for CircuitBody<B> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if this.inner.is_end_stream() {
                this.watch.take().into_iter().for_each(ending::truncated);
            } else if this.messages.seen() {
                // It may have been quiet since its first message, and worked all the same.
                commit_if_old(this.watch, this.messages);
                // The caller had what it wanted, or left. That is no fault unless the deadline came.
                this.watch.take().into_iter().for_each(ending::left);
            } else {
                this.watch.take().into_iter().for_each(ending::abandoned);
            }
        }
    }
}

/// How far a stream has come.
#[derive(Debug)]
enum Messages {
    /// None came.
    None,
    /// One came, but for so many bytes of the first.
    Some { left: usize },
    /// One came from a probe: it is taken for a success when this time is over, whether or not another comes.
    Probe(Pin<Box<Sleep>>),
    /// It was taken for a success.
    Committed,
}

impl Messages {
    const fn seen(&self) -> bool {
        !matches!(self, Self::None)
    }
}

impl<B: Body> CircuitBody<B> {
    #[inline]
    pub(super) fn new(inner: B, watch: Option<Watch>) -> Self {
        Self { inner, watch, messages: Messages::None }
    }
}

impl<B> Body for CircuitBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = self.project();
        if let Messages::Probe(commit) = this.messages
            && commit.as_mut().poll(cx).is_ready()
        {
            commit_stream(this.watch, this.messages);
        }
        let frame = ready!(this.inner.poll_frame(cx));
        if this.watch.is_none() {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        match frame {
            Some(Ok(frame)) => {
                match frame.trailers_ref() {
                    None => frame.data_ref().into_iter().for_each(|data| piece(data, this.watch, this.messages)),
                    Some(trailers) => match (this.watch.take(), ending::grpc_status(trailers)) {
                        (Some(watch), Some(code)) => ending::by_code(watch, code, trailers),
                        (Some(watch), None) => ending::truncated(watch),
                        (None, _) => {}
                    },
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let error = error.into();
                if let Some(watch) = this.watch.take() {
                    ending::by_error(watch, &*error);
                }
                Poll::Ready(Some(Err(error)))
            }
            None => {
                if let Some(watch) = this.watch.take() {
                    ending::truncated(watch);
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

/// A frame of data came. A stream that works is a success long before it ends, and one message in pieces is no stream.
#[inline]
fn piece(data: &impl Buf, watch: &mut Option<Watch>, messages: &mut Messages) {
    match (&mut *messages, &*watch) {
        // A probe's permit cannot wait for a stream's next message, or its end.
        (Messages::None, Some(probe)) if probe.is_probe() => {
            let left = STREAM_COMMIT.saturating_sub(probe.elapsed().unwrap_or_default());
            if left.is_zero() {
                commit_stream(watch, messages);
            } else {
                *messages = Messages::Probe(Box::pin(sleep(left)));
            }
        }
        (Messages::None, _) => *messages = Messages::Some { left: left(data) },
        (Messages::Some { left }, _) if data.remaining() <= *left => *left -= data.remaining(),
        (Messages::Some { left }, _) => {
            *left = 0;
            commit_if_old(watch, messages);
        }
        _ => commit_if_old(watch, messages),
    }
}

/// How much of the message that begins here comes later, as its prefix says: a flag, and its length in four bytes.
#[inline]
fn left(data: &impl Buf) -> usize {
    let &[_, a, b, c, d, ..] = data.chunk() else { return 0 };
    (u32::from_be_bytes([a, b, c, d]) as usize).saturating_add(5).saturating_sub(data.remaining())
}

#[inline]
fn commit_if_old(watch: &mut Option<Watch>, messages: &mut Messages) {
    let old = |watch: &Watch| watch.elapsed().is_some_and(|age| age >= STREAM_COMMIT);
    if matches!(messages, Messages::Some { left: 0 } | Messages::Probe(_)) && watch.as_ref().is_some_and(old) {
        commit_stream(watch, messages);
    }
}

#[cold]
fn commit_stream(watch: &mut Option<Watch>, messages: &mut Messages) {
    *messages = Messages::Committed;
    if let Some(watch) = watch {
        watch.commit(Class::Success);
    }
}
