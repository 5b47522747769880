//! The way back: undoing what may have happened, last things first.

use proto::saga::v1::{SagaPhase, StepState};

use super::{Line, Local, Turn, each, elapsed, in_states, owed};
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
        if self.plan.has_ending && !(self.may_begin() && self.claim_local(Local::Ending)) {
            return;
        }
        self.enter(SagaPhase::Compensated);
        self.note(Line { what: "compensated", ..Line::default() });
    }
}
