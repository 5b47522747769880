//! Transitions have one winner, leases come back, and what is stale changes nothing.

use std::time::Duration;

use loom::{sync::Arc, thread};

use crate::breaker::core::{Breaker, Class, Config, ConfigBuilder, ManualClock, Override, Rate, State};

const SECOND: Duration = Duration::from_secs(1);

fn quick() -> ConfigBuilder {
    Config::builder()
        .count_window(2)
        .min_calls(2)
        .failure_rate(None)
        .consecutive_failures(1)
        .open_for(SECOND, 1, SECOND)
        .jitter(Rate::percent(0))
        .probes(1, 1)
}

fn breaker(config: ConfigBuilder) -> (Arc<Breaker>, std::sync::Arc<ManualClock>) {
    let clock = std::sync::Arc::new(ManualClock::default());
    let config = config.build().expect("makes sense");
    (Arc::new(Breaker::with_seed("peer", config, clock.clone(), 1)), clock)
}

#[test]
fn of_two_failures_at_once_one_opens_it() {
    // All orders take a minute. These are those in which a thread is stopped three times at most.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let (breaker, _) = breaker(quick());
        let other = Arc::clone(&breaker);
        let (one, two) = (breaker.admit().expect("closed"), breaker.admit().expect("closed"));
        let thread = thread::spawn(move || {
            if let Ok(permit) = other.admit() {
                permit.finish(Class::Failure);
            }
        });
        one.finish(Class::Failure);
        two.finish(Class::Failure);
        thread.join().expect("no panic");
        let shown = breaker.snapshot();
        assert_eq!((shown.state, shown.totals.opened, shown.generation), (State::Open, 1, 1));
    });
}

#[test]
fn a_failure_from_before_a_reset_opens_nothing_after_it() {
    loom::model(|| {
        let (breaker, _) = breaker(quick());
        let other = Arc::clone(&breaker);
        let early = breaker.admit().expect("closed");
        let thread = thread::spawn(move || other.reset());
        early.finish(Class::Failure);
        thread.join().expect("no panic");
        // It opened and the reset closed it, or it came after the reset and was stale.
        let shown = breaker.snapshot();
        assert_eq!(shown.state, State::Closed);
        assert_eq!((shown.window_failures, shown.consecutive_failures), (0, 0));
    });
}

#[test]
fn one_place_is_lent_once_and_comes_back() {
    loom::model(|| {
        let (breaker, clock) = breaker(quick());
        breaker.admit().expect("closed").finish(Class::Failure);
        clock.advance(SECOND);
        let other = Arc::clone(&breaker);
        let thread = thread::spawn(move || other.admit().map(drop).is_ok());
        let mine = breaker.admit();
        assert!(breaker.snapshot().probes_out <= 1);
        drop(mine);
        thread.join().expect("no panic");
        assert_eq!((breaker.state(), breaker.snapshot().probes_out), (State::HalfOpen, 0));
        breaker.admit().expect("the place is free").finish(Class::Success);
        assert_eq!(breaker.state(), State::Closed);
    });
}

#[test]
fn a_probe_that_comes_back_as_its_lease_ends_counts_once() {
    loom::model(|| {
        let (breaker, clock) = breaker(quick().probe_timeout(SECOND));
        breaker.admit().expect("closed").finish(Class::Failure);
        clock.advance(SECOND);
        let probe = breaker.admit().expect("the probe");
        clock.advance(SECOND);
        let other = Arc::clone(&breaker);
        let thread = thread::spawn(move || {
            if let Ok(permit) = other.admit() {
                permit.finish(Class::Neutral);
            }
        });
        probe.finish(Class::Success);
        thread.join().expect("no panic");
        let shown = breaker.snapshot();
        let in_time = shown.state == State::Closed && shown.totals.probe_timeouts == 0;
        let late = shown.state == State::Open && shown.totals.probe_timeouts == 1 && shown.totals.stale == 1;
        assert!(in_time || late, "{shown:?}");
    });
}

#[test]
fn a_circuit_that_an_operator_forces_open_lets_no_probe_out() {
    loom::model(|| {
        let (breaker, clock) = breaker(quick());
        breaker.admit().expect("closed").finish(Class::Failure);
        clock.advance(SECOND);
        let other = Arc::clone(&breaker);
        let thread = thread::spawn(move || other.set_override(Override::ForcedOpen));
        let probe = breaker.admit();
        thread.join().expect("no panic");
        // It went before and nobody waits for it any more, or it did not go.
        let shown = breaker.snapshot();
        assert_eq!((shown.probes_out, shown.state == State::HalfOpen), (0, probe.is_ok()), "{shown:?}");
        if let Ok(probe) = probe {
            probe.finish(Class::Success);
        }
        assert_eq!(breaker.state(), shown.state);
    });
}
