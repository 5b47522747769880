//! Another service's events between their coming and their being kept.

use std::collections::VecDeque;

use super::log::{MOST_BYTES, bytes};
use crate::journal::Event;

/// Events that have come and that nobody has kept yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    held: VecDeque<Event>,
    /// What they take up.
    bytes: usize,
    /// Up to where all has come that is wanted.
    reached: i64,
    /// Up to where the caller has kept them.
    kept: i64,
    /// Where the log ends, if whoever sends them has said so.
    head: Option<i64>,
}

impl Inbox {
    /// How many are held at most, fewer if they are large; more waits where it comes from.
    const MOST: usize = 8192;

    /// Lets go of what the caller has kept. False if the caller goes on from further back than before: what it needs was let go, and
    /// must come again.
    pub(super) fn keep(&mut self, position: i64) -> bool {
        let forward = position >= self.kept;
        if !forward {
            self.go_on_from(position);
        }
        self.kept = position;
        self.reached = self.reached.max(position);
        self.held.retain(|event| event.position > position);
        self.bytes = bytes(&self.held);
        forward
    }

    /// Forgets what is held, and where the log ended: what comes next is what comes after the position, maybe from another log.
    pub(super) fn go_on_from(&mut self, position: i64) {
        self.held.clear();
        self.bytes = 0;
        self.reached = position;
        self.head = None;
    }

    /// Takes an event, unless it came before.
    pub(super) fn put(&mut self, event: Event) {
        if event.position > self.reached {
            self.reached = event.position;
            self.bytes += event.payload.len();
            self.held.push_back(event);
        }
    }

    /// Passes over what nobody wants.
    pub(super) fn pass(&mut self, position: i64) {
        self.reached = self.reached.max(position);
    }

    /// Takes the sender's word of where the log ends.
    pub(super) fn ends(&mut self, head: i64) {
        self.head = self.head.max(Some(head));
    }

    /// Where the log ends, as far as the sender has said.
    pub(super) const fn end(&self) -> Option<i64> {
        self.head
    }

    /// True if all has come that is wanted up to a position, or up to the end of a log that ends before it.
    pub(super) fn has_all(&self, position: i64) -> bool {
        self.reached >= self.head.map_or(position, |head| head.min(position))
    }

    /// Where the log ends for who has kept what came up to a position: there, where all has come and what followed is not wanted.
    pub(super) fn head_after(&self, position: i64) -> i64 {
        let holds = self.held.back().is_some_and(|event| event.position > position);
        let head = self.head.unwrap_or_default();
        if holds || self.reached < head { head.max(self.reached) } else { position }
    }

    /// What is held after a position.
    pub(super) fn after(&self, position: i64, limit: i64) -> Vec<Event> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        self.held.iter().filter(|event| event.position > position).take(limit).cloned().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.held.len() >= Self::MOST || self.bytes >= MOST_BYTES
    }

    pub(super) const fn reached(&self) -> i64 {
        self.reached
    }

    pub(super) const fn kept(&self) -> i64 {
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn event(position: i64) -> Event {
        Event { position, ..Event::default() }
    }

    #[test]
    fn large_events_fill_it_sooner_and_leave_room_when_they_are_kept() {
        let (mut inbox, payload) = (Inbox::default(), Bytes::from(vec![0; 1 << 20]));
        let mut fill = |kept: i64| {
            inbox.keep(kept);
            while !inbox.is_full() {
                inbox.put(Event { payload: payload.clone(), ..event(inbox.reached() + 1) });
            }
            inbox.after(kept, i64::MAX).len()
        };
        assert_eq!((fill(0), fill(3), fill(11)), (8, 8, 8));
        // What must come again fills it as well.
        assert_eq!(fill(1), 8);
        let small = Inbox::MOST as i64;
        inbox.keep(i64::from(u8::MAX));
        (0..small - 1).for_each(|_| inbox.put(event(inbox.reached() + 1)));
        assert!(!inbox.is_full());
        inbox.put(event(inbox.reached() + 1));
        assert!(inbox.is_full());
    }

    proptest! {
        /// A sender repeats and goes back as it likes; a reader keeps some of what it was handed, or begins further back.
        #[test]
        fn what_is_handed_out_follows_on_what_was_kept(
            steps in prop::collection::vec((0_i64..12, 1_usize..9, 0_i64..6, 0_u8..10), 1..60),
        ) {
            let (mut inbox, mut kept) = (Inbox::default(), 0);
            for (back, count, keep, turn) in steps {
                let begin = (inbox.reached() - back).max(0) + 1;
                (begin..).take(count).for_each(|position| inbox.put(event(position)));
                let handed: Vec<i64> = inbox.after(kept, i64::MAX).iter().map(|event| event.position).collect();
                prop_assert_eq!(handed, (kept + 1..=inbox.reached()).collect::<Vec<_>>());
                let next = if turn == 0 { kept / 2 } else { (kept + keep).min(inbox.reached()) };
                prop_assert_eq!(inbox.keep(next), next >= kept);
                prop_assert!(next >= kept || inbox.is_empty() && inbox.reached() == next);
                kept = next;
            }
        }
    }
}
