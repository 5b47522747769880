//! How many sagas are under way, and how many may be.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// Counts the sagas that are under way.
#[derive(Debug)]
pub(super) struct Admissions {
    most: usize,
    count: AtomicUsize,
    /// Places that are about to be free and may be taken already.
    lent: AtomicUsize,
    none_left: Notify,
}

/// A saga's place. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Admission(Arc<Admissions>);

/// A place that whoever has it lends out. Dropping it lends it out no more, and what was admitted meanwhile stays.
#[derive(Debug)]
pub(super) struct Lent(Arc<Admissions>);

impl Admissions {
    pub(super) fn new(most: usize) -> Self {
        Self { most, count: AtomicUsize::new(0), lent: AtomicUsize::new(0), none_left: Notify::new() }
    }

    /// A place, if there is one.
    pub(super) fn admit(this: &Arc<Self>) -> Option<Admission> {
        let most = this.most.saturating_add(this.lent.load(Ordering::Acquire));
        let room = |count: usize| (count < most).then_some(count + 1);
        this.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
        Some(Admission(Arc::clone(this)))
    }

    /// A place for a saga that was admitted before the last restart.
    pub(super) fn admit_again(this: &Arc<Self>) -> Admission {
        this.count.fetch_add(1, Ordering::AcqRel);
        Admission(Arc::clone(this))
    }

    /// Lends out the place of a saga that ends in the decision that is made meanwhile: else it would wait for a place that it has itself.
    pub(super) fn lend(this: &Arc<Self>) -> Lent {
        this.lent.fetch_add(1, Ordering::AcqRel);
        Lent(Arc::clone(this))
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Waits until no saga is under way.
    pub(super) async fn none_left(&self) {
        loop {
            // Listen before looking: the last one may leave between the two.
            let told = self.none_left.notified();
            if self.count() == 0 {
                return;
            }
            told.await;
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.lent.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}
