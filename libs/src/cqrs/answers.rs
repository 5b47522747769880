//! How long clients' answers are kept: a walk through all that are stored lets go of the old ones.
//!
//! The walk goes by key, so that no command pays for an index on time. It rests nine times as long as it worked, and what it finds goes
//! through the committer in small batches, like everything that is written.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use opentelemetry::{KeyValue, metrics::Meter};
use parking_lot::Mutex;
use tokio::time::Instant;

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
/// How often the clocks are looked at, whatever else is done.
const LOOK_AT_CLOCKS: Duration = Duration::from_secs(60);
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
        self.run_by(SystemTime::now).await
    }

    async fn run_by(&self, wall: impl Fn() -> SystemTime) -> Result<(), WalkError> {
        let clocks = Mutex::new(Clocks::new(wall(), Instant::now()));
        let stored_before = || before(clocks.lock().now(wall(), Instant::now(), self.keep), self.keep);
        tokio::select! {
            ended = self.walk_again_and_again(&stored_before) => ended,
            // A clock that is set back and put right again between two walks, or within a long one, is seen.
            never = look_at_clocks(&stored_before) => match never {},
        }
    }

    async fn walk_again_and_again(&self, stored_before: &impl Fn() -> i64) -> Result<(), WalkError> {
        loop {
            match self.walk(stored_before).await {
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
        self.walk(&|| stored_before_micros).await
    }

    /// The time is asked for anew each time that it counts: the clock may be set back while this goes on.
    async fn walk(&self, stored_before: &impl Fn() -> i64) -> Result<Walked, WalkError> {
        let (mut last, mut walked) = (String::new(), Walked::default());
        loop {
            let begin = Instant::now();
            let stretch = answered_after(self.journal.reader(), &last, STRETCH).await?;
            let Some(Answered { key, .. }) = stretch.last() else { break };
            last.clone_from(key);
            self.let_go(stretch, stored_before, &mut walked).await?;
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
        stored_before: &impl Fn() -> i64,
        walked: &mut Walked,
    ) -> Result<(), SubmitError> {
        let (mut old, stored_before_micros) = (Vec::new(), stored_before());
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
            self.forget_patiently(keys, stored_before).await?;
        }
        Ok(())
    }

    async fn forget_patiently(&self, keys: &[String], stored_before: &impl Fn() -> i64) -> Result<(), SubmitError> {
        loop {
            let forgotten = Forgotten { keys: keys.to_vec(), stored_before_micros: stored_before() };
            match self.journal.forget(forgotten).await {
                // Commands come first.
                Err(SubmitError::Full | SubmitError::Unavailable) => tokio::time::sleep(PAUSE).await,
                ended => return ended,
            }
        }
    }
}

async fn look_at_clocks(stored_before: &impl Fn() -> i64) -> Infallible {
    loop {
        tokio::time::sleep(LOOK_AT_CLOCKS).await;
        stored_before();
    }
}

/// So long before, in microseconds since 1970.
fn before(now: SystemTime, keep: Duration) -> i64 {
    let then = now.checked_sub(keep).and_then(|then| then.duration_since(SystemTime::UNIX_EPOCH).ok());
    then.map_or(0, |then| i64::try_from(then.as_micros()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::journal::{Cause, Decided, Entry, Loaded, RequestKey, Role};

    #[test]
    fn so_long_before_is_never_before_1970() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let keep = Duration::from_secs(100);
        assert_eq!((before(at(1_000), keep), before(at(10), keep)), (900_000_000, 0));
    }

    async fn answer(journal: &Journal) {
        let key = RequestKey { key: "id".to_owned(), hash: [1; 32], other_hash: None, role: Role::Action };
        let decide = Box::new(|_: &Loaded<'_>| Decided::default());
        let (aggregates, cause) = (Vec::new(), Cause::default());
        journal.submit(Entry { request: Some(key), aggregates, cause, decide, size: 1 }).await.unwrap();
    }

    #[tokio::test]
    async fn what_looks_old_stays_if_the_clock_is_found_set_back_within_the_walk() {
        let folder = tempfile::TempDir::new().unwrap();
        let journal = Journal::open(&folder.path().join("test.db"), &[]).await.unwrap();
        answer(&journal).await;
        let is_back = AtomicBool::new(false);
        let stored_before = || if is_back.swap(true, Ordering::SeqCst) { 0 } else { i64::MAX };
        Answers::new(journal.clone(), LONGEST).walk(&stored_before).await.unwrap();
        assert_eq!(journal.stats().forgotten, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_stored_while_the_clock_was_set_back_between_two_walks_stays_once_it_is_right() {
        let folder = tempfile::TempDir::new().unwrap();
        let journal = Journal::open(&folder.path().join("test.db"), &[]).await.unwrap();
        let answers = Answers::new(journal.clone(), LONGEST * PART);
        // The journal goes by this machine's clock, as it was while it was set back.
        let (begun, is_back) = (Instant::now(), AtomicBool::new(false));
        let set_back = SystemTime::now();
        let wall = || {
            let ahead = if is_back.load(Ordering::SeqCst) { Duration::ZERO } else { LONGEST * PART * 2 };
            set_back + begun.elapsed() + ahead
        };
        let stays = async {
            tokio::time::sleep(LONGEST / 2).await;
            is_back.store(true, Ordering::SeqCst);
            tokio::time::sleep(LOOK_AT_CLOCKS).await;
            // A commit is made by a thread that the paused clock knows nothing of, and would run ahead of.
            tokio::time::resume();
            answer(&journal).await;
            tokio::time::pause();
            tokio::time::sleep(LOOK_AT_CLOCKS).await;
            is_back.store(false, Ordering::SeqCst);
            while answers.kept.clients.load(Ordering::SeqCst) == 0 {
                assert_eq!(journal.stats().forgotten, 0);
                tokio::time::sleep(LOOK_AT_CLOCKS).await;
            }
        };
        tokio::select! {
            ended = answers.run_by(wall) => panic!("it ended with {ended:?}"),
            () = stays => {}
        }
    }
}
