//! How many sagas are under way, and how many may be.
//!
//! Where several processes share the sagas, what nobody drives has the next places: a new one is refused until there is room for both.

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
    /// Places that sagas under way lend out and nobody has taken yet.
    lent: AtomicUsize,
    /// Those that nobody drives and that there was no place for.
    orphans: AtomicUsize,
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
        Self {
            most,
            count: AtomicUsize::new(0),
            lent: AtomicUsize::new(0),
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
        this.take_lent().then(|| Self::admit_again(this))
    }

    /// A place for a saga that was admitted before, here or elsewhere, whether there is room or not.
    pub(super) fn admit_again(this: &Arc<Self>) -> Admission {
        this.count.fetch_add(1, Ordering::AcqRel);
        Admission(Arc::clone(this))
    }

    /// Lends out a place to what a saga's own work starts in the decision that is made meanwhile: else that would wait for a place which
    /// only those have that wait themselves.
    pub(super) fn lend(this: &Arc<Self>) -> Lent {
        this.lent.fetch_add(1, Ordering::AcqRel);
        Lent(Arc::clone(this))
    }

    fn take_lent(&self) -> bool {
        self.lent.fetch_update(Ordering::AcqRel, Ordering::Acquire, |lent| lent.checked_sub(1)).is_ok()
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

impl Drop for Lent {
    fn drop(&mut self) {
        // Taken or not, decisions are made one at a time.
        self.0.take_lent();
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
    fn a_place_that_is_lent_is_to_be_had_though_an_orphan_waits_for_it() {
        let admissions = Arc::new(Admissions::new(1));
        let ending = Admissions::admit(&admissions).expect("a place");
        admissions.leave(1);
        assert!(Admissions::admit(&admissions).is_none(), "there is no other");
        let lent = Admissions::lend(&admissions);
        let started = Admissions::admit(&admissions);
        assert!(started.is_some() && Admissions::admit(&admissions).is_none());
        drop((lent, ending));
        assert_eq!((admissions.room(), Admissions::admit(&admissions).is_none()), (0, true));
    }

    #[test]
    fn a_place_that_is_lent_is_to_be_had_once_however_many_there_are() {
        let admissions = Arc::new(Admissions::new(1));
        let _over = [Admissions::admit_again(&admissions), Admissions::admit_again(&admissions)];
        let lent = Admissions::lend(&admissions);
        let started = Admissions::admit(&admissions);
        assert!(started.is_some() && Admissions::admit(&admissions).is_none());
        drop(lent);
        let _lent = Admissions::lend(&admissions);
        assert!(Admissions::admit(&admissions).is_some());
    }
}
