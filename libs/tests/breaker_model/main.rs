//! The breaker equals its model, step by step: whatever the configuration and whatever happens.
#![cfg(feature = "breaker")]

mod model;

use std::{sync::Arc, time::Duration};

use libs::breaker::{
    Breaker, Class, ConfigError, ManualClock, Override, Permit, ProbeTimeout, Probes, Rejected, State, Undecided,
    Window,
};
use model::{Call, End, Model, Settings};
use proptest::prelude::*;

const MS: u64 = 1_000_000;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Admit(Option<u64>),
    End(usize, End),
    Excuse(usize),
    /// Admitted and ended at once, so many times: what windows are made of.
    Calls(Class, u8),
    Override(Override),
    Reset,
    /// Other rules, and now and then another window.
    Reconfigure(Box<Settings>, bool),
}

fn class() -> impl Strategy<Value = Class> {
    prop_oneof![
        4 => Just(Class::Success),
        4 => Just(Class::Failure),
        1 => Just(Class::Overload),
        1 => Just(Class::Neutral),
    ]
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        6 => class().prop_map(End::Class),
        1 => (class(), 0..5000 * MS).prop_map(|(class, pause)| End::Pause(class, pause)),
        1 => Just(End::Late),
        1 => Just(End::Cancelled),
        1 => Just(End::Left),
        2 => Just(End::Dropped),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let wait = prop_oneof![Just(0), 0..20 * MS, 0..2_000 * MS, 0..20_000 * MS, Just(60 * 86_400 * 1000 * MS),];
    let over = prop_oneof![
        4 => Just(Override::None),
        1 => Just(Override::ForcedOpen),
        1 => Just(Override::ForcedClosed),
        1 => Just(Override::MetricsOnly),
        2 => Just(Override::Shadow),
    ];
    prop_oneof![
        6 => wait.prop_map(Step::Wait),
        8 => prop_oneof![Just(None), (0..3_000 * MS).prop_map(Some)].prop_map(Step::Admit),
        8 => (any::<usize>(), end()).prop_map(|(which, end)| Step::End(which, end)),
        2 => any::<usize>().prop_map(Step::Excuse),
        8 => (class(), 1..12_u8).prop_map(|(class, times)| Step::Calls(class, times)),
        1 => over.prop_map(Step::Override),
        1 => Just(Step::Reset),
        1 => (settings(), any::<bool>()).prop_map(|(settings, keep)| Step::Reconfigure(Box::new(settings), keep)),
    ]
}

prop_compose! {
    fn settings()(
        count in any::<bool>(),
        size in 1..12_u32,
        bucket_ms in 1..2_000_u64,
        min_calls in 1..8_u32,
        failure_percent in prop::option::of(1..=100_u32),
        consecutive in 1..6_u32,
        armed in any::<bool>(),
        slow in prop::option::of((1..1_000 * MS, 1..=100_u32)),
        open in (1..2_000 * MS, 1..4_u32, 0..20_000 * MS, 1..60_000 * MS),
        probes in (1..4_u32).prop_flat_map(|permits| (Just(permits), 1..=permits)),
        probe_timeout in 1..5_000 * MS,
        lenient in (any::<bool>(), any::<bool>()),
        ramp in prop_oneof![Just(0), 1..5_000 * MS],
        abandon_after in 1..2_000 * MS,
        last in (0..50 * MS, prop::option::of(100..=400_u32)),
    ) -> Settings {
        let armed = armed || (failure_percent.is_none() && slow.is_none());
        Settings {
            window: if count { Window::Count { calls: size } } else {
                Window::Time { length: Duration::from_millis(bucket_ms * u64::from(size)), buckets: size }
            },
            min_calls: if count { min_calls.min(size) } else { min_calls },
            failure_percent,
            consecutive: armed.then_some(consecutive),
            slow,
            open_base: open.0,
            open_multiplier: open.1,
            open_cap: open.0 + open.2,
            decay: open.3,
            permits: probes.0,
            required: probes.1,
            probe_timeout,
            on_probe_timeout: if lenient.0 { ProbeTimeout::Neutral } else { ProbeTimeout::Failure },
            on_undecided: if lenient.1 { Undecided::CloseOnSuccess } else { Undecided::Open },
            ramp,
            abandon_after,
            min_blame: last.0,
            throttle_percent: last.1.filter(|_| !count),
        }
    }
}

/// The breaker and its model, and the calls that are under way in both.
struct Pair {
    breaker: Arc<Breaker>,
    clock: Arc<ManualClock>,
    model: Model,
    calls: Vec<(Permit<Arc<Breaker>>, Call)>,
    /// The shapes of window that it has had.
    shapes: Vec<Window>,
}

impl Pair {
    fn new(settings: Settings) -> Self {
        let clock = Arc::new(ManualClock::default());
        let (config, shapes) = (settings.config(), vec![settings.config().window()]);
        let breaker = Breaker::with_seed("peer", config, clock.clone(), 1);
        Self { breaker: Arc::new(breaker), clock, model: Model::new(settings), calls: Vec::new(), shapes }
    }

    fn admit(&mut self, budget: Option<u64>) -> Result<bool, TestCaseError> {
        let real = Breaker::admit_by(Arc::clone(&self.breaker), budget.map(Duration::from_nanos));
        match (real, self.model.admit(budget)) {
            (Ok(permit), Ok(call)) => {
                self.calls.push((permit, call));
                Ok(true)
            }
            (Err(Rejected { reason, retry_after, .. }), Err(meant)) => {
                prop_assert_eq!((reason, retry_after.as_nanos() as u64), meant);
                Ok(false)
            }
            (real, meant) => Err(TestCaseError::fail(format!("{real:?} instead of {meant:?}"))),
        }
    }

