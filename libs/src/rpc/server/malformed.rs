//! A message that can't be read is its sender's mistake. Tonic says INTERNAL, which says that it is ours. So is one that is too large:
//! whichever service it is for, it is refused before it has come, since what has come of one is held until it is complete. What follows
//! the messages of a request is left out.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use crate::{breaker::layer::grpc_status, refusal::Refusal, rpc::shed::is_exempt};

/// What tonic and prost begin with where a message or its frame can't be read.
const UNREADABLE: [&str; 2] = ["failed to decode Protobuf message", "protocol error: received message with"];
/// What tonic says where a request has no message, or ends within it.
const UNFINISHED: [&str; 2] = ["Missing request message", "Unexpected EOF decoding stream"];
/// What a body says in place of whatever it ends with where its caller has gone: a reset, or a connection that broke. Not CANCELLED,
/// which tonic takes for the end of the messages. A reset with NO_ERROR is none: hyper takes it for the request's end.
const LEFT: &str = "the caller left before the request's end";
/// The bytes before a message: a flag and how long it is.
const PREFIX: usize = 5;
/// The most bytes of a message for a service that is anybody's, however many call: nobody counts those, and they ask for a name. What a
/// surface has still to read is in HTTP/2's window, 1 MiB for all streams of a connection.
const MOST_OF_ANYBODY: usize = 4 << 10;

/// Answers INVALID_ARGUMENT, `MALFORMED_MESSAGE`, where a request can't be read, OUT_OF_RANGE, `MESSAGE_TOO_LARGE`, where it is not read
/// for its length, and CANCELLED where its caller has gone before its end.
#[derive(Clone, Copy, Debug)]
pub struct MalformedLayer {
    service: &'static str,
    most: usize,
}

impl MalformedLayer {
    /// A layer for the service of this bare name, which takes messages of so many bytes at the most.
    #[must_use]
    pub const fn new(service: &'static str, most: usize) -> Self {
        Self { service, most }
    }
}

impl<S> Layer<S> for MalformedLayer {
    type Service = Malformed<S>;

    fn layer(&self, inner: S) -> Malformed<S> {
        Malformed { inner, layer: *self }
    }
}

/// The service that [`MalformedLayer`] makes.
#[derive(Clone, Debug)]
pub struct Malformed<S> {
    inner: S,
    layer: MalformedLayer,
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
        let MalformedLayer { service, mut most } = self.layer;
        if is_exempt(request.uri().path()) {
            most = most.min(MOST_OF_ANYBODY);
        }
        let reached = Arc::new(Reached::new(&request));
        let body = |inner| {
            let (messages, reached) = (Messages::default(), Arc::clone(&reached));
            Body::new(Reading { inner, messages, service, most, reached })
        };
        MalformedFuture { inner: self.inner.call(request.map(body)), reached, service }
    }
}

pin_project! {
    /// The future that [`Malformed`] makes.
    #[derive(Debug)]
    pub struct MalformedFuture<F> {
        #[pin]
        inner: F,
        reached: Arc<Reached>,
        service: &'static str,
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for MalformedFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.inner.poll(cx));
        if grpc_status(response.headers()) != Some(Code::Internal) {
            return Poll::Ready(Ok(response));
        }
        let refusal = Status::from_header_map(response.headers()).and_then(|status| this.reached.blames(&status));
        Poll::Ready(Ok(refusal.map_or(response, |refusal| refusal.into_status(this.service).into_http())))
    }
}

/// How far a request's body was read.
#[derive(Debug)]
struct Reached(AtomicU8);

impl Reached {
    /// Not to its end.
    const WITHIN: u8 = 0;
    /// To its end, with a message in it.
    const END: u8 = 1;
    /// To its end, which is before that of its message.
    const SHORT: u8 = 2;
    /// To where its caller left.
    const LEFT: u8 = 3;

    fn new(request: &Request<Body>) -> Self {
        // Nobody reads what has ended with its headers.
        Self(AtomicU8::new(if http_body::Body::is_end_stream(request.body()) { Self::SHORT } else { Self::WITHIN }))
    }

