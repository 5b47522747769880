//! What a saga does next: a pure function of its record, what happened, and the time.
//!
//! ```text
//! SCHEDULED ──▶ FORWARD ───────────────▶ COMPLETED
//!                 │  ▲ │
//!                 │  │ └─────▶ STUCK ──▶ FORCE_CLOSED        an operator's only
//!                 ▼  │         ▲  │
//!          COMPENSATING ───────┘  └───▶ back to where it came from
//!                 └───────▶ COMPENSATED
//! ```
//!
//! One that is parked, in whatever phase, may be FORCE_CLOSED too: nobody can drive it, so it is closed past all this, by [`close_parked`].
//!
//! [`advance`] changes the record, and whoever drives the saga commits it before anything leaves. Then [`due`] says which calls
//! the record asks for, so that a driver that starts from a stored record does the same as one that never stopped.

mod attempt;
mod backward;
mod forward;
mod local;
mod locks;
mod operator;
mod outlook;
mod sub_sagas;

use std::time::Duration;

use proto::saga::v1::{SagaPhase, StepKind, StepRecord, StepState};

use self::local::spread;
pub(super) use self::{
    attempt::Attempt,
    locks::{HOLDER, NOT_QUEUED, asks_for_locks},
    operator::{Command, Settled, Wish, close_parked, is_undone, must_rest},
    outlook::{Due, begun, due, leaves, may_be_called, next_wake},
};
use super::{
    Definition,
    plan::{Plan, StepPlan, each},
    record::{Line, Record, STUCK, changed_at, is_final, next_attempt, reason, shorten},
};
use crate::{refusal::Refusal, rpc::verdict::Op, time::timestamp};

/// What happened.
#[derive(Clone, Debug)]
pub(super) enum Input {
    /// A call came to an end.
    Attempted(Attempt),
    /// Time has passed.
    Tick,
    /// A lock that the saga waits for may be free.
    Woken,
    /// The saga that this one is a step of has ended so.
    ParentEnded(SagaPhase),
    /// An operator asks for something.
    Operator(Command),
    /// The work of our own that the transition before asked for was refused; the record is the one from before it.
    LocalRefused {
        local: Local,
        refusal: Refusal,
        /// The chance in the wait, 0 to 1.
        roll: f64,
    },
}

/// Work of our own, to be done in the transition's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Local {
    /// A step's.
    Step(usize),
    /// What ends a compensated saga.
    Ending,
    /// Taking the saga's locks, all or none.
    Locks,
    /// Queueing for them.
    Queue,
}

/// When, and whether something new may begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Microseconds since 1970.
    pub(super) now: i64,
    /// When the first of what is asked for in one go was asked for: who was refused since, for a while, isn't asked again before all have
    /// been, however long that takes.
    pub(super) asked: i64,
    /// True while nothing new may begin because the coordinator is being shut down.
    pub(super) draining: bool,
}

impl Moment {
    pub(super) const fn at(now: i64) -> Self {
        Self { now, asked: now, draining: false }
    }
}

/// What became of a record.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// True if the record changed and must be committed.
    pub(super) changed: bool,
    /// The work of our own to be done in the same transaction, and the record to go back to if it is refused.
    pub(super) local: Option<(Local, Box<Record>)>,
    /// What somebody should know at once.
    pub(super) alert: Option<Alert>,
}

/// What somebody should know of a saga that goes neither on nor back.
pub(super) const IS_STUCK: &str = "a saga is stuck: an operator must settle what it names";

/// What somebody should know of a step, or of what ends a compensated saga.
#[derive(Debug)]
pub(super) struct Alert {
    pub(super) what: &'static str,
    /// The step's name; empty for the end.
    pub(super) step: &'static str,
    /// What was the matter with it just now.
    pub(super) error: String,
}

