//! The trials: each runs a saga once for everything that can go wrong in its way.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use proto::saga::v1::{SagaPhase, StepKind};

use super::{Broken, Fault, Participants, Rig, rig::Cut, rules::check};
use crate::{
    refusal::Refusal,
    rpc::verdict::{Op, SagaCall},
    saga::{Definition, plan::StepPlan},
};

/// The runs that a saga came through.
#[derive(Clone, Debug, Default)]
pub struct Report(Vec<String>);

impl Report {
    /// What was done to the saga, a line each.
    #[must_use]
    pub fn runs(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} runs", self.0.len())?;
        self.0.iter().try_for_each(|run| write!(f, "\n  {run}"))
    }
}

/// Refuses the call of each step once, which must come; the service's own work is not refused. What was done before it must be undone,
/// last things first, and nothing else; after the pivot the saga must be STUCK, with nothing undone.
///
/// # Errors
/// The first run that breaks a rule, with the saga's history.
pub async fn fail_every_step(rig: &Rig) -> Result<Report, Broken> {
    let mut report = Report::default();
    for (refused, end) in refusals(&rig.definition) {
        let run = format!("{} refused", refused.step);
        let met = Arc::new(AtomicBool::new(false));
        let (meets, mut refuse) = (Arc::clone(&met), refusing(Some(refused)));
        let refuse = move |call: &SagaCall| {
            meets.fetch_or(refused.is(call), Ordering::Relaxed);
            refuse(call)
        };
        let ended = rig.run(&run, |participants| participants.on_call(refuse)).await?;
        // It came to its end for another reason, and that may be as it would have ended for this one.
        if !met.load(Ordering::Relaxed) {
            return Err(Broken::rule(&run, "no such call was made".to_owned(), ended.saga));
        }
        check(&rig.definition, &run, &ended, end)?;
        report.0.push(run);
    }
    Ok(report)
}

/// Delivers each call twice, then loses each request, then each answer: on the way there, and on the way back from the last step that
/// can be refused. Each operation must take effect once, and the end must be the same. Each run must begin the saga with the same id: calls
/// are known by it.
///
/// # Errors
/// The first run that breaks a rule, with the saga's history.
pub async fn repeat_every_operation(rig: &Rig) -> Result<Report, Broken> {
    let definition = &*rig.definition;
    let mut report = Report::default();
    for way in ways(rig) {
        let undisturbed = rig.run(way.name(), |participants| participants.on_call(refusing(way.refused))).await?;
        check(definition, way.name(), &undisturbed, way.end())?;
        for call in undisturbed.participants.calls().into_iter().map(|call| call.call) {
            for (fault, what) in [
                (Fault::Repeat, "delivered twice"),
                (Fault::LoseRequest, "lost"),
                (Fault::LoseReply, "done and its answer lost"),
            ] {
                let operation = if call.op == Op::Action { "action" } else { "compensation" };
                let run = format!("{}, {} {operation} {what}", way.name(), call.step);
                // What is refused anyway has no effect that could be repeated.
                let is_refused = way.refused.is_some_and(|refused| refused.is(&call));
                if is_refused && !matches!(fault, Fault::LoseRequest) {
                    continue;
                }
                let mut faults = refusing(way.refused);
                let (operation, mut once) = (call.key(call.op), Some(fault));
                let met = Arc::new(AtomicBool::new(false));
                let meets = Arc::clone(&met);
                let disturb = move |call: &SagaCall| match once.take_if(|_| call.key(call.op) == operation) {
                    Some(fault) => {
                        meets.store(true, Ordering::Relaxed);
                        fault
                    }
                    None => faults(call),
                };
                let ended = rig.run(&run, |participants: &Participants| participants.on_call(disturb)).await?;
                // Nothing went wrong, so that it ended well says nothing.
                if !met.load(Ordering::Relaxed) {
                    let why = "no such call was made: does each run begin the saga with the same id?";
                    return Err(Broken::rule(&run, why.to_owned(), ended.saga));
                }
                check(definition, &run, &ended, way.end())?;
                report.0.push(run);
            }
        }
    }
    Ok(report)
}

