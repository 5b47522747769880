//! One call, in as many attempts as it takes and may have.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, request::Parts};
use http_body::{Body as _, Frame};
use http_body_util::{BodyStream, Full, StreamBody};
use pin_project_lite::pin_project;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Status};
use tower::Service;

use super::{
    endpoints::EndpointFuture, guarded::Guarded, http_status::in_grpc, retry::Retry, timeout,
    unprocessed::was_not_processed,
};
use crate::{
    breaker::{
        CircuitOpen,
        layer::{self, BoxError, CircuitBody, Pushback},
    },
    rpc::deadline::{GRPC_TIMEOUT, format_grpc_timeout},
};

type Body = tonic::body::Body;
type Answer = Result<Response<CircuitBody<CircuitBody<Body>>>, BoxError>;

pin_project! {
    /// A call, tried once or more often.
    #[project = AttemptsProjected]
    pub struct Attempts {
        #[pin]
        kind: Kind,
    }
}

pin_project! {
    #[project = KindProjected]
    enum Kind {
        Once { #[pin] call: layer::ResponseFuture<EndpointFuture> },
        More { call: Pin<Box<dyn Future<Output = Answer> + Send>> },
    }
}

impl std::fmt::Debug for Attempts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attempts").finish_non_exhaustive()
    }
}

impl Attempts {
    pub(super) fn once(mut circuit: Guarded, request: Request<Body>) -> Self {
        Self { kind: Kind::Once { call: circuit.call(request) } }
    }

    pub(super) fn more(circuit: Guarded, retry: Arc<Retry>, request: Request<Body>, deadline: Option<Instant>) -> Self {
        let several = circuit.are_several();
        Self { kind: Kind::More { call: Box::pin(call(circuit, retry, request, deadline, several)) } }
    }
}

impl Future for Attempts {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        match self.project().kind.project() {
            KindProjected::Once { call } => call.poll(cx).map_ok(in_grpc),
            KindProjected::More { call } => call.as_mut().poll(cx),
        }
    }
}

/// A call, in the attempts that it may have; with several addresses the second one mostly goes to another.
pub(super) async fn call<S, B>(
    mut circuit: S,
    retry: Arc<Retry>,
    request: Request<Body>,
    deadline: Option<Instant>,
    several: bool,
) -> Result<Response<B>, BoxError>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
{
    let (parts, body) = request.into_parts();
    let body = match buffer(body).await {
        Buffered::Whole(bytes) => bytes,
        // A stream cannot be sent twice.
        Buffered::Stream(body) => return circuit.call(Request::from_parts(parts, body)).await.map(in_grpc),
    };
    retry.begin();
    let (mut attempt, mut sent_again) = (1, false);
    loop {
        let sent = Sent { attempt, before: attempt > 1 || sent_again };
        let (answer, late) = one_attempt(&mut circuit, &retry, &parts, &body, sent, deadline).await;
        // The first attempt in all but name: nobody has worked on it.
        if !sent_again && answer.as_ref().is_err_and(|error| was_not_processed(&**error)) {
            sent_again = true;
            continue;
        }
        let elsewhere = several && attempt == 1;
        let worth = if late { Some(Pushback::None) } else { worth_another(&retry, attempt, elsewhere, &answer) };
        let Some(pushback) = worth else {
            if answer.as_ref().is_ok_and(|response| layer::grpc_status(response.headers()).is_none()) {
                retry.succeeded();
            }
            return answer;
        };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let Some(pause) = retry.failed(attempt, pushback, left) else { return answer };
        // What was answered goes before the wait: it holds a place in the connection.
        drop(answer);
        sleep(pause).await;
        attempt += 1;
    }
}

/// Which attempt it is, and whether the request was sent before: one that nobody has worked on is no attempt.
#[derive(Clone, Copy)]
struct Sent {
    attempt: u32,
    before: bool,
}

