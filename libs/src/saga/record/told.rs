//! A record made anew from a saga's transitions, where the stored one can't be read.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message as _;
use proto::saga::v1::{LockState, Saga, SagaRecord, SagaTransition, StepRecord};

use super::{Record, RecordError, fold};

/// The line that every refusal which is counted leads to: see [`refusals`](StepRecord::refusals).
pub(in crate::saga) const STUCK: &str = "stuck";

impl Record {
    /// A saga's record as all its transitions tell of it, in order. What they don't hold is missing: what it was started with, and the
    /// bytes of its calls. So it can't be driven any more, but it can end: whom it called, what it locks and what is above and below it is
    /// known. A step may count as refused more often than it was, never less.
    ///
    /// # Errors
    /// Where a transition can't be read, or none is there.
    pub(in crate::saga) fn told(transitions: impl IntoIterator<Item = Bytes>) -> Result<Self, RecordError> {
        let (mut saga, mut refusals) = (Saga::default(), HashMap::<String, u32>::new());
        for bytes in transitions {
            let transition = SagaTransition::decode(bytes)?;
            for line in transition.history.iter().filter(|line| line.what == STUCK) {
                *refusals.entry(line.step.clone()).or_default() += 1;
            }
            fold(&mut saga, transition);
        }
        if saga.steps.is_empty() {
            return Err(RecordError::Incomplete);
        }
        // As in a record that was read: all of it is in the log.
        saga.history.clear();
        let refusals = |name: &str| refusals.get(name).copied().unwrap_or_default();
        let steps =
            saga.steps.iter().map(|step| StepRecord { refusals: refusals(&step.name), ..StepRecord::default() });
        let mut kept = SagaRecord { steps: steps.collect(), ..SagaRecord::default() };
        if !saga.lock_keys.is_empty() {
            // It may not stand in their queues yet; then it has none to leave.
            kept.set_lock_state(LockState::Held);
        }
        Ok(Self { saga, kept, ..Self::default() })
    }
}

#[cfg(test)]
mod tests {
    use proto::saga::v1::Step;

    use super::*;
    use crate::saga::record::Line;

    /// A saga of two steps, and its transitions from the first on.
    fn record(version: u64) -> (Record, Vec<Bytes>) {
        let step = |name: &str| Step { name: name.to_owned(), ..Step::default() };
        let steps = vec![step("charge"), step("ship")];
        let saga = Saga { saga_id: "tea".to_owned(), version, steps, ..Saga::default() };
        let kept = SagaRecord { steps: vec![StepRecord::default(); 2], ..SagaRecord::default() };
        let mut record = Record { saga, kept, ..Record::default() };
        for step in 0..2 {
            record.step_mut(step);
        }
        let first = record.encode().0;
        record.saved();
        (record, vec![first])
    }

    #[test]
    fn what_the_transitions_tell_is_the_saga_and_how_often_a_step_was_refused_at_the_most() {
        let (mut before, mut transitions) = record(1);
        before.step_mut(0).attempts = 9;
        before.note(0, Line { what: STUCK, step: Some(0), ..Line::default() });
        transitions.push(before.encode().0);
        let (mut record, again) = record(1);
        record.saga.lock_keys = vec!["shelf".to_owned()];
        transitions.extend(again);
        for _ in 0..2 {
            record.saga.version += 1;
            record.step_mut(1).attempts += 1;
            record.note(0, Line { what: "action rejected", step: Some(1), ..Line::default() });
            record.note(0, Line { what: STUCK, step: Some(1), ..Line::default() });
            transitions.push(record.encode().0);
            record.saved();
        }
        record.saga.history.clear();
        let told = Record::told(transitions).unwrap();
        assert_eq!(told.saga, record.saga, "the one of before is not in it");
        assert_eq!(told.kept.steps[1].refusals, 2);
        assert_eq!(told.kept.lock_state(), LockState::Held);
    }

    #[test]
    fn without_each_of_its_transitions_there_is_nothing_to_tell() {
        assert!(matches!(Record::told([]), Err(RecordError::Incomplete)));
        let (_, mut transitions) = record(1);
        transitions.push(Bytes::from_static(b"\xff"));
        assert!(matches!(Record::told(transitions), Err(RecordError::Decode(_))));
    }
}
