//! What a record asks for: the calls that are due, and when to look again.

use proto::saga::v1::{SagaPhase, StepState};

use super::{each, in_states, later, owed};
use crate::{
    rpc::verdict::Op,
    saga::{
        plan::Plan,
        record::{Record, is_final, next_attempt},
    },
};

/// A call to make now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::saga) struct Due {
    pub(in crate::saga) step: usize,
    pub(in crate::saga) op: Op,
}

/// The operations that have begun and whose end is not known.
pub(in crate::saga) fn begun(record: &Record) -> impl Iterator<Item = Due> {
    let open = |states, op| each(in_states(record, states)).map(move |step| Due { step, op });
    let actions = open(&[StepState::Started], Op::Action);
    let compensations = open(&[StepState::Compensating], Op::Compensation);
    let held = |due: &Due| record.kept.steps[due.step].held;
    actions.chain(compensations).filter(move |due| !held(due))
}

/// Whether a call may be under way, here or from before, that would undo what an operator settles of an operation. Of an undoing that could
/// not be asked for it is one of its action, as nobody was told to keep that out.
pub(in crate::saga) fn may_be_called(record: &Record, due: Due) -> bool {
    let (shown, kept) = (&record.saga.steps[due.step], &record.kept.steps[due.step]);
    let turned_back = record.kept.stuck_from() == SagaPhase::Compensating;
    let never_left = due.op == Op::Compensation && turned_back && kept.held && shown.compensation_attempts == 0;
    never_left || begun(record).any(|open| open == due)
}

/// The calls to make now: of what has begun, what neither waits nor is `in_flight`.
///
/// Only a committed record may be asked: that is what makes the log go before the act.
pub(in crate::saga) fn due(record: &Record, in_flight: impl Fn(Due) -> bool, now: i64) -> Vec<Due> {
    if record.saga.paused || is_final(record.saga.phase()) {
        return Vec::new();
    }
    let waits = |due: &Due| next_attempt(&record.saga.steps[due.step]) > now;
    begun(record).filter(|due| !waits(due) && !in_flight(*due)).collect()
}

/// Counts a call that leaves, and answers its number, from 1.
pub(in crate::saga) fn leaves(record: &mut Record, due: Due) -> u32 {
    // The first call was counted when its operation began.
    let counted = record.fresh & (1 << due.step) != 0;
    record.fresh &= !(1 << due.step);
    let step = record.step_mut(due.step);
    step.next_attempt_time = None;
    let calls = match due.op {
        Op::Action => &mut step.attempts,
        Op::Compensation => &mut step.compensation_attempts,
    };
    *calls = calls.saturating_add(u32::from(!counted));
    *calls
}

/// When the record asks for something although nothing happens.
pub(in crate::saga) fn next_wake(plan: &Plan, record: &Record, in_flight: impl Fn(Due) -> bool) -> Option<i64> {
    if record.saga.paused || is_final(record.saga.phase()) {
        return None;
    }
    let calls = begun(record).filter(|due| !in_flight(*due)).map(|due| next_attempt(&record.saga.steps[due.step]));
    let phase = record.saga.phase();
    let start = (phase == SagaPhase::Scheduled && !record.queued).then_some(record.kept.start_micros);
    let turns_back = matches!(phase, SagaPhase::Scheduled | SagaPhase::Forward) && pivot_not_begun(plan, record);
    // What has done all of its own keeps its deadline for nothing: only the saga above can have it turn back.
    let bound = record.kept.deadline_micros > 0 && !record.kept.awaits_parent;
    let deadline = (turns_back && bound).then_some(record.kept.deadline_micros);
    let started = in_states(record, &[StepState::Started]);
    let steps = each(if turns_back { started } else { 0 }).filter_map(|step| step_deadline(plan, record, step));
    calls.chain(start).chain(deadline).chain(steps).chain(put_off(plan, record)).min()
}

/// When work of our own is asked for again that was refused for now.
fn put_off(plan: &Plan, record: &Record) -> Option<i64> {
    match record.saga.phase() {
        SagaPhase::Forward => {
            let waiting = each(in_states(record, &[StepState::Unspecified]));
            waiting.map(|step| next_attempt(&record.saga.steps[step])).filter(|at| *at > 0).min()
        }
        SagaPhase::Compensating if owed(plan, record) == 0 => record.ending.map(|ending| ending.until),
        _ => None,
    }
}

/// When a step's action is given up.
pub(super) fn step_deadline(plan: &Plan, record: &Record, step: usize) -> Option<i64> {
    let deadline = plan.steps[step].options.deadline?;
    Some(later(record.kept.steps[step].started_micros, deadline))
}

fn pivot_not_begun(plan: &Plan, record: &Record) -> bool {
    plan.pivot().is_none_or(|pivot| record.saga.steps[pivot].state() == StepState::Unspecified)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::saga::{Definition, operation::operations};

    operations! { Note undone by Note; }

    /// There is none to be settled: an operator who says so is told that, and has nothing to wait for.
    #[test]
    fn what_holds_a_saga_up_on_its_way_forward_is_no_undoing_that_waits() {
        let mut saga = Definition::builder::<i64>("pack", 1);
        saga.compensatable::<Note>("note", |input, _| Ok(*input), |undo| undo.request);
        let definition = saga.build().expect("a definition");
        let mut record = definition.plan.new_record("s", Vec::new(), 1, 0);
        record.step_mut(0).set_state(StepState::Started);
        record.saga.set_phase(SagaPhase::Stuck);
        record.kept.steps[0].held = true;
        let undoing = Due { step: 0, op: Op::Compensation };
        for (from, waits) in [(SagaPhase::Forward, false), (SagaPhase::Compensating, true)] {
            record.kept.set_stuck_from(from);
            assert_eq!(may_be_called(&record, undoing), waits);
        }
    }

    #[test]
    fn what_waits_for_the_saga_above_is_not_woken_by_its_own_deadline() {
        let mut saga = Definition::builder::<i64>("pack", 1);
        saga.deadline(Duration::from_secs(30));
        saga.compensatable::<Note>("note", |input, _| Ok(*input), |undo| undo.request);
        let definition = saga.build().expect("a definition");
        let mut record = definition.plan.new_record("s:pack", Vec::new(), 1, 0);
        record.saga.set_phase(SagaPhase::Forward);
        record.kept.deadline_micros = 30_000_000;
        assert_eq!(next_wake(&definition.plan, &record, |_| false), Some(30_000_000));
        record.step_mut(0).set_state(StepState::Done);
        record.kept.awaits_parent = true;
        assert_eq!(next_wake(&definition.plan, &record, |_| false), None);
    }
}
