//! How many sagas are under way, and how many may be.
//!
//! Where several processes share the sagas, what nobody drives has the next places: a new one is refused until there is room for both.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// Counts the sagas that are under way.
#[derive(Debug)]
pub(super) struct Admissions {
    most: usize,
    count: AtomicUsize,
    /// True while a saga's own work is decided, which nobody refuses a place.
    is_own: AtomicBool,
    /// Those that nobody drives and that there was no place for.
    orphans: AtomicUsize,
    none_left: Notify,
}

/// A saga's place. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Admission(Arc<Admissions>);

/// While a saga's own work is decided. What was admitted meanwhile stays.
#[derive(Debug)]
pub(super) struct OwnWork(Arc<Admissions>);

impl Admissions {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            count: AtomicUsize::new(0),
            is_own: AtomicBool::new(false),
            orphans: AtomicUsize::new(0),
            none_left: Notify::new(),
        }
    }

    /// A place, if there is one that no orphan is to have.
    pub(super) fn admit(this: &Arc<Self>) -> Option<Admission> {
        let orphans = this.orphans();
        let room = |count: usize| (count.saturating_add(orphans) < this.most).then_some(count + 1);
        if this.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_ok() {
            return Some(Admission(Arc::clone(this)));
        }
        // However many there are already, or wait: nobody's place becomes free before this one is given.
        this.is_own.load(Ordering::Acquire).then(|| Self::admit_again(this))
    }

    /// A place for a saga that was admitted before, here or elsewhere, whether there is room or not.
    pub(super) fn admit_again(this: &Arc<Self>) -> Admission {
        this.count.fetch_add(1, Ordering::AcqRel);
        Admission(Arc::clone(this))
    }

    /// Has a place for all that a saga's own work starts in the decision that is made meanwhile: else that would wait for places which only
    /// those have that wait themselves.
    pub(super) fn own_work(this: &Arc<Self>) -> OwnWork {
        this.is_own.store(true, Ordering::Release);
        OwnWork(Arc::clone(this))
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// How many places are free.
    pub(super) fn room(&self) -> usize {
        self.most.saturating_sub(self.count())
    }

    /// How many sagas nobody drives, as last seen, for which there was no place.
    pub(super) fn orphans(&self) -> usize {
        self.orphans.load(Ordering::Acquire)
    }

    /// Has so many orphans wait for a place, and answers how many did.
    pub(super) fn leave(&self, orphans: usize) -> usize {
        self.orphans.swap(orphans, Ordering::AcqRel)
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

impl Drop for OwnWork {
    fn drop(&mut self) {
        // Decisions are made one at a time.
        self.0.is_own.store(false, Ordering::Release);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_work_has_its_places_though_an_orphan_waits_for_them() {
        let admissions = Arc::new(Admissions::new(1));
        let ending = Admissions::admit(&admissions).expect("a place");
        admissions.leave(1);
        assert!(Admissions::admit(&admissions).is_none(), "there is no other");
        let own = Admissions::own_work(&admissions);
        let started = [Admissions::admit(&admissions), Admissions::admit(&admissions)];
        assert!(started.iter().all(Option::is_some));
        drop((own, ending));
        assert_eq!((admissions.room(), Admissions::admit(&admissions).is_none()), (0, true));
    }

    #[test]
    fn own_work_has_its_places_however_many_there_are_and_nobody_after_it() {
        let admissions = Arc::new(Admissions::new(1));
        let _over = [Admissions::admit_again(&admissions), Admissions::admit_again(&admissions)];
        let own = Admissions::own_work(&admissions);
        assert!(Admissions::admit(&admissions).is_some() && Admissions::admit(&admissions).is_some());
        drop(own);
        assert!(Admissions::admit(&admissions).is_none());
    }
}
