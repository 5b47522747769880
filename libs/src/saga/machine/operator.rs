//! What operators ask for, each by name and with a reason, each written into the saga's history.

use proto::saga::v1::{Saga, SagaPhase, StepKind, StepState};

use super::{Line, Turn, enter, goes_back, renew};
use crate::{
    refusal::Refusal,
    rpc::verdict::Op,
    saga::record::{Record, cancelled, is_final},
};

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::saga) struct Command {
    pub(in crate::saga) wish: Wish,
    /// Who.
    pub(in crate::saga) actor: String,
    /// Why.
    pub(in crate::saga) reason: String,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::saga) enum Wish {
    /// Turn back.
    Cancel,
    /// Turn back, although the saga that this one is a step of may have taken it for done: that one asks for it.
    Withdraw,
    /// Call again now.
    Retry,
    /// Take an operation for settled.
    Skip { step: String, op: Op, settled: Settled },
    /// Close it as it is.
    ForceClose,
    /// Begin nothing more.
    Pause,
    /// Go on.
    Resume,
}

/// What an operator knows of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::saga) enum Settled {
    /// It took effect.
    Done,
    /// It had none.
    Rejected,
}

/// Refuses while the saga goes on by itself: what an operator finds at a participant would not stay.
pub(in crate::saga) fn must_rest(record: &Record) -> Result<(), Refusal> {
    let Saga { saga_id, paused, .. } = &record.saga;
    let phase = record.saga.phase();
    if phase == SagaPhase::Stuck || *paused {
        return Ok(());
    }
    let message = format!("saga {saga_id} is {}, not STUCK, and goes on: pause it before", name_of(phase));
    Err(Refusal::precondition("NOT_STUCK", message))
}

/// True for an action that is undone, or withdrawn, when an operator says that it had no effect: it may take it yet.
pub(in crate::saga) fn is_undone(op: Op, settled: Settled, kind: StepKind) -> bool {
    (op, settled, kind) == (Op::Action, Settled::Rejected, StepKind::Compensatable)
}

