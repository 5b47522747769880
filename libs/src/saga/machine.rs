//! The state machine: a saga's record and something that happened in, the next record and what to start out. Pure.
//!
//! ```text
//!            every step done
//! FORWARD ───────────────────▶ COMPLETED
//!    │ refused, cancelled,
//!    │ late, given up             nothing left to undo
//!    ├─────────▶ COMPENSATING ───────────────────────▶ COMPENSATED
//!    │                │
//!    └──▶ STUCK ◀─────┘   an operator takes it back, or closes it: FORCE_CLOSED
//! ```
//!
//! Once the pivot has started nothing turns the saga back: what is left is tried for ever.

use proto::saga::v1::{HistoryEntry, Operation, Reason, SagaPhase, SagaRecord, Step as StepView, StepKind, StepState};

use super::definition::Definition;
use crate::{rpc::verdict::Op, time::timestamp};

/// How many entries of its history a saga keeps.
const MOST_HISTORY: usize = 64;

/// What happened to a saga.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Input {
    /// It begins.
    Begin,
    /// An operation came to an end.
    Ended { step: usize, op: Op, attempt: u32, end: End },
    /// An attempt failed, the next one follows at a time.
    Failed { step: usize, op: Op, attempt: u32, error: String, next_micros: i64 },
    /// Its deadline passed.
    DeadlinePassed,
    /// An operator's word.
    Operator { actor: String, reason: String, order: Order },
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum End {
    /// It took effect; the reply.
    Done(bytes::Bytes),
    /// It was refused and had no effect.
    Rejected(Reason),
    /// It can't be told what to do: a conflict, a tombstone, a request that can't be built.
    Puzzled(Reason),
    /// It was given up; its effect is unknown.
    GivenUp(Reason),
}

/// What an operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Turn back.
    Cancel,
    /// Send now what waits; leave STUCK.
    Retry,
    /// An operation of a STUCK saga took effect, or had none.
    Skip { step: usize, op: Op, done: bool },
    /// Close a STUCK saga as it is.
    ForceClose,
    /// Start nothing more.
    Pause,
    /// Go on.
    Resume,
}

/// Why an operator's word was not obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disobeyed {
    /// The pivot has started.
    PastPivot,
    /// The saga has ended.
    Closed,
    /// It is not stuck.
    NotStuck,
    /// The operation is not waiting for anybody.
    Settled,
}

/// True for a phase that never changes again.
pub(super) fn is_final(phase: SagaPhase) -> bool {
    matches!(phase, SagaPhase::Completed | SagaPhase::Compensated | SagaPhase::ForceClosed)
}

/// A saga under its definition.
pub(super) struct Machine<'a> {
    pub(super) definition: &'a Definition,
    pub(super) record: &'a mut SagaRecord,
    pub(super) now_micros: i64,
}

