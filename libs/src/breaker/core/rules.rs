//! The rules that open a closed circuit, as atomics: they may change while calls are under way.

use super::{
    clock::nanos,
    config::Config,
    state::Cause,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// What a window holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) total: u64,
    pub(crate) failures: u64,
    pub(crate) slow: u64,
}

impl From<(u64, u64, u64)> for Counts {
    fn from((total, failures, slow): (u64, u64, u64)) -> Self {
        Self { total, failures, slow }
    }
}

/// The armed rules; zero means that one is not.
#[derive(Debug)]
pub(crate) struct Rules {
    consecutive: AtomicU32,
    failure_points: AtomicU32,
    slow_points: AtomicU32,
    min_calls: AtomicU32,
    slow_nanos: AtomicU64,
    throttle_points: AtomicU32,
}

impl Rules {
    pub(crate) fn new(config: &Config) -> Self {
        let rules = Self {
            consecutive: AtomicU32::new(0),
            failure_points: AtomicU32::new(0),
            slow_points: AtomicU32::new(0),
            min_calls: AtomicU32::new(0),
            slow_nanos: AtomicU64::new(0),
            throttle_points: AtomicU32::new(0),
        };
        rules.set(config);
        rules
    }

    pub(crate) fn set(&self, config: &Config) {
        self.consecutive.store(config.consecutive_failures.unwrap_or(0), Ordering::Relaxed);
        self.failure_points.store(config.failure_rate.map_or(0, |rate| rate.points()), Ordering::Relaxed);
        self.slow_points.store(config.slow_calls.map_or(0, |slow| slow.rate.points()), Ordering::Relaxed);
        self.min_calls.store(config.min_calls, Ordering::Relaxed);
        self.throttle_points.store(config.throttle.map_or(0, |rate| rate.points()), Ordering::Relaxed);
        self.slow_nanos.store(config.slow_calls.map_or(0, |slow| nanos(slow.threshold)), Ordering::Relaxed);
    }

    /// Whether durations matter.
    #[inline]
    pub(crate) fn times_calls(&self) -> bool {
        self.slow_nanos.load(Ordering::Relaxed) != 0
    }

    #[inline]
    pub(crate) fn is_slow(&self, elapsed: u64) -> bool {
        let threshold = self.slow_nanos.load(Ordering::Relaxed);
        threshold != 0 && elapsed >= threshold
    }

    /// From how many calls on the rates are judged: half while recovering, for a relapse is to be seen early.
    pub(crate) fn min_calls(&self, recovering: bool) -> u64 {
        let calls = u64::from(self.min_calls.load(Ordering::Relaxed));
        if recovering { calls.div_ceil(2) } else { calls }
    }

    /// Whether to refuse one more request, after so many of which so many were accepted: with probability
    /// (requests − K × accepted) ÷ (requests + 1). `draw` is even over all its values.
    pub(crate) fn throttles(&self, requests: u64, accepted: u64, draw: impl FnOnce() -> u32) -> bool {
        let points = self.throttle_points.load(Ordering::Relaxed);
        if points == 0 || requests < self.min_calls(false) {
            return false;
        }
        let let_through = u128::from(accepted) * u128::from(points);
        let beyond = (u128::from(requests) * 10_000).saturating_sub(let_through);
        beyond > 0 && u128::from(draw()) * (u128::from(requests) + 1) * 10_000 < beyond << 32
    }

    /// The first rule that is broken, at the threshold or above.
    pub(crate) fn broken(&self, counts: Counts, consecutive: u32, recovering: bool) -> Option<Cause> {
        let limit = self.consecutive.load(Ordering::Relaxed);
        if limit != 0 && consecutive >= limit {
            return Some(Cause::Consecutive);
        }
        if counts.total < self.min_calls(recovering) {
            return None;
        }
        let reached = |part: u64, points: &AtomicU32| {
            let points = u64::from(points.load(Ordering::Relaxed));
            points != 0 && u128::from(part) * 10_000 >= u128::from(counts.total) * u128::from(points)
        };
        if reached(counts.failures, &self.failure_points) {
            Some(Cause::FailureRate)
        } else if reached(counts.slow, &self.slow_points) {
            Some(Cause::SlowRate)
        } else {
            None
        }
    }
}
