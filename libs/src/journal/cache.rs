//! Aggregates as they were last committed, in memory.

use std::collections::HashMap;

use super::{
    batch::World,
    entry::{Aggregate, AggregateId},
};

/// Aggregates as they were last committed by this process. Where that is the only writer they are the truth. What fills it is the hot
/// ones, and when it is full it starts over.
#[derive(Debug, Default)]
pub(super) struct Cache {
    aggregates: HashMap<AggregateId, Aggregate>,
    bytes: usize,
}

impl Cache {
    const MOST_BYTES: usize = 4 << 20;
    /// About what an entry takes beside its state.
    const OVERHEAD: usize = 150;

    /// An aggregate, if it is here.
    pub(super) fn get(&self, id: &AggregateId) -> Option<Aggregate> {
        self.aggregates.get(id).cloned()
    }

    /// Takes in what a commit changed.
    pub(super) fn learn(&mut self, world: &World, changed: Vec<AggregateId>) {
        if self.bytes > Self::MOST_BYTES {
            *self = Self::default();
        }
        for id in changed {
            if let Some(aggregate) = world.aggregates.get(&id) {
                self.bytes += aggregate.state.len();
                match self.aggregates.insert(id, aggregate.clone()) {
                    Some(before) => self.bytes -= before.state.len().min(self.bytes),
                    None => self.bytes += Self::OVERHEAD,
                }
            }
        }
    }
}
