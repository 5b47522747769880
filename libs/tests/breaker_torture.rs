//! What breakers get wrong, one scenario a test. The same scenarios run against other crates in the benchmarks.
#![cfg(feature = "breaker")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use libs::breaker::{
    Breaker, BreakerLayer, Class, Config, ConfigBuilder, ManualClock, Methods, Override, ProbeTimeout, Rate, Reason,
    Registry, Rejections, State, Undecided,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A breaker on a clock of ours that opens after two failures in a row, for exactly a second.
fn quick() -> ConfigBuilder {
    Config::builder().consecutive_failures(2).open_for(SECOND, 1, SECOND * 60).jitter(Rate::percent(0)).probes(1, 1)
}

fn breaker(config: ConfigBuilder) -> (Arc<Breaker>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let config = config.build().expect("makes sense");
    (Arc::new(Breaker::with_seed("peer", config, clock.clone(), 1)), clock)
}

fn finish(breaker: &Breaker, class: Class, times: usize) {
    for _ in 0..times {
        breaker.admit().expect("admitted").finish(class);
    }
}

fn trip(breaker: &Breaker) {
    finish(breaker, Class::Failure, 2);
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn t1_a_window_of_100_trips_at_the_50th_failure_after_10_000_successes() {
    let windows = [Config::builder().count_window(100), Config::builder().time_window(SECOND * 10, 10)];
    for (window, needed) in windows.into_iter().zip([50, 10_000]) {
        let (breaker, _) = breaker(window.min_calls(100).failure_rate(Rate::percent(50)));
        finish(&breaker, Class::Success, 10_000);
        finish(&breaker, Class::Failure, needed - 1);
        assert_eq!(breaker.state(), State::Closed);
        finish(&breaker, Class::Failure, 1);
        assert_eq!(breaker.state(), State::Open);
    }
}

#[test]
fn t2_of_64_callers_at_once_one_is_let_out_to_probe() {
    let (breaker, clock) = breaker(quick());
    trip(&breaker);
    clock.advance(SECOND);
    let (barrier, admitted) = (Barrier::new(64), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                barrier.wait();
                let permit = breaker.admit();
                admitted.fetch_add(usize::from(permit.is_ok()), Ordering::SeqCst);
                // Hold it until all have asked.
                barrier.wait();
            });
        }
    });
    assert_eq!(admitted.into_inner(), 1);
}

#[test]
fn t3_a_success_from_before_the_trip_does_not_decide_the_probe() {
    let (breaker, clock) = breaker(quick());
    let early = breaker.admit().expect("closed");
    trip(&breaker);
    clock.advance(SECOND);
    let _probe = breaker.admit().expect("the probe");
    early.finish(Class::Success);
    assert_eq!(breaker.state(), State::HalfOpen);
    assert_eq!(breaker.snapshot().totals.stale, 1);
}