impl Turn<'_> {
    pub(super) fn operator(&mut self, command: &Command) -> Result<(), Refusal> {
        if is_final(self.phase()) {
            let message = format!("saga {} has ended", self.record.saga.saga_id);
            return Err(Refusal::precondition("SAGA_CLOSED", message));
        }
        match &command.wish {
            Wish::Cancel if self.record.kept.awaits_parent => Err(self.part_of_another()),
            Wish::Cancel | Wish::Withdraw => self.cancel(command),
            Wish::Retry => {
                self.audit(command, "retry asked", None);
                self.retry_now();
                Ok(())
            }
            Wish::Skip { step, op, settled } => self.skip(command, step, *op, *settled),
            Wish::ForceClose if self.record.kept.awaits_parent && self.phase() != SagaPhase::Stuck => {
                Err(self.part_of_another())
            }
            Wish::ForceClose => {
                must_rest(self.record)?;
                self.audit(command, "force-closed", None);
                self.enter(SagaPhase::ForceClosed);
                Ok(())
            }
            Wish::Pause => {
                self.hold_back(command, true, "paused");
                Ok(())
            }
            Wish::Resume => {
                self.hold_back(command, false, "resumed");
                Ok(())
            }
        }
    }

    fn audit(&mut self, command: &Command, what: &str, op: Option<(usize, Op)>) {
        let (step, op) = op.unzip();
        self.note(Line { what, step, op, attempt: 0, detail: &command.reason, actor: &command.actor });
    }

    fn hold_back(&mut self, command: &Command, paused: bool, what: &str) {
        if self.record.saga.paused != paused {
            self.record.saga.paused = paused;
            self.audit(command, what, None);
        }
    }

    fn cancel(&mut self, command: &Command) -> Result<(), Refusal> {
        if goes_back(self.record) {
            return Ok(());
        }
        if !self.can_turn_back() {
            let pivot = self.plan.pivot().map(|pivot| self.plan.steps[pivot].name).unwrap_or_default();
            let message = format!("saga {} has started {pivot} and can't turn back", self.record.saga.saga_id);
            return Err(Refusal::precondition("PAST_PIVOT", message).with("step", pivot));
        }
        self.audit(command, "cancel asked", None);
        self.turn_back(cancelled(&command.reason));
        Ok(())
    }

    /// Calls again what waits, and tries again what is held.
    fn retry_now(&mut self) {
        self.record.call_at_once(self.moment.now);
        self.record.kept.ending_held = false;
        for step in 0..self.plan.steps.len() {
            if !std::mem::take(&mut self.record.kept.steps[step].held) {
                continue;
            }
            match self.state(step) {
                StepState::Rejected => self.begin_again(step),
                // It leaves once more, and what was known to have had no effect may have one now.
                StepState::Started => self.record.kept.steps[step].may_have_run = true,
                _ => {}
            }
        }
        if self.phase() == SagaPhase::Stuck {
            self.leave_stuck();
        }
    }

    /// A Retriable that was refused: by its participant, which is called again, or before it left, so that it is made anew.
    fn begin_again(&mut self, step: usize) {
        let kept = &mut self.record.kept.steps[step];
        kept.refusal = None;
        let called = self.plan.steps[step].is_remote() && kept.started_micros > 0;
        kept.may_have_run = called;
        self.set_state(step, if called { StepState::Started } else { StepState::Unspecified });
    }

    fn leave_stuck(&mut self) {
        let from = self.record.kept.stuck_from();
        self.record.kept.set_stuck_from(SagaPhase::Unspecified);
        let turned_back_for = self.record.kept.turned_back_for.take();
        if from == SagaPhase::Forward || turned_back_for.is_some() {
            self.record.saga.reason = turned_back_for;
        }
        self.enter(from);
    }

    fn skip(&mut self, command: &Command, name: &str, op: Op, settled: Settled) -> Result<(), Refusal> {
        must_rest(self.record)?;
        let Some(step) = self.plan.steps.iter().position(|step| step.name == name) else {
            let message = format!("saga {} has no step {name}", self.record.saga.saga_id);
            return Err(Refusal::not_found("UNKNOWN_STEP", message));
        };
        let held = self.record.kept.steps[step].held;
        let open = match op {
            Op::Action => {
                let state = self.state(step);
                state == StepState::Started || (held && state == StepState::Rejected) || self.was_put_off(step)
            }
            Op::Compensation => self.state(step) == StepState::Compensating || (held && goes_back(self.record)),
        };
        if !open {
            let message = format!("{name} waits for nothing that could be skipped");
            return Err(Refusal::precondition("STEP_SETTLED", message));
        }
        if !held {
            self.must_be_known(step, op, settled)?;
        }
        let what = match settled {
            Settled::Done => "skipped as done",
            Settled::Rejected => "skipped as without effect",
        };
        self.audit(command, what, Some((step, op)));
        self.settle(step, op, settled, command);
        let held = self.record.kept.ending_held || self.record.kept.steps.iter().any(|step| step.held);
        if !held && self.phase() == SagaPhase::Stuck {
            self.leave_stuck();
        }
        Ok(())
    }

    /// Refuses what nobody can know of an operation that may still take effect.
    fn must_be_known(&self, step: usize, op: Op, settled: Settled) -> Result<(), Refusal> {
        let plan = &self.plan.steps[step];
        let unknown = |message: String| Err(Refusal::precondition("STEP_UNCERTAIN", message).with("step", plan.name));
        if is_undone(op, settled, plan.kind) {
            return Ok(());
        }
        match (op, settled, plan.kind) {
            _ if plan.is_saga() => {
                let below = &self.record.saga.steps[step].sub_saga_id;
                unknown(format!("{} is saga {below}, which goes on: settle what it waits for there", plan.name))
            }
            (Op::Action, Settled::Rejected, StepKind::Pivot) => unknown(format!(
                "a call of {} may still take effect, and what was done before it must not be undone then: skip it as DONE, have it called \
                 on, or force-close the saga",
                plan.name
            )),
            _ => Ok(()),
        }
    }

    fn settle(&mut self, step: usize, op: Op, settled: Settled, command: &Command) {
        let kind = self.plan.steps[step].kind;
        let shown = self.record.step_mut(step);
        shown.next_attempt_time = None;
        shown.last_error.clear();
        let kept = &mut self.record.kept.steps[step];
        let held = std::mem::take(&mut kept.held);
        match (op, settled) {
            (Op::Action, Settled::Done) => {
                kept.may_have_run = true;
                self.set_state(step, StepState::Skipped);
                // Should it be undone after all: a call of it may be on its way yet.
                if !held {
                    self.may_come_late(step);
                }
            }
            // A call of it may be on its way yet. Undoing it costs nothing where there was no effect, and keeps a late one out.
            (Op::Action, Settled::Rejected) if kind == StepKind::Compensatable && !held => {
                self.abandon(step, &Refusal::precondition("SKIPPED", command.reason.as_str()));
            }
            (Op::Action, Settled::Rejected) => {
                kept.may_have_run = false;
                if kind == StepKind::Retriable {
                    self.set_state(step, StepState::Skipped);
                } else {
                    // As if its participant had refused it: the saga turns back.
                    let refusal = Refusal::precondition("SKIPPED", command.reason.as_str());
                    self.give_up(step, StepState::Rejected, &refusal);
                }
            }
            (Op::Compensation, settled) => {
                kept.may_have_run = false;
                let undone = settled == Settled::Done;
                self.set_state(step, if undone { StepState::Compensated } else { StepState::Skipped });
            }
        }
    }
}

