//! The rules that a simulation can do without, to see that it notices.

use std::cell::Cell;

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// All rules hold.
    None,
    /// A transition is taken from anybody.
    NoFence,
    /// A compensation that comes first leaves no mark for its action.
    NoTombstone,
    /// The coordinators' store answers before it has synced.
    LogNotDurable,
    /// A participant answers before it has synced.
    AckBeforeCommit,
    /// What is called again is not what was called before.
    RebuiltOnRetry,
    /// A lost answer is taken for a refusal.
    LostIsRefused,
    /// The turning back is in memory alone.
    AbortNotDurable,
    /// A participant decides what it has decided before.
    DecidedTwice,
    /// A commit whose answer is lost counts as not done.
    LostCommitIsAborted,
    /// A lock is taken whoever holds it.
    LockNotChecked,
    /// A saga that is a step is over once it is done, whatever becomes of the one above.
    StepNotBound,
    /// A step that is a saga counts as undone once it is to be.
    StepNotUndone,
    /// A saga's answers are forgotten as soon as it has ended.
    SweptAtOnce,
    /// However old a call is, it is decided.
    NeverTooOld,
}

thread_local! {
    static LEFT_OUT: Cell<Mutant> = const { Cell::new(Mutant::None) };
}

impl Mutant {
    /// Leaves the rule out in this thread from now on.
    pub(super) fn leave_out(self) {
        LEFT_OUT.set(self);
    }

    /// True if the rule is left out in this thread.
    pub(crate) fn is_left_out(self) -> bool {
        LEFT_OUT.get() == self
    }
}
