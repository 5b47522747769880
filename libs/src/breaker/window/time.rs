//! The last stretch of time, exactly, in buckets.
//!
//! A bucket's cell is one word, `generation 8 │ epoch 16 │ failed 20 │ calls 20`, moved by compare-and-swap only while its tag
//! is the caller's own: a bucket used again a whole window later can never be credited with an old call. Quiet breakers have
//! one stripe of cells; where threads are seen to fight over it, each gets one of several.
//!
//! A cell that reaches 2^20 calls halves both its counts, which keeps the rate.

use std::sync::OnceLock;

use super::{
    super::core::sync::{
        AtomicU64, Mutex,
        Ordering::{Relaxed, SeqCst},
        lock,
    },
    Mark, Place, newer,
    stripe::{Stripe, thread_number},
};

const FIELD: u32 = 20;
const FIELD_MASK: u64 = (1 << FIELD) - 1;
const TAG: u32 = 2 * FIELD;
const EPOCH: u32 = 16;
const GENERATION: u32 = 8;
const BUCKET: u32 = 8;
const BUCKET_MASK: u64 = (1 << BUCKET) - 1;
/// So many lost races, and the stripes are worth their memory.
const CONTENDED: u64 = 256;
/// Before tags could repeat, all cells are emptied: after so many epochs at rest, and every so many generations.
const EPOCHS_AT_REST: u64 = 1 << (EPOCH - 1);
const GENERATIONS: u32 = 1 << (GENERATION - 2);
/// Once in so many epochs, as a power of two, what was left alone is emptied: a cell may go unused for ever, but its tag must
/// never be so old that it could be taken for a newer one.
const SWEEP: u32 = EPOCH - 2;

/// Buckets over the last stretch of time.
#[derive(Debug)]
pub(crate) struct TimeWindow {
    width: u64,
    buckets: u64,
    /// The newest epoch seen, which is time over width, and beside it its bucket: a remainder costs as much as all the rest.
    head: AtomicU64,
    /// Held by who empties all cells before the head moves on.
    emptying: Mutex<()>,
    /// The last bad record: generation and epoch, or nothing yet.
    last_bad: AtomicU64,
    /// Successes in cells that were emptied or used again.
    folded: AtomicU64,
    lost_races: AtomicU64,
    first: Stripe,
    more: OnceLock<Box<[Stripe]>>,
}

#[derive(Clone, Copy)]
struct Cell(u64);

impl Cell {
    const fn new(tag: u64, failed: u64, calls: u64) -> Self {
        Self(tag << TAG | failed << FIELD | calls)
    }

    const fn tag(self) -> u64 {
        self.0 >> TAG
    }

    const fn failed(self) -> u64 {
        self.0 >> FIELD & FIELD_MASK
    }

    const fn calls(self) -> u64 {
        self.0 & FIELD_MASK
    }

    const fn successes(self) -> u64 {
        self.calls() - self.failed()
    }
}

const fn tag(generation: u32, epoch: u64) -> u64 {
    (generation as u64 & 0xff) << EPOCH | epoch & 0xffff
}

/// How a cell's tag stands to a caller's.
enum Age {
    Same,
    Older,
    NewerEpoch,
    NewerGeneration,
}

fn age(cell: u64, mine: u64) -> Age {
    if cell == mine {
        Age::Same
    } else if cell >> EPOCH != mine >> EPOCH {
        if newer(cell >> EPOCH, mine >> EPOCH, GENERATION) { Age::NewerGeneration } else { Age::Older }
    } else if newer(cell, mine, EPOCH) {
        Age::NewerEpoch
    } else {
        Age::Older
    }
}

impl TimeWindow {
    /// A window of `buckets` buckets, each of `width` nanoseconds.
    pub(crate) fn new(width: u64, buckets: u32) -> Self {
        Self {
            width: width.max(1),
            buckets: u64::from(buckets),
            head: AtomicU64::new(0),
            emptying: Mutex::new(()),
            last_bad: AtomicU64::new(u64::MAX),
            folded: AtomicU64::new(0),
            lost_races: AtomicU64::new(0),
            first: Stripe::new(buckets as usize),
            more: OnceLock::new(),
        }
    }

    /// An empty window of the same shape.
    pub(crate) fn alike(&self) -> Self {
        Self::new(self.width, self.buckets as u32)
    }

    /// Begins a generation. Its tag alone empties the window, unless it was in disuse for so many that tags repeat.
    pub(crate) fn begin(&self, generation: u32, disused: bool) {
        if disused || generation.is_multiple_of(GENERATIONS) {
            self.empty(|_| true);
        }
    }

