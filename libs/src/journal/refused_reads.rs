//! Reads that come to nothing while their database can't do anything: they are told of together, beside the line of
//! each call that is refused so.

use std::sync::atomic::{AtomicU64, Ordering};

use super::sql::Error;
use crate::{refusal::Refusal, told::Told};

/// The reads of one who answers by them.
#[derive(Debug, Default)]
pub(crate) struct RefusedReads {
    /// Since that was told of.
    reads: AtomicU64,
    told: Told,
}

impl RefusedReads {
    /// What a caller is told of a read that failed. That the database can't do anything just now says nothing of `what` was to be read, and
    /// is a line a second for all such reads; anything else is a person's to mend, and for `tell` to say.
    pub(crate) fn refusal(&self, what: &str, error: &Error, tell: impl FnOnce()) -> Refusal {
        if !error.is_passing() {
            tell();
        } else if let Some(reads) = self.count() {
            tracing::warn!(what, %error, reads, "the database can't be read now: who asks for what is in it is refused");
        }
        error.refusal()
    }

    /// Counts a read that is refused, and answers how many those are since that was told of, if it is to be told: it was not just now.
    fn count(&self) -> Option<u64> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.told.is_due().then(|| self.reads.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reads_that_are_refused_are_told_of_once_a_second_with_how_many_there_were() {
        let refused = RefusedReads::default();
        let told: Vec<_> = (0..500).filter_map(|_| refused.count()).collect();
        assert_eq!(told, [1]);
        tokio::time::advance(Duration::from_secs(1)).await;
        let told: Vec<_> = (0..500).filter_map(|_| refused.count()).collect();
        assert_eq!(told, [500]);
    }

    #[tokio::test]
    async fn what_will_not_pass_is_told_each_time() {
        let (refused, mut told) = (RefusedReads::default(), 0);
        for error in [Error::Corrupt("a test".to_owned()), Error::OutOfReach(Duration::ZERO), Error::Mixed] {
            let refusal = refused.refusal("a view", &error, || told += 1);
            assert_eq!(&*refusal.reason, if error.is_passing() { "DATABASE_UNAVAILABLE" } else { "INTERNAL" });
        }
        assert_eq!(told, 2);
    }
}
