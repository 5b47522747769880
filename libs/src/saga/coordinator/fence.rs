//! What a transition must find in its transaction to count, where several processes share a database.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;

use super::Shared;
use crate::{
    journal::{AggregateId, Decided, Loaded, Losses},
    saga::store,
};

/// What a saga's transition comes to, as the journal takes it.
pub(super) type Decide = Box<dyn FnOnce(&Loaded<'_>) -> Decided + Send>;

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
    /// Set if it was not found.
    taken: Arc<AtomicBool>,
    /// Set if the saga is this process's all the same, since later.
    again: Arc<AtomicBool>,
    /// Set if the saga is this process's, and the transition tells too little.
    lost: Arc<AtomicBool>,
}

impl Fence {
    /// Whether this process still owns the saga, and the log still has what it was told of it.
    pub(super) fn holds(&self, loaded: &Loaded<'_>) -> bool {
        let owner = loaded.aggregate(self.owner.kind, &self.owner.id);
        let mine = owner.is_some_and(|owner| owner.state == self.me);
        let holds = mine && owner.is_some_and(|owner| owner.version == self.since);
        #[cfg(test)]
        let holds = holds || crate::saga::simulation::Mutant::NoFence.is_left_out();
        self.taken.store(!holds, Ordering::Release);
        self.again.store(mine && !holds, Ordering::Release);
        let has_all = self.losses.count() == self.told;
        self.lost.store(holds && !has_all, Ordering::Release);
        holds && has_all
    }

    /// Makes a decision count only while this process still owns the saga.
    pub(super) fn guard(self, decide: impl FnOnce(&Loaded<'_>) -> Decided + Send + 'static) -> Decide {
        let refused = || Decided { rejected: true, ..Decided::default() };
        Box::new(move |loaded| if self.holds(loaded) { decide(loaded) } else { refused() })
    }

    /// Whether somebody else owned the saga when the transition was decided.
    pub(super) fn was_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire)
    }

    /// Whether the log had lost by then what the transition doesn't tell once more.
    pub(super) fn was_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Whether this process had become the owner once more by then, after another.
    pub(super) fn is_mine_again(&self) -> bool {
        self.again.load(Ordering::Acquire)
    }
}

impl Shared {
    /// What a saga's transitions are guarded by, whose record was read when its owner had changed `since` times, and all of it told when the
    /// log had lost events `told` times; None where the database has one process.
    pub(super) fn fence(&self, saga_id: &str, since: u64, told: u64) -> Option<Fence> {
        let me = self.member.get()?.name().as_bytes().to_vec().into();
        let (owner, losses) = (store::owner_of(saga_id), self.journal.losses().clone());
        let (taken, again, lost) = (Arc::default(), Arc::default(), Arc::default());
        Some(Fence { owner, me, since, told, losses, taken, again, lost })
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
            taken: Arc::default(),
            again: Arc::default(),
            lost: Arc::default(),
        };
        let judged = |fence: &Fence, name: &'static str, version| {
            let owner = Aggregate { version, state: Bytes::from_static(name.as_bytes()) };
            let seen = [(store::owner_of("tea"), owner)];
            let holds = fence.holds(&Loaded::new(&seen, None, 0));
            assert_eq!(fence.was_taken() || fence.was_lost(), !holds);
            (holds, fence.is_mine_again())
        };
        assert_eq!(judged(&fence(1), "me", 1), (true, false));
        assert_eq!(judged(&fence(1), "another", 2), (false, false));
        let again = fence(1);
        assert_eq!(judged(&again, "me", 3), (false, true), "the other may have moved it on");
        assert_eq!(judged(&fence(3), "me", 3), (true, false), "read since then");
        assert_eq!(judged(&again, "another", 4), (false, false), "and lost again");
        let (mine, others) = (fence(1), fence(1));
        losses.add();
        assert_eq!(judged(&mine, "me", 1), (false, false), "what was told before may be lost");
        assert!(mine.was_lost() && !mine.was_taken());
        assert_eq!(judged(&others, "another", 2), (false, false));
        assert!(others.was_taken() && !others.was_lost(), "it is nobody's here to tell");
        assert_eq!(judged(&fence(1), "me", 1), (true, false), "told since then");
    }
}