    /// Records a call, unless its generation is over.
    #[inline]
    pub(crate) fn record(&self, generation: u32, now: u64, mark: Mark) -> Option<Place> {
        let (epoch, bucket) = self.place(now);
        let cell = self.stripe().calls(bucket);
        let seen = cell.load(Relaxed);
        // Nearly every call is clean, in a bucket that has begun, and alone.
        let begun = seen >> TAG == tag(generation, epoch) && Cell(seen).calls().wrapping_sub(1) < FIELD_MASK - 1;
        if begun && mark.is_clean() && cell.compare_exchange(seen, seen + 1, SeqCst, Relaxed).is_ok() {
            return Some(Place::in_bucket(epoch));
        }
        self.record_unusual(generation, epoch, bucket, mark)
    }

    #[cold]
    fn record_unusual(&self, generation: u32, epoch: u64, bucket: usize, mark: Mark) -> Option<Place> {
        let stripe = self.stripe();
        let tag = tag(generation, epoch);
        if mark.slow && !self.add(stripe.slow(bucket), tag, false, true) {
            return None;
        }
        if !self.add(stripe.calls(bucket), tag, mark.failed, false) {
            return None;
        }
        if !mark.is_clean() {
            self.note_bad(generation, epoch);
        }
        Some(Place::in_bucket(epoch))
    }

    /// Moves the last bad record forward, never back: a writer may be slow.
    fn note_bad(&self, generation: u32, epoch: u64) {
        let bad = bad(generation, epoch);
        // None is no error: it is known already, or overtaken.
        let _ = self.last_bad.fetch_update(SeqCst, SeqCst, |last| {
            // Read after the last one, so it is no older. What is kept of epochs comes round again, so ages are compared.
            let head = self.head.load(SeqCst) >> BUCKET;
            let age = (head as u32).wrapping_sub(last as u32);
            let same = last >> 32 == u64::from(generation) && u64::from(age) < head.saturating_sub(epoch);
            let overtaken = last != u64::MAX && (same || newer(last >> 32, generation.into(), u32::BITS));
            (last != bad && !overtaken).then_some(bad)
        });
    }

    /// The epoch, and the bucket that is its. A clock that went back stands still.
    #[inline]
    fn place(&self, now: u64) -> (u64, usize) {
        let head = self.head.load(Relaxed);
        // Nearly every call is in the newest bucket: a product is cheaper than a quotient.
        let since = now.wrapping_sub((head >> BUCKET).wrapping_mul(self.width));
        let head = if since < self.width { head } else { self.advance(head, now / self.width) };
        (head >> BUCKET, (head & BUCKET_MASK) as usize)
    }

    #[cold]
    fn advance(&self, head: u64, epoch: u64) -> u64 {
        let newest = head >> BUCKET;
        if epoch <= newest {
            return head;
        }
        // Before the head moves: whoever sees the new one finds the cells emptied.
        if epoch - newest >= EPOCHS_AT_REST {
            return self.advance_far(epoch);
        }
        if epoch >> SWEEP != newest >> SWEEP {
            self.empty(|cell| self.is_left(cell, epoch));
        }
        self.move_head(epoch)
    }

    /// One at a time: of several the second would empty what was recorded since the first was done.
    fn advance_far(&self, epoch: u64) -> u64 {
        let emptying = lock(&self.emptying);
        let head = self.head.load(SeqCst);
        if epoch.saturating_sub(head >> BUCKET) < EPOCHS_AT_REST {
            drop(emptying);
            return self.advance(head, epoch);
        }
        self.empty(|_| true);
        self.move_head(epoch)
    }

    fn move_head(&self, epoch: u64) -> u64 {
        let next = (epoch << BUCKET) | (epoch % self.buckets);
        self.head.fetch_max(next, SeqCst).max(next)
    }

    /// Whether the window that ends with the epoch has left the cell behind. One that another thread has just begun is ahead.
    fn is_left(&self, cell: Cell, epoch: u64) -> bool {
        let age = epoch.wrapping_sub(cell.tag()) & 0xffff;
        (self.buckets..EPOCHS_AT_REST + EPOCHS_AT_REST / 2 + self.buckets).contains(&age)
    }

    fn bucket(&self, epoch: u64) -> usize {
        (epoch % self.buckets) as usize
    }