/// Takes a saga on by what happened. A command that is refused changes nothing.
pub(super) fn advance(
    program: &Definition,
    record: &mut Record,
    input: Input,
    moment: Moment,
) -> Result<Moved, Refusal> {
    // What comes late changes nothing; an operator is told so.
    if is_final(record.saga.phase()) && !matches!(input, Input::Operator(_)) {
        return Ok(Moved::default());
    }
    let mut turn = Turn { program, plan: &program.plan, record, moment, moved: Moved::default() };
    match input {
        Input::Tick => {}
        Input::Woken => turn.record.queued = false,
        Input::ParentEnded(phase) => turn.parent_ended(phase),
        Input::Attempted(attempt) => turn.attempted(attempt),
        Input::Operator(command) => turn.operator(&command)?,
        Input::LocalRefused { local, refusal, roll } => turn.local_refused(local, &refusal, roll),
    }
    turn.proceed();
    let moved = turn.moved;
    if moved.changed {
        renew(record, moment.now);
    }
    Ok(moved)
}

/// Makes a new version of a record, of which nothing else may have changed.
pub(super) fn renew(record: &mut Record, now: i64) {
    record.saga.version += 1;
    record.saga.update_time = Some(timestamp(now));
}

/// One move of one saga.
struct Turn<'a> {
    program: &'a Definition,
    plan: &'a Plan,
    record: &'a mut Record,
    moment: Moment,
    moved: Moved,
}

impl Turn<'_> {
    /// Does all that the record allows now.
    fn proceed(&mut self) {
        if self.phase() == SagaPhase::Scheduled && self.may_begin() && self.record.kept.start_micros <= self.moment.now
        {
            self.begin();
        }
        if matches!(self.phase(), SagaPhase::Scheduled | SagaPhase::Forward) {
            self.go_forward();
        }
        if goes_back(self.record) {
            self.go_back();
        }
    }

    fn phase(&self) -> SagaPhase {
        self.record.saga.phase()
    }

    fn enter(&mut self, phase: SagaPhase) {
        enter(self.record, phase);
        self.moved.changed = true;
    }

    /// True if an operation may begin: neither an operator nor a shutdown holds the saga.
    fn may_begin(&self) -> bool {
        !self.record.saga.paused && !self.moment.draining
    }

    fn state(&self, step: usize) -> StepState {
        self.record.saga.steps[step].state()
    }

    fn set_state(&mut self, step: usize, state: StepState) {
        self.record.step_mut(step).set_state(state);
        self.moved.changed = true;
    }

    fn note(&mut self, line: Line<'_>) {
        self.record.note(self.moment.now, line);
        self.moved.changed = true;
    }

    /// Stops before what only an operator can settle. What else is under way goes on.
    fn get_stuck(&mut self, step: Option<usize>, refusal: &Refusal) {
        let name = step.map(|step| self.plan.steps[step].name).unwrap_or_default();
        if let Some(step) = step {
            self.record.kept.steps[step].held = true;
        }
        if self.phase() != SagaPhase::Stuck {
            let from = self.phase();
            self.record.kept.set_stuck_from(from);
            let before = self.record.saga.reason.replace(reason(name, refusal));
            // It stays why the saga turned back.
            self.record.kept.turned_back_for = before.filter(|_| from == SagaPhase::Compensating);
            self.enter(SagaPhase::Stuck);
        }
        self.note(Line { what: STUCK, step, detail: &refusal.message, ..Line::default() });
        self.alert(IS_STUCK, step, refusal);
    }

    fn alert(&mut self, what: &'static str, step: Option<usize>, refusal: &Refusal) {
        let step = step.map(|step| self.plan.steps[step].name).unwrap_or_default();
        self.moved.alert = Some(Alert { what, step, error: shorten(&refusal.message) });
    }

    /// True while the saga may still turn back: its pivot has not begun, or was refused.
    fn can_turn_back(&self) -> bool {
        let pivot = self.plan.pivot();
        pivot.is_none_or(|pivot| matches!(self.state(pivot), StepState::Unspecified | StepState::Rejected))
    }

    /// Has work of our own done in this transition, if none is yet. The record as it is now is kept, to go back to.
    fn claim_local(&mut self, local: Local) -> bool {
        let free = self.moved.local.is_none();
        if free {
            self.moved.local = Some((local, Box::new(self.record.to_go_back_to(self.moved.changed))));
        }
        free
    }

    fn local_refused(&mut self, local: Local, refusal: &Refusal, roll: f64) {
        // An operator's word that came with the work was not stored with it.
        self.moved.changed |= self.record.must_be_saved();
        match (local, refusal.retry_after) {
            (Local::Step(step), Some(asked)) => self.step_waits(step, spread(asked, roll), refusal),
            (Local::Step(step), None) => self.refused(step, refusal),
            (Local::Ending, Some(asked)) => self.ending_waits(spread(asked, roll), refusal),
            (Local::Ending, None) => {
                self.record.kept.ending_held = true;
                self.get_stuck(None, refusal);
            }
            (Local::Locks, _) => self.locked(refusal),
            (Local::Queue, _) => self.turn_back(reason("", refusal)),
        }
    }

    /// An action will never take effect.
    fn refused(&mut self, step: usize, refusal: &Refusal) {
        self.give_up(step, StepState::Rejected, refusal);
        self.record.kept.steps[step].may_have_run = false;
        let attempt = self.record.saga.steps[step].attempts;
        let line = Line { what: "action rejected", step: Some(step), op: Some(Op::Action), attempt, ..Line::default() };
        self.note(Line { detail: &refusal.message, ..line });
        // Before the pivot, and at it, this turns the saga back; see `go_forward`.
        if self.plan.steps[step].kind == StepKind::Retriable {
            self.get_stuck(Some(step), refusal);
        }
    }

    fn give_up(&mut self, step: usize, state: StepState, refusal: &Refusal) {
        let reason = reason(self.plan.steps[step].name, refusal);
        let shown = self.record.step_mut(step);
        shown.last_error.clone_from(&reason.message);
        shown.next_attempt_time = None;
        self.record.kept.steps[step].refusal = Some(Box::new(reason));
        self.set_state(step, state);
    }

    /// Whether a step's action took effect will not be found out any more.
    fn leave_open(&mut self, step: usize) {
        self.may_come_late(step);
        self.record.step_mut(step).next_attempt_time = None;
        self.set_state(step, StepState::Abandoned);
    }

    /// A call of a step's action was not answered, and may be on its way. A participant with our barrier stops it if it comes after its
    /// undoing; of another one the undoing waits until nothing can come: a call waits for its turn, and then for its answer, as long as its
    /// timeout each, and as long again is left to the way.
    fn may_come_late(&mut self, step: usize) {
        may_come_late(&self.plan.steps[step], &mut self.record.kept.steps[step], self.moment.now);
    }
}

