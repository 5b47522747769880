//! Streams, which may work for hours: when they are taken for a success, and what their end says.
#![cfg(feature = "breaker")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::StreamBody;
use libs::{
    breaker::{
        Breaker, BreakerLayer, Class, Config, ConfigBuilder, Rate, SlowCalls, State, TokioClock, Totals,
        layer::{BoxError, CircuitBody, GRPC_TIMEOUT},
    },
    refusal::Refusal,
};
use tokio::{sync::mpsc, time::advance};
use tokio_stream::wrappers::ReceiverStream;
use tower::{Layer as _, Service as _, service_fn};

const SECOND: Duration = Duration::from_secs(1);

type Frames = Result<Frame<Bytes>, BoxError>;
type Stream = Pin<Box<CircuitBody<StreamBody<ReceiverStream<Frames>>>>>;

fn breaker() -> Arc<Breaker> {
    breaker_with(|config| config)
}

fn breaker_with(more: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Arc<Breaker> {
    let config = Config::builder().consecutive_failures(1).probes(1, 1).open_for(SECOND, 1, SECOND);
    let config = more(config.jitter(Rate::percent(0))).build().unwrap();
    Arc::new(Breaker::with_clock("peer", config, Arc::new(TokioClock::new())))
}

/// A stream behind the breaker whose headers have come, and its server's end.
async fn open(breaker: &Arc<Breaker>, deadline: Option<&'static str>) -> (Stream, mpsc::Sender<Frames>) {
    let (server, frames) = mpsc::channel(8);
    let mut frames = Some(frames);
    let answer = move |_: Request<()>| {
        let body = StreamBody::new(ReceiverStream::new(frames.take().unwrap()));
        std::future::ready(Ok::<_, BoxError>(Response::new(body)))
    };
    let mut request = Request::new(());
    if let Some(deadline) = deadline {
        request.headers_mut().insert(GRPC_TIMEOUT, deadline.parse().unwrap());
    }
    let response = BreakerLayer::new(Arc::clone(breaker)).layer(service_fn(answer)).call(request).await.unwrap();
    (Box::pin(response.into_body()), server)
}

async fn send(server: &mpsc::Sender<Frames>) {
    server.send(Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\0")))).await.unwrap();
}

async fn end(server: mpsc::Sender<Frames>, code: &'static str) {
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]);
    server.send(Ok(Frame::trailers(trailers))).await.unwrap();
}

/// Ends it as a server does that is about to stop.
async fn drain(server: mpsc::Sender<Frames>) {
    let mut trailers = HeaderMap::new();
    let refusal = Refusal::unavailable("DRAINING", "this server is about to stop", Duration::ZERO);
    refusal.into_status("inventory").add_header(&mut trailers).unwrap();
    server.send(Ok(Frame::trailers(trailers))).await.unwrap();
}

/// What the stream has now, if anything.
fn read(stream: &mut Stream) -> Option<Option<Frames>> {
    use futures::FutureExt as _;
    std::future::poll_fn(|cx| stream.as_mut().poll_frame(cx)).now_or_never()
}

