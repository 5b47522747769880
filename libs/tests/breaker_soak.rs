//! A breaker that opens and closes for ever holds no more than it did at first.
#![cfg(feature = "breaker")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::{sync::Arc, time::Duration};

use allocation_counter::measure;
use libs::breaker::{Breaker, Class, Config, ManualClock, Override, Registry, State};

const SECOND: Duration = Duration::from_secs(1);

/// Through every state and back: it opens, a probe hangs and opens it again, another succeeds, and the ramp ends. An operator sets and
/// lifts an override, and a window of another shape comes and goes.
fn once_around(breaker: &Breaker, clock: &ManualClock, configs: &[Config; 2]) {
    breaker.admit().unwrap().finish(Class::Failure);
    assert_eq!(breaker.state(), State::Open);
    clock.advance(2 * SECOND);
    let hangs = breaker.admit().unwrap();
    clock.advance(2 * SECOND);
    breaker.admit().unwrap_err();
    assert_eq!(breaker.state(), State::Open);
    hangs.finish(Class::Success);
    clock.advance(2 * SECOND);
    breaker.admit().unwrap().finish(Class::Success);
    assert_eq!(breaker.state(), State::Recovering);
    clock.advance(2 * SECOND);
    breaker.admit().unwrap().finish(Class::Success);
    assert_eq!(breaker.state(), State::Closed);
    breaker.set_override(Override::ForcedOpen);
    breaker.admit().unwrap_err();
    breaker.set_override(Override::None);
    configs.iter().for_each(|config| breaker.reconfigure(config.clone()).unwrap());
}

#[test]
fn a_hundred_thousand_transitions_keep_not_a_byte() {
    let clock = Arc::new(ManualClock::default());
    let registry = Registry::with_clock(clock.clone());
    let builder = || {
        let builder = Config::builder().consecutive_failures(1).open_for(SECOND, 1, SECOND).probes(1, 1);
        builder.probe_timeout(SECOND).ramp(SECOND)
    };
    let configs = [builder().count_window(50), builder().time_window(10 * SECOND, 10)].map(|it| it.build().unwrap());
    let breaker = registry.breaker("payment", &configs[1]);
    // Who watches and never looks, and who asks for the state.
    let (_changes, _state) = (registry.changes(), registry.watch("payment").unwrap());
    let around = |times: u32| (0..times).for_each(|_| once_around(&breaker, &clock, &configs));
    around(100);
    let before = breaker.snapshot().generation;
    let measured = measure(|| around(10_000));
    assert!(breaker.snapshot().generation - before >= 100_000);
    assert_eq!(measured.bytes_current, 0, "{measured:?}");
}