fn may_come_late(plan: &StepPlan, kept: &mut StepRecord, now: i64) {
    if plan.options.plain {
        // An earlier call may have had more time, which not every record says.
        let until = until_none_comes(plan, kept, now);
        kept.compensation_not_before_micros = kept.compensation_not_before_micros.max(until);
    }
}

/// When none of a step's calls can come any more, if the last one was made just now.
fn until_none_comes(plan: &StepPlan, kept: &StepRecord, now: i64) -> i64 {
    later(now, longest_timeout(plan, kept).saturating_mul(3))
}

/// The longest that a call of a step may have been given: timeouts change while sagas are under way.
pub(super) fn longest_timeout(plan: &StepPlan, kept: &StepRecord) -> Duration {
    let before = Duration::from_micros(u64::try_from(kept.attempt_timeout_micros).unwrap_or_default());
    plan.options.attempt_timeout.max(before)
}

/// Whether a call would be given longer than the record says of any. That must be committed before it leaves.
pub(super) fn is_given_more(plan: &Plan, record: &Record, due: Due) -> bool {
    let (plan, kept) = (&plan.steps[due.step], &record.kept.steps[due.step]);
    plan.is_remote() && later(0, plan.options.attempt_timeout) > kept.attempt_timeout_micros
}

/// Writes into the record how long the calls are given of all that is under way.
pub(super) fn keep_timeouts(plan: &Plan, record: &mut Record) {
    let open = begun(record).fold(0, |steps, due| steps | 1 << due.step);
    for step in each(open) {
        keep_timeout(&plan.steps[step], &mut record.kept.steps[step]);
    }
}

