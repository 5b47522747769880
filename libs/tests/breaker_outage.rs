//! An outage in virtual time: many clients, one server of limited capacity, ten seconds in which it answers nothing, or only half of
//! what is asked. What reaches the server, how soon the circuits open, how soon all is well again, and that they stay closed then. The
//! same seed, the same run.
#![cfg(feature = "breaker")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that publishes its curve")]

use std::{sync::Arc, time::Duration};

use libs::breaker::{Breaker, Class, Config, ManualClock, Rate, State};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

const TICK: Duration = Duration::from_millis(10);
const CLIENTS: usize = 20;
/// What the server can answer in a tick: a third more than all ask, who have one or two wishes each.
const CAPACITY: usize = 40;
const OUTAGE: std::ops::Range<usize> = 1_000..2_000;
const END: usize = 6_000;

/// What a client does about a failure.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Policy {
    /// Two more attempts, at once.
    Retries,
    /// The same with a budget of a tenth, behind a breaker.
    Breaker,
    /// The same behind a breaker that throttles instead of opening.
    Throttle,
}

impl Policy {
    fn config(self) -> Config {
        let builder = Config::builder();
        let builder = match self {
            Self::Throttle => builder.failure_rate(None).throttle(Rate::percent(200)),
            Self::Retries | Self::Breaker => builder,
        };
        builder.build().unwrap()
    }
}

struct Client {
    breaker: Arc<Breaker>,
    /// Retries it may still make.
    budget: f64,
    has_opened: bool,
    /// Since all was well.
    openings: usize,
    was_open: bool,
}

/// What came of a run, in ticks.
#[derive(Debug, Default)]
struct Run {
    /// Requests, and calls that reached the server, while it was out and in the five seconds after.
    requests: usize,
    calls: usize,
    /// Requests answered while it was out.
    answered: usize,
    /// When every circuit had opened, after the outage began.
    open_after: Option<usize>,
    /// When at least 95 % of a second's requests were answered, after it ended.
    well_after: Option<usize>,
    /// Circuits that opened again once all was well.
    reopened: usize,
    /// Answered requests, a second a figure.
    curve: Vec<usize>,
}

/// `left` is what the server can answer in a tick of the outage.
fn run(policy: Policy, left: usize, seed: u64) -> Run {
    let clock = Arc::new(ManualClock::default());
    let mut random = StdRng::seed_from_u64(seed);
    let new = |at: usize| Client {
        breaker: Arc::new(Breaker::with_seed("peer", policy.config(), clock.clone(), seed + at as u64)),
        budget: 10.0,
        has_opened: false,
        openings: 0,
        was_open: false,
    };
    let mut clients: Vec<Client> = (0..CLIENTS).map(new).collect();
    let mut run = Run::default();
    let (mut answered, mut asked) = (0, 0);
    for tick in 0..END {
        let out = OUTAGE.contains(&tick);
        let mut load = 0;
        // Whoever comes first is answered: nobody shall always be first.
        let first = random.random_range(0..CLIENTS);
        for at in 0..CLIENTS {
            let client = &mut clients[(first + at) % CLIENTS];
            for _ in 0..random.random_range(1..=2) {
                asked += 1;
                client.budget = (client.budget + 0.1).min(10.0);
                let mut sent = 0;
                for attempt in 0..3 {
                    if attempt > 0 && policy != Policy::Retries {
                        if client.budget < 1.0 {
                            break;
                        }
                        client.budget -= 1.0;
                    }
                    let permit = match policy {
                        Policy::Retries => None,
                        Policy::Breaker | Policy::Throttle => match client.breaker.admit() {
                            Ok(permit) => Some(permit),
                            Err(_) => break,
                        },
                    };
                    sent += 1;
                    load += 1;
                    let well = load <= if out { left } else { CAPACITY };
                    if let Some(permit) = permit {
                        permit.finish(if well { Class::Success } else { Class::Failure });
                    }
                    if well {
                        answered += 1;
                        run.answered += usize::from(out);
                        break;
                    }
                }
                if (OUTAGE.start..OUTAGE.end + 500).contains(&tick) {
                    run.requests += 1;
                    run.calls += sent;
                }
            }
            let open = client.breaker.state() == State::Open;
            client.openings += usize::from(open && !client.was_open && run.well_after.is_some());
            client.was_open = open;
            client.has_opened |= open;
        }
        if out && clients.iter().all(|client| client.has_opened) && run.open_after.is_none() {
            run.open_after = Some(tick - OUTAGE.start);
        }
        clock.advance(TICK);
        if (tick + 1).is_multiple_of(100) {
            if tick >= OUTAGE.end && answered * 100 >= asked * 95 && run.well_after.is_none() {
                run.well_after = Some(tick - OUTAGE.end);
            }
            run.curve.push(answered);
            (answered, asked) = (0, 0);
        }
    }
    run.reopened = clients.iter().map(|client| client.openings).sum();
    run
}

#[test]
fn an_outage_is_not_amplified_ends_when_it_ends_and_does_not_come_back() {
    for seed in 0..20 {
        let alone = run(Policy::Retries, 0, seed);
        let guarded = run(Policy::Breaker, 0, seed);
        let amplified = |run: &Run| run.calls as f64 / run.requests as f64;
        let (before, after) = (amplified(&alone), amplified(&guarded));
        if seed == 0 {
            println!(
                "calls a request, in the outage and 5 s after: retries alone {before:.2}, breaker and budget {after:.2}"
            );
            println!(
                "all had opened after {:?} ticks of 10 ms, well again after {:?}",
                guarded.open_after, guarded.well_after
            );
            println!("answered a second: {:?}", guarded.curve);
        }
        assert!(before > 2.0, "seed {seed}: the scenario amplifies nothing: {before:.2}");
        assert!(after <= 1.2, "seed {seed}: {after:.2} calls a request");
        // The default's window is ten seconds, and half of what is in it must have failed.
        assert!(
            guarded.open_after.is_some_and(|ticks| ticks <= 500),
            "seed {seed}: open after {:?}",
            guarded.open_after
        );
        // The longest wait of an open circuit that was refused twice or thrice, and the ramp after it.
        assert!(
            guarded.well_after.is_some_and(|ticks| ticks <= 3_000),
            "seed {seed}: well after {:?}",
            guarded.well_after
        );
        assert_eq!(guarded.reopened, 0, "seed {seed}: circuits opened again: {:?}", guarded.curve);
    }
}

#[test]
fn of_a_peer_that_can_do_half_a_throttle_keeps_more_than_a_circuit_that_opens() {
    for seed in 0..5 {
        let left = CAPACITY / 3;
        let [alone, opens, throttles] =
            [Policy::Retries, Policy::Breaker, Policy::Throttle].map(|policy| run(policy, left, seed));
        let possible = left * OUTAGE.len();
        if seed == 0 {
            for (name, run) in [("retries alone", &alone), ("breaker", &opens), ("throttle", &throttles)] {
                println!(
                    "{name}: {:.2} calls a request, {} % of what the server could do, answered a second: {:?}",
                    run.calls as f64 / run.requests as f64,
                    run.answered * 100 / possible,
                    run.curve,
                );
            }
        }
        assert!(throttles.calls * 10 <= throttles.requests * 12, "seed {seed}: {throttles:?}");
        assert!(throttles.answered > opens.answered, "seed {seed}: {} and {}", throttles.answered, opens.answered);
        assert!(throttles.answered * 10 >= possible * 9, "seed {seed}: {} of {possible}", throttles.answered);
        assert!(throttles.well_after.is_some_and(|ticks| ticks <= 1_500), "seed {seed}: {:?}", throttles.well_after);
    }
}
