//! The way forward: starting what is ready, noticing that the saga must turn back.

use bytes::Bytes;
use proto::saga::v1::{Reason, SagaPhase, StepKind, StepState};

use super::{Line, Local, Turn, each, elapsed, in_states, keep_timeout, outlook::step_deadline, owed};
use crate::{
    refusal::Refusal,
    rpc::verdict::Op,
    saga::record::{MOST_BYTES, reason, too_late},
};

impl Turn<'_> {
    pub(super) fn go_forward(&mut self) {
        self.check_deadlines();
        while self.phase() == SagaPhase::Forward {
            if let Some(reason) = self.why_turn_back() {
                self.turn_back(reason);
                return;
            }
            if !self.start_one() {
                break;
            }
        }
        if self.phase() == SagaPhase::Forward && self.is_settled() {
            if self.record.kept.bound {
                return self.await_parent();
            }
            self.enter(SagaPhase::Completed);
            self.note(Line { what: "completed", ..Line::default() });
        }
    }

    fn is_settled(&self) -> bool {
        self.settled().count_ones() as usize == self.plan.steps.len()
    }

    /// The steps that are behind the saga.
    fn settled(&self) -> u64 {
        in_states(self.record, &[StepState::Done, StepState::Skipped])
    }

    /// Starts a step that is ready, if there is one and it may begin.
    fn start_one(&mut self) -> bool {
        if !self.may_begin() {
            return false;
        }
        let settled = self.settled();
        let waiting = in_states(self.record, &[StepState::Unspecified]);
        let ready = each(waiting).find(|step| self.plan.steps[*step].after & !settled == 0 && !self.is_put_off(*step));
        let Some(step) = ready else { return false };
        if self.plan.steps[step].is_local() { self.take_local(step) } else { self.start(step) }
    }

    fn start(&mut self, step: usize) -> bool {
        let request = match self.program.request(step, self.record).and_then(|request| self.has_room(step, request)) {
            Ok(request) => request,
            Err(refusal) => {
                self.refused(step, &refusal);
                return true;
            }
        };
        if self.plan.steps[step].is_saga() {
            self.bear(step);
        }
        let kept = &mut self.record.kept.steps[step];
        kept.request = request;
        kept.started_micros = self.moment.now;
        kept.may_have_run = true;
        keep_timeout(&self.plan.steps[step], kept);
        self.record.fresh |= 1 << step;
        self.record.step_mut(step).attempts = 1;
        self.set_state(step, StepState::Started);
        let line = Line { what: "action started", step: Some(step), op: Some(Op::Action), ..Line::default() };
        self.note(Line { attempt: 1, ..line });
        true
    }

    /// Refuses a request that makes the record too large, while the saga can still turn back. After that it must get through.
    fn has_room(&self, step: usize, request: Bytes) -> Result<Bytes, Refusal> {
        let bytes = self.record.message_bytes() + request.len();
        if bytes <= MOST_BYTES || self.plan.steps[step].kind == StepKind::Retriable {
            return Ok(request);
        }
        let name = self.plan.steps[step].name;
        let message = format!(
            "with the request of {name} the saga would keep {bytes} bytes of messages, and {MOST_BYTES} are allowed"
        );
        Err(Refusal::precondition("SAGA_TOO_LARGE", message).with("step", name))
    }

    /// A step of our own: begun and done in one transition.
    fn take_local(&mut self, step: usize) -> bool {
        if !self.claim_local(Local::Step(step)) {
            return false;
        }
        self.record.kept.steps[step].started_micros = self.moment.now;
        let shown = self.record.step_mut(step);
        shown.attempts += 1;
        let attempt = shown.attempts;
        self.done(step, attempt);
        true
    }

    /// An action took effect.
    pub(super) fn done(&mut self, step: usize, attempt: u32) {
        let took = elapsed(self.record.kept.steps[step].started_micros, self.moment.now);
        let shown = self.record.step_mut(step);
        shown.action_duration = Some(took);
        shown.next_attempt_time = None;
        shown.last_error.clear();
        self.set_state(step, StepState::Done);
        let line = Line { what: "action done", step: Some(step), op: Some(Op::Action), attempt, ..Line::default() };
        self.note(line);
    }

    fn check_deadlines(&mut self) {
        if self.record.saga.paused || !self.can_turn_back() {
            return;
        }
        let deadline = self.record.kept.deadline_micros;
        if deadline > 0 && self.moment.now >= deadline && !self.is_settled() {
            let refusal = too_late("DEADLINE_PASSED", "the saga's deadline passed before its pivot was started");
            self.turn_back(reason("", &refusal));
            return;
        }
        for step in each(in_states(self.record, &[StepState::Started])) {
            if step_deadline(self.plan, self.record, step).is_some_and(|deadline| self.moment.now >= deadline) {
                self.abandon(step, &too_late("STEP_DEADLINE_PASSED", "the step's deadline passed"));
            }
        }
    }

    /// A step's action is given up without knowing its outcome: it will be undone.
    pub(super) fn abandon(&mut self, step: usize, refusal: &Refusal) {
        self.give_up(step, StepState::Abandoned, refusal);
        self.leave_open(step);
        let line = Line { what: "action given up", step: Some(step), op: Some(Op::Action), ..Line::default() };
        self.note(Line { detail: &refusal.message, ..line });
    }

    /// The reason of the first step that was refused or given up. None of them lies after the pivot.
    fn why_turn_back(&self) -> Option<Reason> {
        let lost = in_states(self.record, &[StepState::Rejected, StepState::Abandoned]);
        let step = each(lost).next()?;
        Some(self.record.kept.steps[step].refusal.as_deref().cloned().unwrap_or_default())
    }

    /// Decides to undo everything. Nothing is sent until this is durable.
    pub(super) fn turn_back(&mut self, reason: Reason) {
        for step in each(in_states(self.record, &[StepState::Started])) {
            self.record.kept.steps[step].held = false;
            self.leave_open(step);
        }
        self.record.kept.set_stuck_from(SagaPhase::Unspecified);
        self.record.kept.awaits_parent = false;
        self.record.saga.waits_for_saga_id.clear();
        let owed = owed(self.plan, self.record).count_ones();
        let detail = format!("{}: {} ({owed} to undo)", reason.reason, reason.message);
        self.note(Line { what: "turned back", detail: &detail, ..Line::default() });
        self.record.saga.reason = Some(reason);
        self.enter(SagaPhase::Compensating);
    }
}
