//! A deadline over a whole call: until headers, and then until the body's end.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep_until},
};
use tonic::{Code, Status, TimeoutExpired};

use super::cut_off::{was_cut_off, was_let_go};
use crate::{
    breaker::layer::{BoxError, drop_unreadable_details, grpc_status},
    rpc::cause,
};

fn deadline_exceeded() -> Status {
    Status::deadline_exceeded("the deadline passed before the call was done")
}

/// An error as a status. tonic's own timer says CANCELLED, which it is not, and of what the transport cut off it says many things.
pub(super) fn into_status(error: BoxError) -> Status {
    if is_by_the_channel(&*error) {
        return deadline_exceeded();
    }
    let why = was_cut_off(&*error).then(|| cause::root(&*error).to_string());
    let status = Status::from_error(error);
    match why {
        // Of a connection that never came about tonic says so, too.
        Some(why) if status.code() != Code::Unavailable => {
            let mut cut_off = Status::unavailable(format!("the call was cut off: {why}"));
            cut_off.set_source(Arc::new(status));
            cut_off
        }
        _ => status,
    }
}

/// Whether the channel's own timer ended a call: it reads what is sent along as the server does, and may be first.
pub(super) fn is_by_the_channel(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if cause.is::<TimeoutExpired>() {
            return true;
        }
        next = cause.source();
    }
    false
}

