//! Whether a log still has what it ended with.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// How often a log was found to have lost its last events since it was opened, as after a failover to a server that had not come so far.
/// Clones share the count.
///
/// A loss is found before anything is decided on what is left: where a decision finds another count than there was when the log was told of
/// something, that may not be in it any more.
#[derive(Clone, Debug, Default)]
pub struct Losses(Arc<AtomicU64>);

impl Losses {
    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}
