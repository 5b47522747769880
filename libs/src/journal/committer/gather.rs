//! What becomes one batch.
//!
//! While one batch is being committed the next one gathers; only under load, where a batch of many is about to be followed by one of
//! few, does it wait a little for more.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{MOST_BYTES, MOST_ENTRIES, Waiting, apart::Suspects};

/// How long a batch waits for as many entries as the one before it had, and how many of those are worth waiting for.
const LINGER: Duration = Duration::from_millis(5);
const FEW: usize = 8;
/// How often it looks for more. After such a while without one no more are on their way: those who will ask again wait for this batch
/// first.
const GAP: Duration = Duration::from_millis(1);
/// The same of one that gives way to others between two looks: where nobody has anything to do it looks a hundred times.
const SHORT_GAP: Duration = Duration::from_micros(100);

/// Gathers one batch after another.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// How many entries are worth waiting for.
    expected: usize,
    /// Whether it waits by giving its processor to whoever has something to do.
    gives_way: bool,
    /// Those who are a batch of their own.
    pub(super) suspects: Suspects,
    /// One of them, who is the next.
    held: Option<Waiting>,
}

impl Gathering {
    /// One on a thread of its own. Under load those whom it gives way to are those who bring more, and where nobody is waiting for the
    /// processor it is back at once: a sleep is as long in either case, and longer than a batch takes.
    pub(super) fn on_own_thread() -> Self {
        Self { gives_way: true, ..Self::default() }
    }

    /// Takes what waits, and what comes while that is worth waiting for. Answers how many bytes it is; None once the journal is closed and
    /// nothing waits.
    pub(super) async fn next(
        &mut self,
        waiting: &mut mpsc::Receiver<Waiting>,
        batch: &mut Vec<Waiting>,
    ) -> Option<usize> {
        let gives_way = self.gives_way;
        let first = match self.held.take() {
            Some(held) => held,
            None => waiting.recv().await?,
        };
        let mut size = first.entry.size;
        let is_alone = self.suspects.take(&first.entry);
        batch.push(first);
        if is_alone {
            return Some(size);
        }
        // Who only gives way moves no clock on that stands still until all sleep, as a test's does: that one waits by the machine's.
        let (begin, really) = (Instant::now(), std::time::Instant::now());
        let waited = || if gives_way { really.elapsed() } else { begin.elapsed() };
        let gap = if gives_way { SHORT_GAP } else { GAP };
        loop {
            let before = batch.len();
            while batch.len() < MOST_ENTRIES
                && size < MOST_BYTES
                && let Ok(next) = waiting.try_recv()
            {
                if self.suspects.have(&next.entry) {
                    self.held = Some(next);
                    break;
                }
                size += next.entry.size;
                batch.push(next);
            }
            let is_full = batch.len() >= MOST_ENTRIES || size >= MOST_BYTES || batch.len() >= self.expected;
            let none_came = batch.len() == before && waited() >= gap;
            if is_full || self.held.is_some() || none_came || waited() >= LINGER {
                break;
            }
            // Not for the next entry: being woken for each costs more than all that it brings.
            if gives_way {
                std::thread::yield_now();
            } else {
                sleep(GAP).await;
            }
        }
        self.expected = if batch.len() < FEW { 0 } else { batch.len() };
        Some(size)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::journal::{Cause, Decided, Entry, Loaded};

    /// A committer's thread is on the clock of whoever has opened the journal, and a test may have stopped that.
    #[test]
    fn who_gives_way_waits_no_longer_where_a_clock_stands_still() {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            let (submit, mut waiting) = mpsc::channel(1);
            let decide = Box::new(|_: &Loaded<'_>| Decided::default());
            let entry = Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size: 100 };
            assert!(submit.try_send(Waiting { entry, answer: oneshot::channel().0 }).is_ok());
            let mut gathering = Gathering { expected: 2 * FEW, ..Gathering::on_own_thread() };
            let mut batch = Vec::new();
            let size = runtime.expect("a runtime").block_on(gathering.next(&mut waiting, &mut batch));
            let _ = tell.send((size, batch.len()));
        });
        assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok((Some(100), 1)));
    }
}
