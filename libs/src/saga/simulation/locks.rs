//! The locks' queues as they are stored, and what must hold between them and the sagas after each transaction.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use proto::saga::v1::{LockRecord, LockState, StepState};

use super::world::World;
use crate::saga::record::{Record, is_final};

/// Who stands in which queue.
#[derive(Default)]
pub(super) struct Locks {
    queues: BTreeMap<String, Vec<String>>,
    /// How often a saga came to stand behind another.
    pub(super) waits: usize,
}

impl Locks {
    /// Takes in a queue as it is stored now.
    pub(super) fn learn(&mut self, key: &str, state: Bytes) {
        let now = LockRecord::decode(state).unwrap_or_default().saga_ids;
        let before = self.queues.entry(key.to_owned()).or_default();
        self.waits += usize::from(now.len() > before.len() && now.len() > 1);
        *before = now;
    }

    /// The queues in a few words.
    pub(super) fn said(&self, key: &str) -> String {
        format!(" {key}:[{}]", self.of(key).join(" "))
    }

    fn of(&self, key: &str) -> &[String] {
        self.queues.get(key).map_or(&[], Vec::as_slice)
    }

    /// Every saga stands where its record says, and under no key are two at work.
    pub(super) fn check(&self, world: &World, sagas: &BTreeMap<String, Record>) {
        for (id, record) in sagas {
            for key in &record.saga.lock_keys {
                let place = self.of(key).iter().position(|queued| queued == id);
                let state = record.kept.lock_state();
                let is_right = match state {
                    _ if is_final(record.saga.phase()) => place.is_none(),
                    LockState::Unspecified => place.is_none(),
                    LockState::Waiting => place.is_some(),
                    LockState::Held => place == Some(0),
                };
                if !is_right {
                    world.broken(format!("{id} is {} of {key} and {place:?} in its queue", state.as_str_name()));
                }
            }
        }
        for (key, queue) in &self.queues {
            if let Some(id) = queue.iter().find(|id| !sagas.contains_key(*id)) {
                world.broken(format!("{id} stands in the queue of {key}, and there is no such saga"));
            }
            let locks = |record: &&Record| record.saga.lock_keys.contains(key);
            let at_work: Vec<&str> =
                sagas.values().filter(locks).filter(is_at_work).map(|record| &*record.saga.saga_id).collect();
            if at_work.len() > 1 {
                world.broken(format!("{} are at work under {key} at once", at_work.join(" and ")));
            }
        }
    }
}

/// True once it may have called somebody, until it has ended.
pub(in crate::saga) fn is_at_work(record: &&Record) -> bool {
    let begun = record.saga.steps.iter().any(|step| step.state() != StepState::Unspecified);
    begun && !is_final(record.saga.phase())
}