fn totals(breaker: &Breaker) -> Totals {
    breaker.snapshot().totals
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_works_is_a_success_long_before_it_ends_and_its_end_counts_again() {
    for (code, failures) in [("0", 0), ("13", 1)] {
        let breaker = breaker();
        let (mut stream, server) = open(&breaker, None).await;
        send(&server).await;
        read(&mut stream).unwrap();
        advance(SECOND * 4).await;
        send(&server).await;
        read(&mut stream).unwrap();
        assert_eq!(totals(&breaker).success, 0, "it has not lived for long enough");
        advance(SECOND).await;
        send(&server).await;
        read(&mut stream).unwrap();
        assert_eq!(totals(&breaker).success, 1);
        advance(SECOND * 3600).await;
        send(&server).await;
        read(&mut stream).unwrap();
        assert_eq!(totals(&breaker).success, 1, "once");
        end(server, code).await;
        read(&mut stream).unwrap();
        assert_eq!((totals(&breaker).success + totals(&breaker).failure, totals(&breaker).failure), (2, failures));
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_stream_that_probes_does_not_keep_the_circuit_half_open() {
    let breaker = breaker();
    breaker.admit().unwrap().finish(Class::Failure);
    advance(SECOND).await;
    let (mut stream, server) = open(&breaker, None).await;
    assert_eq!((breaker.state(), breaker.snapshot().probes_out), (State::HalfOpen, 1));
    send(&server).await;
    read(&mut stream).unwrap();
    // Its reader waits for a second message, which never comes.
    let reading = tokio::spawn(async move { std::future::poll_fn(|cx| stream.as_mut().poll_frame(cx)).await });
    tokio::time::sleep(SECOND * 5 - Duration::from_millis(1)).await;
    assert_eq!(breaker.state(), State::HalfOpen);
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(breaker.state(), State::Closed);
    // The probe has had its say: how it ends is another generation's.
    end(server, "13").await;
    reading.await.unwrap().unwrap().unwrap();
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_first_message_comes_late_is_not_waited_for_beyond_its_lease() {
    for (first, more) in [(SECOND * 4, SECOND), (SECOND * 6, Duration::ZERO)] {
        let breaker = breaker();
        breaker.admit().unwrap().finish(Class::Failure);
        advance(SECOND).await;
        let (mut stream, server) = open(&breaker, None).await;
        advance(first).await;
        send(&server).await;
        read(&mut stream).unwrap();
        assert_eq!(breaker.state() == State::HalfOpen, !more.is_zero(), "{first:?}");
        advance(more).await;
        assert!(read(&mut stream).is_none());
        assert_eq!(breaker.state(), State::Closed, "{first:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_quiet_after_its_first_message_has_worked_if_it_was_left_late() {
    for (lived, successes) in [(SECOND * 4, 0), (SECOND * 5, 1)] {
        let breaker = breaker();
        let (mut stream, server) = open(&breaker, None).await;
        send(&server).await;
        read(&mut stream).unwrap();
        advance(lived).await;
        drop(stream);
        let totals = totals(&breaker);
        assert_eq!((totals.success, totals.neutral, totals.failure), (successes, 1, 0), "{lived:?}");
        assert_eq!(totals.abandoned_neutral, 1, "its caller left it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_probed_has_worked_if_it_was_left_late_though_nobody_looked_at_it_meanwhile() {
    for (lived, state) in [(SECOND * 4, State::HalfOpen), (SECOND * 5, State::Closed)] {
        let breaker = breaker();
        breaker.admit().unwrap().finish(Class::Failure);
        advance(SECOND).await;
        let (mut stream, server) = open(&breaker, None).await;
        send(&server).await;
        read(&mut stream).unwrap();
        advance(lived).await;
        drop(stream);
        assert_eq!(breaker.state(), state, "{lived:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_works_is_not_slow_however_long_it_lives() {
    let slow = SlowCalls { threshold: SECOND, rate: Rate::percent(1) };
    for probes in [false, true] {
        let breaker = breaker_with(|config| config.slow_calls(slow).min_calls(1));
        if probes {
            breaker.admit().unwrap().finish(Class::Failure);
            advance(SECOND).await;
        }
        let (mut stream, server) = open(&breaker, None).await;
        send(&server).await;
        read(&mut stream).unwrap();
        advance(SECOND * 6).await;
        send(&server).await;
        read(&mut stream).unwrap();
        assert_eq!((totals(&breaker).success, breaker.state()), (1, State::Closed), "probes: {probes}");
        advance(SECOND * 60).await;
        end(server, "0").await;
        read(&mut stream).unwrap();
        assert_eq!((breaker.snapshot().window_slow, breaker.state()), (0, State::Closed), "probes: {probes}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_in_pieces_is_one_call_and_as_slow_as_its_end() {
    let slow = SlowCalls { threshold: SECOND, rate: Rate::percent(100) };
    let breaker = breaker_with(|config| config.slow_calls(slow).min_calls(10));
    let (mut stream, server) = open(&breaker, None).await;
    advance(SECOND * 6).await;
    for piece in [b"\0\0\0\0\x0aabc".as_slice(), b"defg", b"hij"] {
        server.send(Ok(Frame::data(Bytes::from_static(piece)))).await.unwrap();
        read(&mut stream).unwrap();
    }
    end(server, "0").await;
    read(&mut stream).unwrap();
    let shown = breaker.snapshot();
    assert_eq!((shown.totals.success, shown.window_total, shown.window_slow), (1, 1, 1));

    // A piece in which the next message begins says that it is a stream.
    let (mut stream, server) = open(&breaker, None).await;
    advance(SECOND * 6).await;
    for piece in [b"\0\0\0\0\x03ab".as_slice(), b"c\0\0\0\0\0"] {
        server.send(Ok(Frame::data(Bytes::from_static(piece)))).await.unwrap();
        read(&mut stream).unwrap();
    }
    assert_eq!(totals(&breaker).success, 2, "it works");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_a_draining_server_ends_says_nothing() {
    for probes in [false, true] {
        let breaker = breaker();
        if probes {
            breaker.admit().unwrap().finish(Class::Failure);
            advance(SECOND).await;
        }
        let (mut stream, server) = open(&breaker, None).await;
        let state = breaker.state();
        drain(server).await;
        read(&mut stream).unwrap();
        let failures = u64::from(probes);
        assert_eq!((totals(&breaker).failure, totals(&breaker).neutral), (failures, 1), "probes: {probes}");
        assert_eq!(breaker.state(), state);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_its_reader_leaves_says_nothing_unless_the_deadline_came() {
    for (lived, failures) in [(SECOND, 0), (SECOND * 10, 1)] {
        let breaker = breaker();
        let (mut stream, server) = open(&breaker, Some("10S")).await;
        send(&server).await;
        read(&mut stream).unwrap();
        advance(lived).await;
        drop(stream);
        assert_eq!((totals(&breaker).failure, totals(&breaker).neutral), (failures, 1 - failures), "{lived:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_said_a_word_is_judged_by_how_long_that_was_waited_for() {
    for (waited, failures) in [(SECOND / 2, 0), (SECOND, 1)] {
        let breaker = breaker();
        let (stream, _server) = open(&breaker, None).await;
        advance(waited).await;
        drop(stream);
        let totals = totals(&breaker);
        assert_eq!((totals.abandoned_failure, totals.abandoned_neutral), (failures, 1 - failures), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_without_a_status_was_cut_short() {
    let breaker = breaker();
    let (mut stream, server) = open(&breaker, None).await;
    send(&server).await;
    read(&mut stream).unwrap();
    drop(server);
    assert!(read(&mut stream).unwrap().is_none(), "a clean end, as far as HTTP knows");
    assert_eq!((totals(&breaker).failure, breaker.state()), (1, State::Open));
}
