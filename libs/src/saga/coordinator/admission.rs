//! How many sagas are under way and how many bytes they keep, and how many may be. What is under way is in memory, all of it.
//!
//! Where several processes share the sagas, what nobody drives has the next places: a new one is refused until there is room for both.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use crate::saga::record::Record;

/// How many bytes of messages the sagas under way may keep for each place that there is. Of larger ones there is room for fewer.
const BYTES_A_PLACE: usize = 8 << 10;
/// How many times what it begins with a saga counts from its beginning on: what it asks of others repeats most of that, as what is ordered
/// is reserved, shipped, and released once nobody ships it. Else those that were admitted while the first participant was out had no room
/// once they go on. What repeats it more often goes past the bound by that.
const GROWTH: usize = 4;

/// As how many bytes a saga counts: those of the messages that it keeps, or is to keep.
pub(super) fn bytes(record: &Record) -> usize {
    record.message_bytes().max(bytes_of_new(record.kept.input.len()))
}

/// The same, of one that is to begin with an input of this length.
pub(super) const fn bytes_of_new(input: usize) -> usize {
    input.saturating_mul(GROWTH)
}

/// Counts the sagas that are under way.
#[derive(Debug)]
pub(super) struct Admissions {
    most: usize,
    count: AtomicUsize,
    /// Of what those keep.
    bytes: AtomicUsize,
    /// True while a saga's own work is decided, which nobody refuses a place.
    is_own: AtomicBool,
    /// Those that nobody drives and that there was no place for.
    orphans: AtomicUsize,
    none_left: Notify,
}

/// A saga's place. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Admission {
    among: Arc<Admissions>,
    bytes: usize,
}

/// While a saga's own work is decided. What was admitted meanwhile stays.
#[derive(Debug)]
pub(super) struct OwnWork(Arc<Admissions>);

impl Admissions {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            is_own: AtomicBool::new(false),
            orphans: AtomicUsize::new(0),
            none_left: Notify::new(),
        }
    }

    /// A place for a saga that counts as so many bytes, if there is one that no orphan is to have.
    pub(super) fn admit(this: &Arc<Self>, bytes: usize) -> Option<Admission> {
        let orphans = this.orphans();
        let room = |count: usize| (count.saturating_add(orphans) < this.most).then_some(count + 1);
        let is_room = this.has_bytes(bytes, orphans)
            && this.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_ok();
        let mut admission = match is_room {
            true => Admission { among: Arc::clone(this), bytes: 0 },
            // However many there are already, or wait: nobody's place becomes free before this one is given.
            false if this.is_own.load(Ordering::Acquire) => Self::admit_again(this),
            false => return None,
        };
        admission.keeps(bytes);
        Some(admission)
    }

    /// A place for a saga that was admitted before, here or elsewhere, whether there is room or not.
    pub(super) fn admit_again(this: &Arc<Self>) -> Admission {
        this.count.fetch_add(1, Ordering::AcqRel);
        Admission { among: Arc::clone(this), bytes: 0 }
    }

    /// Whether there is room for so many bytes more. Some are free where nothing is under way, and then there is: one that is larger than
    /// all room together would be refused for ever.
    fn has_bytes(&self, bytes: usize, orphans: usize) -> bool {
        // Nor is the room of those that wait for theirs taken by the one that goes over it.
        let waiting = if orphans == 0 { 0 } else { orphans.saturating_mul(BYTES_A_PLACE).saturating_add(bytes) };
        waiting < self.free_bytes()
    }

    /// How many bytes are free for what those keep that come. One that has more is taken where any are.
    pub(super) fn free_bytes(&self) -> usize {
        self.most.saturating_mul(BYTES_A_PLACE).saturating_sub(self.bytes.load(Ordering::Acquire))
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

    /// How many places are free, of sagas that are no larger than they may be on the average.
    pub(super) fn room(&self) -> usize {
        self.most.saturating_sub(self.count()).min(self.free_bytes().div_ceil(BYTES_A_PLACE))
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

// === impl Admission ===

impl Admission {
    /// Has its saga count as so many bytes from now on.
    pub(super) fn keeps(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        // As most transitions leave it: all drivers count in one place.
        if bytes == before {
            return;
        }
        if let Some(more) = bytes.checked_sub(before) {
            self.among.bytes.fetch_add(more, Ordering::AcqRel);
        } else {
            self.among.bytes.fetch_sub(before - bytes, Ordering::AcqRel);
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.keeps(0);
        if self.among.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.among.none_left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_work_has_its_places_though_an_orphan_waits_for_them() {
        let admissions = Arc::new(Admissions::new(1));
        let ending = Admissions::admit(&admissions, 1).expect("a place");
        admissions.leave(1);
        assert!(Admissions::admit(&admissions, 1).is_none(), "there is no other");
        let own = Admissions::own_work(&admissions);
        let started = [Admissions::admit(&admissions, 1), Admissions::admit(&admissions, BYTES_A_PLACE)];
        assert!(started.iter().all(Option::is_some));
        drop((own, ending));
        assert_eq!((admissions.room(), Admissions::admit(&admissions, 1).is_none()), (0, true));
    }

    #[test]
    fn own_work_has_its_places_however_many_there_are_and_nobody_after_it() {
        let admissions = Arc::new(Admissions::new(1));
        let _over = [Admissions::admit_again(&admissions), Admissions::admit_again(&admissions)];
        let own = Admissions::own_work(&admissions);
        assert!(Admissions::admit(&admissions, 1).is_some() && Admissions::admit(&admissions, 1).is_some());
        drop(own);
        assert!(Admissions::admit(&admissions, 1).is_none());
    }

    #[test]
    fn there_is_room_for_fewer_that_are_large() {
        let admissions = Arc::new(Admissions::new(4));
        let mut first = Admissions::admit(&admissions, 40 * BYTES_A_PLACE).expect("it is alone");
        assert_eq!((admissions.room(), Admissions::admit(&admissions, 0).is_none()), (0, true));
        first.keeps(2 * BYTES_A_PLACE + 1);
        assert_eq!(admissions.room(), 2, "of which one is smaller");
        let second = Admissions::admit(&admissions, 2 * BYTES_A_PLACE).expect("room");
        assert!(Admissions::admit(&admissions, 0).is_none());
        drop(first);
        assert_eq!(admissions.room(), 2);
        drop(second);
        assert_eq!((admissions.room(), admissions.bytes.load(Ordering::Acquire)), (4, 0));
    }

    #[test]
    fn the_room_of_an_orphan_is_no_part_of_a_large_ones() {
        let admissions = Arc::new(Admissions::new(4));
        admissions.leave(1);
        assert!(Admissions::admit(&admissions, 3 * BYTES_A_PLACE).is_none());
        let _fits = Admissions::admit(&admissions, 3 * BYTES_A_PLACE - 1).expect("room beside it");
        assert_eq!(admissions.room(), 2);
    }
}
