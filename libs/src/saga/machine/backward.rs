//! The way back: undoing what may have happened, last things first.

use proto::saga::v1::{SagaPhase, StepState};

use super::{Line, Local, Turn, each, elapsed, in_states, keep_timeout, owed};
use crate::{rpc::verdict::Op, time::timestamp};

impl Turn<'_> {
    pub(super) fn go_back(&mut self) {
        if self.may_begin() {
            let undoing = in_states(self.record, &[StepState::Compensating]);
            let owed = owed(self.plan, self.record);
            for step in each(owed & !undoing) {
                // What comes after a step is undone before it; branches are undone side by side.
                let free = self.plan.steps[step].descendants & owed == 0;
                if free && !self.record.kept.steps[step].held {
                    self.start_undoing(step);
                }
            }
        }
        if self.phase() == SagaPhase::Compensating && owed(self.plan, self.record) == 0 {
            self.end();
        }
    }

    fn start_undoing(&mut self, step: usize) {
        let request = match self.program.compensation(step, self.record) {
            Ok(request) => request,
            Err(refusal) => {
                self.get_stuck(Some(step), &refusal);
                return;
            }
        };
        let kept = &mut self.record.kept.steps[step];
        kept.compensation_request = request;
        kept.compensation_started_micros = self.moment.now;
        keep_timeout(&self.plan.steps[step], kept);
        let not_before = kept.compensation_not_before_micros;
        self.record.fresh |= 1 << step;
        let shown = self.record.step_mut(step);
        shown.compensation_attempts = 1;
        shown.next_attempt_time = (not_before > self.moment.now).then(|| timestamp(not_before));
        shown.last_error.clear();
        self.set_state(step, StepState::Compensating);
        let line =
            Line { what: "compensation started", step: Some(step), op: Some(Op::Compensation), ..Line::default() };
        self.note(Line { attempt: 1, ..line });
    }

    /// A compensation took effect, or there was nothing to undo.
    pub(super) fn undone(&mut self, step: usize, attempt: u32) {
        let kept = &mut self.record.kept.steps[step];
        kept.may_have_run = false;
        let took = elapsed(kept.compensation_started_micros, self.moment.now);
        let shown = self.record.step_mut(step);
        shown.compensation_duration = Some(took);
        shown.next_attempt_time = None;
        shown.last_error.clear();
        self.set_state(step, StepState::Compensated);
        let line = Line { what: "compensation done", step: Some(step), op: Some(Op::Compensation), ..Line::default() };
        self.note(Line { attempt, ..line });
    }

    fn end(&mut self) {
        let waits = self.record.ending.is_some_and(|ending| ending.until > self.moment.asked);
        if self.plan.has_ending && (waits || !(self.may_begin() && self.claim_local(Local::Ending))) {
            return;
        }
        self.enter(SagaPhase::Compensated);
        self.note(Line { what: "compensated", ..Line::default() });
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use bytes::Bytes;

    use super::*;
    use crate::{
        refusal::Refusal,
        saga::{
            Definition,
            machine::{Attempt, Command, Input, Moment, Wish, advance, clock_put_back, later, next_wake, taken_up},
            operation::operations,
            record::Record,
            reply::Ruling,
        },
    };

    operations! {
        Do undone by Undo;
        Undo;
    }

    const SECOND: i64 = 1_000_000;

    fn at(now: i64) -> Moment {
        Moment::at(now)
    }

    fn definition(timeout: Duration) -> Arc<Definition> {
        let mut saga = Definition::builder::<i64>("test", 1);
        saga.compensatable::<Do>("do", |input, _| Ok(*input), |_| 0);
        saga.without_barrier().attempt_timeout(timeout);
        saga.build().expect("a definition")
    }

    /// A saga whose step is called.
    fn begun(definition: &Definition, now: i64) -> Record {
        let mut record = definition.plan.new_record("s", Vec::new(), now, 0);
        advance(definition, &mut record, Input::Tick, at(now)).expect("begun");
        record
    }

    /// A saga whose step may have taken effect, or may do so yet.
    fn called(definition: &Definition, now: i64) -> Record {
        let mut record = begun(definition, now);
        lost(definition, &mut record, now);
        record
    }

    /// A call was not answered.
    fn lost(definition: &Definition, record: &mut Record, now: i64) {
        let lost = Attempt {
            step: 0,
            op: Op::Action,
            ruling: Some(Ruling::Retry),
            reply: Bytes::new(),
            refusal: Refusal::precondition("LOST", "as the test says"),
            roll: 0.0,
        };
        advance(definition, record, Input::Attempted(lost), at(now)).expect("lost");
    }

    fn asked(definition: &Definition, record: &mut Record, wish: Wish, now: i64) {
        let command = Command { wish, actor: "ann".to_owned(), reason: "as the test says".to_owned() };
        advance(definition, record, Input::Operator(command), at(now)).expect("it may be asked for");
    }

    /// As it is called, and turned back at once.
    fn turned_back(definition: &Definition, now: i64) -> Record {
        let mut record = called(definition, now);
        asked(definition, &mut record, Wish::Cancel, now);
        assert_eq!(record.saga.steps[0].state(), StepState::Compensating);
        record
    }

    fn undone_at(definition: &Definition, record: &Record) -> Option<i64> {
        next_wake(&definition.plan, record, |_| false)
    }

    /// The action may come late, so its undoing waits: as long as that takes, whatever the clock was when it was called.
    #[test]
    fn a_clock_that_was_ahead_holds_no_undoing_back_for_ever() {
        let timeout = Duration::from_secs(5);
        let definition = definition(timeout);
        let (today, ahead) = (SECOND, 365 * 86_400 * SECOND);
        let mut record = turned_back(&definition, ahead);
        taken_up(&definition.plan, &mut record, today);
        assert_eq!(undone_at(&definition, &record), Some(later(today, timeout * 3)));
    }

    /// It was given up just now, by the clock of whoever did.
    #[test]
    fn a_clock_that_was_behind_has_nothing_undone_early() {
        let timeout = Duration::from_secs(5);
        let definition = definition(timeout);
        let today = 86_400 * SECOND;
        let mut record = turned_back(&definition, today - 20 * SECOND);
        taken_up(&definition.plan, &mut record, today);
        assert_eq!(undone_at(&definition, &record), Some(later(today, timeout * 3)));
    }

    /// The call that may come late was made with the timeout of before.
    #[test]
    fn a_timeout_that_is_less_by_now_has_nothing_undone_early() {
        let (before, now) = (definition(Duration::from_secs(60)), definition(Duration::from_secs(5)));
        let today = 86_400 * SECOND;
        let late = |given_up: i64| Some(given_up + 180 * SECOND);
        let mut record = turned_back(&before, today);
        taken_up(&now.plan, &mut record, today + SECOND);
        assert_eq!(undone_at(&now, &record), late(today + SECOND));
        asked(&now, &mut record, Wish::Retry, today + 2 * SECOND);
        assert_eq!(undone_at(&now, &record), late(today + SECOND), "an operator's impatience");
        // Nor where the clock is put back.
        clock_put_back(&now.plan, &mut record, today - 60 * SECOND);
        assert_eq!(undone_at(&now, &record), late(today - 60 * SECOND));
        // Nor where it is called again, and given up then.
        let mut record = called(&before, today);
        taken_up(&now.plan, &mut record, today + SECOND);
        lost(&now, &mut record, today + 2 * SECOND);
        asked(&now, &mut record, Wish::Cancel, today + 3 * SECOND);
        assert_eq!(undone_at(&now, &record), late(today + 3 * SECOND));
    }

    #[test]
    fn a_timeout_that_is_less_since_a_call_left_has_nothing_undone_early() {
        let (before, now) = (definition(Duration::from_secs(60)), definition(Duration::from_secs(5)));
        let today = 86_400 * SECOND;
        let mut record = begun(&before, today);
        taken_up(&now.plan, &mut record, today + SECOND);
        asked(&now, &mut record, Wish::Cancel, today + 2 * SECOND);
        assert_eq!(undone_at(&now, &record), Some(today + 182 * SECOND));
    }

    #[test]
    fn what_was_begun_before_timeouts_were_kept_goes_by_the_one_of_today() {
        let timeout = Duration::from_secs(5);
        let (before, now) = (definition(Duration::from_secs(60)), definition(timeout));
        let today = 86_400 * SECOND;
        let mut record = begun(&before, today);
        record.kept.steps[0].attempt_timeout_micros = 0;
        taken_up(&now.plan, &mut record, today);
        asked(&now, &mut record, Wish::Cancel, today);
        assert_eq!(undone_at(&now, &record), Some(later(today, timeout * 3)));
    }
}
