//! Locks of business keys: for each the sagas that named it, in the order in which they asked. The first one holds it.
//!
//! A queue is an aggregate, so that it is read and changed in the transaction of the saga's own transition, whatever process drives
//! the saga: a lock is taken with the transition that begins it, and freed with the one that ends it. A saga enters all its queues in
//! one transaction; whoever is ahead of another in one of them is ahead in all, so there is no circle in which each waits for the next.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use proto::saga::v1::{LockRecord, LockState, SagaPhase};
use tonic::Code;

use super::{Mail, Shared};
use crate::{
    breaker::LOCK_QUEUE_FULL,
    journal::{AggregateId, Change, Decided, Journal, Loaded},
    refusal::Refusal,
    saga::{
        LocalWork,
        machine::{HOLDER, Local, NOT_QUEUED},
        record::{Record, is_final},
    },
};

/// The kind of the aggregate that is one key's queue. Its id is the key.
const KIND: &str = "saga_lock";
/// The most sagas in a queue. What is in it is written whenever one enters or leaves.
const MOST_QUEUED: usize = 1000;
/// Why a lock is refused.
const LOCKED: &str = "SAGA_LOCKED";
/// When it may be worth to try again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// The names of these keys' queues.
pub(in crate::saga) fn names(keys: &[String]) -> Vec<AggregateId> {
    keys.iter().map(|key| AggregateId::new(KIND, key.as_str())).collect()
}

/// What a new saga, whose keys are in its record, comes to if the decision that starts it sees their queues. If it doesn't, the saga
/// asks by itself as soon as it is driven.
pub(in crate::saga) fn at_start(
    record: &mut Record,
    refuse: bool,
    loaded: &Loaded<'_>,
) -> Result<Vec<Change>, Refusal> {
    let seen = |key: &String| loaded.aggregate(KIND, key).is_some();
    if record.saga.lock_keys.is_empty() || !record.saga.lock_keys.iter().all(seen) {
        return Ok(Vec::new());
    }
    let (keys, saga_id) = (&record.saga.lock_keys, &record.saga.saga_id);
    let state = match free(keys, saga_id, loaded) {
        Ok(()) => LockState::Held,
        Err(held) if refuse => return Err(held),
        Err(held) => {
            record.saga.waits_for_saga_id = held.metadata.get(HOLDER).cloned().unwrap_or_default();
            record.queued = true;
            LockState::Waiting
        }
    };
    let entered = enter(&record.saga.lock_keys, &record.saga.saga_id, loaded)?;
    record.kept.set_lock_state(state);
    Ok(entered)
}

/// The work that a saga's locks ask for beside its transition.
pub(in crate::saga) fn work(local: Local, record: &Record) -> LocalWork {
    // A saga that ends as soon as it begins takes nothing that it would only give back.
    if is_final(record.saga.phase()) {
        return LocalWork::nothing();
    }
    let (keys, saga_id) = (record.saga.lock_keys.clone(), record.saga.saga_id.clone());
    let aggregates = names(&keys);
    let decide = move |loaded: &Loaded<'_>| {
        if local == Local::Locks
            && let Err(held) = free(&keys, &saga_id, loaded)
        {
            let is_queued = stands(&keys, &saga_id, loaded)?;
            return Err(if is_queued { held } else { held.with(NOT_QUEUED, "") });
        }
        Ok(Decided { changes: enter(&keys, &saga_id, loaded)?, ..Decided::default() })
    };
    LocalWork { aggregates, decide: Box::new(decide) }
}

/// Nothing if no other saga is ahead of this one.
fn free(keys: &[String], saga_id: &str, loaded: &Loaded<'_>) -> Result<(), Refusal> {
    #[cfg(test)]
    if crate::saga::simulation::Mutant::LockNotChecked.is_left_out() {
        return Ok(());
    }
    for key in keys {
        if let Some(holder) = queue(key, loaded)?.saga_ids.first().filter(|first| *first != saga_id) {
            let message = format!("{key} is locked by saga {holder}: try again when it has ended");
            let refusal = Refusal::new(Code::Aborted, LOCKED, message);
            let refusal = refusal.with("key", key).with(HOLDER, holder);
            return Err(Refusal { retry_after: Some(TRY_AGAIN), ..refusal });
        }
    }
    Ok(())
}

