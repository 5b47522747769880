//! Many simulations, on as many threads as there are cores, and what they came to.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use parking_lot::Mutex;

use super::{
    mutant::Mutant,
    run::{Outcome, simulate},
};

/// After so many simulations somebody who looks is told how far it is.
const TOLD: u64 = 100;
/// How much of a trace is printed.
const LAST_LINES: usize = 60;

/// What many simulations came to.
#[derive(Default)]
pub(super) struct Summary {
    seeds: u64,
    counts: BTreeMap<&'static str, u64>,
    /// The one with the lowest seed of those in which something was wrong.
    pub(super) failed: Option<Outcome>,
}

impl Summary {
    /// Simulates what comes of each of the seeds, until something is wrong that is said in these words.
    pub(super) fn of(seeds: Range<u64>, mutant: Mutant, words: &str) -> Self {
        let (next, summary) = (AtomicU64::new(seeds.start), Mutex::new(Self::default()));
        let (stop, is_one) = (AtomicBool::new(false), seeds.end - seeds.start == 1);
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return;
                }
                let outcome = simulate(seed, mutant, is_one);
                let is_wrong = outcome.broken.iter().any(|why| why.contains(words));
                stop.fetch_or(is_wrong, Ordering::Relaxed);
                summary.lock().add(outcome, is_wrong);
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        summary.into_inner()
    }

    /// How often something was met.
    pub(super) fn count(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or_default()
    }

    fn add(&mut self, outcome: Outcome, is_wrong: bool) {
        self.seeds += 1;
        for (what, count) in &outcome.counts {
            *self.counts.entry(what).or_default() += count;
        }
        if self.seeds.is_multiple_of(TOLD) {
            println!("{self}");
        }
        let is_first = self.failed.as_ref().is_none_or(|failed| outcome.seed < failed.seed);
        if is_wrong && is_first {
            self.failed = Some(outcome);
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} seeds", self.seeds)?;
        self.counts.iter().try_for_each(|(what, count)| write!(f, ", {count} {what}"))
    }
}

impl Outcome {
    /// What is wrong, and how to see it again.
    pub(super) fn report(&self) -> String {
        let Self { seed, broken, digest, lines, .. } = self;
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        format!(
            "SEED={seed}: {}\n{last}\ntrace {digest:016x}, {} lines; again and whole: ./just simulate 1 {seed}",
            broken.join("; "),
            lines.len()
        )
    }
}
