//! How old what a task knows of its saga is, by a clock that may be set meanwhile.

use std::time::Duration;

use tokio::time::Instant;

use super::Driver;
use crate::saga::{
    coordinator::Shared,
    machine::{self, Due},
    record::changed_at,
};

/// What must be done before a call may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Age {
    /// Nothing.
    Young,
    /// Look whether the saga is still this process's. Nothing is written: thousands may wait for one participant, and each looks again and
    /// again.
    OfOwner,
    /// Commit it anew: participants count a call's age from its record, and it says how long the call is waited for.
    OfRecord,
}

/// How often who sleeps looks at the clock.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(60);

impl Driver {
    /// Waits were told by a clock that was ahead, if it was put back since: they would take as much longer.
    pub(super) fn heed_clock(&mut self) {
        let now = self.shared.now();
        if now < std::mem::replace(&mut self.seen_micros, now) {
            machine::clock_put_back(&self.program.plan, &mut self.record, now);
            // Nor do the times that it showed tell anything once they come again.
            (self.own_time, self.known.micros) = (false, 0);
        }
    }

    /// When the saga last changed, in microseconds since 1970; 0 if that was by a clock that was ahead, so that nobody knows.
    fn changed_micros(&self) -> i64 {
        self.past(changed_at(&self.record.saga))
    }

    /// When the saga was last known to be this process's, likewise. The time of another's commit is none, however right it looks: that clock may
    /// have been ahead, and this one be there since.
    pub(super) fn known_micros(&self) -> i64 {
        let changed = if self.own_time { self.changed_micros() } else { 0 };
        changed.max(self.past(self.known.micros))
    }

    fn past(&self, at: i64) -> i64 {
        if at > self.shared.now() { 0 } else { at }
    }

    /// Whether a call is due on a record that is too old for it to count, or says that it is given less time; or on one whose owner was last
    /// known too long ago: the saga may have gone on with another process since, and an operator have settled the step there. Whoever has the
    /// saga now waits only for calls of before it took the saga up.
    pub(super) fn age(&self) -> Age {
        let (now, counts) = (self.shared.now(), self.shared.counts() / 2);
        let (changed, known) = (self.changed_micros(), self.known_micros());
        let age = |due: Due| {
            let step = &self.program.plan.steps[due.step];
            if now > machine::later(changed, counts) || machine::is_given_more(&self.program.plan, &self.record, due) {
                Age::OfRecord
            } else if step.is_remote() && self.shared.must_look(known, Duration::ZERO, step.options.attempt_timeout) {
                Age::OfOwner
            } else {
                Age::Young
            }
        };
        let due = machine::due(&self.record, |due| self.in_flight.contains(due), now);
        due.into_iter().map(age).max().unwrap_or(Age::Young)
    }
}

/// Sleeps so long, or until the clock shows that it is so late: it may have been put forward. Ends where it was put back since it was seen.
pub(super) async fn sleep(shared: &Shared, seen_micros: &mut i64, wait: Option<Duration>) {
    let (wait, begun) = (wait.unwrap_or_default(), Instant::now());
    let until = machine::later(shared.now(), wait);
    loop {
        let now = shared.now();
        let by_clock = Duration::from_micros(u64::try_from(until.saturating_sub(now)).unwrap_or_default());
        let left = wait.saturating_sub(begun.elapsed()).min(by_clock);
        if left.is_zero() || now < *seen_micros {
            return;
        }
        *seen_micros = now;
        tokio::time::sleep(left.min(LOOK_AT_CLOCK)).await;
    }
}
