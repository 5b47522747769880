//! What the end of a call means to its saga.

use std::time::Duration;

use bytes::Bytes;
use proto::saga::v1::{StepKind, StepState};

use super::{Line, Turn, later};
use crate::{
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{record::shorten, reply::Ruling},
    time::timestamp,
};

/// How long to wait before asking again about what is pending, when the participant doesn't say.
const POLL: Duration = Duration::from_secs(1);
/// After so long somebody should know it of a step that is never called, or never done.
const LONG: Duration = Duration::from_secs(10 * 60);
/// After so many calls somebody should know that a step doesn't get done.
const MANY: u32 = 10;

/// A call that came to an end.
#[derive(Clone, Debug)]
pub(in crate::saga) struct Attempt {
    pub(in crate::saga) step: usize,
    pub(in crate::saga) op: Op,
    /// What the answer means. None if the call was never sent: a breaker refused it.
    pub(in crate::saga) ruling: Option<Ruling>,
    /// The reply, if it is done.
    pub(in crate::saga) reply: Bytes,
    /// The error, if it is not.
    pub(in crate::saga) refusal: Refusal,
    /// The chance in the next wait, 0 to 1.
    pub(in crate::saga) roll: f64,
}

impl Turn<'_> {
    pub(super) fn attempted(&mut self, attempt: Attempt) {
        let expected = match attempt.op {
            Op::Action => StepState::Started,
            Op::Compensation => StepState::Compensating,
        };
        // The saga has turned back meanwhile, or an operator has settled it: the answer means nothing any more.
        if self.state(attempt.step) != expected || self.record.kept.steps[attempt.step].held {
            return;
        }
        let (step, Attempt { refusal, .. }) = (attempt.step, &attempt);
        match (attempt.ruling, attempt.op) {
            (Some(Ruling::Done), Op::Action) => {
                let calls = self.calls(step, Op::Action);
                self.record.kept.steps[step].reply = attempt.reply;
                self.done(step, calls);
            }
            (Some(Ruling::Done), Op::Compensation) => self.undone(step, self.calls(step, Op::Compensation)),
            (Some(Ruling::Rejected), op) => {
                self.count_refusal(step, op);
                match op {
                    Op::Action => self.refused(step, refusal),
                    Op::Compensation => self.hold(&attempt),
                }
            }
            (Some(Ruling::Cancelled), _) => {
                // Somebody compensates what this saga is still doing.
                self.record.kept.steps[step].may_have_run = false;
                self.hold(&attempt);
            }
            (Some(Ruling::Conflict), _) => self.hold(&attempt),
            (Some(Ruling::GiveUp), _) => self.abandon(step, refusal),
            (Some(Ruling::Pending), _) => self.ask_again(&attempt),
            (Some(Ruling::Retry | Ruling::RetrySlowly), _) => self.failed(&attempt),
            (None, _) => self.not_sent(&attempt),
        }
    }

    fn calls(&self, step: usize, op: Op) -> u32 {
        let shown = &self.record.saga.steps[step];
        match op {
            Op::Action => shown.attempts,
            Op::Compensation => shown.compensation_attempts,
        }
    }

    /// What was refused and may be asked for anew is another call then: the participant keeps the refusal, and has it for every call
    /// that is the same.
    fn count_refusal(&mut self, step: usize, op: Op) {
        if op == Op::Compensation || self.plan.steps[step].kind == StepKind::Retriable {
            let refusals = &mut self.record.kept.steps[step].refusals;
            *refusals = refusals.saturating_add(1);
        }
    }

    /// What the participant says can't be settled by calling again.
    fn hold(&mut self, attempt: &Attempt) {
        self.record.step_mut(attempt.step).last_error = shorten(&attempt.refusal.message);
        self.get_stuck(Some(attempt.step), &attempt.refusal);
    }

    fn failed(&mut self, attempt: &Attempt) {
        let Attempt { step, op, ruling, refusal, roll, .. } = attempt;
        let plan = &self.plan.steps[*step];
        let calls = self.calls(*step, *op);
        let slowly = *ruling == Some(Ruling::RetrySlowly);
        let what = match op {
            Op::Action => "action failed",
            Op::Compensation => "compensation failed",
        };
        let retry = &plan.options.retry;
        let spent = retry.attempts.is_some_and(|most| calls >= most);
        let line = Line { what, step: Some(*step), op: Some(*op), attempt: calls, ..Line::default() };
        self.note(Line { detail: &refusal.message, ..line });
        if *op == Op::Action {
            self.may_come_late(*step);
        }
        if *op == Op::Action && plan.can_abort() && spent && !slowly {
            let refusal = Refusal { reason: "ATTEMPTS_SPENT".into(), ..refusal.clone() };
            self.abandon(*step, &refusal);
            return;
        }
        let wait = match refusal.retry_after {
            // As long as it asks, and a little more, so that not all come back at once.
            Some(asked) => longer(asked, roll / 10.0),
            None if slowly => retry.delay(u32::MAX, *roll),
            None => retry.delay(calls, *roll),
        };
        self.wait(*step, wait, &refusal.message);
        if slowly {
            let what =
                "a participant doesn't answer as one: see the step's last error and mend it, the saga goes on calling";
            self.alert(what, Some(*step), refusal);
        } else if calls.is_multiple_of(MANY) {
            let what = "a saga's step doesn't get done: see its last error, the saga goes on calling";
            self.alert(what, Some(*step), refusal);
        }
    }

    /// Under way at the participant: no failure, and nothing to write down.
    fn ask_again(&mut self, attempt: &Attempt) {
        self.uncount(attempt);
        let wait = attempt.refusal.retry_after.unwrap_or(POLL);
        self.tell_if_long(attempt, wait);
        self.record.step_mut(attempt.step).next_attempt_time = Some(timestamp(later(self.moment.now, wait)));
    }

    /// A breaker held it back. Written down once, not each time: thousands may wait for the same breaker.
    fn not_sent(&mut self, attempt: &Attempt) {
        self.uncount(attempt);
        let Attempt { step, refusal, roll, .. } = attempt;
        let wait = longer(refusal.retry_after.unwrap_or(POLL), roll / 2.0);
        self.tell_if_long(attempt, wait);
        let is_news = self.wait(*step, wait, &refusal.message);
        self.moved.changed |= is_news;
    }

    /// Has somebody told, once each time that so long has gone by since the operation began.
    fn tell_if_long(&mut self, attempt: &Attempt, wait: Duration) {
        let kept = &self.record.kept.steps[attempt.step];
        let begun = match attempt.op {
            Op::Action => kept.started_micros,
            Op::Compensation => kept.compensation_started_micros,
        };
        if is_long(begun, self.moment.now, wait) {
            let what = "a saga's step is under way for long: see its last error, the saga goes on calling";
            self.alert(what, Some(attempt.step), &attempt.refusal);
        }
    }

    /// True if it waits for another reason than it did.
    pub(super) fn wait(&mut self, step: usize, wait: Duration, error: &str) -> bool {
        let shown = self.record.step_mut(step);
        shown.next_attempt_time = Some(timestamp(later(self.moment.now, wait)));
        let before = std::mem::replace(&mut shown.last_error, shorten(error));
        shown.last_error != before
    }

    fn uncount(&mut self, attempt: &Attempt) {
        let shown = self.record.step_mut(attempt.step);
        match attempt.op {
            Op::Action => shown.attempts = shown.attempts.saturating_sub(1),
            Op::Compensation => shown.compensation_attempts = shown.compensation_attempts.saturating_sub(1),
        }
    }
}

