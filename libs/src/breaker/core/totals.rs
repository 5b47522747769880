//! Counts since the start. Success has no counter of its own on the hot path: the windows know it.

use std::time::Duration;

use super::{
    admission::Reason,
    sync::{AtomicU64, Ordering},
};

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
    /// Calls refused here, by why.
    pub rejected: Rejections,
    /// Results that came after a transition and were not counted.
    pub stale: u64,
    /// Abandoned calls that were judged a failure.
    pub abandoned_failure: u64,
    /// Abandoned calls that were judged to say nothing.
    pub abandoned_neutral: u64,
    /// Times it opened.
    pub opened: u64,
    /// How long it was open, all times together.
    pub open_time: Duration,
    /// Probes, and how they ended.
    pub probes: Probes,
    /// Probes whose lease ran out.
    pub probe_timeouts: u64,
    /// Calls that would have been refused, in shadow.
    pub would_reject: u64,
}

/// The permits of half-open circuits, and how those that ended did. Those whose lease ran out are beside, in
/// [`Totals::probe_timeouts`]; the rest is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Permits lent.
    pub lent: u64,
    /// Probes that went well.
    pub success: u64,
    /// Probes that did not: they failed, met an overload, or were slow.
    pub failure: u64,
    /// Probes that said nothing about the peer.
    pub neutral: u64,
    /// Probes still under way when the circuit had its verdict, or was reset: they no longer counted.
    pub overtaken: u64,
}

/// Calls refused here, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rejections {
    /// The circuit was open.
    pub open: u64,
    /// The circuit was half-open and its probes were out.
    pub half_open_saturated: u64,
    /// The circuit recovered, and they were not in the share that passes.
    pub recovering: u64,
    /// An operator had forced it open.
    pub forced_open: u64,
    /// The circuit was closed, and more was asked of the peer than it accepted.
    pub throttled: u64,
}

impl Rejections {
    /// All of them.
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.open + self.half_open_saturated + self.recovering + self.forced_open + self.throttled
    }
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
    /// In the order of [`Reason`].
    rejected: [Counter; 5],
    pub(crate) stale: Counter,
    pub(crate) abandoned_failure: Counter,
    pub(crate) abandoned_neutral: Counter,
    pub(crate) opened: Counter,
    pub(crate) probes_lent: Counter,
    pub(crate) probes_success: Counter,
    pub(crate) probes_failure: Counter,
    pub(crate) probes_neutral: Counter,
    pub(crate) probes_overtaken: Counter,
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
            rejected: std::array::from_fn(|_| Counter::new()),
            stale: Counter::new(),
            abandoned_failure: Counter::new(),
            abandoned_neutral: Counter::new(),
            opened: Counter::new(),
            probes_lent: Counter::new(),
            probes_success: Counter::new(),
            probes_failure: Counter::new(),
            probes_neutral: Counter::new(),
            probes_overtaken: Counter::new(),
            probe_timeouts: Counter::new(),
            would_reject: Counter::new(),
        }
    }

    /// Counts a probe that came back in time.
    pub(crate) fn probe_came_back(&self, went_well: Option<bool>) {
        match went_well {
            Some(true) => self.probes_success.add(1),
            Some(false) => self.probes_failure.add(1),
            None => self.probes_neutral.add(1),
        }
    }

    pub(crate) fn reject(&self, reason: Reason) {
        self.rejected[reason as usize].add(1);
    }

    /// With what others know: the successes in the windows, and how long it was open.
    pub(crate) fn totals(&self, success_in_windows: u64, open_time: Duration) -> Totals {
        let [open, half_open_saturated, recovering, forced_open, throttled] =
            self.rejected.each_ref().map(Counter::get);
        Totals {
            success: success_in_windows + self.success_outside.get(),
            failure: self.failure.get(),
            overload: self.overload.get(),
            neutral: self.neutral.get(),
            rejected: Rejections { open, half_open_saturated, recovering, forced_open, throttled },
            stale: self.stale.get(),
            abandoned_failure: self.abandoned_failure.get(),
            abandoned_neutral: self.abandoned_neutral.get(),
            opened: self.opened.get(),
            open_time,
            probes: Probes {
                lent: self.probes_lent.get(),
                success: self.probes_success.get(),
                failure: self.probes_failure.get(),
                neutral: self.probes_neutral.get(),
                overtaken: self.probes_overtaken.get(),
            },
            probe_timeouts: self.probe_timeouts.get(),
            would_reject: self.would_reject.get(),
        }
    }
}