    /// What to say in place of an INTERNAL, if that is the request's own fault.
    fn blames(&self, status: &Status) -> Option<Refusal> {
        let says = |words: &[&str]| {
            status.details().is_empty() && words.iter().any(|words| status.message().starts_with(words))
        };
        let malformed = |why: &str| Refusal::new(Code::InvalidArgument, "MALFORMED_MESSAGE", why);
        match self.0.load(Relaxed) {
            Self::WITHIN if says(&UNREADABLE) => Some(malformed(status.message())),
            Self::SHORT if says(&UNFINISHED) => Some(malformed("the request ends before its message does")),
            Self::LEFT if says(&[LEFT]) => Some(Refusal::new(Code::Cancelled, "CANCELLED", LEFT)),
            // A unary surface is asked once the request is at its end: what it says then is about something else, such as another
            // service's answer that it couldn't read.
            _ => None,
        }
    }
}

/// How far a body has come in its messages.
#[derive(Debug, Default)]
struct Messages {
    /// Of the bytes before a message.
    seen: usize,
    /// The message's own that are still to come, once all those were seen.
    left: usize,
    /// True once there was one.
    any: bool,
}

impl Messages {
    /// Goes on by what has come. The length of a message that is longer than `most` is the error, wherever in it that is.
    fn go_on(&mut self, mut data: &[u8], most: usize) -> Result<(), usize> {
        while let Some((byte, rest)) = data.split_first() {
            if self.seen < PREFIX {
                if self.seen > 0 {
                    self.left = self.left << 8 | usize::from(*byte);
                }
                (self.seen, data) = (self.seen + 1, rest);
                if self.seen == PREFIX && self.left > most {
                    return Err(self.left);
                }
            } else {
                let passed = self.left.min(data.len());
                (self.left, data) = (self.left - passed, &data[passed..]);
            }
            if self.seen == PREFIX && self.left == 0 {
                (self.seen, self.any) = (0, true);
            }
        }
        Ok(())
    }

    /// True where a body must not end.
    const fn is_short(&self) -> bool {
        self.seen > 0 || !self.any
    }
}

/// A request's body that notes how far it was read, and ends where it is too large.
struct Reading {
    inner: Body,
    messages: Messages,
    service: &'static str,
    most: usize,
    reached: Arc<Reached>,
}

impl Reading {
    fn too_large(&self, bytes: usize) -> Status {
        let most = self.most;
        let message = format!("the request has a message of {bytes} bytes, and {most} are taken: send less at once");
        Refusal::out_of_range("MESSAGE_TOO_LARGE", message)
            .with("limit_bytes", most.to_string())
            .into_status(self.service)
    }

    /// Where a body ends whose last word this is.
    fn end(&self, last: &Option<Result<Frame<Bytes>, Status>>) -> u8 {
        match last {
            Some(Err(_)) => Reached::LEFT,
            _ if self.messages.is_short() => Reached::SHORT,
            _ => Reached::END,
        }
    }
}

