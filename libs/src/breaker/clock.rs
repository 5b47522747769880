//! Clocks that need more than the standard library.

use tokio::time::Instant;

use super::Clock;

/// Tokio's clock: the operating system's, or a test's that stands still.
#[derive(Debug)]
pub struct TokioClock(Instant);

impl TokioClock {
    /// A clock that starts at zero now.
    #[must_use]
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The operating system's coarse clock: three times as fast as the fine one, and right to a few milliseconds. Good for
/// windows, and for slow-call thresholds of 50 ms and more. Where there is none, the fine clock.
#[derive(Debug, Default)]
pub struct CoarseClock(#[cfg(not(target_os = "linux"))] super::MonotonicClock);

impl CoarseClock {
    /// A clock whose origin is the machine's.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Clock for CoarseClock {
    #[cfg(target_os = "linux")]
    fn now(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
    }

    #[cfg(not(target_os = "linux"))]
    fn now(&self) -> u64 {
        self.0.now()
    }
}
