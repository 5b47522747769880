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