#[test]
fn t4_a_success_from_before_the_trip_does_not_close_an_open_circuit() {
    let (breaker, _) = breaker(quick());
    let early = breaker.admit().expect("closed");
    trip(&breaker);
    early.finish(Class::Success);
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn t5_calls_that_hang_until_their_callers_give_up_trip_it() {
    for budget in [None, Some(SECOND * 2)] {
        let (breaker, clock) = breaker(Config::builder());
        let hung: Vec<_> = (0..50).map(|_| Breaker::admit_by(&*breaker, budget).expect("closed")).collect();
        clock.advance(SECOND * 2);
        drop(hung);
        assert_eq!(breaker.snapshot().totals.opened, 1, "{budget:?}");
    }
}

#[test]
fn t6_callers_who_leave_early_trip_nothing() {
    let (breaker, clock) = breaker(quick().min_calls(1));
    for _ in 0..50 {
        let permit = Breaker::admit_by(&*breaker, Some(SECOND)).expect("closed");
        clock.advance(MS);
        drop(permit);
    }
    let shown = breaker.snapshot();
    assert_eq!((shown.state, shown.window_total, shown.totals.abandoned_neutral), (State::Closed, 0, 50));
}

#[test]
fn t7_a_probe_that_is_dropped_gives_its_place_back() {
    let (breaker, clock) = breaker(quick());
    trip(&breaker);
    clock.advance(SECOND);
    drop(Breaker::admit_by(&*breaker, None).expect("the probe"));
    assert_eq!(breaker.state(), State::HalfOpen);
    breaker.admit().expect("the next probe").finish(Class::Success);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn t8_a_probe_that_hangs_for_ever_loses_its_lease() {
    let (breaker, clock) = breaker(quick().probe_timeout(SECOND * 3));
    trip(&breaker);
    clock.advance(SECOND);
    let hung = breaker.admit().expect("the probe");
    clock.advance(SECOND * 3);
    assert_eq!(breaker.admit().expect_err("it hung, so it opens again").reason, Reason::Open);
    assert_eq!(breaker.snapshot().totals.probe_timeouts, 1);
    clock.advance(SECOND);
    let second = breaker.admit().expect("another probe");
    hung.finish(Class::Success);
    assert_eq!(breaker.state(), State::HalfOpen, "the late result is stale");
    second.finish(Class::Success);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn t8_a_hung_probe_can_be_told_to_say_nothing() {
    let (breaker, clock) = breaker(quick().probe_timeout(SECOND * 3).on_probe_timeout(ProbeTimeout::Neutral));
    trip(&breaker);
    clock.advance(SECOND);
    let _hung = breaker.admit().expect("the probe");
    clock.advance(SECOND * 3);
    breaker.admit().expect("its place is free").finish(Class::Success);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn t9_a_probe_that_panics_has_failed() {
    let (breaker, clock) = breaker(quick());
    trip(&breaker);
    clock.advance(SECOND);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _probe = Breaker::admit_by(&*breaker, None).expect("the probe");
        std::panic::resume_unwind(Box::new("a caller's mistake"));
    }));
    assert!(panicked.is_err());
    assert_eq!(breaker.state(), State::Open);
    clock.advance(SECOND);
    breaker.admit().expect("it still works").finish(Class::Success);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn t10_probes_that_say_nothing_do_not_keep_it_half_open_for_ever() {
    for (undecided, successes, state) in [
        (Undecided::CloseOnSuccess, 0, State::Open),
        (Undecided::CloseOnSuccess, 1, State::Closed),
        (Undecided::Open, 1, State::Open),
    ] {
        let (breaker, clock) = breaker(quick().probes(3, 2).on_undecided(undecided));
        trip(&breaker);
        clock.advance(SECOND);
        finish(&breaker, Class::Success, successes);
        finish(&breaker, Class::Neutral, 8);
        assert_eq!(breaker.state(), State::HalfOpen);
        finish(&breaker, Class::Neutral, 1);
        assert_eq!(breaker.state(), state);
    }
}

#[test]
fn t11_a_clock_that_goes_back_stands_still() {
    let (breaker, clock) = breaker(quick().time_window(SECOND * 10, 10).min_calls(4).failure_rate(Rate::percent(50)));
    clock.set(SECOND * 100);
    finish(&breaker, Class::Success, 2);
    let permit = Breaker::admit_by(&*breaker, Some(SECOND)).expect("closed");
    clock.set(SECOND * 50);
    permit.finish(Class::Success);
    assert_eq!(breaker.snapshot().window_total, 3);
    trip(&breaker);
    clock.set(Duration::ZERO);
    assert_eq!(breaker.admit().expect_err("open").reason, Reason::Open);
    clock.set(SECOND * 1_000_000);
    breaker.admit().expect("the probe").finish(Class::Success);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn what_an_excused_call_ends_badly_with_does_not_count() {
    let slow = libs::breaker::SlowCalls { threshold: SECOND, rate: Rate::percent(1) };
    let (breaker, clock) = breaker(quick().slow_calls(slow).min_calls(1).failure_rate(Rate::percent(1)));
    let excused = || {
        let mut permit = Breaker::admit_by(&*breaker, Some(SECOND * 60)).expect("let through");
        permit.excuse();
        permit
    };
    for class in [Class::Failure, Class::Overload] {
        excused().finish_with_pause(class, SECOND * 60);
    }
    let hangs = excused();
    let takes_long = excused();
    clock.advance(SECOND * 2);
    drop(hangs);
    takes_long.finish(Class::Success);
    let shown = breaker.snapshot();
    assert_eq!((shown.state, shown.window_total, shown.window_slow), (State::Closed, 1, 0));
    assert_eq!((shown.totals.neutral, shown.totals.abandoned_neutral), (3, 1));

    finish(&breaker, Class::Failure, 1);
    clock.advance(SECOND);
    let probe = excused();
    assert!(probe.is_probe());
    probe.finish(Class::Failure);
    let hangs = excused();
    clock.advance(SECOND * 20);
    let takes_long = excused();
    assert_eq!(breaker.state(), State::HalfOpen, "nobody is blamed for what hangs");
    clock.advance(SECOND * 2);
    takes_long.finish(Class::Success);
    assert_eq!(breaker.state(), State::Closed);
    drop(hangs);
}

#[test]
fn t12_what_is_forgotten_is_never_what_fails() {
    let clock = Arc::new(ManualClock::default());
    let registry = Registry::with_clock(clock.clone());
    let config = quick().time_window(SECOND * 10, 10).build().expect("makes sense");
    let shared = BreakerLayer::new(registry.breaker("peer", &config));
    let methods = Methods::new(registry.clone(), shared, 4, []);
    let call = |path: &str, class: Class| {
        let layer = methods.layer(path);
        layer.breaker().admit().expect("closed").finish(class);
        layer.breaker().name().to_string()
    };
    assert_eq!(call("/s/Opens", Class::Failure), "peer/s/Opens");
    call("/s/Opens", Class::Failure);
    call("/s/Fails", Class::Failure);
    call("/s/Works", Class::Success);
    let hangs = methods.layer("/s/Hangs");
    let under_way = Breaker::admit_by(Arc::clone(hangs.breaker()), None).expect("closed");
    // Nothing is idle yet, so a method too many shares the peer's.
    assert_eq!(call("/s/Fifth", Class::Success), "peer");
    // The windows are empty now: what only worked goes, what is held, open or fresh from a failure stays.
    clock.advance(SECOND * 11);
    call("/s/Fails", Class::Failure);
    assert_eq!(call("/s/Fifth", Class::Success), "peer/s/Fifth");
    let named = |registry: &Registry| registry.list("peer/").iter().map(|b| b.name().to_string()).collect::<Vec<_>>();
    assert_eq!(named(&registry), ["peer/s/Fails", "peer/s/Fifth", "peer/s/Hangs", "peer/s/Opens"]);
    assert_eq!(registry.get("peer/s/Opens").expect("kept").state(), State::Open);
    // A caller who comes back finds the one that knows.
    assert_eq!(methods.layer("/s/Opens").breaker().snapshot().totals.opened, 1);
    drop((under_way, hangs));
    // Ten thousand methods later there are no more than before.
    for number in 0..10_000 {
        call(&format!("/s/{number}"), Class::Success);
        clock.advance(SECOND * 3);
    }
    assert!(registry.list("").len() <= 5, "{:?}", named(&registry));
    assert_eq!(registry.get("peer/s/Opens").expect("kept").state(), State::Open);
}

#[test]
fn t12_a_method_whose_last_call_failed_is_forgotten_unless_failures_in_a_row_are_counted() {
    for (rules, named) in [(Config::builder(), "peer/B"), (Config::builder().consecutive_failures(5), "peer")] {
        let clock = Arc::new(ManualClock::default());
        let registry = Registry::with_clock(clock.clone());
        let config = rules.build().expect("makes sense");
        let shared = BreakerLayer::new(registry.breaker("peer", &config));
        let methods = Methods::new(registry.clone(), shared, 1, []);
        methods.layer("/A").breaker().admit().expect("closed").finish(Class::Failure);
        assert_eq!(&**methods.layer("/B").breaker().name(), "peer", "its window is not empty");
        clock.advance(SECOND * 11);
        assert_eq!(&**methods.layer("/B").breaker().name(), named);
    }
}

#[test]
fn t12_a_throttle_is_forgotten_once_it_has_nothing_to_remember() {
    let config = Config::builder().failure_rate(None).min_calls(1).throttle(Rate::percent(100));
    let (breaker, clock) = breaker(config);
    assert!(breaker.is_idle());
    for _ in 0..100 {
        if let Ok(permit) = breaker.admit() {
            permit.finish(Class::Overload);
        }
        assert!(!breaker.is_idle());
    }
    clock.advance(SECOND * 11);
    assert!(breaker.is_idle());
}

#[test]
fn t12_a_breaker_that_was_told_other_rules_is_not_forgotten_with_them() {
    let registry = Registry::new();
    let told = registry.breaker("peer/s/Told", &Config::default());
    assert!(told.is_idle());
    let rules = Config::builder().consecutive_failures(7).build().expect("makes sense");
    told.reconfigure(rules.clone()).expect("room");
    drop(told);
    assert_eq!(registry.evict("peer/"), 0);
    assert_eq!(registry.get("peer/s/Told").expect("kept").config(), rules);
}

#[test]
fn t13_a_half_open_circuit_never_waits_for_its_window() {
    // A minimum of calls that the few probes never reach must not hold the verdict back.
    let (breaker, clock) = breaker(quick().time_window(SECOND, 10).min_calls(1000).probes(2, 2));
    trip(&breaker);
    clock.advance(SECOND);
    finish(&breaker, Class::Success, 1);
    clock.advance(SECOND * 30);
    finish(&breaker, Class::Success, 1);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn t14_deadlines_too_small_to_meet_blame_nobody() {
    let (breaker, clock) = breaker(quick().min_blame(MS * 10));
    for _ in 0..20 {
        let dropped = Breaker::admit_by(&*breaker, Some(MS * 9)).expect("closed");
        let late = Breaker::admit_by(&*breaker, Some(MS * 9)).expect("closed");
        let cancelled = Breaker::admit_by(&*breaker, Some(MS * 9)).expect("closed");
        clock.advance(MS * 9);
        drop(dropped);
        late.finish_late();
        cancelled.finish_cancelled();
    }
    assert_eq!((breaker.state(), breaker.snapshot().totals.neutral), (State::Closed, 60));
    Breaker::admit_by(&*breaker, Some(MS * 10)).expect("closed").finish_late();
    assert_eq!(breaker.snapshot().consecutive_failures, 1);
}

#[test]
fn t14_a_probe_whose_deadline_was_too_small_is_not_taken_for_hung() {
    for (budget, state) in [(MS * 9, State::HalfOpen), (MS * 10, State::Open)] {
        let (breaker, clock) = breaker(quick().min_blame(MS * 10));
        trip(&breaker);
        clock.advance(SECOND);
        let probe = Breaker::admit_by(&*breaker, Some(budget)).expect("the probe");
        clock.advance(budget * 2);
        // The next caller finds the lease over, and its holder has not said that it gave up.
        drop(breaker.admit());
        assert_eq!((breaker.state(), breaker.snapshot().totals.probe_timeouts), (state, 1));
        drop(probe);
    }
}

#[test]
fn t14_a_probe_that_misses_its_deadline_has_failed_whoever_is_first_to_say_so() {
    // The second is as long as a lease without a deadline.
    for budget in [MS * 500, SECOND * 10] {
        for told_first in [true, false] {
            let (breaker, clock) = breaker(quick().probes(5, 4).probe_timeout(SECOND * 10));
            trip(&breaker);
            clock.advance(SECOND);
            let probe = Breaker::admit_by(&*breaker, Some(budget)).expect("the probe");
            clock.advance(budget);
            if told_first {
                probe.finish_late();
                breaker.admit().expect("another").finish(Class::Neutral);
            } else {
                breaker.admit().expect("another").finish(Class::Neutral);
                probe.finish_late();
            }
            let totals = breaker.snapshot().totals;
            assert_eq!((breaker.state(), totals.probes.failure, totals.probe_timeouts), (State::HalfOpen, 1, 0));
        }
    }
}

#[test]
fn it_says_how_long_it_was_open_and_whom_it_refused_why() {
    let (breaker, clock) = breaker(quick().ramp(SECOND * 10));
    trip(&breaker);
    clock.advance(MS * 400);
    assert_eq!(breaker.admit().expect_err("open").reason, Reason::Open);
    assert_eq!(breaker.snapshot().totals.open_time, MS * 400);
    clock.advance(MS * 600);
    let probe = breaker.admit().expect("the probe");
    assert_eq!(breaker.admit().expect_err("it is out").reason, Reason::HalfOpenSaturated);
    clock.advance(SECOND);
    probe.finish(Class::Success);
    while breaker.admit().map(|permit| permit.finish(Class::Neutral)).is_ok() {}
    breaker.set_override(Override::ForcedOpen);
    drop(breaker.admit());
    let totals = breaker.snapshot().totals;
    assert_eq!(totals.open_time, SECOND, "half-open, recovering and forced open are something else");
    let once = Rejections { open: 1, half_open_saturated: 1, recovering: 1, forced_open: 1, throttled: 0 };
    assert_eq!((totals.rejected, totals.rejected.sum()), (once, 4));
}

#[test]
fn whoever_finds_the_probes_out_is_told_to_ask_again_soon() {
    let (breaker, clock) = breaker(quick());
    trip(&breaker);
    clock.advance(SECOND);
    let _probe = Breaker::admit_by(&*breaker, Some(SECOND * 5)).expect("the probe");
    // The first one looks, the second is told what that one saw. Probes come back long before they must.
    for _ in 0..2 {
        let refused = breaker.admit().expect_err("its probe is out");
        assert_eq!((refused.reason, refused.retry_after), (Reason::HalfOpenSaturated, SECOND));
    }
    clock.advance(SECOND * 5);
    let refused = breaker.admit().expect_err("its probe is out");
    assert_eq!((refused.reason, refused.retry_after), (Reason::HalfOpenSaturated, MS * 250));
}

#[test]
fn t15_a_herd_of_callers_comes_back_spread_out() {
    let open_times: Vec<Duration> = (0..1000)
        .map(|seed| {
            let config = quick().open_for(SECOND * 5, 2, SECOND * 60).jitter(Rate::percent(20)).build();
            let breaker = Breaker::with_seed("peer", config.expect("makes sense"), Arc::<ManualClock>::default(), seed);
            finish(&breaker, Class::Failure, 2);
            breaker.snapshot().retry_after.expect("open")
        })
        .collect();
    // Kolmogorov–Smirnov against even from 4 s to 6 s: 1.63 / √1000 is passed by chance in one of a hundred.
    let mut at: Vec<f64> = open_times.iter().map(|time| (time.as_secs_f64() - 4.0) / 2.0).collect();
    at.sort_by(f64::total_cmp);
    assert!(at[0] >= 0.0 && at[999] <= 1.0);
    let distance = (0..).zip(&at).map(|(rank, at)| (f64::from(rank) / 1000.0 - at).abs()).fold(0.0, f64::max);
    assert!(distance < 1.63 / 1000_f64.sqrt(), "{distance}");
}

#[test]
fn a_pause_that_the_peer_asks_for_lengthens_the_open_time() {
    let (breaker, _) = breaker(quick().min_calls(2));
    breaker.admit().expect("closed").finish_with_pause(Class::Overload, SECOND * 7);
    breaker.admit().expect("closed").finish_with_pause(Class::Overload, SECOND * 3);
    assert_eq!(breaker.admit().expect_err("overloads count in the rate").retry_after, SECOND * 7);

    breaker.reset();
    breaker.admit().expect("closed").finish_with_pause(Class::Overload, SECOND * 86_400);
    breaker.admit().expect("closed").finish(Class::Overload);
    assert_eq!(breaker.admit().expect_err("open").retry_after, SECOND * 60, "but not beyond the cap");
}

#[test]
fn overload_is_no_failure_in_a_row() {
    let (breaker, _) = breaker(quick().min_calls(100));
    finish(&breaker, Class::Overload, 10);
    finish(&breaker, Class::Failure, 1);
    assert_eq!(breaker.snapshot().consecutive_failures, 1);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn it_opens_as_soon_as_enough_successes_are_out_of_reach() {
    let (breaker, clock) = breaker(quick().probes(5, 4));
    trip(&breaker);
    clock.advance(SECOND);
    let probes: Vec<_> = (0..5).map(|_| breaker.admit().expect("a probe")).collect();
    assert_eq!(breaker.admit().expect_err("all are out").reason, Reason::HalfOpenSaturated);
    let mut probes = probes.into_iter();
    probes.next().expect("five").finish(Class::Failure);
    assert_eq!(breaker.state(), State::HalfOpen);
    probes.next().expect("five").finish(Class::Failure);
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn slow_answers_trip_it_and_fail_a_probe() {
    let slow = libs::breaker::SlowCalls { threshold: MS * 100, rate: Rate::percent(50) };
    let (breaker, clock) = breaker(quick().count_window(10).min_calls(4).slow_calls(slow));
    let call = |took: Duration| {
        let permit = breaker.admit().expect("admitted");
        clock.advance(took);
        permit.finish(Class::Success);
    };
    call(MS * 99);
    call(MS * 99);
    call(MS * 100);
    assert_eq!(breaker.state(), State::Closed);
    call(MS * 100);
    assert_eq!(breaker.state(), State::Open);
    clock.advance(SECOND);
    call(MS * 100);
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn a_ramp_lets_calls_back_in_bit_by_bit_and_a_relapse_opens_at_once() {
    let (breaker, clock) = breaker(quick().ramp(SECOND * 10).min_calls(10).failure_rate(Rate::percent(50)));
    trip(&breaker);
    clock.advance(SECOND);
    finish(&breaker, Class::Success, 1);
    assert_eq!(breaker.state(), State::Recovering);
    let share = |wanted: std::ops::RangeInclusive<usize>| {
        let passed = (0..1000).filter(|_| breaker.admit().map(|permit| permit.finish(Class::Neutral)).is_ok()).count();
        assert!(wanted.contains(&passed), "{passed}");
    };
    share(90..=110);
    clock.advance(SECOND * 5);
    share(490..=510);
    let mut failed = 0;
    while breaker.state() == State::Recovering {
        failed += usize::from(breaker.admit().map(|permit| permit.finish(Class::Overload)).is_ok());
    }
    assert_eq!((failed, breaker.state()), (5, State::Open), "half the minimum is enough here");

    clock.advance(SECOND);
    finish(&breaker, Class::Success, 1);
    clock.advance(SECOND * 10);
    finish(&breaker, Class::Success, 1);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn a_throttle_asks_no_more_than_twice_of_what_is_accepted_and_lets_go_when_all_is_well() {
    let config = Config::builder().failure_rate(None).throttle(Rate::percent(200)).time_window(SECOND * 10, 10);
    let (breaker, clock) = breaker(config.min_calls(20));
    // Of ten requests in a tick of 10 ms the peer accepts the first two that reach it, for two windows long.
    let mut reached = 0;
    for tick in 0..2_000 {
        let mut this_tick = 0;
        for _ in 0..10 {
            if let Ok(permit) = breaker.admit() {
                this_tick += 1;
                permit.finish(if this_tick <= 2 { Class::Success } else { Class::Overload });
            }
        }
        reached += if tick < 1_000 { 0 } else { this_tick };
        clock.advance(MS * 10);
    }
    assert!((3_600..=4_400).contains(&reached), "2,000 are accepted, and {reached} of 10,000 are let through");
    let shown = breaker.snapshot();
    assert_eq!((shown.state, shown.totals.rejected.sum()), (State::Closed, shown.totals.rejected.throttled));
    let mut refused_last = 0;
    for second in 0..60 {
        for _ in 0..1_000 {
            match breaker.admit() {
                Ok(permit) => permit.finish(Class::Success),
                Err(_) => refused_last = second,
            }
        }
        clock.advance(SECOND);
    }
    assert!(refused_last <= 10, "refused {refused_last} s after all was well: longer than the window");
}

#[test]
fn overrides_stand_above_the_state() {
    let (breaker, clock) = breaker(quick());
    breaker.set_override(Override::ForcedOpen);
    assert_eq!(breaker.admit().expect_err("forced").reason, Reason::ForcedOpen);
    assert_eq!(breaker.state(), State::Closed);

    breaker.set_override(Override::ForcedClosed);
    finish(&breaker, Class::Failure, 10);
    assert_eq!((breaker.state(), breaker.snapshot().totals.failure), (State::Closed, 0));

    breaker.set_override(Override::MetricsOnly);
    finish(&breaker, Class::Failure, 10);
    assert_eq!((breaker.state(), breaker.snapshot().window_failures), (State::Closed, 10));

    breaker.set_override(Override::Shadow);
    finish(&breaker, Class::Failure, 2);
    assert_eq!(breaker.state(), State::Open);
    finish(&breaker, Class::Success, 10);
    let shown = breaker.snapshot();
    assert_eq!((shown.state, shown.totals.would_reject, shown.totals.rejected.sum()), (State::Open, 10, 1));
    clock.advance(SECOND);
    finish(&breaker, Class::Success, 1);
    assert_eq!(breaker.state(), State::Closed);

    breaker.set_override(Override::None);
    trip(&breaker);
    breaker.reset();
    finish(&breaker, Class::Success, 1);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn a_permit_from_before_an_override_changes_nothing_after_it() {
    let (breaker, _) = breaker(quick().consecutive_failures(1));
    let early = breaker.admit().expect("closed");
    breaker.set_override(Override::MetricsOnly);
    breaker.set_override(Override::None);
    early.finish(Class::Failure);
    assert_eq!((breaker.state(), breaker.snapshot().totals.stale), (State::Closed, 1));
}

#[test]
fn sixty_days_of_rest_are_no_different_from_a_minute() {
    let (breaker, clock) = breaker(quick().time_window(SECOND, 10).min_calls(2).failure_rate(Rate::percent(60)));
    finish(&breaker, Class::Failure, 1);
    for rest in [SECOND * 60, SECOND * 86_400 * 60, Duration::from_nanos(100_000_000 << 16)] {
        clock.advance(rest);
        finish(&breaker, Class::Success, 1);
        assert_eq!((breaker.snapshot().window_total, breaker.snapshot().window_failures), (1, 0));
        clock.advance(SECOND * 2);
        finish(&breaker, Class::Failure, 1);
        assert_eq!(breaker.state(), State::Closed);
    }
}
