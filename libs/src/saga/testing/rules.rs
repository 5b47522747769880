//! What must be true of every saga, however it was disturbed.

use std::{error::Error, fmt};

use proto::saga::v1::{Saga, SagaPhase, StepKind};

use super::rig::Ended;
use crate::saga::plan::{Plan, each};

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
pub(super) fn check(plan: &Plan, run: &str, ended: &Ended, expected: SagaPhase) -> Result<(), Broken> {
    let done = ended.participants.done_for(&ended.saga.saga_id);
    let broken =
        |why: String| Err(Broken::rule(run, format!("{why}; in order: {}", done.join(", ")), ended.saga.clone()));
    let phase = ended.saga.phase();
    if phase != expected {
        return broken(format!("it should be {} and is {}", expected.as_str_name(), phase.as_str_name()));
    }
    let when = |what: &str| done.iter().position(|done| done == what);
    for (at, what) in done.iter().enumerate() {
        if when(what) != Some(at) {
            return broken(format!("{what} took effect twice"));
        }
    }
    for step in plan.steps.iter().filter(|step| !step.is_local()) {
        let (action, undone) = (when(step.name), when(&format!("-{}", step.name)));
        let name = step.name;
        match (phase, action, undone) {
            (SagaPhase::Completed, None, _) => return broken(format!("{name} was never done")),
            (SagaPhase::Completed, _, Some(_)) => return broken(format!("{name} was undone")),
            (SagaPhase::Compensated, Some(_), None) if step.kind != StepKind::Check => {
                return broken(format!("{name} was done and never undone"));
            }
            (_, None, Some(_)) => return broken(format!("{name} was undone and never done")),
            (_, Some(action), Some(undone)) if undone < action => {
                return broken(format!("{name} was undone before it was done"));
            }
            _ => {}
        }
        for later in each(step.descendants).map(|later| &plan.steps[later]) {
            let (follows, follows_back) = (when(later.name), when(&format!("-{}", later.name)));
            if follows.is_some() && (action.is_none() || action > follows) {
                return broken(format!("{} was done before {name}", later.name));
            }
            if follows_back.is_some() && undone.is_some() && undone < follows_back {
                return broken(format!("{name} was undone before {}", later.name));
            }
        }
    }
    Ok(())
}
