//! How long clients' answers are kept: a walk through all that are stored lets go of the old ones.
//!
//! The walk goes by key, so that no command pays for an index on time. It rests nine times as long as it worked, and what it finds goes
//! through the committer in small batches, like everything that is written.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use opentelemetry::{KeyValue, metrics::Meter};

use super::clocks::Clocks;
use crate::{
    journal::{Answered, Forgotten, Journal, SubmitError, answered_after, sql},
    rpc::verdict::OPERATION_KEYS,
};

/// How many answers are looked at a time.
const STRETCH: i64 = 1_000;
/// How many go with one batch: commands that come meanwhile wait for no more than these.
const BATCH: usize = 250;
/// How much longer the walk rests than it works.
const REST: u32 = 9;
/// The wait between two walks: this part of the time that answers are kept, within bounds.
const PART: u32 = 24;
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(8 * 60 * 60);
/// How long to leave a database alone that is out of reach or has more urgent things to do.
const PAUSE: Duration = Duration::from_secs(1);

/// The stored answers of one journal.
#[derive(Clone, Debug)]
pub struct Answers {
    journal: Journal,
    keep: Duration,
    kept: Arc<Kept>,
}

/// What the last walk left.
#[derive(Debug, Default)]
struct Kept {
    clients: AtomicU64,
    sagas: AtomicU64,
}

/// What a walk came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Clients' answers that it let go of.
    pub forgotten: u64,
    /// Clients' answers that it left.
    pub clients: u64,
    /// Answers to sagas' operations, which their coordinators let go of.
    pub sagas: u64,
}

/// Why a walk came to an end before its time.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The answers can't be read.
    #[error("the stored answers can't be read: {0}")]
    Read(#[from] sql::Error),
    /// The journal takes nothing now.
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

impl Answers {
    /// The answers of a journal. A client that repeats its command within `keep` gets the same one.
    #[must_use]
    pub fn new(journal: Journal, keep: Duration) -> Self {
        Self { journal, keep, kept: Arc::default() }
    }

    /// Has them observed by a meter.
    pub fn observe(&self, meter: &Meter) {
        // The instruments live as long as their meter's provider; these handles are not needed.
        let kept = Arc::clone(&self.kept);
        let _kept = meter
            .u64_observable_gauge("answers.kept")
            .with_unit("{answer}")
            .with_description("Stored answers that the last walk through them left.")
            .with_callback(move |observer| {
                for (of, count) in [("client", &kept.clients), ("saga", &kept.sagas)] {
                    observer.observe(count.load(Ordering::Relaxed), &[KeyValue::new("answer.of", of)]);
                }
            })
            .build();
        let journal = self.journal.clone();
        let _forgotten = meter
            .u64_observable_counter("answers.forgotten")
            .with_unit("{answer}")
            .with_description("Stored answers that this process let go of.")
            .with_callback(move |observer| observer.observe(journal.stats().forgotten, &[]))
            .build();
    }

    /// Walks again and again, until the journal is closed.
    ///
    /// # Errors
    /// None: a database that is out of reach comes back.
    pub async fn run(self) -> Result<(), WalkError> {
        let mut clocks = Clocks::new(SystemTime::now(), Instant::now());
        loop {
            let now = clocks.now(SystemTime::now(), Instant::now(), self.keep);
            match self.forget_before(before(now, self.keep)).await {
                Ok(Walked { forgotten: 0, .. }) => {}
                Ok(Walked { forgotten, clients, sagas }) => {
                    tracing::info!(forgotten, clients, sagas, "old answers are forgotten");
                }
                Err(WalkError::Submit(SubmitError::Closed)) => return Ok(()),
                Err(error) => tracing::warn!(%error, "old answers stay for now"),
            }
            tokio::time::sleep((self.keep / PART).clamp(SHORTEST, LONGEST)).await;
        }
    }

    /// Walks through all stored answers once, and lets go of clients' that were stored before this time, in microseconds since 1970.
    ///
    /// # Errors
    /// When the answers can't be read, or the journal is closed. What was let go of before stays so.
    pub async fn forget_before(&self, stored_before_micros: i64) -> Result<Walked, WalkError> {
        let (mut last, mut walked) = (String::new(), Walked::default());
        loop {
            let begin = Instant::now();
            let stretch = answered_after(self.journal.reader(), &last, STRETCH).await?;
            let Some(Answered { key, .. }) = stretch.last() else { break };
            last.clone_from(key);
            self.let_go(stretch, stored_before_micros, &mut walked).await?;
            // A database that was out of reach is no work.
            tokio::time::sleep(begin.elapsed().min(PAUSE) * REST).await;
        }
        self.kept.clients.store(walked.clients, Ordering::Relaxed);
        self.kept.sagas.store(walked.sagas, Ordering::Relaxed);
        Ok(walked)
    }

    async fn let_go(
        &self,
        stretch: Vec<Answered>,
        stored_before_micros: i64,
        walked: &mut Walked,
    ) -> Result<(), SubmitError> {
        let mut old = Vec::new();
        for Answered { key, time_micros } in stretch {
            if key.starts_with(OPERATION_KEYS) {
                walked.sagas += 1;
            } else if time_micros < stored_before_micros {
                old.push(key);
            } else {
                walked.clients += 1;
            }
        }
        for keys in old.chunks(BATCH) {
            walked.forgotten += keys.len() as u64;
            // Checked once more where it is written: another process may have let go of it, and its client may have come again.
            self.forget_patiently(Forgotten { keys: keys.to_vec(), stored_before_micros }).await?;
        }
        Ok(())
    }

    async fn forget_patiently(&self, forgotten: Forgotten) -> Result<(), SubmitError> {
        loop {
            match self.journal.forget(forgotten.clone()).await {
                // Commands come first.
                Err(SubmitError::Full | SubmitError::Unavailable) => tokio::time::sleep(PAUSE).await,
                ended => return ended,
            }
        }
    }
}

/// So long before, in microseconds since 1970.
fn before(now: SystemTime, keep: Duration) -> i64 {
    let then = now.checked_sub(keep).and_then(|then| then.duration_since(SystemTime::UNIX_EPOCH).ok());
    then.map_or(0, |then| i64::try_from(then.as_micros()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_long_before_is_never_before_1970() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let keep = Duration::from_secs(100);
        assert_eq!((before(at(1_000), keep), before(at(10), keep)), (900_000_000, 0));
    }
}
