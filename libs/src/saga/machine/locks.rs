//! How a saga begins: at once, or once it has its locks.

use proto::saga::v1::{LockPolicy, LockState, SagaPhase};

use super::{Line, Local, Turn};
use crate::{
    refusal::Refusal,
    saga::record::{Record, reason},
};

/// In a refusal: the saga that holds what another one wants to lock.
pub(in crate::saga) const HOLDER: &str = "holder";
/// In a refusal of a lock: who asked stands in no queue, whatever their record says.
pub(in crate::saga) const NOT_QUEUED: &str = "not_queued";

/// True if a saga has locks to ask for, and has not.
pub(in crate::saga) fn asks_for_locks(record: &Record) -> bool {
    !record.saga.lock_keys.is_empty() && record.kept.lock_state() == LockState::Unspecified
}

impl Turn<'_> {
    /// Begins, if the saga has its locks or gets them in this transition.
    pub(super) fn begin(&mut self) {
        let kept = &self.record.kept;
        if !self.record.saga.lock_keys.is_empty() && kept.lock_state() != LockState::Held {
            if self.record.queued || !self.claim_local(Local::Locks) {
                return;
            }
            self.record.kept.set_lock_state(LockState::Held);
            self.record.saga.waits_for_saga_id.clear();
        }
        self.enter(SagaPhase::Forward);
        self.note(Line { what: "begun", ..Line::default() });
    }

    /// Somebody else holds a lock: the saga queues, or comes to nothing.
    pub(super) fn locked(&mut self, refusal: &Refusal) {
        if self.plan.locks == LockPolicy::Refuse {
            return self.turn_back(reason("", refusal));
        }
        let holder = refusal.metadata.get(HOLDER).map(String::as_str).unwrap_or_default();
        // A database that has lost a saga's place in the queue may have its record all the same, from a transition after that.
        let is_queued =
            self.record.kept.lock_state() == LockState::Waiting && !refusal.metadata.contains_key(NOT_QUEUED);
        if is_queued {
            self.record.queued = true;
        } else if self.claim_local(Local::Queue) {
            self.record.kept.set_lock_state(LockState::Waiting);
            self.note(Line { what: "waits for a lock", detail: &refusal.message, ..Line::default() });
        }
        if self.record.saga.waits_for_saga_id != holder {
            holder.clone_into(&mut self.record.saga.waits_for_saga_id);
            self.moved.changed = true;
        }
    }
}
