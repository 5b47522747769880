//! The record of a saga that has not begun.

use std::time::Duration;

use bytes::Bytes;
use proto::saga::v1::{SagaPhase, SagaRecord, Step, StepRecord};

use super::Record;
use crate::{
    saga::plan::{Plan, StepPlan},
    time::timestamp,
};

impl Plan {
    /// A saga that has not begun.
    pub(in crate::saga) fn new_record(&self, saga_id: &str, input: Vec<u8>, now: i64, start_micros: i64) -> Record {
        let mut record = Record::default();
        let saga = &mut record.saga;
        saga_id.clone_into(&mut saga.saga_id);
        self.name.clone_into(&mut saga.r#type);
        saga.definition_version = self.version;
        saga.create_time = Some(timestamp(now));
        saga.update_time = saga.create_time;
        saga.set_phase(SagaPhase::Scheduled);
        saga.steps = self.steps.iter().map(StepPlan::new_step).collect();
        let begins = now.max(start_micros);
        let within = |deadline: Duration| i64::try_from(deadline.as_micros()).unwrap_or(i64::MAX);
        record.kept = SagaRecord {
            input: input.into(),
            steps: vec![StepRecord::default(); self.steps.len()],
            definition_hash: Bytes::copy_from_slice(&self.hash),
            deadline_micros: self.deadline.map_or(0, |deadline| begins.saturating_add(within(deadline))),
            start_micros,
            ..SagaRecord::default()
        };
        // All of them are new.
        for step in 0..self.steps.len() {
            record.step_mut(step);
        }
        record
    }
}

impl StepPlan {
    fn new_step(&self) -> Step {
        let (name, participant) = (self.name.to_owned(), self.participant.to_owned());
        Step { name, kind: self.kind.into(), participant, ..Step::default() }
    }
}
