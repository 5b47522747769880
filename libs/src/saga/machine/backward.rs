//! The way back: undoing what may have happened, last things first.

use proto::saga::v1::{SagaPhase, StepState};

use super::{Line, Local, Turn, each, elapsed, in_states, owed, until_none_comes};
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
        let none_comes = until_none_comes(&self.plan.steps[step], self.moment.now);
        let not_before = kept.compensation_not_before_micros.min(none_comes);
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
        if self.plan.has_ending && !(self.may_begin() && self.claim_local(Local::Ending)) {
            return;
        }
        self.enter(SagaPhase::Compensated);
        self.note(Line { what: "compensated", ..Line::default() });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::{
        refusal::Refusal,
        saga::{
            Compensated, Definition, Operation,
            machine::{Attempt, Command, Input, Moment, Wish, advance, later, next_wake, taken_up},
            reply::Ruling,
        },
    };

    macro_rules! operation {
        ($($name:ident)*) => { $(
            struct $name;
            impl Operation for $name {
                const PEER: &'static str = "peer";
                const PATH: &'static str = concat!("/test.v1.Test/", stringify!($name));
                type Request = i64;
                type Reply = i64;
            }
        )* };
    }

    operation!(Do Undo);

    impl Compensated for Do {
        type Compensation = Undo;
    }

    /// The action may come late, so its undoing waits: as long as that takes, whatever the clock was when it was called.
    #[test]
    fn a_clock_that_was_ahead_holds_no_undoing_back_for_ever() {
        let timeout = Duration::from_secs(5);
        let mut saga = Definition::builder::<i64>("test", 1);
        saga.compensatable::<Do>("do", |input, _| Ok(*input), |_| 0);
        saga.without_barrier().attempt_timeout(timeout);
        let definition = saga.build().expect("a definition");
        let (today, ahead) = (1_000_000, 365 * 86_400 * 1_000_000);
        let at = |now| Moment { now, draining: false };
        let mut record = definition.plan.new_record("s", Vec::new(), ahead, 0);
        advance(&*definition, &mut record, Input::Tick, at(ahead)).expect("begun");
        let lost = Attempt {
            step: 0,
            op: Op::Action,
            ruling: Some(Ruling::Retry),
            reply: Bytes::new(),
            refusal: Refusal::precondition("LOST", "as the test says"),
            roll: 0.0,
        };
        advance(&*definition, &mut record, Input::Attempted(lost), at(ahead)).expect("lost");
        let cancel = Command { wish: Wish::Cancel, actor: "ann".to_owned(), reason: "as the test says".to_owned() };
        advance(&*definition, &mut record, Input::Operator(cancel), at(ahead)).expect("it turns back");
        assert_eq!(record.saga.steps[0].state(), StepState::Compensating);
        taken_up(&definition.plan, &mut record, today);
        assert_eq!(next_wake(&definition.plan, &record, |_| false), Some(later(today, timeout * 3)));
    }
}
