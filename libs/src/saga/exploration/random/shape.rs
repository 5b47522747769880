//! Any definition that may be built.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};
use std::time::Duration;

use proptest::prelude::*;

use super::super::{Decide, Do, Follow, owned};
use crate::{
    refusal::Refusal,
    saga::{Builder, Definition, LocalWork, Replies, Retry},
};

/// The most steps.
pub(super) const MOST: usize = 6;
const NAMES: [&str; MOST] = ["a", "b", "c", "d", "e", "f"];

/// A saga with steps of all kinds, in any order that is legal.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// Each comes after some of those before it.
    steps: Vec<StepShape>,
    /// The point of no return, if it has one.
    pivot: Option<usize>,
    /// Which one is added first: a step may be named before it is there.
    first: usize,
    deadline: bool,
    ending: bool,
    pub(super) locks: Option<bool>,
    /// True if it is a step of another saga, as far as its kinds allow.
    pub(super) bound: bool,
    /// True if it begins later.
    pub(super) later: bool,
}

/// A step. What has no meaning for its kind is left out.
#[derive(Clone, Debug)]
struct StepShape {
    /// The steps before it that it comes after, a bit each.
    after: u8,
    is_check: bool,
    is_local: bool,
    /// True if its request can't be made.
    is_unmakable: bool,
    attempts: bool,
    deadline: bool,
    trusts: bool,
    plain: bool,
}

prop_compose! {
    fn step()(
        after in any::<u8>(),
        is_check in prop::bool::weighted(0.2),
        is_local in prop::bool::weighted(0.3),
        is_unmakable in prop::bool::weighted(0.05),
        attempts in prop::bool::weighted(0.3),
        deadline in prop::bool::weighted(0.2),
        trusts in prop::bool::weighted(0.2),
        plain in prop::bool::weighted(0.2),
    ) -> StepShape {
        StepShape { after, is_check, is_local, is_unmakable, attempts, deadline, trusts, plain }
    }
}

prop_compose! {
    pub(super) fn shape()(
        steps in prop::collection::vec(step(), 1..=MOST),
        pivot in prop::option::weighted(0.8, any::<prop::sample::Index>()),
        first in any::<prop::sample::Index>(),
        deadline in prop::bool::weighted(0.3),
        ending in any::<bool>(),
        locks in prop::option::weighted(0.3, any::<bool>()),
        bound in prop::bool::weighted(0.3),
        later in prop::bool::weighted(0.2),
    ) -> Shape {
        let (pivot, first) = (pivot.map(|pivot| pivot.index(steps.len())), first.index(steps.len()));
        let bound = bound && pivot.is_none();
        Shape { steps, pivot, first, deadline, ending, locks, bound, later }
    }
}

impl Shape {
    /// The definition. Whatever it asks for is made only once: what is made again is another request.
    pub(super) fn definition(&self) -> Definition {
        let mut saga = Definition::builder::<i64>("any", 1);
        let made = Arc::new(AtomicI64::new(1));
        for at in 0..self.steps.len() {
            self.add(&mut saga, (self.first + at) % self.steps.len(), &made);
        }
        if self.deadline {
            saga.deadline(Duration::from_secs(40));
        }
        if self.ending {
            saga.on_compensated(|_, _| Ok(LocalWork::nothing()));
        }
        match self.locks {
            Some(true) => saga.lock(|_| vec!["key"]),
            Some(false) => saga.lock_or_refuse(|_| vec!["key"]),
            None => {}
        }
        owned(saga.build())
    }

    fn add(&self, saga: &mut Builder<i64>, at: usize, made: &Arc<AtomicI64>) {
        let (step, name, pivot) = (&self.steps[at], NAMES[at], self.pivot.unwrap_or(self.steps.len()));
        let StepShape { is_unmakable, .. } = *step;
        let next = Arc::clone(made);
        let request = move |_: &i64, _: Replies<'_>| match is_unmakable {
            true => Err(Refusal::precondition("UNMAKABLE", "there is no such request")),
            false => Ok(next.fetch_add(1, Ordering::Relaxed)),
        };
        let undo = Arc::clone(made);
        if at == pivot {
            saga.pivot::<Decide>(name, request);
        } else if at > pivot && step.is_local {
            saga.retriable_local(name, |_, _| Ok(LocalWork::nothing()));
        } else if at > pivot {
            saga.retriable::<Follow>(name, request);
        } else if step.is_check {
            saga.check::<Decide>(name, request);
        } else {
            saga.compensatable::<Do>(name, request, move |_| undo.fetch_add(1, Ordering::Relaxed));
        }
        saga.after(&self.before(at, pivot));
        if at < pivot {
            if step.attempts {
                saga.retry(Retry { attempts: Some(2), ..Retry::default() });
            }
            if step.deadline {
                saga.step_deadline(Duration::from_secs(15));
            }
            if step.trusts {
                saga.trusted_codes(&[tonic::Code::NotFound]);
            }
            if step.plain {
                saga.without_barrier();
            }
        }
    }

    /// What a step comes after: the pivot after all before it, all after it after the pivot, others after any.
    fn before(&self, at: usize, pivot: usize) -> Vec<&'static str> {
        let first = if at > pivot { pivot } else { 0 };
        let is_named = |before: &usize| at == pivot || self.steps[at].after & (1 << before) != 0;
        let before: Vec<_> = (first..at).filter(is_named).map(|before| NAMES[before]).collect();
        if at > pivot && before.is_empty() { vec![NAMES[pivot]] } else { before }
    }
}