/// Whether a saga stands in each queue.
fn stands(keys: &[String], saga_id: &str, loaded: &Loaded<'_>) -> Result<bool, Refusal> {
    for key in keys {
        if !has(&queue(key, loaded)?, saga_id) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn has(queue: &LockRecord, saga_id: &str) -> bool {
    queue.saga_ids.iter().any(|queued| queued == saga_id)
}

/// Puts a saga at the end of each queue in which it doesn't stand yet.
fn enter(keys: &[String], saga_id: &str, loaded: &Loaded<'_>) -> Result<Vec<Change>, Refusal> {
    let mut changes = Vec::with_capacity(keys.len());
    for key in keys {
        let mut queue = queue(key, loaded)?;
        if has(&queue, saga_id) {
            continue;
        }
        if let Some(holder) = queue.saga_ids.first().filter(|_| queue.saga_ids.len() >= MOST_QUEUED) {
            let message = format!("too many sagas wait for {key}: try again");
            let refusal = Refusal::exhausted(LOCK_QUEUE_FULL, message, TRY_AGAIN);
            return Err(refusal.with("key", key).with(HOLDER, holder));
        }
        queue.saga_ids.push(saga_id.to_owned());
        changes.push(changed(key, &queue, loaded));
    }
    Ok(changes)
}

/// What a saga gives back when it ends.
pub(in crate::saga) struct Release {
    keys: Vec<String>,
    saga_id: String,
}

impl Release {
    /// None if the saga goes on, or stands in no queue.
    pub(in crate::saga) fn of(record: &Record) -> Option<Self> {
        let ends = is_final(record.saga.phase()) && record.kept.lock_state() != LockState::Unspecified;
        let (keys, saga_id) = (&record.saga.lock_keys, &record.saga.saga_id);
        ends.then(|| Self { keys: keys.clone(), saga_id: saga_id.clone() })
    }

    /// The queues it leaves.
    pub(in crate::saga) fn names(&self) -> Vec<AggregateId> {
        names(&self.keys)
    }

    /// Takes the saga out of its queues, does what ends it, and tells those who are first now. A saga that is started with the last work of
    /// this one finds the queues without it.
    pub(super) fn decide(
        self,
        shared: Arc<Shared>,
        loaded: &Loaded<'_>,
        end: impl FnOnce(&Loaded<'_>) -> Decided,
    ) -> Decided {
        let (changes, next) = self.leave(loaded);
        let ended = end(&loaded.seeing(&loaded.after(&changes)));
        if ended.rejected {
            return ended;
        }
        // In this order: of two changes of a queue the later one counts.
        let mut decided = Decided { changes, ..Decided::default() };
        decided.absorb(ended);
        if !next.is_empty() {
            decided.on_commit.push(Box::new(move || shared.wake(&next)));
        }
        decided
    }

    /// The queues without the saga, and who is first where it was.
    pub(in crate::saga) fn leave(&self, loaded: &Loaded<'_>) -> (Vec<Change>, Vec<String>) {
        let (mut changes, mut next) = (Vec::new(), Vec::new());
        for key in &self.keys {
            // What can't be read is left to an operator's eyes: the saga itself has ended.
            let Ok(mut queue) = queue(key, loaded) else { continue };
            let Some(at) = queue.saga_ids.iter().position(|queued| *queued == self.saga_id) else { continue };
            queue.saga_ids.remove(at);
            if at == 0 {
                next.extend(queue.saga_ids.first().cloned());
            }
            changes.push(changed(key, &queue, loaded));
        }
        (changes, next)
    }
}

impl Shared {
    /// Tells sagas that are driven here to look again.
    pub(super) fn wake(&self, saga_ids: &[String]) {
        for saga_id in saga_ids {
            // Driven elsewhere it looks by itself; not driven at all it looks when it is.
            let _ = self.live.post(saga_id, Mail::Woken);
        }
    }

    /// Whether a saga that waits for its locks is to ask for them: it is the first in each of its queues, as committed, or one of them has
    /// lost it. Where several processes share a database, the one that frees a lock may not be the one whose saga waits for it.
    pub(super) async fn is_next(&self, record: &Record) -> bool {
        if record.saga.phase() != SagaPhase::Scheduled || !record.queued {
            return false;
        }
        match look(&self.journal, &record.saga.lock_keys, &record.saga.saga_id).await {
            Ahead::Nobody => true,
            Ahead::Unknown => false,
            Ahead::Holder(holder) => {
                self.waits_for(holder);
                false
            }
        }
    }

    /// Has the saga taken over whose lock refuses work of our own for now, if nobody drives it: that waits in no queue.
    pub(super) fn heed_holder(&self, refusal: &Refusal) {
        if let Some(holder) = refusal.metadata.get(HOLDER).filter(|_| refusal.retry_after.is_some()) {
            self.waits_for(holder.clone());
        }
    }

    fn waits_for(&self, holder: String) {
        if self.member.get().is_some() {
            self.holders.lock().insert(holder);
        }
    }
}

/// Who is ahead of a saga that waits for its locks.
enum Ahead {
    /// Or a queue has lost the saga, with a server that took over and had not come so far: when it asks it is told to queue again.
    Nobody,
    Holder(String),
    /// A queue can't be read.
    Unknown,
}

async fn look(journal: &Journal, keys: &[String], saga_id: &str) -> Ahead {
    for name in names(keys) {
        let Ok(stored) = journal.aggregate(&name).await else { return Ahead::Unknown };
        let Ok(queue) = LockRecord::decode(stored.state) else { return Ahead::Unknown };
        if !has(&queue, saga_id) {
            return Ahead::Nobody;
        }
        if let Some(first) = queue.saga_ids.into_iter().next().filter(|first| first != saga_id) {
            return Ahead::Holder(first);
        }
    }
    Ahead::Nobody
}

fn queue(key: &str, loaded: &Loaded<'_>) -> Result<LockRecord, Refusal> {
    let stored = loaded.aggregate(KIND, key).map(|stored| stored.state.clone()).unwrap_or_default();
    LockRecord::decode(stored).map_err(|error| {
        tracing::error!(lock.key = key, %error, "the queue of a lock can't be read");
        Refusal::internal()
    })
}

fn changed(key: &str, queue: &LockRecord, loaded: &Loaded<'_>) -> Change {
    let version = loaded.aggregate(KIND, key).map_or(0, |stored| stored.version) + 1;
    let aggregate = AggregateId::new(KIND, key);
    Change { aggregate, state: Some(queue.encode_to_vec().into()), version, events: Vec::new() }
}
