//! Sagas that are steps of others: what becomes of one becomes of the other.

use std::collections::BTreeMap;

use proto::saga::v1::SagaPhase;

use super::{check::phase_name, world::World};
use crate::saga::record::{Record, is_final};

/// Checks that what a saga has just become is what those that are its steps are, or must become.
pub(super) fn moved(world: &World, record: &Record, sagas: &BTreeMap<String, Record>) {
    let (id, phase) = (&record.saga.saga_id, record.saga.phase());
    if !is_final(phase) {
        return;
    }
    for step in record.saga.steps.iter().filter(|step| !step.sub_saga_id.is_empty()) {
        let its = sagas.get(&step.sub_saga_id);
        let is_right = its.is_some_and(|its| match phase {
            SagaPhase::Completed => its.saga.phase() == phase || its.kept.awaits_parent,
            _ => its.saga.phase() == phase,
        });
        if !is_right {
            let its = its.map_or("not there", |its| phase_name(its.saga.phase()));
            world.broken(format!("{id} is {} and {} is {its}", phase_name(phase), step.sub_saga_id));
        }
    }
}

/// Checks, when all is over, that every one belongs to a saga and came to the same.
pub(super) fn check(world: &World, sagas: &BTreeMap<String, Record>) {
    for (id, record) in sagas {
        let above = &record.saga.parent_saga_id;
        if above.is_empty() {
            continue;
        }
        world.count("sagas that are steps");
        let is_its = |above: &&Record| {
            above.saga.steps.iter().any(|step| step.name == record.saga.parent_step && step.sub_saga_id == *id)
        };
        match sagas.get(above).filter(is_its).map(|above| above.saga.phase()) {
            None => world.broken(format!("{id} is nobody's step")),
            Some(phase) if phase != record.saga.phase() => {
                let its = phase_name(record.saga.phase());
                world.broken(format!("{above} is {} and {id} is {its}", phase_name(phase)));
            }
            Some(_) => {}
        }
    }
}