/// Ends the process before each call leaves and before its answer is heard, on the way there and on the way back, and goes on with
/// another process on the same journal. The end must be the same, and nothing done twice.
///
/// # Errors
/// The first run that breaks a rule, with the saga's history.
pub async fn crash_every_point(rig: &Rig) -> Result<Report, Broken> {
    let definition = &*rig.definition;
    let mut report = Report::default();
    for way in ways(rig) {
        for call in 0.. {
            let mut reached = false;
            for delivered in [false, true] {
                let moment = if delivered { "done and not heard of" } else { "committed and not made" };
                let run = format!("{}, crash with call {} {moment}", way.name(), call + 1);
                let refuse = |participants: &Participants| participants.on_call(refusing(way.refused));
                if let Some(ended) = rig.run_cut(&run, Cut { call, delivered }, refuse).await? {
                    check(definition, &run, &ended, way.end())?;
                    report.0.push(run);
                    reached = true;
                }
            }
            if !reached {
                break;
            }
        }
    }
    Ok(report)
}

/// The action that is refused.
#[derive(Clone, Copy)]
struct Refused {
    saga_type: &'static str,
    /// The step that this saga is, if it is one.
    above: Option<&'static str>,
    step: &'static str,
}

impl Refused {
    fn of(definition: &Definition, step: &StepPlan) -> Self {
        Self { saga_type: definition.name(), above: None, step: step.name }
    }

    fn below(self, step: &StepPlan) -> Self {
        Self { above: self.above.or(Some(step.name)), ..self }
    }

    fn is(self, call: &SagaCall) -> bool {
        let step = self.above.is_none_or(|above| call.saga_id.rsplit(':').next() == Some(above));
        step && call.op == Op::Action && (call.saga_type.as_str(), call.step.as_str()) == (self.saga_type, self.step)
    }
}

/// Every refusal that a saga can hear, from participants of the sagas below it too, and how it must end then.
fn refusals(definition: &Definition) -> Vec<(Refused, SagaPhase)> {
    let steps = &definition.plan.steps;
    let end = |step: &StepPlan| match step.kind {
        StepKind::Retriable => SagaPhase::Stuck,
        _ => SagaPhase::Compensated,
    };
    let remote = steps.iter().filter(|step| step.is_remote());
    let own = remote.map(|step| (Refused::of(definition, step), end(step)));
    let below = definition.sagas().flat_map(|(at, below)| {
        // One below that is STUCK is waited for.
        let turned = refusals(below).into_iter().filter(|(_, below)| *below == SagaPhase::Compensated);
        turned.map(move |(refused, _)| (refused.below(&steps[at]), end(&steps[at])))
    });
    own.chain(below).collect()
}

/// A way that a saga goes.
#[derive(Clone, Copy)]
struct Way {
    refused: Option<Refused>,
}

impl Way {
    fn name(self) -> &'static str {
        if self.refused.is_some() { "on the way back" } else { "on the way there" }
    }

    fn end(self) -> SagaPhase {
        if self.refused.is_some() { SagaPhase::Compensated } else { SagaPhase::Completed }
    }
}

/// All the way there; and back from as far as a saga can turn back, which is where most was done.
fn ways(rig: &Rig) -> Vec<Way> {
    let back = furthest(&rig.definition).map(|refused| Way { refused: Some(refused) });
    std::iter::once(Way { refused: None }).chain(back).collect()
}

/// The last action whose refusal turns a saga back.
fn furthest(definition: &Definition) -> Option<Refused> {
    let steps = definition.plan.steps.iter().enumerate();
    let may_turn = steps.filter(|(_, step)| !step.is_local() && step.kind != StepKind::Retriable);
    let (last, step) = may_turn.min_by_key(|(_, step)| step.descendants.count_ones())?;
    match definition.sagas().find(|(at, _)| *at == last) {
        Some((_, below)) => Some(furthest(below)?.below(step)),
        None => Some(Refused::of(definition, step)),
    }
}

/// Refuses one action.
fn refusing(refused: Option<Refused>) -> impl FnMut(&SagaCall) -> Fault + Send {
    move |call| match refused {
        Some(refused) if refused.is(call) => {
            Fault::Reject(Refusal::precondition("REFUSED", "this step is refused by the test"))
        }
        _ => Fault::None,
    }
}
