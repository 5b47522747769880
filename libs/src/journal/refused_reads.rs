//! Reads that come to nothing while their database can't do anything: they are told of together, beside the line of each call that is
//! refused so.

use std::{mem, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::sql::Error;
use crate::{refusal::Refusal, told::Told};

/// An outage is over in which no read was refused for so long.
const OVER: Duration = Duration::from_secs(5);

/// The reads of one who answers by them.
#[derive(Debug, Default)]
pub(crate) struct RefusedReads {
    outage: Mutex<Outage>,
    told: Told,
}

#[derive(Debug, Default)]
struct Outage {
    /// Since that was told of.
    reads: u64,
    last: Option<Instant>,
}

impl RefusedReads {
    /// What a caller is told of a read that failed. That the database can't do anything just now says nothing of `what` was to be read, and
    /// is a line a second for all such reads; anything else is a person's to mend, and for `tell` to say.
    pub(crate) fn refusal(&self, what: &str, error: &Error, tell: impl FnOnce()) -> Refusal {
        if !error.is_passing() {
            tell();
        } else if let Some(reads) = self.count() {
            match error.mend() {
                None => tracing::warn!(
                    what,
                    %error,
                    reads,
                    "the database can't be read now: who asks for what is in it is refused"
                ),
                Some(mend) => tracing::error!(
                    what,
                    %error,
                    reads,
                    "the database can't be read, and who asks for what is in it is refused: {mend}"
                ),
            }
        }
        error.refusal()
    }

    /// Counts a read that is refused. If it is to be told, for it was not just now, it answers how many those are since that was told of in
    /// this outage.
    fn count(&self) -> Option<u64> {
        let mut outage = self.outage.lock();
        if outage.last.replace(Instant::now()).is_some_and(|last| last.elapsed() >= OVER) {
            outage.reads = 0;
        }
        outage.reads += 1;
        self.told.is_due().then(|| mem::take(&mut outage.reads))
    }
}

#[cfg(test)]
mod tests {
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

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_told_of_without_the_reads_of_the_one_before() {
        let refused = RefusedReads::default();
        let told: Vec<_> = (0..500).filter_map(|_| refused.count()).collect();
        assert_eq!(told, [1]);
        tokio::time::advance(Duration::from_secs(60)).await;
        let told: Vec<_> = (0..500).filter_map(|_| refused.count()).collect();
        assert_eq!(told, [1]);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(refused.count(), Some(500), "it is the same one");
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
