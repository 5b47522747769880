//! The last N calls, exactly, in the order of their tickets.
//!
//! A call takes a ticket from `head` and with it a slot of the ring. A healthy circuit then only *reads* the slot: a slot is
//! written when its mark changes. Three words matter, each tagged with the generation:
//!
//! ```text
//! head   generation 24 │ lap 24 │ index 16      the next ticket
//! slot   generation 24 │ lap 24 │ …  slow failed  the last call that changed the mark
//! marks  generation 24 │ slow 20 │ failed 20     how many slots hold which mark
//! ```

use super::{
    super::core::sync::{AtomicU64, Ordering::SeqCst},
    Mark, Place, newer,
};

const GENERATION: u32 = 24;
const LAP_MASK: u64 = (1 << 24) - 1;
const FIELD_MASK: u64 = (1 << 20) - 1;
const FAILED: u64 = 1;
const SLOW: u64 = 2;

/// A ring of the last calls.
#[derive(Debug)]
pub(crate) struct CountWindow {
    head: AtomicU64,
    marks: AtomicU64,
    /// Calls of generations gone by, and of laps gone by when the lap counter wrapped.
    folded: AtomicU64,
    /// Calls ever recorded that failed.
    failed: AtomicU64,
    slots: Box<[AtomicU64]>,
}

#[derive(Clone, Copy)]
struct Ticket {
    generation: u64,
    lap: u64,
    index: u64,
}

impl Ticket {
    const fn of(head: u64) -> Self {
        Self { generation: head >> 40, lap: head >> 16 & LAP_MASK, index: head & 0xffff }
    }

    const fn bits(self) -> u64 {
        self.generation << 40 | self.lap << 16 | self.index
    }

    /// The slot's word with marks.
    const fn slot(self, marks: u64) -> u64 {
        self.generation << 40 | self.lap << 16 | marks
    }
}

impl CountWindow {
    pub(crate) fn new(calls: u32, generation: u32) -> Self {
        let window = Self {
            head: AtomicU64::new(0),
            marks: AtomicU64::new(0),
            folded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            slots: (0..calls).map(|_| AtomicU64::new(0)).collect(),
        };
        window.begin(generation);
        window
    }

    /// Begins a generation with nothing in it. The caller lets one thread at a time do so.
    pub(crate) fn begin(&self, generation: u32) {
        let generation = u64::from(generation) & LAP_MASK;
        // The marks first: a call of the new generation needs the new head, and must then find the new marks.
        self.marks.store(generation << 40, SeqCst);
        let old = Ticket::of(self.head.swap(generation << 40, SeqCst));
        self.folded.fetch_add(self.tickets(old), SeqCst);
    }

    /// Records a call, unless its generation is over.
    #[inline]
    pub(crate) fn record(&self, generation: u32, mark: Mark) -> Option<Place> {
        let seen = self.head.load(SeqCst);
        let ticket = Ticket::of(seen);
        // Nearly every call is clean, alone, in mid-lap, and finds a slot without a mark: its ticket is all that is written.
        let plain = mark.is_clean()
            && ticket.generation == u64::from(generation) & LAP_MASK
            && ticket.index + 1 < self.slots.len() as u64;
        if plain && self.head.compare_exchange(seen, seen + 1, SeqCst, SeqCst).is_ok() {
            if self.slots[ticket.index as usize].load(SeqCst) & (FAILED | SLOW) != 0 {
                self.write(ticket, 0);
            }
            return Some(self.place(ticket));
        }
        self.record_unusual(generation, mark)
    }

    #[cold]
    fn record_unusual(&self, generation: u32, mark: Mark) -> Option<Place> {
        let ticket = self.take_ticket(u64::from(generation) & LAP_MASK)?;
        let marks = if mark.failed { FAILED } else { 0 } | if mark.slow { SLOW } else { 0 };
        if mark.failed {
            self.failed.fetch_add(1, SeqCst);
        }
        self.write(ticket, marks);
        Some(self.place(ticket))
    }

    #[inline]
    fn place(&self, ticket: Ticket) -> Place {
        let calls = self.slots.len() as u64;
        Place {
            epoch: 0,
            total: if ticket.lap > 0 { calls } else { ticket.index + 1 },
            #[cfg(loom)]
            order: self.tickets(ticket),
        }
    }

    fn take_ticket(&self, generation: u64) -> Option<Ticket> {
        let mut head = self.head.load(SeqCst);
        loop {
            let ticket = Ticket::of(head);
            if ticket.generation != generation {
                return None;
            }
            let next = self.after(ticket);
            match self.head.compare_exchange_weak(head, next.bits(), SeqCst, SeqCst) {
                Ok(_) => {
                    if next.lap < ticket.lap {
                        // The lap counter wrapped to 1: what it counted is not to be lost.
                        self.folded.fetch_add(ticket.lap * self.slots.len() as u64, SeqCst);
                    }
                    return Some(ticket);
                }
                Err(seen) => head = seen,
            }
        }
    }

    fn after(&self, ticket: Ticket) -> Ticket {
        if ticket.index + 1 < self.slots.len() as u64 {
            return Ticket { index: ticket.index + 1, ..ticket };
        }
        // Lap 0 means "not yet full", so a wrap goes on at 1.
        let lap = if ticket.lap == LAP_MASK { 1 } else { ticket.lap + 1 };
        Ticket { lap, index: 0, ..ticket }
    }