/// One attempt, and whether it was given up for being late.
async fn one_attempt<S, B>(
    circuit: &mut S,
    retry: &Retry,
    parts: &Parts,
    body: &Bytes,
    sent: Sent,
    deadline: Option<Instant>,
) -> (Result<Response<B>, BoxError>, bool)
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
{
    let ends = retry.attempt_ends().filter(|ends| deadline.is_none_or(|deadline| *ends < deadline));
    // What is sent first carries the whole call's timeout already.
    let timeout = if sent.before { ends.or(deadline) } else { ends };
    let call = circuit.call(request_again(parts, body, sent.attempt, timeout));
    match ends {
        None => (call.await.map(in_grpc), false),
        Some(ends) => match timeout_at(ends, call).await {
            Ok(Ok(answer)) if !says_late(answer.headers(), ends) => (Ok(in_grpc(answer)), false),
            Ok(Err(error)) if !timeout::is_by_the_channel(&*error) => (Err(error), false),
            // By its clock, the channel's or ours; dropped, so the breaker has judged it: by the timeout that it carried.
            Ok(_) | Err(_) => (Err(Status::deadline_exceeded("no answer within the time of an attempt").into()), true),
        },
    }
}

/// Whether this is the server's word for the end of the attempt's time, which it was told of and may see first.
fn says_late(headers: &HeaderMap, ends: Instant) -> bool {
    const MARGIN: Duration = Duration::from_millis(5);
    matches!(layer::grpc_status(headers), Some(Code::DeadlineExceeded | Code::Cancelled))
        && Instant::now() + MARGIN >= ends
}

fn request_again(parts: &Parts, body: &Bytes, attempt: u32, deadline: Option<Instant>) -> Request<Body> {
    const PREVIOUS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
    let mut request = Request::from_parts(parts.clone(), Body::new(Full::new(body.clone())));
    if attempt > 1 {
        request.headers_mut().insert(PREVIOUS, HeaderValue::from(attempt - 1));
    }
    if let Some(deadline) = deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        request.headers_mut().insert(GRPC_TIMEOUT, format_grpc_timeout(left));
    }
    request
}

/// Whether another attempt may end better, and what the server says about it. Once headers come without a status the call is
/// under way and is not made again.
fn worth_another<B>(
    retry: &Retry,
    attempt: u32,
    elsewhere: bool,
    answer: &Result<Response<B>, BoxError>,
) -> Option<Pushback> {
    match answer {
        Ok(response) => {
            let headers = response.headers();
            let code = layer::grpc_status(headers)?;
            // What a server has waited for in vain comes no sooner for waiting again; another one may have it.
            if layer::was_refused_on_the_way(code, headers) || (!elsewhere && layer::has_waited(code, headers)) {
                return None;
            }
            retry.codes.contains(&code).then(|| match Pushback::of(headers) {
                // What one server says of itself is no word of another's.
                Pushback::None if !elsewhere => layer::retry_info(headers)
                    .map_or(Pushback::None, |least| Pushback::After(least.max(retry.pause(attempt)))),
                said => said,
            })
        }
        Err(error) => match error.downcast_ref::<Status>() {
            // A breaker's refusal is final: asking again at once is what it is there to prevent.
            Some(status) if CircuitOpen::from_status(status).is_some() => None,
            Some(status) => retry.codes.contains(&status.code()).then_some(Pushback::None),
            // The call has no time left for another, and says as little of the peer as where its own timer is first.
            None if timeout::is_by_the_channel(&**error) => None,
            // The transport failed.
            None => retry.codes.contains(&Code::Unavailable).then_some(Pushback::None),
        },
    }
}

/// A request's body, held or not.
enum Buffered {
    Whole(Bytes),
    Stream(Body),
}

/// Takes what a body has at once. A unary request has all of it.
async fn buffer(mut body: Body) -> Buffered {
    let (mut held, mut frames, most) = (0, Vec::new(), Retry::MOST_BUFFERED);
    loop {
        let next = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
        match next {
            Poll::Ready(None) => return Buffered::Whole(joined(&frames)),
            Poll::Ready(Some(Ok(frame))) if frame.data_ref().is_some_and(|data| held + data.len() <= most) => {
                let data = frame.into_data().unwrap_or_default();
                held += data.len();
                frames.push(data);
            }
            // Too much, not data, or an error: the transport's to deal with.
            Poll::Ready(Some(rest)) => return Buffered::Stream(after(frames, Some(rest), body)),
            Poll::Pending => return Buffered::Stream(after(frames, None, body)),
        }
    }
}

fn joined(frames: &[Bytes]) -> Bytes {
    match frames {
        [only] => only.clone(),
        many => many.concat().into(),
    }
}