    /// Adds a call to a cell, or makes the cell new for it. False if the cell is of a newer generation.
    fn add(&self, cell: &AtomicU64, tag: u64, failed: bool, quiet: bool) -> bool {
        let failed = u64::from(failed);
        let mut seen = cell.load(Relaxed);
        loop {
            let held = Cell(seen);
            // An emptied cell belongs to nobody, whatever its tag seems to say.
            let age = if held.calls() == 0 { Age::Older } else { age(held.tag(), tag) };
            let (next, gone) = match age {
                Age::Same if held.calls() == FIELD_MASK => {
                    let half = Cell::new(tag, held.failed() / 2, held.calls() / 2);
                    (half.0 + (failed << FIELD) + 1, held.successes() - half.successes())
                }
                Age::Same => (seen + (failed << FIELD) + 1, 0),
                Age::Older => (Cell::new(tag, failed, 1).0, held.successes()),
                // Too late for this window by a whole turn: count it for the total and leave.
                Age::NewerEpoch => {
                    self.fold(if quiet { 0 } else { 1 - failed });
                    return true;
                }
                Age::NewerGeneration => return false,
            };
            match cell.compare_exchange_weak(seen, next, SeqCst, Relaxed) {
                Ok(_) => {
                    self.fold(if quiet { 0 } else { gone });
                    return true;
                }
                Err(now) => {
                    seen = now;
                    self.lost_race();
                }
            }
        }
    }

    fn fold(&self, successes: u64) {
        if successes > 0 {
            self.folded.fetch_add(successes, Relaxed);
        }
    }

    #[cold]
    fn lost_race(&self) {
        if self.lost_races.fetch_add(1, Relaxed) == CONTENDED {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let stripes = threads.next_power_of_two().min(16);
            self.more.get_or_init(|| (0..stripes).map(|_| Stripe::new(self.buckets as usize)).collect());
        }
    }

    #[inline]
    fn stripe(&self) -> &Stripe {
        match self.more.get() {
            None => &self.first,
            Some(stripes) => &stripes[thread_number() & (stripes.len() - 1)],
        }
    }

    fn stripes(&self) -> impl Iterator<Item = &Stripe> {
        std::iter::once(&self.first).chain(self.more.get().into_iter().flatten())
    }

    /// Calls, failed and slow ones in the window that ends with the epoch.
    pub(crate) fn sum(&self, generation: u32, epoch: u64) -> (u64, u64, u64) {
        let oldest = epoch.saturating_sub(self.buckets - 1);
        let (mut calls, mut failed, mut slow) = (0, 0, 0);
        for epoch in oldest..=epoch {
            let (bucket, tag) = (self.bucket(epoch), tag(generation, epoch));
            for stripe in self.stripes() {
                let cell = Cell(stripe.calls(bucket).load(SeqCst));
                if cell.tag() == tag {
                    calls += cell.calls();
                    failed += cell.failed();
                }
                if let Some(cell) = stripe.slow_if_any(bucket) {
                    let cell = Cell(cell.load(SeqCst));
                    slow += if cell.tag() == tag { cell.calls() } else { 0 };
                }
            }
        }
        (calls, failed, slow)
    }

    /// The sums as of now, without a record.
    pub(crate) fn sum_now(&self, generation: u32, now: u64) -> (u64, u64, u64) {
        let head = self.head.load(SeqCst) >> BUCKET;
        let epoch = (now / self.width).max(head);
        // Cells far behind may carry a tag that has come round again.
        if epoch - head >= self.buckets { (0, 0, 0) } else { self.sum(generation, epoch) }
    }

    /// Whether the window that ends with the epoch may hold anything but clean calls.
    #[inline]
    pub(crate) fn suspect(&self, generation: u32, epoch: u64) -> bool {
        let last = self.last_bad.load(SeqCst);
        let age = (epoch as u32).wrapping_sub(last as u32);
        last != u64::MAX && last >> 32 == u64::from(generation) && u64::from(age) < self.buckets
    }

    /// Whether the window as of now may hold anything but clean calls.
    pub(crate) fn suspect_now(&self, generation: u32, now: u64) -> bool {
        self.suspect(generation, (now / self.width).max(self.head.load(SeqCst) >> BUCKET))
    }

    /// Calls ever recorded that did not fail.
    pub(crate) fn successes(&self) -> u64 {
        let live: u64 = (0..self.buckets as usize)
            .flat_map(|bucket| self.stripes().map(move |stripe| stripe.calls(bucket)))
            .map(|cell| Cell(cell.load(SeqCst)).successes())
            .sum();
        live + self.folded.load(SeqCst)
    }