    /// Puts the mark into the ticket's slot, unless a later lap already has.
    fn write(&self, ticket: Ticket, marks: u64) {
        let slot = &self.slots[ticket.index as usize];
        let mut seen = slot.load(SeqCst);
        loop {
            let held = Ticket::of(seen & !0xffff);
            let same_generation = held.generation == ticket.generation;
            if !same_generation && newer(held.generation, ticket.generation, GENERATION) {
                return;
            }
            // A slot of an older generation is an empty one.
            let was = if same_generation { seen & (FAILED | SLOW) } else { 0 };
            if marks == 0 && was == 0 {
                return;
            }
            if same_generation && newer(held.lap, ticket.lap, GENERATION) {
                return;
            }
            match slot.compare_exchange_weak(seen, ticket.slot(marks), SeqCst, SeqCst) {
                Ok(_) => {
                    self.count(ticket.generation, was, marks);
                    break;
                }
                Err(now) => seen = now,
            }
        }
        if marks != 0 {
            self.withdraw_if_overtaken(ticket, marks);
        }
    }

    /// A clean call one lap later may have looked at the slot before the mark came, and passed by: then the mark is out of
    /// date and nobody else would take it away.
    fn withdraw_if_overtaken(&self, ticket: Ticket, marks: u64) {
        // Not a plain load: a ticket taken after this one's addition of nothing is taken by someone who sees the mark.
        let head = Ticket::of(self.head.fetch_add(0, SeqCst));
        if head.generation != ticket.generation {
            return;
        }
        let full_laps = head.lap.wrapping_sub(ticket.lap) & LAP_MASK;
        let overtaken = full_laps > 1 || (full_laps == 1 && head.index > ticket.index);
        let slot = &self.slots[ticket.index as usize];
        if overtaken && slot.compare_exchange(ticket.slot(marks), ticket.slot(0), SeqCst, SeqCst).is_ok() {
            self.count(ticket.generation, marks, 0);
        }
    }

    /// Moves the counts of marks by what a slot changed. Each field wraps for a moment when a removal overtakes its addition.
    fn count(&self, generation: u64, was: u64, is: u64) {
        if was == is {
            return;
        }
        let change = |bit: u64| u64::from(is & bit != 0).wrapping_sub(u64::from(was & bit != 0)) & FIELD_MASK;
        let mut seen = self.marks.load(SeqCst);
        while seen >> 40 == generation {
            let failed = (seen & FIELD_MASK).wrapping_add(change(FAILED)) & FIELD_MASK;
            let slow = (seen >> 20 & FIELD_MASK).wrapping_add(change(SLOW)) & FIELD_MASK;
            let next = generation << 40 | slow << 20 | failed;
            match self.marks.compare_exchange_weak(seen, next, SeqCst, SeqCst) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Failed and slow calls in the window, if the generation is still this one.
    pub(crate) fn marks(&self, generation: u32) -> (u64, u64) {
        let marks = self.marks.load(SeqCst);
        if marks >> 40 != u64::from(generation) & LAP_MASK {
            return (0, 0);
        }
        // A field that wrapped below zero is zero.
        let field = |value: u64| if value > FIELD_MASK / 2 { 0 } else { value };
        (field(marks & FIELD_MASK), field(marks >> 20 & FIELD_MASK))
    }

    /// Whether the window holds anything but clean calls.
    #[inline]
    pub(crate) fn suspect(&self, generation: u32) -> bool {
        // Without a mark of any generation, as nearly always, there is no need to look closer.
        self.marks.load(SeqCst) & ((1 << 40) - 1) != 0 && self.marks(generation) != (0, 0)
    }

    /// Calls in the window.
    pub(crate) fn total(&self, generation: u32) -> u64 {
        let head = Ticket::of(self.head.load(SeqCst));
        if head.generation != u64::from(generation) & LAP_MASK {
            return 0;
        }
        if head.lap > 0 { self.slots.len() as u64 } else { head.index }
    }

    /// Calls ever recorded that did not fail.
    pub(crate) fn successes(&self) -> u64 {
        let tickets = self.tickets(Ticket::of(self.head.load(SeqCst)));
        (self.folded.load(SeqCst) + tickets).saturating_sub(self.failed.load(SeqCst))
    }

    fn tickets(&self, head: Ticket) -> u64 {
        head.lap * self.slots.len() as u64 + head.index
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_equals_a_queue_of_the_last_calls(
            calls in 1_u32..20,
            results in prop::collection::vec((any::<bool>(), any::<bool>()), 0..200),
        ) {
            let window = CountWindow::new(calls, 7);
            let mut queue = VecDeque::new();
            for (failed, slow) in results {
                let place = window.record(7, Mark { failed, slow }).expect("same generation");
                queue.push_back((failed, slow));
                if queue.len() > calls as usize { queue.pop_front(); }
                let failures = queue.iter().filter(|(failed, _)| *failed).count() as u64;
                let slows = queue.iter().filter(|(_, slow)| *slow).count() as u64;
                prop_assert_eq!(window.marks(7), (failures, slows));
                prop_assert_eq!(place.total, queue.len() as u64);
            }
        }
    }

    #[test]
    fn a_generation_begins_empty_and_the_old_one_is_refused() {
        let window = CountWindow::new(4, 0);
        let bad = Mark { failed: true, slow: true };
        for _ in 0..3 {
            window.record(0, bad);
        }
        window.begin(1);
        assert_eq!(window.record(0, bad), None);
        assert_eq!((window.marks(1), window.total(1)), ((0, 0), 0));
        window.record(1, Mark { failed: false, slow: false });
        assert_eq!((window.marks(1), window.total(1), window.successes()), ((0, 0), 1, 1));
    }
}