/// A body with what was taken from it put back.
fn after(taken: Vec<Bytes>, next: Option<Result<Frame<Bytes>, Status>>, rest: Body) -> Body {
    let taken = taken.into_iter().map(|data| Ok(Frame::data(data))).chain(next);
    Body::new(StreamBody::new(futures::stream::iter(taken).chain(BodyStream::new(rest))))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::Uri;
    use hyper_util::rt::TokioIo;
    use tokio::time::sleep;
    use tonic::transport::{Channel, Endpoint};
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::refusal::Refusal;

    #[tokio::test(start_paused = true)]
    async fn what_one_servers_views_lack_another_is_asked_for_once() {
        for (several, calls) in [(false, 1), (true, 2)] {
            let asked = Mutex::new(0);
            let server = service_fn(|_: Request<Body>| {
                *asked.lock().expect("no panic") += 1;
                let behind = Refusal::unavailable("NOT_CAUGHT_UP", "the views are behind", Duration::from_secs(1));
                std::future::ready(Ok::<_, BoxError>(behind.into_status("tea").into_http::<()>()))
            });
            let request = Request::new(Body::new(Full::new(Bytes::new())));
            let answer = call(server, Arc::new(Retry::new()), request, None, several).await.expect("answered");
            assert_eq!(layer::grpc_status(answer.headers()), Some(Code::Unavailable));
            assert_eq!(asked.into_inner().expect("no panic"), calls, "{several}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_too_large_to_hold_is_sent_once() {
        for (bytes, attempts) in [(Retry::MOST_BUFFERED, 3), (Retry::MOST_BUFFERED + 1, 1)] {
            let sent = Mutex::new(0);
            let server = service_fn(|_: Request<Body>| {
                *sent.lock().expect("no panic") += 1;
                std::future::ready(Err::<Response<()>, BoxError>(Status::unavailable("out").into()))
            });
            let request = Request::new(Body::new(Full::new(Bytes::from(vec![0; bytes]))));
            call(server, Arc::new(Retry::new()), request, None, false).await.expect_err("it is out");
            assert_eq!(sent.into_inner().expect("no panic"), attempts, "{bytes} bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_when_to_try_again_is_not_asked_sooner_but_another_is() {
        let second = Duration::from_secs(1);
        for (several, waits) in [(false, [second, second]), (true, [Duration::ZERO, second])] {
            let asked = Mutex::new(Vec::new());
            let server = service_fn(|_: Request<Body>| {
                asked.lock().expect("no panic").push(Instant::now());
                let away = Refusal::unavailable("DATABASE_UNAVAILABLE", "the database can't be reached", second);
                std::future::ready(Ok::<_, BoxError>(away.into_status("tea").into_http::<()>()))
            });
            let request = Request::new(Body::new(Full::new(Bytes::new())));
            let answer = call(server, Arc::new(Retry::new()), request, None, several).await.expect("answered");
            assert_eq!(layer::grpc_status(answer.headers()), Some(Code::Unavailable));
            let asked = asked.into_inner().expect("no panic");
            let [first, second, third] = *asked else { panic!("{asked:?}") };
            for (waited, told) in [second - first, third - second].into_iter().zip(waits) {
                assert!((told..told + Duration::from_millis(200)).contains(&waited), "{several}: {waited:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_whose_end_the_server_sees_first_is_followed_by_another() {
        let (half, millisecond) = (Duration::from_millis(500), Duration::from_millis(1));
        for code in ["4", "1"] {
            let sent = Mutex::new(0);
            let server = service_fn(|_: Request<Body>| {
                let mut sent = sent.lock().expect("no panic");
                *sent += 1;
                let (status, hangs) = if *sent == 1 { (code, half - millisecond) } else { ("0", millisecond) };
                async move {
                    sleep(hangs).await;
                    Ok::<_, BoxError>(Response::builder().header("grpc-status", status).body(()).expect("a response"))
                }
            });
            let request = Request::new(Body::new(Full::new(Bytes::new())));
            let (retry, deadline) = (Retry::new().attempt_timeout(half), Instant::now() + half * 10);
            let answer: Result<_, BoxError> = call(server, Arc::new(retry), request, Some(deadline), false).await;
            assert_eq!(layer::grpc_status(answer.expect("the second is answered").headers()), Some(Code::Ok));
        }
    }

    /// A channel to a server that takes what comes and is silent.
    fn to_a_silent_server() -> Channel {
        let connector = service_fn(|_: Uri| async {
            let (here, there) = tokio::io::duplex(65_536);
            tokio::spawn(async move {
                let mut server = h2::server::handshake(there).await.expect("HTTP/2");
                let mut taken = Vec::new();
                while let Some(request) = server.accept().await {
                    taken.push(request);
                }
            });
            Ok::<_, std::io::Error>(TokioIo::new(here))
        });
        Endpoint::from_static("http://silent").connect_with_connector_lazy(connector)
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_whose_end_the_channel_sees_first_is_followed_by_another() {
        let (silent, sent) = (to_a_silent_server(), Mutex::new(0));
        let server = service_fn(|request: Request<Body>| {
            let mut sent = sent.lock().expect("no panic");
            *sent += 1;
            let (first, mut silent) = (*sent == 1, silent.clone());
            async move {
                if !first {
                    return Ok(Response::new(Body::empty()));
                }
                std::future::poll_fn(|cx| silent.poll_ready(cx)).await?;
                silent.call(request).await.map_err(BoxError::from)
            }
        });
        let half = Duration::from_millis(500);
        let mut request = Request::new(Body::new(Full::new(Bytes::new())));
        *request.uri_mut() = Uri::from_static("http://silent/a.B/C");
        // Not what a transport's failure is taken for.
        let retry = Retry::new().codes([Code::Aborted]).attempt_timeout(half);
        let answer: Result<_, BoxError> =
            call(server, Arc::new(retry), request, Some(Instant::now() + half * 10), false).await;
        answer.expect("the second is answered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_runs_out_of_time_takes_no_retry_from_another() {
        let half = Duration::from_millis(500);
        let retry = Arc::new(Retry::new());
        for _ in 0..5 {
            let mut request = Request::new(Body::new(Full::new(Bytes::new())));
            *request.uri_mut() = Uri::from_static("http://silent/a.B/C");
            request.headers_mut().insert(GRPC_TIMEOUT, format_grpc_timeout(half));
            let mut silent = to_a_silent_server();
            std::future::poll_fn(|cx| silent.poll_ready(cx)).await.expect("it listens");
            let silent = silent.map_err(BoxError::from);
            let error = call(silent, Arc::clone(&retry), request, Some(Instant::now() + half), false).await;
            assert!(timeout::is_by_the_channel(&*error.expect_err("nobody answers")));
        }
        let sent = Mutex::new(0);
        let server = service_fn(|_: Request<Body>| {
            let mut sent = sent.lock().expect("no panic");
            *sent += 1;
            let status = if *sent == 1 { "14" } else { "0" };
            std::future::ready(Ok::<_, BoxError>(
                Response::builder().header("grpc-status", status).body(()).expect("a response"),
            ))
        });
        let request = Request::new(Body::new(Full::new(Bytes::new())));
        let answer = call(server, retry, request, None, false).await.expect("answered");
        assert_eq!(layer::grpc_status(answer.headers()), Some(Code::Ok));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_sent_again_unprocessed_carries_what_is_left_of_its_time() {
        let carried = Mutex::new(Vec::new());
        let server = service_fn(|request: Request<Body>| {
            let mut carried = carried.lock().expect("no panic");
            carried.push(request.headers().get(GRPC_TIMEOUT).cloned());
            let first = carried.len() == 1;
            async move {
                sleep(Duration::from_secs(2)).await;
                if first { Err(h2::Error::from(h2::Reason::REFUSED_STREAM).into()) } else { Ok(Response::new(())) }
            }
        });
        let mut request = Request::new(Body::new(Full::new(Bytes::new())));
        request.headers_mut().insert(GRPC_TIMEOUT, format_grpc_timeout(Duration::from_secs(5)));
        let deadline = Instant::now() + Duration::from_secs(5);
        let answer: Result<_, BoxError> = call(server, Arc::new(Retry::new()), request, Some(deadline), false).await;
        answer.expect("the second is answered");
        let carried = carried.into_inner().expect("no panic");
        assert!(carried.iter().flatten().all(HeaderValue::is_sensitive), "in no table of HPACK's");
        assert_eq!(carried, [5, 3].map(|seconds| Some(format_grpc_timeout(Duration::from_secs(seconds)))));
    }
}