/// True once each time that so long goes by, until the end of a wait, since something began.
pub(super) fn is_long(begun: i64, now: i64, wait: Duration) -> bool {
    let times = |at: i64| at.saturating_sub(begun).max(0).unsigned_abs() / LONG.as_micros() as u64;
    times(later(now, wait)) > times(now)
}

/// A little longer, by a share of it.
fn longer(wait: Duration, share: f64) -> Duration {
    Duration::try_from_secs_f64(wait.as_secs_f64() * (1.0 + share)).unwrap_or(wait)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tonic::Code;

    use super::*;
    use crate::saga::{
        Definition,
        machine::{Input, Moment, Moved, advance, leaves, outlook::Due},
        operation::operations,
        record::Record,
    };

    operations! { Ship; }

    #[test]
    fn of_a_step_that_a_breaker_or_its_participant_holds_up_somebody_is_told_every_ten_minutes() {
        const SECOND: i64 = 1_000_000;
        for ruling in [None, Some(Ruling::Pending)] {
            let mut saga = Definition::builder::<i64>("test", 1);
            saga.pivot::<Ship>("ship", |input, _| Ok(*input));
            let definition = saga.build().expect("a definition");
            let mut record = definition.plan.new_record("s", Vec::new(), 1, 0);
            let moment = Moment::at;
            advance(&definition, &mut record, Input::Tick, moment(SECOND)).expect("begun");
            let due = Due { step: 0, op: Op::Action };
            let mut told = Vec::new();
            for at in (10..=35 * 60).step_by(7) {
                leaves(&mut record, due);
                let refusal = Refusal::new(Code::Unavailable, "CIRCUIT_OPEN", "shipping is out");
                let refusal = Refusal { retry_after: Some(Duration::from_secs(7)), ..refusal };
                let attempt = Attempt { step: 0, op: Op::Action, ruling, reply: Bytes::new(), refusal, roll: 0.0 };
                let moved = advance(&definition, &mut record, Input::Attempted(attempt), moment(at * SECOND));
                if moved.expect("it waits").alert.is_some() {
                    told.push((at + 7) / 60);
                }
            }
            assert_eq!(told, [10, 20, 30], "{ruling:?}");
        }
    }

    fn called(record: &mut Record, definition: &Definition, ruling: Option<Ruling>, refusal: Refusal) -> Moved {
        let due = Due { step: 0, op: Op::Action };
        leaves(record, due);
        let attempt = Attempt { step: 0, op: Op::Action, ruling, reply: Bytes::new(), refusal, roll: 0.0 };
        advance(definition, record, Input::Attempted(attempt), Moment::at(1)).expect("its answer counts")
    }

    fn begun() -> (Arc<Definition>, Record) {
        let mut saga = Definition::builder::<i64>("test", 1);
        saga.pivot::<Ship>("ship", |input, _| Ok(*input));
        let definition = saga.build().expect("a definition");
        let mut record = definition.plan.new_record("s", Vec::new(), 0, 0);
        advance(&definition, &mut record, Input::Tick, Moment::at(0)).expect("begun");
        (definition, record)
    }

    /// As many sagas as there is room for may wait for the same participant.
    #[test]
    fn of_what_a_participant_says_a_saga_keeps_a_few_words_and_somebody_is_told_as_many() {
        let refusal = || Refusal::new(Code::Unavailable, "X".repeat(10_000), "x".repeat(10_000));
        let rulings = [Ruling::Retry, Ruling::RetrySlowly, Ruling::Conflict, Ruling::GiveUp, Ruling::Rejected];
        for ruling in rulings.map(Some).into_iter().chain([None]) {
            let (definition, mut record) = begun();
            let moved = called(&mut record, &definition, ruling, refusal());
            assert_eq!(record.saga.steps[0].last_error, "x".repeat(512), "{ruling:?}");
            let (transition, stored) = record.encode();
            assert!(transition.len() + stored.len() < 8192, "{ruling:?}");
            assert!(moved.alert.is_none_or(|alert| alert.error.len() <= 512), "{ruling:?}");
        }
    }

    #[test]
    fn what_holds_calls_back_is_written_down_once_however_long_it_is() {
        let (definition, mut record) = begun();
        let refusal = || Refusal::new(Code::Unavailable, "CIRCUIT_OPEN", "x".repeat(10_000));
        let written = [0, 1].map(|_| called(&mut record, &definition, None, refusal()).changed);
        assert_eq!(written, [true, false]);
    }
}
