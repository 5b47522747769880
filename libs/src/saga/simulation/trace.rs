//! What happened in a simulation, in order: counted, hashed, and printed when somebody looks.

use std::{collections::BTreeMap, fmt, time::Duration};

use sha2::{Digest as _, Sha256};

/// The trace of one simulation.
#[derive(Default)]
pub(super) struct Trace {
    hash: Sha256,
    lines: Vec<String>,
    is_shown: bool,
    counts: BTreeMap<&'static str, u64>,
}

impl Trace {
    /// An empty one, which prints each line if it is `shown`.
    pub(super) fn new(is_shown: bool) -> Self {
        Self { is_shown, ..Self::default() }
    }

    /// Notes that something happened.
    pub(super) fn note(&mut self, at: Duration, what: fmt::Arguments<'_>) {
        let line = format!("{:>9.3} {what}", at.as_secs_f64());
        self.hash.update(line.as_bytes());
        self.hash.update(b"\n");
        if self.is_shown {
            println!("{line}");
        }
        self.lines.push(line);
    }

    /// Counts something of which the summary tells.
    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// What was counted.
    pub(super) fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }

    /// A number that two traces share if they are the same.
    pub(super) fn digest(&self) -> u64 {
        let hash = self.hash.clone().finalize();
        hash.iter().take(8).fold(0, |digest, byte| digest << 8 | u64::from(*byte))
    }

    /// All of it, a line each.
    pub(super) fn lines(&self) -> &[String] {
        &self.lines
    }
}
