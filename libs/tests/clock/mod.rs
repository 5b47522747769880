//! A paused clock that moves when it is told to, and not whenever everybody waits for the network.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::{
    pin::pin,
    sync::mpsc::{Sender, channel},
    time::{Duration, Instant},
};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stops it until what is answered is dropped.
pub(crate) fn stop_the_clock() -> Sender<()> {
    let (running, dropped) = channel();
    tokio::task::spawn_blocking(move || dropped.recv());
    running
}

/// Waits for what comes without the clock, and not for ever.
pub(crate) async fn soon<T>(comes: impl Future<Output = T>) -> T {
    let (begun, mut comes) = (Instant::now(), pin!(comes));
    loop {
        tokio::select! {
            biased;
            came = &mut comes => return came,
            () = tokio::task::yield_now() => assert!(begun.elapsed() < PATIENCE, "it never comes"),
        }
    }
}

/// Waits until something holds.
pub(crate) async fn becomes(holds: impl Fn() -> bool) {
    soon(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
