//! Several addresses behind one peer's breaker: what those that are out do to the others.
#![cfg(feature = "rpc")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod breaker_support;
mod clock;

use std::{sync::atomic::Ordering, time::Duration};

use breaker_support::{HANG, Moody, list, patient, peer_at, unheard};
use clock::{becomes, soon, stop_the_clock};
use libs::{
    breaker::{Config, ConfigBuilder, Rate, State},
    rpc::client::{Peer, PeerOptions},
};
use tokio::{net::TcpSocket, time::advance};
use tonic::Code;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Addresses, of which some are dead.
struct Pods {
    _held: Vec<TcpSocket>,
    live: Vec<Moody>,
    uris: String,
}

impl Pods {
    async fn serve(dead: usize, live: usize) -> Self {
        let (held, mut uris): (Vec<_>, Vec<_>) = (0..dead)
            .map(|_| {
                let (held, address) = unheard();
                (held, format!("http://{address}"))
            })
            .unzip();
        let mut pods = Vec::new();
        for _ in 0..live {
            pods.push(Moody::serve().await);
        }
        uris.extend(pods.iter().map(|pod| pod.uri.clone()));
        Self { _held: held, live: pods, uris: uris.join(",") }
    }

    fn set(&self, code: i32) {
        self.live.iter().for_each(|pod| pod.set(code));
    }
}

/// How many of so many calls failed, of which one begins as the last one has ended.
async fn failures(peer: &Peer, calls: usize) -> usize {
    let mut failed = 0;
    for _ in 0..calls {
        failed += usize::from(soon(list(peer)).await.is_err());
    }
    failed
}

fn resting(time: Duration) -> ConfigBuilder {
    Config::builder().jitter(Rate::percent(0)).open_for(time, 1, time)
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_well_again_is_called_though_some_of_its_addresses_stay_dead() {
    let stopped = stop_the_clock();
    for (dead, live) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
        let pods = Pods::serve(dead, live).await;
        pods.set(Code::Unavailable as i32);
        let ejection = resting(100 * MS).consecutive_failures(3).probes(2, 1).build().unwrap();
        let options = PeerOptions::saga().breaker(resting(300 * MS).build().unwrap()).ejection(ejection);
        let peer = peer_at(&pods.uris, &patient(options));
        failures(&peer, 40).await;
        assert_eq!(peer.breaker().state(), State::Open);

        pods.set(0);
        advance(300 * MS).await;
        let failed = failures(&peer, 20).await;
        let opened = peer.breaker().snapshot().totals.opened;
        assert_eq!((peer.breaker().state(), opened), (State::Closed, 1), "{dead} dead, {live} live: {failed} failed");
    }
    drop(stopped);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_probed_asks_its_addresses_however_long_they_were_to_rest() {
    let stopped = stop_the_clock();
    for (dead, live) in [(1, 1), (2, 1)] {
        let pods = Pods::serve(dead, live).await;
        pods.set(Code::Unavailable as i32);
        let ejection = resting(60 * SECOND).consecutive_failures(3).probes(2, 1).build().unwrap();
        let options = PeerOptions::saga().breaker(resting(5 * SECOND).build().unwrap()).ejection(ejection);
        let peer = peer_at(&pods.uris, &patient(options));
        failures(&peer, 40).await;
        pods.set(0);
        advance(5 * SECOND).await;
        let failed = failures(&peer, 20).await;
        let opened = peer.breaker().snapshot().totals.opened;
        assert_eq!((peer.breaker().state(), opened), (State::Closed, 1), "{dead} dead: {failed} failed");
    }
    drop(stopped);
}

#[tokio::test(start_paused = true)]
async fn addresses_that_are_dead_take_no_calls_from_the_one_that_is_well() {
    let stopped = stop_the_clock();
    let pods = Pods::serve(2, 1).await;
    let peer = peer_at(&pods.uris, &patient(PeerOptions::saga()));
    // Three for each that is dead.
    assert_eq!(failures(&peer, 200).await, 6);
    assert_eq!(peer.breaker().state(), State::Closed);
    // A minute's calls: each of the two is asked now and then whether it is back.
    let mut failed = 0;
    for _ in 0..600 {
        advance(100 * MS).await;
        failed += failures(&peer, 1).await;
    }
    assert!((4..=20).contains(&failed), "{failed}");
    assert_eq!(peer.breaker().snapshot().totals.opened, 0);
    drop(stopped);
}

#[tokio::test(start_paused = true)]
async fn the_others_share_what_an_address_that_is_out_would_have_taken() {
    let stopped = stop_the_clock();
    let pods = Pods::serve(1, 2).await;
    let peer = peer_at(&pods.uris, &patient(PeerOptions::saga()));
    assert_eq!(failures(&peer, 300).await, 3);
    let [one, other] = [0, 1].map(|at: usize| pods.live[at].calls.load(Ordering::SeqCst));
    assert!(one.abs_diff(other) < 15, "{one} and {other}");
    drop(stopped);
}

#[tokio::test(start_paused = true)]
async fn a_peer_none_of_whose_addresses_answers_is_left_alone_again_after_a_few_probes() {
    let stopped = stop_the_clock();
    for dead in [2, 3, 20] {
        let pods = Pods::serve(dead, 0).await;
        let peer = peer_at(&pods.uris, &patient(PeerOptions::saga().breaker(resting(5 * SECOND).build().unwrap())));
        failures(&peer, 30).await;
        assert_eq!(peer.breaker().state(), State::Open, "{dead}");
        advance(8 * SECOND).await;
        let before = peer.breaker().snapshot().totals;
        failures(&peer, 40).await;
        let after = peer.breaker().snapshot().totals;
        let sent = after.failure + after.neutral - before.failure - before.neutral;
        assert_eq!((peer.breaker().state(), after.opened), (State::Open, 2), "{dead}");
        assert!((2..=15).contains(&sent), "{sent} to {dead}");
    }
    drop(stopped);
}

#[tokio::test(start_paused = true)]
async fn a_peer_is_not_left_alone_for_an_address_that_hangs_as_it_is_tried() {
    let stopped = stop_the_clock();
    let pods = Pods::serve(0, 2).await;
    let [hangs, well] = [&pods.live[0], &pods.live[1]];
    hangs.set(Code::Unavailable as i32);
    let peer = peer_at(&pods.uris, &patient(PeerOptions::saga().breaker(resting(5 * SECOND).build().unwrap())));
    failures(&peer, 10).await;
    well.set(Code::Unavailable as i32);
    failures(&peer, 40).await;
    assert_eq!(peer.breaker().state(), State::Open);

    hangs.set(HANG);
    well.set(0);
    advance(8 * SECOND).await;
    let before = hangs.calls.load(Ordering::SeqCst);
    let mut waiting = Vec::new();
    while hangs.calls.load(Ordering::SeqCst) == before {
        let called = || pods.live.iter().map(|pod| pod.calls.load(Ordering::SeqCst)).sum::<usize>();
        let (peer, calls) = (peer.clone(), called());
        waiting.push(tokio::spawn(async move { list(&peer).await }));
        becomes(|| called() > calls).await;
    }
    // By now whoever hangs as it probes has had its time.
    advance(11 * SECOND).await;
    assert_eq!(failures(&peer, 10).await, 0);
    assert_eq!((peer.breaker().state(), peer.breaker().snapshot().totals.opened), (State::Closed, 1));
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    drop(stopped);
}
