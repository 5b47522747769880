//! What must hold of every transition, and of what took effect.

use bytes::Bytes;
use prost::Message as _;
use proto::saga::v1::{Saga, SagaPhase, SagaTransition, StepKind, StepState};

use super::{participant::Participant, world::World};
use crate::saga::{
    exploration::{rules::effects, world::Cell},
    fold,
    plan::{StepPlan, each},
    record::{Record, is_final},
};

/// A record that is about to take the place of the one before, and what of it is stored and told.
pub(super) struct Transition<'a> {
    pub(super) before: &'a Record,
    pub(super) after: &'a Record,
    pub(super) stored: Bytes,
    pub(super) told: Bytes,
}

impl Transition<'_> {
    /// Answers the record as it is read again. `shown` is what queries show, folded from all transitions.
    pub(super) fn check(self, steps: &[StepPlan], shown: &mut Saga) -> Result<Record, String> {
        let Self { before, after, stored, told } = self;
        let (was, is) = (before.saga.phase(), after.saga.phase());
        if !may_follow(&before.saga, is) {
            return Err(format!("{} after {}", is.as_str_name(), was.as_str_name()));
        }
        if after.saga.version != before.saga.version + 1 {
            return Err("a transition makes one version".to_owned());
        }
        let held = after.kept.ending_held || after.kept.steps.iter().any(|step| step.held);
        if is == SagaPhase::Stuck && !held {
            return Err("it is STUCK, and nothing waits for an operator".to_owned());
        }
        let goes_back = |record: &Record| {
            let phase = record.saga.phase();
            phase == SagaPhase::Compensating || record.kept.stuck_from() == SagaPhase::Compensating
        };
        let still = goes_back(after) || is == SagaPhase::Compensated;
        if goes_back(before) && still && before.why_back() != after.why_back() {
            return Err("why it turned back is forgotten on the way".to_owned());
        }
        for at in 0..steps.len() {
            step(steps, at, before, after)?;
        }
        let read = Record::decode(stored).map_err(|error| error.to_string())?;
        let written = Saga { history: Vec::new(), ..after.saga.clone() };
        if read.saga != written || read.kept != after.kept {
            return Err("what is stored is not what was read again".to_owned());
        }
        fold(shown, SagaTransition::decode(told).map_err(|error| error.to_string())?);
        if (Saga { history: Vec::new(), ..shown.clone() }) != written {
            return Err("the transitions folded are not the saga".to_owned());
        }
        Ok(read)
    }
}

fn may_follow(before: &Saga, is: SagaPhase) -> bool {
    use SagaPhase::{Compensated, Compensating, ForceClosed, Forward, Scheduled, Stuck};
    match before.phase() {
        Scheduled | Forward | Compensating if is == ForceClosed => before.paused,
        // One transition may go through several.
        Scheduled => true,
        Forward => is != Scheduled,
        Compensating => matches!(is, Compensating | Compensated | Stuck),
        Stuck => is != Scheduled,
        _ => false,
    }
}

fn step(steps: &[StepPlan], at: usize, before: &Record, after: &Record) -> Result<(), String> {
    let (name, kind) = (steps[at].name, steps[at].kind);
    let (was, is) = (before.saga.steps[at].state(), after.saga.steps[at].state());
    let (kept, keeps) = (&before.kept.steps[at], &after.kept.steps[at]);
    for (frozen, request) in
        [(&kept.request, &keeps.request), (&kept.compensation_request, &keeps.compensation_request)]
    {
        if !frozen.is_empty() && frozen != request {
            return Err(format!("a request of {name} was made anew"));
        }
    }
    if is == StepState::Started && was == StepState::Unspecified {
        let settled = |state| matches!(state, StepState::Done | StepState::Skipped);
        if let Some(open) = each(steps[at].after).find(|before| !settled(after.saga.steps[*before].state())) {
            return Err(format!("{name} began before {}", steps[open].name));
        }
    }
    if is == StepState::Compensating && was != StepState::Compensating {
        if kept.started_micros == 0 && keeps.started_micros == 0 {
            return Err(format!("{name} is undone and never began"));
        }
        if kind != StepKind::Compensatable {
            return Err(format!("{name} can't be undone, and is"));
        }
        let owed =
            |later: &usize| steps[*later].kind == StepKind::Compensatable && after.kept.steps[*later].may_have_run;
        if let Some(owed) = each(steps[at].descendants).find(owed) {
            return Err(format!("{name} is undone before {}", steps[owed].name));
        }
    }
    Ok(())
}

/// What is true at the participants, whatever the record says. What an operator took for settled is left out: they may have been wrong.
pub(super) fn truth(world: &World<'_>) -> Result<(), String> {
    let (steps, phase) = (&world.definition.plan.steps, world.stored.saga.phase());
    let known = |one: &Participant| if one.is_settled { [Cell::default(); 2] } else { one.cells };
    effects(world.definition, phase, &world.participants.iter().map(known).collect::<Vec<_>>())?;
    for (at, (step, one)) in steps.iter().zip(&world.participants).enumerate() {
        let stands = one.cells[0].effects > one.cells[1].effects;
        if one.is_settled || step.kind == StepKind::Check {
            continue;
        }
        match phase {
            SagaPhase::Completed if step.is_remote() && !stands => {
                return Err(format!("it is COMPLETED and {} was not done", step.name));
            }
            SagaPhase::Completed if world.stored.saga.steps[at].state() != StepState::Done => {
                return Err(format!("it is COMPLETED and {} is not done", step.name));
            }
            SagaPhase::Compensated if stands => {
                return Err(format!("it is COMPENSATED, and {} took effect and was never undone", step.name));
            }
            _ => {}
        }
    }
    if is_final(phase) || !world.is_forgotten() {
        return Ok(());
    }
    Err("nothing is on its way, nothing is to be done, and nobody is told".to_owned())
}
