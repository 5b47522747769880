//! What may be so thousands of times a second is told of once a second.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

const TELL_EVERY: Duration = Duration::from_secs(1);

/// When it was told of last.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<Option<Instant>>);

impl Told {
    /// True if it is to be told of now: it was not just now.
    pub(crate) fn is_due(&self) -> bool {
        let mut told = self.0.lock();
        let is_due = told.is_none_or(|told| told.elapsed() >= TELL_EVERY);
        if is_due {
            *told = Some(Instant::now());
        }
        is_due
    }
}