pin_project! {
    /// Polls a timer that is made when it is first needed: most calls are done by then, or wait once.
    #[derive(Debug)]
    struct Timer {
        deadline: Option<Instant>,
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl Timer {
    const fn new(deadline: Option<Instant>) -> Self {
        Self { deadline, sleep: None }
    }

    /// Whether the deadline has come. Wakes the task when it does.
    fn poll_over(self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        let mut this = self.project();
        let Some(deadline) = *this.deadline else { return false };
        if this.sleep.is_none() {
            this.sleep.set(Some(sleep_until(deadline)));
        }
        this.sleep.as_pin_mut().is_some_and(|sleep| sleep.poll(cx).is_ready())
    }

    /// Whether the deadline has come, for who is not going to wait.
    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

pin_project! {
    /// A call under its deadline.
    #[derive(Debug)]
    pub struct TimeoutFuture<F> {
        // A place among the calls under way, if there is a bound.
        place: Option<OwnedSemaphorePermit>,
        // Why it was not sent.
        refused: Option<Status>,
        #[pin]
        // None once it has ended: what is dropped frees its place at once.
        call: Option<F>,
        #[pin]
        timer: Timer,
    }
}

impl<F> TimeoutFuture<F> {
    pub(super) const fn new(call: F, deadline: Option<Instant>, place: Option<OwnedSemaphorePermit>) -> Self {
        Self { place, refused: None, call: Some(call), timer: Timer::new(deadline) }
    }

    /// A call whose deadline had passed before it left. It is not sent.
    pub(super) fn expired() -> Self {
        Self::refused(deadline_exceeded())
    }

    /// A call that is not sent.
    pub(super) const fn refused(status: Status) -> Self {
        Self { place: None, refused: Some(status), call: None, timer: Timer::new(None) }
    }
}

impl<F, B> Future for TimeoutFuture<F>
where
    F: Future<Output = Result<Response<B>, BoxError>>,
{
    type Output = Result<Response<TimeoutBody<B>>, Status>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(call) = this.call.as_mut().as_pin_mut() else {
            return Poll::Ready(Err(this.refused.take().unwrap_or_else(deadline_exceeded)));
        };
        match call.poll(cx) {
            Poll::Ready(Ok(response)) if says_late(response.headers(), this.timer.deadline) => {
                Poll::Ready(Err(deadline_exceeded()))
            }
            Poll::Ready(Ok(mut response)) => {
                drop_unreadable_details(response.headers_mut());
                let (deadline, place) = (this.timer.deadline, this.place.take());
                let body = |body| TimeoutBody { body: Some(body), place, timer: Timer::new(deadline), begun: false };
                Poll::Ready(Ok(response.map(body)))
            }
            Poll::Ready(Err(error)) if was_let_go(&*error) && is_near(this.timer.deadline) => {
                Poll::Ready(Err(deadline_exceeded()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(into_status(error))),
            Poll::Pending if this.timer.poll_over(cx) => {
                this.call.set(None);
                Poll::Ready(Err(deadline_exceeded()))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Whether the status is a server's word for our deadline, which is CANCELLED too.
fn says_late(headers: &HeaderMap, deadline: Option<Instant>) -> bool {
    grpc_status(headers) == Some(Code::Cancelled) && is_near(deadline)
}

/// Whether the deadline is there by the server's clock, which may be ahead.
fn is_near(deadline: Option<Instant>) -> bool {
    const MARGIN: Duration = Duration::from_millis(5);
    deadline.is_some_and(|deadline| Instant::now() + MARGIN >= deadline)
}

pin_project! {
    /// A body under its call's deadline.
    #[derive(Debug)]
    pub struct TimeoutBody<B> {
        #[pin]
        body: Option<B>,
        place: Option<OwnedSemaphorePermit>,
        #[pin]
        timer: Timer,
        begun: bool,
    }
}

impl<B> Body for TimeoutBody<B>
where
    B: Body<Error = BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut this = self.project();
        let Some(body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        match body.poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                let late = match frame.trailers_mut() {
                    Some(trailers) => says_late(trailers, this.timer.deadline),
                    // What always has more ready never waits for the timer. An answer in one piece is there, and let through.
                    None => std::mem::replace(this.begun, true) && this.timer.is_over(),
                };
                if !late {
                    frame.trailers_mut().into_iter().for_each(drop_unreadable_details);
                    return Poll::Ready(Some(Ok(frame)));
                }
            }
            Poll::Ready(Some(Err(error))) if was_let_go(&*error) && is_near(this.timer.deadline) => {}
            Poll::Pending if this.timer.poll_over(cx) => {}
            frame => return frame,
        }
        this.body.set(None);
        *this.place = None;
        Poll::Ready(Some(Err(deadline_exceeded().into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn cancelled() -> HeaderMap {
        HeaderMap::from_iter([("grpc-status".parse().expect("a name"), "1".parse().expect("a value"))])
    }

    /// Calls with a second's time for an answer that is cancelled after so long, in headers or after them.
    async fn cancelled_after(time: Duration, in_headers: bool) -> Code {
        let ended = async move {
            sleep(time).await;
            Ok::<_, BoxError>(Frame::<Bytes>::trailers(cancelled()))
        };
        let answer = async move {
            let mut response = Response::new(StreamBody::new(futures::stream::once(Box::pin(ended))));
            if in_headers {
                sleep(time).await;
                *response.headers_mut() = cancelled();
            }
            Ok::<_, BoxError>(response)
        };
        match TimeoutFuture::new(answer, Some(Instant::now() + SECOND), None).await {
            Err(status) => status.code(),
            Ok(response) if in_headers => grpc_status(response.headers()).expect("a status"),
            Ok(response) => match Box::pin(response.into_body()).frame().await.expect("an end") {
                Ok(frame) => grpc_status(frame.trailers_ref().expect("trailers")).expect("a status"),
                Err(error) => into_status(error).code(),
            },
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_cancels_at_the_deadline_means_the_deadline() {
        for in_headers in [true, false] {
            assert_eq!(cancelled_after(SECOND / 2, in_headers).await, Code::Cancelled);
            assert_eq!(cancelled_after(SECOND - Duration::from_millis(1), in_headers).await, Code::DeadlineExceeded);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_lets_go_of_a_call_at_the_deadline_means_the_deadline() {
        let milliseconds = Duration::from_millis;
        for (after, code) in [(milliseconds(500), Code::Unavailable), (milliseconds(999), Code::DeadlineExceeded)] {
            let call = async move {
                sleep(after).await;
                Err::<Response<StreamBody<futures::stream::Empty<Result<Frame<Bytes>, BoxError>>>>, BoxError>(
                    h2::Error::from(h2::Reason::CANCEL).into(),
                )
            };
            let status = TimeoutFuture::new(call, Some(Instant::now() + SECOND), None).await.expect_err("let go");
            assert_eq!(status.code(), code);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_lets_go_of_an_answer_at_the_deadline_means_the_deadline_too() {
        let milliseconds = Duration::from_millis;
        for (after, code) in [(milliseconds(500), Code::Unavailable), (milliseconds(999), Code::DeadlineExceeded)] {
            let reset = || Err::<Frame<Bytes>, BoxError>(h2::Error::from(h2::Reason::CANCEL).into());
            let body = StreamBody::new(futures::stream::iter([reset()]));
            let answer = std::future::ready(Ok(Response::new(body)));
            let response = TimeoutFuture::new(answer, Some(Instant::now() + SECOND), None).await.expect("headers");
            tokio::time::advance(after).await;
            let error = Box::pin(response.into_body()).frame().await.expect("an end").expect_err("let go");
            assert_eq!(into_status(error).code(), code);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_always_has_more_ready_ends_at_the_deadline() {
        let word = || Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"\0\0\0\0\0")));
        let endless = StreamBody::new(futures::stream::repeat_with(word));
        let answer = std::future::ready(Ok(Response::new(endless)));
        let response = TimeoutFuture::new(answer, Some(Instant::now() + SECOND), None).await.expect("in time");
        let mut body = Box::pin(response.into_body());
        for _ in 0..100 {
            body.frame().await.expect("more").expect("in time");
        }
        tokio::time::advance(SECOND).await;
        let late = body.frame().await.expect("an end").expect_err("late");
        assert_eq!(into_status(late).code(), Code::DeadlineExceeded);
        assert!(body.frame().await.is_none(), "it is over");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_there_in_one_piece_is_not_thrown_away() {
        let frames = [Frame::data(Bytes::from_static(b"\0\0\0\0\0")), Frame::trailers(HeaderMap::new())];
        let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, BoxError>)));
        let answer = std::future::ready(Ok(Response::new(body)));
        let response = TimeoutFuture::new(answer, Some(Instant::now() + SECOND), None).await.expect("in time");
        tokio::time::advance(SECOND * 2).await;
        response.into_body().collect().await.expect("all of it");
    }
}
