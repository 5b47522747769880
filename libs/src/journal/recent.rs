//! The last events of the log, in memory: whoever follows it closely is spared the way to the database and back.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::RwLock;

use super::log::Event;

/// The last events of a log that this process alone writes. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Recent(Arc<RwLock<Events>>);

/// Events without a gap between them.
#[derive(Debug, Default)]
struct Events {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
}

impl Recent {
    const MOST_BYTES: usize = 8 << 20;
    /// About what an event takes beside its texts.
    const OVERHEAD: usize = 200;

    /// The events after a position, in order, at most `limit`. None if the first of them isn't held any more: the database has it.
    #[must_use]
    pub fn after(&self, position: i64, limit: usize) -> Option<Vec<Event>> {
        let held: Vec<Arc<Event>> = {
            let Events { events, .. } = &*self.0.read();
            let first = events.front()?.position;
            let skipped = usize::try_from(position.checked_add(1)?.checked_sub(first)?).ok()?.min(events.len());
            events.range(skipped..).take(limit).cloned().collect()
        };
        Some(held.into_iter().map(Arc::unwrap_or_clone).collect())
    }

    /// Takes in what a commit added to the log.
    pub(super) fn learn(&self, added: impl IntoIterator<Item = Event>) {
        let added: Vec<Arc<Event>> = added.into_iter().map(Arc::new).collect();
        let mut recent = self.0.write();
        let Events { events, bytes } = &mut *recent;
        for event in added {
            *bytes += size(&event);
            events.push_back(event);
        }
        while *bytes > Self::MOST_BYTES {
            let Some(oldest) = events.pop_front() else { break };
            *bytes -= size(&oldest);
        }
    }
}

fn size(event: &Event) -> usize {
    Recent::OVERHEAD + event.id.len() + event.payload.len() + event.cause.len() + event.traceparent.len()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn event(position: i64, bytes: usize) -> Event {
        Event { position, payload: Bytes::from(vec![0; bytes]), ..Event::default() }
    }

    fn positions(events: Option<Vec<Event>>) -> Option<Vec<i64>> {
        events.map(|events| events.iter().map(|event| event.position).collect())
    }

    #[test]
    fn what_is_held_comes_in_order_and_what_is_not_is_never_skipped() {
        let recent = Recent::default();
        assert_eq!(recent.after(0, 10), None, "nothing is known yet");
        recent.learn((5..8).map(|position| event(position, 0)));
        recent.learn([event(8, 0)]);
        assert_eq!(positions(recent.after(4, 10)), Some(vec![5, 6, 7, 8]));
        assert_eq!(positions(recent.after(5, 2)), Some(vec![6, 7]));
        assert_eq!(positions(recent.after(8, 10)), Some(vec![]));
        assert_eq!(positions(recent.after(100, 10)), Some(vec![]));
        assert_eq!(recent.after(3, 10), None, "4 is in the database alone");
        assert_eq!(recent.after(i64::MIN, 10), None);
        assert_eq!(recent.after(i64::MAX, 10), None);
    }

    #[test]
    fn the_oldest_go_when_it_is_full() {
        let recent = Recent::default();
        for position in 1..=100 {
            recent.learn([event(position, Recent::MOST_BYTES / 10)]);
        }
        assert_eq!(recent.after(50, 1), None);
        assert_eq!(positions(recent.after(98, 10)), Some(vec![99, 100]));
    }
}
