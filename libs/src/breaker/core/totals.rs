//! Counts since the start. Success has no counter of its own on the hot path: the windows know it.

use super::sync::{AtomicU64, Ordering};

/// Counts since the breaker was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Calls that succeeded.
    pub success: u64,
    /// Calls that failed.
    pub failure: u64,
    /// Calls that the peer refused for overload.
    pub overload: u64,
    /// Calls that say nothing about the peer.
    pub neutral: u64,
    /// Calls refused here.
    pub rejected: u64,
    /// Results that came after a transition and were not counted.
    pub stale: u64,
    /// Abandoned calls that were judged a failure.
    pub abandoned_failure: u64,
    /// Abandoned calls that were judged to say nothing.
    pub abandoned_neutral: u64,
    /// Times it opened.
    pub opened: u64,
    /// Probes whose lease ran out.
    pub probe_timeouts: u64,
    /// Calls that would have been refused, in shadow.
    pub would_reject: u64,
}

/// One counter.
#[derive(Debug)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(crate) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters behind [`Totals`].
#[derive(Debug)]
pub(crate) struct Counters {
    /// Successes that went through no window: probes, and calls in shadow.
    pub(crate) success_outside: Counter,
    pub(crate) failure: Counter,
    pub(crate) overload: Counter,
    pub(crate) neutral: Counter,
    pub(crate) rejected: Counter,
    pub(crate) stale: Counter,
    pub(crate) abandoned_failure: Counter,
    pub(crate) abandoned_neutral: Counter,
    pub(crate) opened: Counter,
    pub(crate) probe_timeouts: Counter,
    pub(crate) would_reject: Counter,
}

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            success_outside: Counter::new(),
            failure: Counter::new(),
            overload: Counter::new(),
            neutral: Counter::new(),
            rejected: Counter::new(),
            stale: Counter::new(),
            abandoned_failure: Counter::new(),
            abandoned_neutral: Counter::new(),
            opened: Counter::new(),
            probe_timeouts: Counter::new(),
            would_reject: Counter::new(),
        }
    }

    pub(crate) fn totals(&self, success_in_windows: u64) -> Totals {
        Totals {
            success: success_in_windows + self.success_outside.get(),
            failure: self.failure.get(),
            overload: self.overload.get(),
            neutral: self.neutral.get(),
            rejected: self.rejected.get(),
            stale: self.stale.get(),
            abandoned_failure: self.abandoned_failure.get(),
            abandoned_neutral: self.abandoned_neutral.get(),
            opened: self.opened.get(),
            probe_timeouts: self.probe_timeouts.get(),
            would_reject: self.would_reject.get(),
        }
    }
}
