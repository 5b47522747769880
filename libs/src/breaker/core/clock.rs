//! Where time comes from.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// A clock that never goes back on purpose. Should it all the same, breakers take it as standing still.
pub trait Clock: Send + Sync + 'static {
    /// Nanoseconds since an origin of the clock's own.
    fn now(&self) -> u64;
}

/// A duration in nanoseconds, at most what fits: 584 years.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The operating system's monotonic clock, to the nanosecond.
#[derive(Debug)]
pub struct MonotonicClock(Instant);

impl MonotonicClock {
    /// A clock that starts at zero now.
    #[must_use]
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> u64 {
        nanos(self.0.elapsed())
    }
}

/// A clock that is moved by hand, for tests and simulations.
#[derive(Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(nanos(by), Ordering::SeqCst);
    }

    /// Sets the time, backwards too.
    pub fn set(&self, since_origin: Duration) {
        self.0.store(nanos(since_origin), Ordering::SeqCst);
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ManualClock({:?})", Duration::from_nanos(self.now()))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}