/// Closes a saga as it is, whatever its phase, that nobody can drive, and why. It needs no definition: that may be what is missing.
pub(in crate::saga) fn close_parked(record: &mut Record, why: &str, command: &Command, now: i64) {
    record.note(now, Line { what: "parked", detail: why, ..Line::default() });
    let Command { actor, reason, .. } = command;
    record.note(now, Line { what: "force-closed", detail: reason, actor, ..Line::default() });
    enter(record, SagaPhase::ForceClosed);
    renew(record, now);
}

fn name_of(phase: SagaPhase) -> &'static str {
    phase.as_str_name().trim_start_matches("SAGA_PHASE_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saga::{
        Definition,
        machine::{Input, Moment, advance, later, next_wake},
        operation::operations,
    };

    operations! { Ship undone by Ship; }

    /// Where no barrier is, a call of it may be on its way yet.
    #[test]
    fn what_was_settled_as_done_is_undone_when_none_of_its_calls_can_come_any_more() {
        let timeout = std::time::Duration::from_secs(5);
        let mut saga = Definition::builder::<i64>("test", 1);
        saga.compensatable::<Ship>("ship", |input, _| Ok(*input), |_| 0);
        saga.without_barrier().attempt_timeout(timeout);
        saga.pivot::<Ship>("decide", |input, _| Ok(*input));
        let definition = saga.build().expect("a definition");
        let mut record = definition.plan.new_record("s", Vec::new(), 1, 0);
        let moment = Moment::at(1);
        advance(&definition, &mut record, Input::Tick, moment).expect("begun");
        let skip = Wish::Skip { step: "ship".to_owned(), op: Op::Action, settled: Settled::Done };
        for wish in [Wish::Pause, skip, Wish::Cancel, Wish::Resume] {
            let command = Command { wish, actor: "ann".to_owned(), reason: "I have looked".to_owned() };
            advance(&definition, &mut record, Input::Operator(command), moment).expect("it may be asked for");
        }
        assert_eq!(record.saga.steps[0].state(), StepState::Compensating);
        let wakes = next_wake(&definition.plan, &record, |_| false);
        assert_eq!(wakes, Some(later(1, timeout * 3)));
    }
}
