//! What must be true of every saga, however it was disturbed.

use std::{error::Error, fmt};

use proto::saga::v1::{Saga, SagaPhase, StepKind};

use super::{Effect, rig::Ended};
use crate::{
    rpc::verdict::Op,
    saga::{
        Definition,
        plan::{StepPlan, each},
    },
};

/// A saga that a trial has broken.
#[derive(Debug)]
pub struct Broken {
    run: String,
    why: String,
    saga: Option<Box<Saga>>,
}

impl Broken {
    /// The run could not take place.
    pub(super) fn setup(run: &str, error: &dyn Error) -> Self {
        Self { run: run.to_owned(), why: error.to_string(), saga: None }
    }

    /// It took place, and what came of it is wrong.
    pub(super) fn rule(run: &str, why: String, saga: Saga) -> Self {
        Self { run: run.to_owned(), why, saga: Some(Box::new(saga)) }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.run, self.why)?;
        let Some(saga) = &self.saga else { return Ok(()) };
        write!(f, "\nthe saga is {}", saga.phase().as_str_name())?;
        for entry in &saga.history {
            write!(f, "\n  {} {} {} {}", entry.version, entry.step, entry.what, entry.detail)?;
        }
        Ok(())
    }
}

impl Error for Broken {}

/// Checks a run's end. `expected` is the phase that an undisturbed saga comes to.
pub(super) fn check(definition: &Definition, run: &str, ended: &Ended, expected: SagaPhase) -> Result<(), Broken> {
    let done = Done::of(ended);
    let broken = |why: String| Broken::rule(run, format!("{why}; in order: {done}"), ended.saga.clone());
    let phase = ended.saga.phase();
    if phase != expected {
        return Err(broken(format!("it should be {} and is {}", expected.as_str_name(), phase.as_str_name())));
    }
    done.once().and_then(|()| done.check(definition, &ended.saga.saga_id, phase)).map_err(broken)
}

/// What took effect, in order, for a saga and for those that are its steps.
struct Done(Vec<Effect>);

/// When something took effect, first and last.
type Span = Option<(usize, usize)>;

impl Done {
    fn of(ended: &Ended) -> Self {
        let own = |effect: &Effect| is_below(&effect.saga_id, &ended.saga.saga_id);
        Self(ended.participants.effects().into_iter().filter(own).collect())
    }

    fn once(&self) -> Result<(), String> {
        let twice = |at: &usize| self.0[..*at].contains(&self.0[*at]);
        match (0..self.0.len()).find(twice) {
            Some(at) => Err(format!("{} took effect twice", said(&self.0[at]))),
            None => Ok(()),
        }
    }

    fn span(&self, op: Op, is_meant: impl Fn(&Effect) -> bool) -> Span {
        let mut at = (0..self.0.len()).filter(|at| self.0[*at].op == op && is_meant(&self.0[*at]));
        let first = at.next()?;
        Some((first, at.last().unwrap_or(first)))
    }

    /// When a step was done and undone. Of one that a saga takes, all that this saga did.
    fn when(&self, step: &StepPlan, saga_id: &str) -> (Span, Span) {
        let below = format!("{saga_id}:{}", step.name);
        let is_meant = |effect: &Effect| match step.is_saga() {
            true => is_below(&effect.saga_id, &below),
            false => effect.saga_id == saga_id && effect.step == step.name,
        };
        (self.span(Op::Action, is_meant), self.span(Op::Compensation, is_meant))
    }

    fn check(&self, definition: &Definition, saga_id: &str, phase: SagaPhase) -> Result<(), String> {
        let plan = &definition.plan;
        for step in plan.steps.iter().filter(|step| !step.is_local()) {
            let (action, undone) = self.when(step, saga_id);
            let name = step.name;
            match (phase, action, undone) {
                (SagaPhase::Completed, None, _) => return Err(format!("{name} was never done")),
                (SagaPhase::Completed, _, Some(_)) => return Err(format!("{name} was undone")),
                // What a saga below undoes that was refused is its own affair.
                (SagaPhase::Stuck, _, Some(_)) if step.is_remote() => {
                    return Err(format!("{name} was undone after the pivot"));
                }
                (SagaPhase::Compensated, Some(_), None) if step.is_remote() && step.kind != StepKind::Check => {
                    return Err(format!("{name} was done and never undone"));
                }
                (_, None, Some(_)) => return Err(format!("{name} was undone and never done")),
                (_, Some(action), Some(undone)) if undone.0 < action.1 => {
                    return Err(format!("{name} was undone before it was done"));
                }
                _ => {}
            }
            for later in each(step.descendants).map(|later| &plan.steps[later]) {
                let (follows, follows_back) = self.when(later, saga_id);
                if follows.is_some_and(|follows| action.is_none_or(|action| action.1 > follows.0)) {
                    return Err(format!("{} was done before {name}", later.name));
                }
                if follows_back.zip(undone).is_some_and(|(follows_back, undone)| undone.0 < follows_back.1) {
                    return Err(format!("{name} was undone before {}", later.name));
                }
            }
        }
        // What came of a saga below one that is STUCK is its own affair.
        let ended = matches!(phase, SagaPhase::Completed | SagaPhase::Compensated);
        for (step, below) in definition.sagas().filter(|_| ended) {
            self.check(below, &format!("{saga_id}:{}", plan.steps[step].name), phase)?;
        }
        Ok(())
    }
}

/// True for a saga, and for those that are its steps, near and far.
fn is_below(saga_id: &str, above: &str) -> bool {
    saga_id.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

fn said(effect: &Effect) -> String {
    let sign = if effect.op == Op::Action { "" } else { "-" };
    format!("{sign}{} of {}", effect.step, effect.saga_id)
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(said).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saga::operation::operations;

    operations! { Call undone by Call; }

    #[test]
    fn what_was_done_before_the_pivot_stands_while_a_saga_is_stuck_after_it() {
        let mut saga = Definition::builder::<i64>("tea", 1);
        saga.compensatable::<Call>("reserve", |input, _| Ok(*input), |undo| undo.request);
        saga.pivot::<Call>("ship", |input, _| Ok(*input));
        saga.retriable::<Call>("tell", |input, _| Ok(*input));
        let definition = saga.build().expect("legal");
        let effect = |step: &str, op| Effect { saga_id: "s".to_owned(), step: step.to_owned(), op };
        let mut done = Done(vec![effect("reserve", Op::Action), effect("ship", Op::Action)]);
        assert_eq!(done.check(&definition, "s", SagaPhase::Stuck), Ok(()));
        done.0.push(effect("reserve", Op::Compensation));
        let broken = done.check(&definition, "s", SagaPhase::Stuck);
        assert_eq!(broken, Err("reserve was undone after the pivot".to_owned()));
    }
}
