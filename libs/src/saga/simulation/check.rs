//! What must hold when all has ended.

use std::{collections::BTreeMap, sync::Arc};

use prost::Message as _;
use proto::saga::v1::{Saga, SagaPhase, SagaTransition, StepKind};

use super::{
    answers, family,
    sagas::definitions,
    world::{PARTICIPANTS, World},
};
use crate::{
    rpc::verdict::Op,
    saga::{
        Definition, fold,
        plan::each,
        record::{Record, is_final},
    },
};

/// When an effect came about, among all effects.
type Place = (u64, usize);
/// When those of a step did: the first one, and the last.
type Span = (Place, Place);

/// Checks everything, and notes what is wrong.
pub(super) fn check(world: &World) {
    let sagas = world.store.sagas();
    for record in sagas.values() {
        let phase = record.saga.phase();
        world.count(phase_name(phase));
        if !is_final(phase) {
            let why = record.saga.reason.clone().unwrap_or_default();
            let (id, phase) = (&record.saga.saga_id, phase_name(phase));
            world.broken(format!("{id} has not ended: {phase} {} {}", why.step, why.message));
        }
    }
    promises(world, &sagas);
    effects(world, &sagas);
    history(world, &sagas);
    family::check(world, &sagas);
    answers::check(world);
}

pub(super) fn phase_name(phase: SagaPhase) -> &'static str {
    phase.as_str_name().trim_start_matches("SAGA_PHASE_")
}

/// What somebody was told holds.
fn promises(world: &World, sagas: &BTreeMap<String, Record>) {
    let promises = world.promises.lock();
    for id in promises.placed.iter().filter(|id| !sagas.contains_key(*id)) {
        world.broken(format!("{id} was accepted and is lost"));
    }
    for id in &promises.cancelled {
        let phase = sagas.get(id).map(|record| record.saga.phase());
        if phase != Some(SagaPhase::Compensated) {
            world.broken(format!("{id} was cancelled and is {}", phase.map_or("lost", phase_name)));
        }
    }
}

/// Everything took effect exactly as its saga ended, in order.
fn effects(world: &World, sagas: &BTreeMap<String, Record>) {
    let mut places: BTreeMap<String, Vec<Place>> = BTreeMap::new();
    for name in PARTICIPANTS {
        for effect in world.participant(name).effects() {
            let operation = effect.what.rsplit_once(' ').map_or("", |(operation, _)| operation).to_owned();
            places.entry(operation).or_default().push(effect.place);
        }
    }
    for (operation, places) in &places {
        if places.len() > 1 {
            world.broken(format!("{operation} took effect {} times", places.len()));
        }
        let id = operation.split(' ').next().unwrap_or_default();
        if !sagas.contains_key(id) {
            world.broken(format!("{operation} took effect, and there is no such saga"));
        }
    }
    let definitions = definitions();
    let known: Vec<Arc<Definition>> = definitions.iter().flat_map(|definition| definition.family()).collect();
    let effects = Effects { sagas, places };
    for record in sagas.values() {
        if let Some(definition) = known.iter().find(|definition| definition.name() == record.saga.r#type) {
            saga(world, definition, record, &effects);
        }
    }
}

struct Effects<'a> {
    sagas: &'a BTreeMap<String, Record>,
    places: BTreeMap<String, Vec<Place>>,
}

impl Effects<'_> {
    /// When an operation of a step took effect; of a step that is a saga, those of its own steps.
    fn of(&self, record: &Record, step: usize, op: Op) -> Option<Span> {
        let step = &record.saga.steps[step];
        if step.sub_saga_id.is_empty() {
            let operation = format!("{} {} {}", record.saga.saga_id, step.name, op.as_str());
            let place = *self.places.get(&operation)?.first()?;
            return Some((place, place));
        }
        let below = self.sagas.get(&step.sub_saga_id)?;
        let spans = (0..below.saga.steps.len()).filter_map(|step| self.of(below, step, op));
        spans.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))
    }
}