impl Machine<'_> {
    /// Takes in what happened. Answers the operations to start: each is marked as started, and may leave once the record is
    /// durable.
    pub(super) fn take(&mut self, input: Input) -> Result<Vec<(usize, Op)>, Disobeyed> {
        if is_final(self.phase()) {
            return Err(Disobeyed::Closed);
        }
        match input {
            Input::Begin => self.set_phase(SagaPhase::Forward),
            Input::Ended { step, op, attempt, end } => {
                if !self.is_running(step, op) {
                    // It was settled meanwhile: given up, skipped, or answered twice.
                    return Ok(Vec::new());
                }
                self.ended(step, op, attempt, end);
            }
            Input::Failed { step, op, attempt, error, next_micros } => {
                if !self.is_running(step, op) {
                    return Ok(Vec::new());
                }
                self.count_attempt(step, op, attempt);
                let view = self.view(step);
                view.next_attempt_time = Some(timestamp(next_micros));
                view.last_error.clone_from(&error);
                self.note(Some((step, op)), "attempt failed", attempt, error, "");
            }
            Input::DeadlinePassed => {
                let reason = reason_of("", "DEADLINE_PASSED", "the saga's deadline passed");
                if self.phase() == SagaPhase::Forward && !self.past_pivot() {
                    self.turn_back(reason);
                }
            }
            Input::Operator { actor, reason, order } => self.obey(&actor, &reason, order)?,
        }
        Ok(self.start())
    }

    fn ended(&mut self, step: usize, op: Op, attempt: u32, end: End) {
        self.count_attempt(step, op, attempt);
        let now = self.now_micros;
        let record = &mut self.record.steps[step];
        let since = if op == Op::Action { record.started_micros } else { record.compensation_started_micros };
        if let (End::Done(reply), Op::Action) = (&end, op) {
            record.reply = reply.clone();
        }
        let past_pivot = self.past_pivot();
        let view = self.view(step);
        view.next_attempt_time = None;
        let duration = Some(duration(now - since));
        match op {
            Op::Action => view.action_duration = duration,
            Op::Compensation => view.compensation_duration = duration,
        }
        match (op, end) {
            (Op::Action, End::Done(_)) => {
                view.last_error.clear();
                self.set_state(step, StepState::Done);
                self.note(Some((step, op)), "action done", attempt, String::new(), "");
            }
            (Op::Compensation, End::Done(_)) => {
                view.last_error.clear();
                self.set_state(step, StepState::Compensated);
                self.note(Some((step, op)), "compensation done", attempt, String::new(), "");
            }
            (Op::Action, End::Rejected(reason)) => {
                view.last_error.clone_from(&reason.message);
                self.set_state(step, StepState::Rejected);
                self.record.steps[step].may_have_run = false;
                self.note(Some((step, op)), "action refused", attempt, reason.message.clone(), "");
                match self.definition.steps[step].kind {
                    StepKind::Retriable => self.stick(reason),
                    _ if self.phase() == SagaPhase::Forward => self.turn_back(reason),
                    _ => {}
                }
            }
            (Op::Action, End::GivenUp(reason)) if !past_pivot => {
                view.last_error.clone_from(&reason.message);
                self.set_state(step, StepState::Abandoned);
                self.note(Some((step, op)), "action given up", attempt, reason.message.clone(), "");
                if self.phase() == SagaPhase::Forward {
                    self.turn_back(reason);
                }
            }
            (_, End::Rejected(reason) | End::GivenUp(reason) | End::Puzzled(reason)) => {
                view.last_error.clone_from(&reason.message);
                self.note(Some((step, op)), "waits for an operator", attempt, reason.message.clone(), "");
                self.stick(reason);
            }
        }
    }

    fn obey(&mut self, actor: &str, why: &str, order: Order) -> Result<(), Disobeyed> {
        let stuck = self.phase() == SagaPhase::Stuck;
        let what = match order {
            Order::Cancel if self.past_pivot() => return Err(Disobeyed::PastPivot),
            Order::Cancel => {
                let going_forward =
                    self.phase() == SagaPhase::Forward || (stuck && self.record.stuck_from() == SagaPhase::Forward);
                if going_forward {
                    self.turn_back(reason_of("", "CANCELLED", why));
                }
                "cancel asked"
            }
            Order::Retry => {
                if stuck {
                    let from = self.record.stuck_from();
                    self.set_phase(from);
                }
                "retry asked"
            }
            Order::Skip { .. } | Order::ForceClose if !stuck => return Err(Disobeyed::NotStuck),
            Order::Skip { step, op, .. } if !self.is_running(step, op) => return Err(Disobeyed::Settled),
            Order::Skip { step, op, done } => {
                let from = self.record.stuck_from();
                self.set_phase(from);
                let state = match (op, done) {
                    (Op::Action, true) => StepState::Skipped,
                    (Op::Action, false) => StepState::Rejected,
                    // What an operator knows about a compensation settles it either way.
                    (Op::Compensation, _) => StepState::Compensated,
                };
                self.set_state(step, state);
                let record = &mut self.record.steps[step];
                record.may_have_run &= op == Op::Action && done;
                if state == StepState::Rejected && !self.past_pivot() && from == SagaPhase::Forward {
                    let name = self.definition.steps[step].name;
                    self.turn_back(reason_of(name, "SKIPPED", why));
                }
                if done { "skipped as done" } else { "skipped as refused" }
            }
            Order::ForceClose => {
                self.set_phase(SagaPhase::ForceClosed);
                "closed by force"
            }
            Order::Pause => {
                self.saga().paused = true;
                "paused"
            }
            Order::Resume => {
                self.saga().paused = false;
                "resumed"
            }
        };
        let step = if let Order::Skip { step, op, .. } = order { Some((step, op)) } else { None };
        self.note(step, what, 0, why.to_owned(), actor);
        Ok(())
    }

    /// Marks what can start as started, and ends the saga when nothing is left.
    fn start(&mut self) -> Vec<(usize, Op)> {
        if self.record.saga.as_ref().is_some_and(|saga| saga.paused) {
            return Vec::new();
        }
        match self.phase() {
            SagaPhase::Forward => self.start_actions(),
            SagaPhase::Compensating => self.start_compensations(),
            _ => Vec::new(),
        }
    }

    fn start_actions(&mut self) -> Vec<(usize, Op)> {
        let settled = self.mask(|state, _| matches!(state, StepState::Done | StepState::Skipped));
        if settled.count_ones() as usize == self.definition.steps.len() {
            self.set_phase(SagaPhase::Completed);
            return Vec::new();
        }
        let fresh = self.mask(|state, _| state == StepState::Unspecified);
        let ready: Vec<usize> = (0..self.definition.steps.len())
            .filter(|at| fresh & (1 << at) != 0 && self.definition.steps[*at].after & !settled == 0)
            .collect();
        for &at in &ready {
            self.set_state(at, StepState::Started);
            let now = self.now_micros;
            let record = &mut self.record.steps[at];
            record.started_micros = now;
            record.may_have_run = true;
        }
        ready.into_iter().map(|at| (at, Op::Action)).collect()
    }

    /// In reverse: a step is undone once everything that came after it and may have run is.
    fn start_compensations(&mut self) -> Vec<(usize, Op)> {
        let steps = &self.definition.steps;
        let to_undo = self.mask(|state, at| {
            steps[at].compensation.is_some() && self.record.steps[at].may_have_run && state != StepState::Compensated
        });
        if to_undo == 0 {
            self.set_phase(SagaPhase::Compensated);
            return Vec::new();
        }
        let under_way = self.mask(|state, _| state == StepState::Compensating);
        let ready: Vec<usize> = (0..steps.len())
            .filter(|at| to_undo & !under_way & (1 << at) != 0)
            .filter(|at| {
                !(0..steps.len())
                    .any(|later| to_undo & (1 << later) != 0 && self.definition.ancestors(later) & (1 << at) != 0)
            })
            .collect();
        for &at in &ready {
            self.set_state(at, StepState::Compensating);
            self.record.steps[at].compensation_started_micros = self.now_micros;
        }
        ready.into_iter().map(|at| (at, Op::Compensation)).collect()
    }

    /// From here on the saga undoes. What is on its way is given up: its effect is unknown, so it is undone too.
    fn turn_back(&mut self, reason: Reason) {
        for at in 0..self.definition.steps.len() {
            if self.state(at) == StepState::Started {
                self.set_state(at, StepState::Abandoned);
                self.view(at).next_attempt_time = None;
            }
        }
        self.set_phase(SagaPhase::Compensating);
        self.note(None, "turned back", 0, reason.message.clone(), "");
        self.saga().reason = Some(reason);
    }

    fn stick(&mut self, reason: Reason) {
        if self.phase() != SagaPhase::Stuck {
            let from = self.phase();
            self.record.set_stuck_from(from);
            self.set_phase(SagaPhase::Stuck);
        }
        // A saga that turned back keeps why; being stuck is told by the step and the history.
        if self.record.stuck_from() == SagaPhase::Forward {
            self.saga().reason = Some(reason);
        }
    }

    // === what the record says ===

    pub(super) fn phase(&self) -> SagaPhase {
        self.record.saga.as_ref().map_or(SagaPhase::Unspecified, |saga| saga.phase())
    }

    /// The operations whose outcome is unknown: what recovery sends again.
    pub(super) fn under_way(&self) -> Vec<(usize, Op)> {
        let running =
            |op| (0..self.definition.steps.len()).filter(move |at| self.is_running(*at, op)).map(move |at| (at, op));
        running(Op::Action).chain(running(Op::Compensation)).collect()
    }

    fn is_running(&self, step: usize, op: Op) -> bool {
        let running = if op == Op::Action { StepState::Started } else { StepState::Compensating };
        step < self.definition.steps.len() && self.state(step) == running
    }

    fn past_pivot(&self) -> bool {
        let steps = self.definition.steps.iter().enumerate();
        let mut pivots = steps.filter(|(_, step)| step.kind == StepKind::Pivot);
        pivots.any(|(at, _)| matches!(self.state(at), StepState::Started | StepState::Done | StepState::Skipped))
    }

    fn state(&self, step: usize) -> StepState {
        let view = self.record.saga.as_ref().and_then(|saga| saga.steps.get(step));
        view.map_or(StepState::Unspecified, StepView::state)
    }

    fn mask(&self, wanted: impl Fn(StepState, usize) -> bool) -> u64 {
        (0..self.definition.steps.len()).filter(|at| wanted(self.state(*at), *at)).fold(0, |mask, at| mask | 1 << at)
    }

    fn saga(&mut self) -> &mut proto::saga::v1::Saga {
        self.record.saga.get_or_insert_default()
    }

    fn view(&mut self, step: usize) -> &mut StepView {
        &mut self.saga().steps[step]
    }

    fn set_state(&mut self, step: usize, state: StepState) {
        self.view(step).set_state(state);
    }

    fn set_phase(&mut self, phase: SagaPhase) {
        self.saga().set_phase(phase);
    }

    fn count_attempt(&mut self, step: usize, op: Op, attempt: u32) {
        let view = self.view(step);
        match op {
            Op::Action => view.attempts = attempt,
            Op::Compensation => view.compensation_attempts = attempt,
        }
    }

    fn note(&mut self, at: Option<(usize, Op)>, what: &str, attempt: u32, detail: String, actor: &str) {
        let (time, definition) = (Some(timestamp(self.now_micros)), self.definition);
        let saga = self.saga();
        let operation = match at {
            None => Operation::Unspecified,
            Some((_, Op::Action)) => Operation::Action,
            Some((_, Op::Compensation)) => Operation::Compensation,
        };
        if saga.history.len() >= MOST_HISTORY {
            saga.history.remove(0);
        }
        saga.history.push(HistoryEntry {
            time,
            version: saga.version + 1,
            what: what.to_owned(),
            step: at.map_or_else(String::new, |(step, _)| definition.steps[step].name.to_owned()),
            operation: operation.into(),
            attempt,
            detail,
            actor: actor.to_owned(),
        });
    }
}

fn duration(micros: i64) -> prost_types::Duration {
    let micros = micros.max(0);
    let nanos = i32::try_from(micros % 1_000_000 * 1_000).unwrap_or_default();
    prost_types::Duration { seconds: micros / 1_000_000, nanos }
}

pub(super) fn reason_of(step: &str, reason: &str, message: &str) -> Reason {
    Reason { step: step.to_owned(), reason: reason.to_owned(), message: message.to_owned(), code: 0 }
}