    fn end(&mut self, which: usize, end: End) {
        if self.calls.is_empty() {
            return;
        }
        let (permit, call) = self.calls.swap_remove(which % self.calls.len());
        self.model.finish(call, end);
        match end {
            End::Class(class) => permit.finish(class),
            End::Pause(class, pause) => permit.finish_with_pause(class, Duration::from_nanos(pause)),
            End::Late => permit.finish_late(),
            End::Cancelled => permit.finish_cancelled(),
            End::Left => permit.finish_left(),
            End::Dropped => drop(permit),
        }
    }

    fn excuse(&mut self, which: usize) {
        let calls = self.calls.len().max(1);
        if let Some((permit, call)) = self.calls.get_mut(which % calls) {
            self.model.excuse(call);
            permit.excuse();
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Wait(time) => {
                self.model.now += time;
                self.clock.advance(Duration::from_nanos(time));
            }
            Step::Admit(budget) => drop(self.admit(budget)?),
            Step::End(which, end) => self.end(which, end),
            Step::Excuse(which) => self.excuse(which),
            Step::Calls(class, times) => {
                for _ in 0..times {
                    if self.admit(None)? {
                        self.end(self.calls.len() - 1, End::Class(class));
                    }
                }
            }
            Step::Override(over) => {
                self.breaker.set_override(over);
                self.model.set_override(over);
            }
            Step::Reconfigure(ref settings, keep) => {
                let mut settings = (**settings).clone();
                if keep {
                    settings.window = self.model.settings.window;
                    if let Window::Count { calls } = settings.window {
                        settings.min_calls = settings.min_calls.min(calls);
                        settings.throttle_percent = None;
                    }
                }
                let shape = settings.config().window();
                let is_new = !self.shapes.contains(&shape);
                match self.breaker.reconfigure(settings.config()) {
                    Ok(()) => {
                        self.shapes.extend(is_new.then_some(shape));
                        self.model.reconfigure(settings);
                    }
                    Err(error) => {
                        prop_assert_eq!(error, ConfigError::TooManyShapes(8));
                        prop_assert_eq!((is_new, self.shapes.len()), (true, 8), "refused with room left");
                    }
                }
            }
            Step::Reset => {
                self.breaker.reset();
                self.model.reset();
            }
        }
        self.compare()
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let (shown, model) = (self.breaker.snapshot(), &self.model);
        prop_assert_eq!(shown.state, model.state);
        prop_assert_eq!(shown.over, model.over);
        prop_assert_eq!(shown.generation, model.generation);
        prop_assert_eq!((shown.window_total, shown.window_failures, shown.window_slow), model.shown());
        prop_assert_eq!(shown.consecutive_failures, model.run_of_failures());
        prop_assert_eq!(shown.last_cause, model.last_cause);
        prop_assert_eq!(shown.totals, model.totals());
        let Probes { lent, success, failure, neutral, overtaken } = shown.totals.probes;
        let ended = success + failure + neutral + overtaken + shown.totals.probe_timeouts;
        prop_assert_eq!(lent, ended + shown.probes_out, "every probe ends once");
        let left = shown.retry_after.map(|left| left.as_nanos() as u64);
        let meant = (model.state == State::Open).then(|| model.open_until.saturating_sub(model.now));
        prop_assert_eq!(left, meant);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_breaker_equals_its_model(settings in settings(), steps in prop::collection::vec(step(), 1..120)) {
        let mut pair = Pair::new(settings);
        for step in &steps {
            pair.step(step)?;
        }
    }

    #[test]
    fn in_a_count_window_only_the_order_matters(
        calls in 1..20_u32,
        classes in prop::collection::vec(class(), 1..100),
        gap in 0..1_000_000 * MS,
    ) {
        let trips = |gap: u64| {
            let clock = Arc::new(ManualClock::default());
            let config = libs::breaker::Config::builder().count_window(calls).min_calls(calls).build();
            let breaker = Breaker::with_seed("peer", config.expect("makes sense"), clock.clone(), 1);
            classes.iter().position(|class| {
                clock.advance(Duration::from_nanos(gap));
                breaker.admit().expect("closed until now").finish(*class);
                breaker.state() == State::Open
            })
        };
        prop_assert_eq!(trips(gap), trips(gap.saturating_mul(1000)));
    }

    #[test]
    fn a_burst_and_what_is_spread_over_its_bucket_are_the_same(
        buckets in prop::collection::vec(prop::collection::vec((class(), 0..1_000 * MS), 0..12), 1..25),
        min_calls in 1..20_u32,
    ) {
        let told = |spread: bool| {
            let clock = Arc::new(ManualClock::default());
            let config = libs::breaker::Config::builder().time_window(Duration::from_secs(10), 10).min_calls(min_calls);
            let breaker = Breaker::with_seed("peer", config.build().expect("makes sense"), clock.clone(), 1);
            let (mut told, mut now) = (Vec::new(), 0);
            for (second, calls) in (0..).zip(&buckets) {
                let mut offsets: Vec<_> = calls.iter().map(|(_, offset)| if spread { *offset } else { 0 }).collect();
                offsets.sort_unstable();
                for ((class, _), offset) in calls.iter().zip(offsets) {
                    let then = second * 1_000 * MS + offset;
                    clock.advance(Duration::from_nanos(then - now));
                    now = then;
                    breaker.admit().expect("closed until now").finish(*class);
                    let shown = breaker.snapshot();
                    told.push((shown.state, shown.window_total, shown.window_failures));
                    // From here on it is the clock that decides.
                    if shown.state == State::Open {
                        return told;
                    }
                }
            }
            told
        };
        prop_assert_eq!(told(true), told(false));
    }
}
