//! What changes, told in the order in which it happened.

use std::sync::Arc;

use super::Transition;

/// So many changes are kept for who is slow to look.
pub(super) const KEPT: usize = 256;

/// What happened to a breaker.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its name.
    pub breaker: Arc<str>,
    /// What happened.
    pub kind: ChangeKind,
}

/// What happened to a breaker.
#[derive(Clone, Copy, Debug)]
pub enum ChangeKind {
    /// It is new.
    New,
    /// It changed.
    Changed(Transition),
    /// It is forgotten.
    Gone,
}

/// Puts a breaker's transitions in order. It announces them outside its lock, so that two threads may come in either order.
#[derive(Debug, Default)]
pub(super) struct InOrder {
    /// The generation told of last.
    told: u32,
    /// Transitions that came before the one they follow.
    early: Vec<Transition>,
}

impl InOrder {
    /// Tells a transition, and those that waited for it; or keeps it until the one before has come.
    pub(super) fn tell(&mut self, transition: Transition, mut tell: impl FnMut(Transition)) {
        self.early.push(transition);
        while let Some(at) = self.early.iter().position(|early| early.generation == self.told.wrapping_add(1)) {
            let next = self.early.swap_remove(at);
            self.told = next.generation;
            tell(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::{Override, State};

    #[test]
    fn a_transition_that_comes_early_waits_for_the_one_before() {
        let generation = |generation| Transition {
            from: State::Closed,
            to: State::Closed,
            generation,
            cause: None,
            over: Override::None,
        };
        let (mut order, mut told) = (InOrder { told: u32::MAX - 1, early: Vec::new() }, Vec::new());
        for came in [1, 0, u32::MAX, 2] {
            order.tell(generation(came), |transition| told.push(transition.generation));
            told.push(99);
        }
        assert_eq!(told, [99, 99, u32::MAX, 0, 1, 99, 2, 99]);
    }
}
