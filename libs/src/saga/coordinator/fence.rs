//! What a transition must find in its transaction to count, where several processes share a database.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::Shared;
use crate::{
    journal::{AggregateId, Decided, Loaded, Losses},
    saga::store,
};

/// What a saga's transition comes to, as the journal takes it.
pub(super) type Decide = Box<dyn FnOnce(&Loaded<'_>) -> Decided + Send>;

/// What a transition has found in its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The saga is this process's still, and the log has what it was told of it: the transition counts.
    Mine,
    /// The saga is this process's, and the log has lost what the transition doesn't tell once more.
    Untold,
    /// Somebody else has owned the saga since its record was read.
    Elsewhere {
        /// Since then it has become this process's once more.
        mine_again: bool,
    },
}

/// What a transition must find in its transaction to count.
#[derive(Clone, Debug)]
pub(super) struct Fence {
    pub(super) owner: AggregateId,
    me: Bytes,
    /// How often the owner had changed when the record was read that the transition goes on from. Where it has changed since, others
    /// may have moved the saga on, even if it is this process's again.
    since: u64,
    /// How often the log had lost its last events when all that the transition doesn't tell was told. If it has since, that may be lost.
    told: u64,
    losses: Losses,
    /// Set once the transition is decided.
    found: Arc<OnceLock<Found>>,
}

impl Fence {
    /// Whether this process still owns the saga, and the log still has what it was told of it.
    fn look(&self, loaded: &Loaded<'_>) -> Found {
        let owner = loaded.aggregate(self.owner.kind, &self.owner.id);
        let mine = owner.is_some_and(|owner| owner.state == self.me);
        let holds = mine && owner.is_some_and(|owner| owner.version == self.since);
        #[cfg(test)]
        let holds = holds || crate::saga::simulation::Mutant::NoFence.is_left_out();
        if !holds {
            Found::Elsewhere { mine_again: mine }
        } else if self.losses.count() == self.told {
            Found::Mine
        } else {
            Found::Untold
        }
    }

    /// Makes a decision count only while this process still owns the saga.
    pub(super) fn guard(self, decide: impl FnOnce(&Loaded<'_>) -> Decided + Send + 'static) -> Decide {
        Box::new(move |loaded| match *self.found.get_or_init(|| self.look(loaded)) {
            Found::Mine => decide(loaded),
            Found::Untold | Found::Elsewhere { .. } => Decided { rejected: true, ..Decided::default() },
        })
    }

    /// What the transition found, once it is committed.
    pub(super) fn found(&self) -> Found {
        self.found.get().copied().unwrap_or(Found::Mine)
    }
}

impl Shared {
    /// What a saga's transitions are guarded by, whose record was read when its owner had changed `since` times, and all of it told when the
    /// log had lost events `told` times; None where the database has one process.
    pub(super) fn fence(&self, saga_id: &str, since: u64, told: u64) -> Option<Fence> {
        let me = self.member.get()?.name().as_bytes().to_vec().into();
        let (owner, losses) = (store::owner_of(saga_id), self.journal.losses().clone());
        Some(Fence { owner, me, since, told, losses, found: Arc::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Aggregate;

    #[test]
    fn what_was_anothers_in_between_is_read_anew_before_it_goes_on() {
        let losses = Losses::default();
        let fence = |since| Fence {
            owner: store::owner_of("tea"),
            me: Bytes::from_static(b"me"),
            since,
            told: losses.count(),
            losses: losses.clone(),
            found: Arc::default(),
        };
        let judged = |fence: &Fence, name: &'static str, version| {
            let owner = Aggregate { version, state: Bytes::from_static(name.as_bytes()) };
            let seen = [(store::owner_of("tea"), owner)];
            fence.look(&Loaded::new(&seen, None, 0))
        };
        let (taken, again) = (Found::Elsewhere { mine_again: false }, Found::Elsewhere { mine_again: true });
        assert_eq!(judged(&fence(1), "me", 1), Found::Mine);
        assert_eq!(judged(&fence(1), "another", 2), taken);
        assert_eq!(judged(&fence(1), "me", 3), again, "the other may have moved it on");
        assert_eq!(judged(&fence(3), "me", 3), Found::Mine, "read since then");
        assert_eq!(judged(&fence(1), "another", 4), taken, "and lost again");
        let before = fence(1);
        losses.add();
        assert_eq!(judged(&before, "me", 1), Found::Untold, "what was told before may be lost");
        assert_eq!(judged(&before, "another", 2), taken, "it is nobody's here to tell");
        assert_eq!(judged(&fence(1), "me", 1), Found::Mine, "told since then");
    }
}
