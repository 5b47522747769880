//! Sagas that are steps of others: how one begins, and what the end of the one above means to it.

use proto::saga::v1::SagaPhase;

use super::{Line, Turn, goes_back};
use crate::{
    refusal::Refusal,
    saga::{ids, record::reason},
};

impl Turn<'_> {
    /// Names the saga that takes a step. It is stored together with the step's start.
    pub(super) fn bear(&mut self, step: usize) {
        let saga = &self.record.saga;
        let id = ids::next_below(&saga.saga_id, self.plan.steps[step].name, &saga.steps[step].sub_saga_id);
        self.record.step_mut(step).sub_saga_id = id;
        self.record.unborn |= 1 << step;
    }

    /// Every step is done, and all of it may have to be undone.
    pub(super) fn await_parent(&mut self) {
        if !self.record.kept.awaits_parent {
            self.record.kept.awaits_parent = true;
            self.note(Line { what: "done, waits for its parent", ..Line::default() });
        }
    }

    /// What the saga above came to is final: so is this one, or it is undone.
    pub(super) fn parent_ended(&mut self, phase: SagaPhase) {
        if !self.record.kept.bound {
            return;
        }
        if phase == SagaPhase::Compensated {
            if !goes_back(self.record) {
                let refusal =
                    Refusal::precondition("PARENT_COMPENSATED", "the saga that this one is a step of was undone");
                self.turn_back(reason("", &refusal));
            }
            return;
        }
        self.record.kept.bound = false;
        self.record.kept.awaits_parent = false;
        self.moved.changed = true;
    }

    pub(super) fn part_of_another(&self) -> Refusal {
        let saga = &self.record.saga;
        let message = format!("saga {} is done as a step of {}: cancel that one", saga.saga_id, saga.parent_saga_id);
        Refusal::precondition("PART_OF_SAGA", message).with("parent_saga_id", &saga.parent_saga_id)
    }
}
