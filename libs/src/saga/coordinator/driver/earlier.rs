//! What whoever drove a saga before may still call.

use std::time::Duration;

use tokio::time::Instant;

use super::in_flight::InFlight;
use crate::{
    rpc::verdict::Op,
    saga::{
        machine::{self, Due},
        record::Record,
    },
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

    /// How long a call of this, or of what it undoes, may be under way yet that ends so long after the saga was taken up at the latest.
    pub(super) fn rest(&self, due: Due, most: Duration) -> Option<Duration> {
        // An undoing that was begun since may be of an action that was given up before.
        let may_be = due.op == Op::Compensation || self.calls.contains(due);
        let rest = most.saturating_sub(self.since.elapsed());
        (may_be && !rest.is_zero()).then_some(rest)
    }
}