impl http_body::Body for Reading {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let most = self.most;
        if let Some(Ok(part)) = &frame
            && let Some(data) = part.data_ref()
        {
            if let Err(bytes) = self.messages.go_on(data, most) {
                frame = Some(Err(self.too_large(bytes)));
            }
        } else {
            self.reached.0.store(self.end(&frame), Relaxed);
            // A request of gRPC has no trailers, and tonic would have them replace headers that were looked at.
            frame = frame.filter(Result::is_err).map(|_| Err(Status::internal(LEFT)));
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

#[cfg(test)]
mod tests {
    use futures::stream;
    use http::{HeaderName, HeaderValue};
    use http_body_util::StreamBody;
    use proto::inventory::v1::{GetStockRequest, GetStockResponse};
    use tonic_prost::ProstCodec;
    use tonic_types::StatusExt as _;
    use tower::service_fn;

    use super::*;

    /// What tonic's server answers to a request of these frames, which takes a KiB.
    async fn answered(frames: Vec<Result<&'static [u8], Status>>) -> (Code, String) {
        let surface = service_fn(async |request| {
            let stock = service_fn(async |_: tonic::Request<GetStockRequest>| {
                Ok::<_, Status>(tonic::Response::new(GetStockResponse::default()))
            });
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<GetStockResponse, GetStockRequest>::default());
            Ok::<_, Infallible>(grpc.unary(stock, request).await)
        });
        let frames = frames.into_iter().map(|frame| frame.map(|data| Frame::data(Bytes::from_static(data))));
        let body = if frames.len() == 0 { Body::empty() } else { Body::new(StreamBody::new(stream::iter(frames))) };
        let answer =
            MalformedLayer::new("tea", 1 << 10).layer(surface).call(Request::new(body)).await.expect("an answer");
        let Some(status) = Status::from_header_map(answer.headers()) else { return (Code::Ok, String::new()) };
        let info = status.get_details_error_info();
        (status.code(), info.map_or_else(|| status.message().to_owned(), |info| info.reason))
    }

    #[tokio::test]
    async fn a_request_that_ends_before_its_message_is_its_senders_mistake() {
        let malformed = (Code::InvalidArgument, "MALFORMED_MESSAGE".to_owned());
        assert_eq!(answered(vec![]).await, malformed, "no message");
        assert_eq!(answered(vec![Ok(b"")]).await, malformed, "nor anything else");
        assert_eq!(answered(vec![Ok(b"\0\0")]).await, malformed, "half a prefix");
        assert_eq!(answered(vec![Ok(b"\0\0\0\0"), Ok(b"\x05\x0a\x03te")]).await, malformed, "cut short");
        assert_eq!(answered(vec![Ok(b"\0\0\0\0"), Ok(b"\x05\x0a\x03te"), Ok(b"a")]).await.0, Code::Ok);
    }

    #[tokio::test]
    async fn a_message_that_is_too_large_is_refused_once_its_length_has_come() {
        let too_large = (Code::OutOfRange, "MESSAGE_TOO_LARGE".to_owned());
        assert_eq!(answered(vec![Ok(b"\0\0\0"), Ok(b"\x04\x01x")]).await, too_large);
        assert_eq!(answered(vec![Ok(b"\0\xff\xff\xff\xff")]).await, too_large);
        assert_eq!(answered(vec![Ok(b"\0\0\0\0\0\0\0\0\x04"), Ok(b"\x01")]).await, too_large, "another one");
        assert_eq!(answered(vec![Ok(b"\0\0\0\0\0\0\0\0\0\x05\x0a\x03t"), Ok(b"ea")]).await.0, Code::Ok);
        let malformed = (Code::InvalidArgument, "MALFORMED_MESSAGE".to_owned());
        assert_eq!(answered(vec![Ok(b"\0\0\0\x04\0")]).await, malformed, "as large as may be, and not there");
    }

    #[tokio::test]
    async fn a_caller_who_leaves_before_the_requests_end_has_cancelled() {
        let cancelled = (Code::Cancelled, "CANCELLED".to_owned());
        // What tonic makes of a stream's CANCEL, of its other resets, and of a connection that breaks.
        for code in [Code::Cancelled, Code::Internal, Code::Unavailable, Code::ResourceExhausted, Code::Unknown] {
            let left = || Err(Status::new(code, "h2 protocol error: error reading a body from connection"));
            assert_eq!(answered(vec![left()]).await, cancelled, "{code:?}");
            assert_eq!(answered(vec![Ok(b"\0\0\0\0\x05\x0a\x03"), left()]).await, cancelled, "{code:?}");
            assert_eq!(answered(vec![Ok(b"\0\0\0\0\x05\x0a\x03tea"), left()]).await, cancelled, "{code:?}");
        }
    }

    /// What a surface sees of `saga-id`, where a request's headers and its trailers say these.
    async fn seen(header: Option<&'static str>, trailer: &'static str) -> Option<String> {
        let surface = service_fn(async |request| {
            let stock = service_fn(async |request: tonic::Request<GetStockRequest>| {
                let mut answer = tonic::Response::new(GetStockResponse::default());
                if let Some(id) = request.metadata().get("saga-id") {
                    answer.metadata_mut().insert("saga-id", id.clone());
                }
                Ok::<_, Status>(answer)
            });
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<GetStockResponse, GetStockRequest>::default());
            Ok::<_, Infallible>(grpc.unary(stock, request).await)
        });
        let trailers = [(HeaderName::from_static("saga-id"), HeaderValue::from_static(trailer))];
        let message = Frame::data(Bytes::from_static(b"\0\0\0\0\x05\x0a\x03tea"));
        let frames = [message, Frame::trailers(trailers.into_iter().collect())].map(Ok::<_, Status>);
        let mut request = Request::new(Body::new(StreamBody::new(stream::iter(frames))));
        if let Some(id) = header {
            request.headers_mut().insert("saga-id", HeaderValue::from_static(id));
        }
        let answer = MalformedLayer::new("tea", 1 << 10).layer(surface).call(request).await.expect("an answer");
        assert_eq!(grpc_status(answer.headers()), None, "it is answered");
        answer.headers().get("saga-id").map(|id| id.to_str().expect("ASCII").to_owned())
    }

    #[tokio::test]
    async fn what_the_headers_did_not_say_is_not_said_by_trailers() {
        assert_eq!(seen(Some("a"), "b").await.as_deref(), Some("a"));
        assert_eq!(seen(None, "b").await, None);
    }
}
