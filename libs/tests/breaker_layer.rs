//! The layer as tower sees it: what it asks of the service below, and when.
#![cfg(feature = "breaker")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::{future::Ready, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use libs::breaker::{
    Breaker, BreakerLayer, Circuit, CircuitOpen, Config, Override, State,
    layer::{BoxError, CircuitBody, ResponseFuture},
};
use tonic::Status;
use tower_test::mock::{self, Mock};

type Answer = Response<Full<Bytes>>;
type Channel = Mock<Request<()>, Answer>;

fn breaker() -> Arc<Breaker> {
    let config = Config::builder().consecutive_failures(1).probes(1, 1).build().unwrap();
    Arc::new(Breaker::new("peer", config))
}

/// A channel behind the breaker, and its other end.
fn channel(breaker: &Arc<Breaker>) -> (mock::Spawn<Circuit<Channel>>, mock::Handle<Request<()>, Answer>) {
    mock::spawn_layer(BreakerLayer::new(Arc::clone(breaker)))
}

/// The whole of a unary answer in headers.
fn ok() -> Answer {
    Response::builder().header("grpc-status", "0").body(Full::default()).unwrap()
}

#[tokio::test]
async fn a_refused_call_never_reaches_the_channel() {
    let breaker = breaker();
    breaker.set_override(Override::ForcedOpen);
    let (mut circuit, mut handle) = channel(&breaker);
    handle.allow(1);
    assert!(circuit.poll_ready().is_ready());
    let refused = circuit.call(Request::new(())).await.unwrap_err();
    let status = refused.downcast_ref::<Status>().unwrap();
    assert!(CircuitOpen::from_status(status).is_some(), "{status:?}");
    assert!(handle.poll_request().is_pending(), "nothing was sent");
}

#[tokio::test]
async fn a_call_that_passes_is_sent_once_and_counted_once() {
    let breaker = breaker();
    let (mut circuit, mut handle) = channel(&breaker);
    handle.allow(1);
    assert!(circuit.poll_ready().is_ready());
    let call = circuit.call(Request::new(()));
    let (_, answer) = handle.next_request().await.unwrap();
    assert_eq!(breaker.snapshot().totals.success, 0, "not before it is answered");
    answer.send_response(ok());
    call.await.unwrap();
    assert_eq!(breaker.snapshot().totals.success, 1);
    assert!(handle.poll_request().is_pending());
}

#[tokio::test]
async fn to_be_ready_is_the_channels_word_alone() {
    let breaker = breaker();
    let (mut circuit, mut handle) = channel(&breaker);
    handle.allow(0);
    assert!(circuit.poll_ready().is_pending());
    handle.allow(1);
    assert!(circuit.is_woken(), "whoever waits is told");
    assert!(circuit.poll_ready().is_ready());
    // Open or not: an error from here would end what stands before.
    breaker.set_override(Override::ForcedOpen);
    assert!(circuit.poll_ready().map(|ready| ready.is_ok()).is_ready());
}

#[tokio::test]
async fn a_channel_that_fails_to_get_ready_says_so_and_nothing_is_counted() {
    let breaker = breaker();
    let (mut circuit, mut handle) = channel(&breaker);
    handle.send_error("gone");
    let std::task::Poll::Ready(Err(error)) = circuit.poll_ready() else { panic!("an error") };
    assert_eq!(error.to_string(), "gone");
    assert_eq!((breaker.state(), breaker.snapshot().totals.failure), (State::Closed, 0));
}

#[tokio::test]
async fn to_be_ready_and_leave_takes_no_probes_place() {
    let clock = Arc::new(libs::breaker::ManualClock::default());
    let config = Config::builder().consecutive_failures(1).probes(1, 1).build().unwrap();
    let breaker = Arc::new(Breaker::with_clock("peer", config, clock.clone()));
    breaker.admit().unwrap().finish(libs::breaker::Class::Failure);
    clock.advance(std::time::Duration::from_secs(60));
    let (circuit, mut handle) = channel(&breaker);
    handle.allow(100);
    for _ in 0..50 {
        let mut leaves = circuit.clone();
        assert!(leaves.poll_ready().is_ready());
    }
    let mut probe = circuit.clone();
    assert!(probe.poll_ready().is_ready());
    let call = probe.call(Request::new(()));
    let (_, answer) = handle.next_request().await.unwrap();
    answer.send_response(ok());
    call.await.unwrap();
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test]
async fn a_clone_gets_ready_for_itself() {
    // The mock panics when it is called without having been asked.
    let breaker = breaker();
    let (mut circuit, mut handle) = channel(&breaker);
    handle.allow(2);
    assert!(circuit.poll_ready().is_ready());
    let mut clone = circuit.clone();
    assert!(clone.poll_ready().is_ready());
    let calls = [circuit.call(Request::new(())), clone.call(Request::new(()))];
    for call in calls {
        handle.next_request().await.unwrap().1.send_response(ok());
        call.await.unwrap();
    }
    assert_eq!(breaker.snapshot().totals.success, 2);
}

#[tokio::test]
async fn a_call_dropped_before_its_answer_gives_its_permit_back() {
    let breaker = breaker();
    let (mut circuit, mut handle) = channel(&breaker);
    handle.allow(1);
    assert!(circuit.poll_ready().is_ready());
    drop(circuit.call(Request::new(())));
    assert!(handle.next_request().await.is_some());
    assert_eq!(breaker.snapshot().totals.abandoned_neutral, 1);
}

#[test]
fn it_goes_wherever_a_channel_goes_and_is_small() {
    const fn anywhere<T: Send + Sync + 'static>() {}
    type Plain = Ready<Result<Answer, BoxError>>;
    anywhere::<BreakerLayer>();
    anywhere::<Circuit<tonic::transport::Channel>>();
    anywhere::<ResponseFuture<Ready<Result<Response<()>, BoxError>>>>();
    anywhere::<CircuitBody<Full<Bytes>>>();
    // What it adds to a call under way: a pointer and the permit's few words, and no box.
    assert_eq!(size_of::<ResponseFuture<Plain>>() - size_of::<Plain>(), 40);
    assert_eq!(size_of::<CircuitBody<Full<Bytes>>>() - size_of::<Full<Bytes>>(), 56);
}