    /// Empties the cells that are over, keeping the totals.
    #[cold]
    fn empty(&self, over: impl Fn(Cell) -> bool) {
        let take =
            |cell: &AtomicU64| cell.fetch_update(SeqCst, SeqCst, |held| over(Cell(held)).then_some(0)).unwrap_or(0);
        for bucket in 0..self.buckets as usize {
            for stripe in self.stripes() {
                self.fold(Cell(take(stripe.calls(bucket))).successes());
                stripe.slow_if_any(bucket).map(take);
            }
        }
    }
}

/// Generation and epoch as one word.
const fn bad(generation: u32, epoch: u64) -> u64 {
    (generation as u64) << 32 | epoch & 0xffff_ffff
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Short ones and long ones, and such as leave a bucket alone until its tag could be taken for a newer one.
    fn pause() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 0_u64..30, 0_u64..1000, 20_000_u64..40_000, Just(u64::from(u32::MAX) * 40)]
    }

    proptest! {
        #[test]
        fn it_equals_a_list_of_what_happened_when(
            buckets in 1_u32..20,
            width in 1_u64..50,
            steps in prop::collection::vec((pause(), any::<bool>(), any::<bool>()), 0..200),
        ) {
            let window = TimeWindow::new(width, buckets);
            let (mut list, mut now) = (Vec::new(), 0);
            for (pause, failed, slow) in steps {
                now += pause;
                let place = window.record(3, now, Mark { failed, slow }).expect("same generation");
                let epoch = now / width;
                list.push((epoch, failed, slow));
                let oldest = (epoch + 1).saturating_sub(u64::from(buckets));
                let within = list.iter().filter(|(at, ..)| *at >= oldest);
                let calls = within.clone().count() as u64;
                let failures = within.clone().filter(|(_, failed, _)| *failed).count() as u64;
                let slows = within.clone().filter(|(.., slow)| *slow).count() as u64;
                prop_assert_eq!(place.epoch, epoch);
                prop_assert_eq!(window.sum(3, epoch), (calls, failures, slows));
                let bad = list.iter().any(|(at, failed, slow)| *at >= oldest && (*failed || *slow));
                prop_assert!(window.suspect(3, epoch) || !bad);
            }
            prop_assert_eq!(window.successes(), list.iter().filter(|(_, failed, _)| !failed).count() as u64);
        }
    }

    #[test]
    fn a_cell_that_is_full_keeps_its_rate() {
        let window = TimeWindow::new(1, 1);
        for call in 0..(1 << 20) + 10 {
            window.record(0, 0, Mark { failed: call % 2 == 0, slow: false });
        }
        let (calls, failed, _) = window.sum(0, 0);
        assert!(calls > 1 << 19 && failed.abs_diff(calls / 2) <= 10, "{failed} of {calls}");
        assert_eq!(window.successes(), (1 << 19) + 5);
    }

    #[test]
    fn a_generation_begins_empty_and_the_old_one_is_refused() {
        let window = TimeWindow::new(10, 4);
        let bad = Mark { failed: true, slow: true };
        window.record(0, 5, bad);
        window.begin(1, false);
        assert_eq!(window.sum(1, 0), (0, 0, 0));
        window.record(1, 5, Mark { failed: false, slow: false });
        assert_eq!(window.record(0, 5, Mark { failed: true, slow: false }), None);
        assert_eq!(window.sum(1, 0), (1, 0, 0));
        assert!(!window.suspect(1, 0));
    }

    #[test]
    fn a_bucket_that_was_left_alone_for_long_counts_again_and_nothing_of_old() {
        let bad = Mark { failed: true, slow: true };
        for at in [30_001, 32_769, 40_001, 65_536, 70_000, 327_681] {
            let window = TimeWindow::new(1, 10);
            let record = |epoch, mark| assert!(window.record(0, epoch, mark).is_some());
            (0..10).for_each(|epoch| record(epoch, bad));
            // One bucket is in use all the time, the others are not.
            (10..at).step_by(10).for_each(|epoch| record(epoch, Mark::CLEAN));
            let recent = u64::from(at % 10 != 0);
            assert_eq!(window.sum_now(0, at), (recent, 0, 0), "at {at}");
            record(at, bad);
            assert_eq!(window.sum(0, at), (recent + 1, 1, 1), "at {at}");
            assert_eq!(window.successes(), at.div_ceil(10) - 1);
        }
    }

    #[test]
    fn many_generations_at_one_moment_never_mix() {
        let window = TimeWindow::new(10, 4);
        for generation in 0..2000 {
            window.begin(generation, false);
            assert_eq!(window.sum(generation, 0), (0, 0, 0));
            window.record(generation, 5, Mark { failed: false, slow: true });
            assert_eq!(window.sum(generation, 0), (1, 0, 1));
        }
        assert_eq!(window.successes(), 2000);
    }
}
