//! What must hold in every world.

use proto::saga::v1::{SagaPhase, StepKind, StepState};

use super::world::{Cell, Known, World};
use crate::{
    rpc::verdict::Op,
    saga::{
        Definition,
        plan::each,
        record::{Record, is_final},
    },
};

/// Checks a world, and the move that led to it.
pub(super) fn check(definition: &Definition, before: &World, world: &World) -> Result<(), String> {
    transition(before, world)?;
    order(definition, &world.stored)?;
    if let Some(due) = world.sent {
        let state = world.stored.saga.steps[due.step].state();
        let begun = match due.op {
            // Somebody else may have turned the saga back since it was said.
            Op::Action => state != StepState::Unspecified,
            Op::Compensation => matches!(state, StepState::Compensating | StepState::Compensated),
        };
        if !begun {
            return Err(format!("{due:?} left before the log said so: the step is {}", state.as_str_name()));
        }
    }
    effects(definition, world.stored.saga.phase(), &world.participants)?;
    ends(definition, world)?;
    goes_on(world)
}

fn transition(before: &World, world: &World) -> Result<(), String> {
    let Some(process) = world.committed_by else { return Ok(()) };
    if world.owner != process {
        return Err(format!("the saga was changed by a process that does not own it: {process}"));
    }
    if is_final(before.stored.saga.phase()) {
        return Err(format!("a saga that was {} changed", before.stored.saga.phase().as_str_name()));
    }
    let back = |phase| matches!(phase, SagaPhase::Compensating);
    if back(before.stored.saga.phase()) && world.stored.saga.phase() == SagaPhase::Forward {
        return Err("a saga that had turned back goes forward".to_owned());
    }
    Ok(())
}

/// On the way forward nothing has begun before what it comes after is done.
fn order(definition: &Definition, record: &Record) -> Result<(), String> {
    let (steps, shown) = (&definition.plan.steps, &record.saga.steps);
    if record.saga.phase() != SagaPhase::Forward {
        return Ok(());
    }
    for (step, _) in steps.iter().zip(shown).filter(|(_, shown)| shown.state() != StepState::Unspecified) {
        if let Some(open) = each(step.after).find(|before| shown[*before].state() != StepState::Done) {
            return Err(format!("{} began before {} was done", step.name, steps[open].name));
        }
    }
    Ok(())
}

/// What took effect, an action and its compensation for each step, in a saga that is in this phase.
pub(super) fn effects(definition: &Definition, phase: SagaPhase, participants: &[[Cell; 2]]) -> Result<(), String> {
    let steps = definition.plan.steps.iter().zip(participants);
    for (step, [action, compensation]) in steps.filter(|(step, _)| step.is_remote()) {
        let name = step.name;
        if action.effects > 1 || compensation.effects > 1 {
            return Err(format!("{name} took effect twice"));
        }
        if compensation.effects > action.effects {
            return Err(format!("{name} was undone and never done"));
        }
        if compensation.effects == 0 {
            continue;
        }
        if phase == SagaPhase::Forward {
            return Err(format!("{name} was undone while the saga goes forward"));
        }
        for later in each(step.descendants) {
            let [done, undone] = participants[later];
            let follows = &definition.plan.steps[later];
            if follows.kind != StepKind::Check && done.effects > undone.effects {
                return Err(format!("{name} was undone before {}", follows.name));
            }
        }
        if step.kind != StepKind::Compensatable {
            return Err(format!("{name} can't be undone, and was"));
        }
    }
    let pivot = definition.plan.pivot();
    if pivot.is_some_and(|pivot| participants[pivot][0].effects > 0)
        && matches!(phase, SagaPhase::Compensating | SagaPhase::Compensated)
    {
        return Err("it turns back after its pivot took effect".to_owned());
    }
    Ok(())
}

fn ends(definition: &Definition, world: &World) -> Result<(), String> {
    let phase = world.stored.saga.phase();
    let steps = definition.plan.steps.iter().zip(&world.participants);
    for (step, [action, compensation]) in steps.filter(|(step, _)| step.is_remote()) {
        let (name, stands) = (step.name, action.effects > compensation.effects);
        match phase {
            SagaPhase::Completed if !stands => return Err(format!("it is COMPLETED and {name} was not done")),
            SagaPhase::Compensated if stands => {
                return Err(format!("it is COMPENSATED, and {name} took effect and was never undone"));
            }
            // Nobody but an operator gets here by a path of the exploration.
            SagaPhase::Stuck => return Err(format!("it is STUCK at {name}, which nobody refused after the pivot")),
            _ => {}
        }
        if phase == SagaPhase::Completed && action.known != Known::Done {
            return Err(format!("it is COMPLETED and {name} is {:?}", action.known));
        }
    }
    Ok(())
}

/// A saga that is not over can always go on.
fn goes_on(world: &World) -> Result<(), String> {
    if is_final(world.stored.saga.phase()) || world.processes[world.owner].is_none() {
        return Ok(());
    }
    if world.is_idle() { Err("nothing is on its way, and nothing is to be done".to_owned()) } else { Ok(()) }
}
