//! What becomes one batch.
//!
//! While one batch is being committed the next one gathers; only under load, where a batch of many is about to be followed by one of
//! few, does it wait a little for more.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{MOST_BYTES, MOST_ENTRIES, Waiting};

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
        let first = waiting.recv().await?;
        let mut size = first.entry.size;
        batch.push(first);
        let begin = Instant::now();
        let gap = if self.gives_way { SHORT_GAP } else { GAP };
        loop {
            let before = batch.len();
            while batch.len() < MOST_ENTRIES
                && size < MOST_BYTES
                && let Ok(next) = waiting.try_recv()
            {
                size += next.entry.size;
                batch.push(next);
            }
            let is_full = batch.len() >= MOST_ENTRIES || size >= MOST_BYTES || batch.len() >= self.expected;
            let none_came = batch.len() == before && begin.elapsed() >= gap;
            if is_full || none_came || begin.elapsed() >= LINGER {
                break;
            }
            // Not for the next entry: being woken for each costs more than all that it brings.
            if self.gives_way {
                std::thread::yield_now();
            } else {
                sleep(GAP).await;
            }
        }
        self.expected = if batch.len() < FEW { 0 } else { batch.len() };
        Some(size)
    }
}
