//! Our rows.

use std::{hint::black_box, sync::Arc, time::Duration};

use libs::breaker::{
    Breaker, Class, Clock, CoarseClock, Config, ConfigBuilder, MonotonicClock, Rate, SlowCalls, State,
};

use super::{Outcome, Row};

fn breaker(config: ConfigBuilder, clock: Arc<dyn Clock>) -> Breaker {
    Breaker::with_clock("bench", config.build().expect("makes sense"), clock)
}

fn row(name: &'static str, config: ConfigBuilder, clock: Arc<dyn Clock>) -> Row {
    let breaker = breaker(config, clock);
    let call = move |outcome: Outcome| match breaker.admit() {
        Ok(permit) => {
            permit.finish(if outcome.is_ok() { Class::Success } else { Class::Failure });
            true
        }
        Err(_) => false,
    };
    Row { name, call: Box::new(call) }
}

fn slow() -> SlowCalls {
    SlowCalls { threshold: Duration::from_secs(1), rate: Rate::percent(50) }
}

pub(super) fn closed() -> Vec<Row> {
    let count = || Config::builder().count_window(100);
    vec![
        row("ours: count window", count(), Arc::new(CoarseClock::new())),
        row("ours: time window, coarse clock", Config::builder(), Arc::new(CoarseClock::new())),
        row("ours: time window, fine clock", Config::builder(), Arc::new(MonotonicClock::new())),
        row(
            "ours: time window, slow calls, coarse clock",
            Config::builder().slow_calls(slow()),
            Arc::new(CoarseClock::new()),
        ),
        row("ours: count window, slow calls, coarse clock", count().slow_calls(slow()), Arc::new(CoarseClock::new())),
    ]
}

/// What a reading of each clock costs, which is part of a call.
pub(super) fn clocks() -> Vec<Row> {
    fn row(name: &'static str, clock: impl Clock) -> Row {
        let read = move |_| {
            black_box(clock.now());
            true
        };
        Row { name, call: Box::new(read) }
    }
    vec![row("ours: coarse", CoarseClock::new()), row("the operating system's: fine", MonotonicClock::new())]
}

pub(super) fn open() -> Vec<Row> {
    let hour = Duration::from_secs(3600);
    let config = Config::builder().consecutive_failures(1).open_for(hour, 1, hour);
    let breaker = breaker(config, Arc::new(CoarseClock::new()));
    breaker.admit().expect("closed").finish(Class::Failure);
    vec![Row {
        name: "ours: core",
        call: Box::new(move |_| breaker.admit().map(|permit| permit.finish(Class::Success)).is_ok()),
    }]
}

/// A million transitions, and not a byte more than before.
pub(super) fn soak() {
    let short = Duration::from_nanos(1);
    let config = Config::builder().consecutive_failures(1).open_for(short, 1, short).probes(1, 1);
    let clock = Arc::new(libs::breaker::ManualClock::default());
    let breaker = breaker(config, clock.clone());
    let flap = |times: u32| {
        for _ in 0..times {
            breaker.admit().expect("closed").finish(Class::Failure);
            assert_eq!(breaker.state(), State::Open);
            clock.advance(Duration::from_millis(1));
            breaker.admit().expect("the probe").finish(Class::Success);
        }
    };
    flap(1000);
    let kept = allocation_counter::measure(|| flap(333_333)).bytes_current;
    println!("1,000,000 transitions keep {kept} bytes; a breaker is {} bytes and its window", size_of::<Breaker>());
    assert_eq!(kept, 0);
}
