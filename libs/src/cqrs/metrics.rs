//! The write side as OpenTelemetry metrics.
//!
//! `docs/operations.md` has them in a table.

use opentelemetry::metrics::Meter;

use super::CommandSide;
use crate::journal::Stats;

impl CommandSide {
    /// Has the journal behind the commands observed by a meter.
    pub fn observe(&self, meter: &Meter) {
        let count = |name, unit, description, read: fn(Stats) -> u64| {
            let journal = self.journal.clone();
            // The instrument lives as long as its meter's provider; this handle is not needed.
            let _counter = meter
                .u64_observable_counter(name)
                .with_unit(unit)
                .with_description(description)
                .with_callback(move |observer| observer.observe(read(journal.stats()), &[]))
                .build();
        };
        count("journal.commits", "{transaction}", "Transactions committed.", |stats| stats.commits);
        count("journal.entries", "{entry}", "Entries decided, repetitions included.", |stats| stats.entries);
        count("journal.slow_decisions", "{decision}", "Decisions that held up the others.", |stats| {
            stats.slow_decisions
        });
    }
}