fn keep_timeout(plan: &StepPlan, kept: &mut StepRecord) {
    if plan.is_remote() {
        kept.attempt_timeout_micros = kept.attempt_timeout_micros.max(later(0, plan.options.attempt_timeout));
    }
}

/// What the record says of times to come was told by a clock that was ahead. Every wait between calls ends, and no undoing waits longer than
/// it would if its action had been called just now.
pub(super) fn clock_put_back(plan: &Plan, record: &mut Record, now: i64) {
    for (plan, kept) in plan.steps.iter().zip(&mut record.kept.steps) {
        kept.compensation_not_before_micros =
            kept.compensation_not_before_micros.min(until_none_comes(plan, kept, now));
    }
    record.call_at_once(now);
}

/// A record goes on in another process than the one that committed it. Waits were for the world before, so everything is called at once;
/// and what that process has called may be on its way yet, although nobody waits for its answer. How long ago that was nobody can tell by
/// two clocks, so it counts from now.
pub(super) fn taken_up(plan: &Plan, record: &mut Record, now: i64) {
    if changed_at(&record.saga) > now {
        clock_put_back(plan, record, now);
    }
    for (at, kept) in record.kept.steps.iter_mut().enumerate() {
        let (shown, not_before) = (&record.saga.steps[at], kept.compensation_not_before_micros);
        let may_come = match shown.state() {
            StepState::Started => true,
            // Else its wait is over, by the clock that it began by.
            StepState::Compensating => not_before > 0 && next_attempt(shown) == not_before,
            _ => not_before > 0 && kept.may_have_run,
        };
        if may_come {
            may_come_late(&plan.steps[at], kept, now);
        }
    }
    record.call_at_once(now);
}

impl Plan {
    /// The step of no return.
    pub(super) fn pivot(&self) -> Option<usize> {
        self.steps.iter().position(|step| step.kind == StepKind::Pivot)
    }
}

/// The steps whose effect must be undone if the saga turns back.
fn owed(plan: &Plan, record: &Record) -> u64 {
    let owes =
        |step: &usize| plan.steps[*step].kind == StepKind::Compensatable && record.kept.steps[*step].may_have_run;
    (0..plan.steps.len()).filter(owes).fold(0, |steps, step| steps | 1 << step)
}

/// True for a saga that is on its way back.
pub(super) fn goes_back(record: &Record) -> bool {
    match record.saga.phase() {
        SagaPhase::Stuck => record.kept.stuck_from() == SagaPhase::Compensating,
        phase => phase == SagaPhase::Compensating,
    }
}

/// What has ended waits for nobody and is held by nobody.
fn enter(record: &mut Record, phase: SagaPhase) {
    record.saga.set_phase(phase);
    if is_final(phase) {
        record.saga.waits_for_saga_id.clear();
        record.saga.paused = false;
    }
}

/// The steps in one of these states.
fn in_states(record: &Record, states: &[StepState]) -> u64 {
    let steps = record.saga.steps.iter().enumerate();
    steps.filter(|(_, step)| states.contains(&step.state())).fold(0, |steps, (at, _)| steps | 1 << at)
}

/// Between two points in time, as a message carries it.
fn elapsed(since: i64, now: i64) -> prost_types::Duration {
    let micros = now.saturating_sub(since).max(0);
    let nanos = i32::try_from(micros % 1_000_000 * 1_000).unwrap_or_default();
    prost_types::Duration { seconds: micros / 1_000_000, nanos }
}

/// A while after a point in time.
pub(super) fn later(now: i64, wait: Duration) -> i64 {
    now.saturating_add(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX))
}
