//! What whoever drove a saga before may still call.

use std::time::Duration;

use tokio::time::Instant;

use super::in_flight::InFlight;
use crate::saga::{
    machine::{self, Due},
    record::Record,
};

/// The calls that may be under way since before this process took a saga up.
#[derive(Debug)]
pub(super) struct Earlier {
    calls: InFlight,
    since: Instant,
}

impl Earlier {
    /// Those of a saga that is taken up just now.
    pub(super) fn of(record: &Record) -> Self {
        let mut calls = InFlight::default();
        machine::begun(record).for_each(|due| calls.begin(due));
        Self { calls, since: Instant::now() }
    }

    /// How long a call may be under way yet that ends so long after the saga was taken up at the latest.
    pub(super) fn rest(&self, due: Due, most: Duration) -> Option<Duration> {
        let rest = most.saturating_sub(self.since.elapsed());
        (self.calls.contains(due) && !rest.is_zero()).then_some(rest)
    }
}
