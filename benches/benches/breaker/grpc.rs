//! A whole unary call: request, headers, a message, trailers.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use libs::breaker::{Breaker, BreakerLayer, CoarseClock, Config, MonotonicClock, State};
use tower::{Layer as _, Service};

/// A call through a stack.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// Whether its circuit lets calls pass.
    pub(super) admitted: bool,
    pub(super) call: Box<dyn FnMut() -> bool>,
}

/// Answers at once, as a tonic server answers a unary call.
#[derive(Clone)]
struct Unary;

impl Service<Request<()>> for Unary {
    type Response = Response<UnaryBody>;
    type Error = Infallible;
    type Future = Ready<Result<Response<UnaryBody>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new(UnaryBody(0))))
    }
}

/// A message, then trailers.
struct UnaryBody(u8);

impl Body for UnaryBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0 += 1;
        Poll::Ready(match self.0 {
            1 => Some(Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\0")))),
            2 => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
                Some(Ok(Frame::trailers(trailers)))
            }
            _ => None,
        })
    }
}

/// Makes a call and reads its body to the end. False when it was refused.
fn drive<S, B>(service: &mut S) -> bool
where
    S: Service<Request<()>, Response = Response<B>>,
    B: Body<Data = Bytes>,
{
    let Some(Ok(response)) = service.call(Request::new(())).now_or_never() else { return false };
    let mut body = std::pin::pin!(response.into_body());
    let mut cx = Context::from_waker(std::task::Waker::noop());
    while let Poll::Ready(Some(Ok(_))) = body.as_mut().poll_frame(&mut cx) {}
    true
}

pub(super) fn rows() -> Vec<Row> {
    let circuit = |clock| {
        let config = Config::default();
        let breaker = Arc::new(Breaker::with_clock("bench", config, clock));
        assert_eq!(breaker.state(), State::Closed);
        BreakerLayer::new(breaker).layer(Unary)
    };
    let (mut coarse, mut fine) = (circuit(Arc::new(CoarseClock::new())), circuit(Arc::new(MonotonicClock::new())));
    let mut theirs = {
        let builder = tower_resilience_circuitbreaker::CircuitBreakerLayer::builder().sliding_window_size(100);
        builder.failure_rate_threshold(0.5).build().expect("makes sense").layer(Unary)
    };
    let mut open = {
        let hour = std::time::Duration::from_secs(3600);
        let config = Config::builder().consecutive_failures(1).open_for(hour, 1, hour).build().expect("makes sense");
        let breaker = Arc::new(Breaker::with_clock("bench", config, Arc::new(CoarseClock::new())));
        breaker.admit().expect("closed").finish(libs::breaker::Class::Failure);
        BreakerLayer::new(breaker).layer(Unary)
    };
    let row = |name, call: Box<dyn FnMut() -> bool>| Row { name, admitted: true, call };
    vec![
        row("bare", Box::new(|| drive(&mut Unary))),
        row("ours, coarse clock", Box::new(move || drive(&mut coarse))),
        row("ours, fine clock", Box::new(move || drive(&mut fine))),
        Row { admitted: false, ..row("ours, refusing with a status", Box::new(move || drive(&mut open))) },
        row("tower-resilience (reads no trailers)", Box::new(move || drive(&mut theirs))),
    ]
}
