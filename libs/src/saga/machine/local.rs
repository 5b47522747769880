//! Work of our own that is refused for now: it waits, and is asked for again.

use std::time::Duration;

use proto::saga::v1::StepState;

use super::{Line, Turn, attempt::is_long, later};
use crate::{
    refusal::Refusal,
    saga::record::{EndingWaits, next_attempt, shorten},
};

/// The shortest wait, and the longest, that such a refusal may ask for.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// What a history says of an ending that waits.
const ENDING_WAITS: &str = "ending refused for now";

impl Turn<'_> {
    /// Written down once for each reason, not each time: thousands may wait for the same room. A shutdown is none to write down.
    pub(super) fn step_waits(&mut self, step: usize, asked: Duration, refusal: &Refusal) {
        let wait = asked.clamp(WAITS.0, WAITS.1);
        let begun = &mut self.record.kept.steps[step].started_micros;
        if *begun == 0 {
            *begun = self.moment.now;
        }
        let begun = *begun;
        let known = self.record.saga.steps[step].last_error == refusal.message;
        self.wait(step, wait, &refusal.message);
        self.moved.changed |= !known && !self.moment.draining;
        self.tell_of_refusals(begun, wait, Some(step), refusal);
    }

    /// Likewise.
    pub(super) fn ending_waits(&mut self, asked: Duration, refusal: &Refusal) {
        let wait = asked.clamp(WAITS.0, WAITS.1);
        let since = self.record.ending.map_or(self.moment.now, |ending| ending.since);
        self.record.ending = Some(EndingWaits { since, until: later(self.moment.now, wait) });
        let last = self.record.saga.history.last();
        let known = last.is_some_and(|last| last.what == ENDING_WAITS && last.detail == shorten(&refusal.message));
        if !known && !self.moment.draining {
            self.note(Line { what: ENDING_WAITS, detail: &refusal.message, ..Line::default() });
        }
        self.tell_of_refusals(since, wait, None, refusal);
    }

    fn tell_of_refusals(&mut self, since: i64, wait: Duration, step: Option<usize>, refusal: &Refusal) {
        if is_long(since, self.moment.now, wait) {
            let what = "a saga's work of our own is refused for long: see why, the saga goes on asking";
            self.alert(what, step, refusal);
        }
    }

    /// True while a step of our own that was refused for now is not to be asked for.
    pub(super) fn is_put_off(&self, step: usize) -> bool {
        next_attempt(&self.record.saga.steps[step]) > self.moment.now
    }

    /// True for a step of our own that was refused for now and is still to be done.
    pub(super) fn was_put_off(&self, step: usize) -> bool {
        let begun = self.record.kept.steps[step].started_micros > 0;
        begun && self.plan.steps[step].is_local() && self.state(step) == StepState::Unspecified
    }
}