fn saga(world: &World, definition: &Definition, record: &Record, effects: &Effects<'_>) {
    let (id, phase) = (&record.saga.saga_id, record.saga.phase());
    let steps = &definition.plan.steps;
    for (at, step) in steps.iter().enumerate().filter(|(_, step)| !step.is_local()) {
        let name = step.name;
        let (done, undone) = (effects.of(record, at, Op::Action), effects.of(record, at, Op::Compensation));
        // What became of a step that is a saga is that one's to say.
        match phase {
            _ if !step.is_remote() => {}
            SagaPhase::Completed if done.is_none() => {
                world.broken(format!("{id} is COMPLETED and {name} was not done"))
            }
            SagaPhase::Completed if undone.is_some() => {
                world.broken(format!("{id} is COMPLETED and {name} was undone"))
            }
            SagaPhase::Compensated if done.is_some() && undone.is_none() && step.kind != StepKind::Check => {
                world.broken(format!("{id} is COMPENSATED, and {name} took effect and was never undone"));
            }
            _ => {}
        }
        if undone.is_some_and(|undone| done.is_some_and(|done| undone.0 < done.1)) {
            world.broken(format!("{name} of {id} was undone before it was done"));
        }
        if undone.is_some() && done.is_none() {
            world.broken(format!("{name} of {id} was undone and never done"));
        }
        for later in each(step.descendants) {
            let (of, later_name) = (|op| effects.of(record, later, op), steps[later].name);
            if of(Op::Action).is_some_and(|later| done.is_none_or(|done| later.0 < done.1)) {
                world.broken(format!("{later_name} of {id} was done before {name}"));
            }
            let later_undone = of(Op::Compensation);
            if undone.is_some_and(|undone| later_undone.is_some_and(|later| undone.0 < later.1)) {
                world.broken(format!("{name} of {id} was undone before {later_name}"));
            }
        }
    }
}

/// The log tells the same as what is stored, one version after the other; the order ended with its saga, once.
fn history(world: &World, sagas: &BTreeMap<String, Record>) {
    const SQL: &str = "SELECT position, kind, id, version, payload FROM events ORDER BY position";
    let mut folded: BTreeMap<String, (i64, Saga)> = BTreeMap::new();
    let mut orders: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let records = world.store.fetch(0, SQL, &[]).unwrap_or_default();
    for (at, record) in records.iter().enumerate() {
        let read = || -> Result<_, crate::journal::sql::Error> {
            Ok((record.int(0)?, record.text(1)?, record.text(2)?, record.int(3)?, record.blob(4)?))
        };
        let Ok((position, kind, id, version, payload)) = read() else { continue };
        if usize::try_from(position) != Ok(at + 1) {
            world.broken(format!("the log has a gap before position {position}"));
        }
        if kind == "order" {
            orders.entry(id).or_default().push(String::decode(payload).unwrap_or_default());
        } else if kind == "saga" {
            let (before, saga) = folded.entry(id.clone()).or_default();
            if version != *before + 1 {
                world.broken(format!("the log has version {version} of {id} after {before}"));
            }
            *before = version;
            fold(saga, SagaTransition::decode(payload).unwrap_or_default());
        }
    }
    for (id, record) in sagas {
        let mut told = folded.remove(id).unwrap_or_default().1;
        told.history.clear();
        if told != record.saga {
            world.broken(format!("the log tells another story of {id} than what is stored"));
        }
        // An order has the saga on top.
        if !record.saga.parent_saga_id.is_empty() {
            continue;
        }
        let ended = match record.saga.phase() {
            SagaPhase::Completed => "Completed",
            SagaPhase::Compensated => "Rejected",
            _ => continue,
        };
        let became = orders.remove(id).unwrap_or_default();
        if became != ["Placed", ended] {
            world.broken(format!("order {id} became {became:?} and its saga {ended}"));
        }
    }
}
