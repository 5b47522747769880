//! The trials: each runs a saga once for everything that can go wrong in its way.

use std::fmt;

use proto::saga::v1::{SagaPhase, StepKind};

use super::{Broken, Fault, Participants, Rig, rig::Cut, rules::check};
use crate::{
    refusal::Refusal,
    rpc::verdict::{Op, SagaCall},
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

/// Refuses each step once. What was done before it must be undone, last things first, and nothing else; after the pivot the saga
/// must be STUCK, with nothing undone.
///
/// # Errors
/// The first run that breaks a rule, with the saga's history.
pub async fn fail_every_step(rig: &Rig) -> Result<Report, Broken> {
    let plan = &rig.definition.plan;
    let mut report = Report::default();
    for step in plan.steps.iter().filter(|step| !step.is_local()) {
        let run = format!("{} refused", step.name);
        let ended = rig.run(&run, |participants| participants.on_call(refusing(Some(step.name)))).await?;
        let back = step.kind != StepKind::Retriable;
        check(plan, &run, &ended, if back { SagaPhase::Compensated } else { SagaPhase::Stuck })?;
        report.0.push(run);
    }
    Ok(report)
}

/// Delivers each call twice, then loses each request, then each answer: on the way there, and on the way back from the last step that
/// can be refused. Each operation must take effect once, and the end must be the same.
///
/// # Errors
/// The first run that breaks a rule, with the saga's history.
pub async fn repeat_every_operation(rig: &Rig) -> Result<Report, Broken> {
    let plan = &rig.definition.plan;
    let mut report = Report::default();
    for way in ways(rig) {
        let undisturbed = rig.run(way.name(), |participants| participants.on_call(refusing(way.refused))).await?;
        check(plan, way.name(), &undisturbed, way.end())?;
        for call in undisturbed.participants.calls().into_iter().map(|call| call.call) {
            for (fault, what) in [
                (Fault::Repeat, "delivered twice"),
                (Fault::LoseRequest, "lost"),
                (Fault::LoseReply, "done and its answer lost"),
            ] {
                let operation = if call.op == Op::Action { "action" } else { "compensation" };
                let run = format!("{}, {} {operation} {what}", way.name(), call.step);
                // What is refused anyway has no effect that could be repeated.
                if way.refused == Some(&*call.step) && call.op == Op::Action && !matches!(fault, Fault::LoseRequest) {
                    continue;
                }
                let mut faults = refusing(way.refused);
                let (step, op, mut once) = (call.step.clone(), call.op, Some(fault));
                let disturb = move |call: &SagaCall| match once.take_if(|_| (&call.step, call.op) == (&step, op)) {
                    Some(fault) => fault,
                    None => faults(call),
                };
                let ended = rig.run(&run, |participants: &Participants| participants.on_call(disturb)).await?;
                check(plan, &run, &ended, way.end())?;
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
    let plan = &rig.definition.plan;
    let mut report = Report::default();
    for way in ways(rig) {
        for call in 0.. {
            let mut reached = false;
            for delivered in [false, true] {
                let moment = if delivered { "done and not heard of" } else { "committed and not made" };
                let run = format!("{}, crash with call {} {moment}", way.name(), call + 1);
                let refuse = |participants: &Participants| participants.on_call(refusing(way.refused));
                if let Some(ended) = rig.run_cut(&run, Cut { call, delivered }, refuse).await? {
                    check(plan, &run, &ended, way.end())?;
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

/// A way that a saga goes.
#[derive(Clone, Copy)]
struct Way {
    refused: Option<&'static str>,
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
    let steps = rig.definition.plan.steps.iter().filter(|step| !step.is_local());
    let last = steps.filter(|step| step.kind != StepKind::Retriable).min_by_key(|step| step.descendants.count_ones());
    let back = last.map(|step| Way { refused: Some(step.name) });
    std::iter::once(Way { refused: None }).chain(back).collect()
}

/// Refuses the action of one step.
fn refusing(step: Option<&'static str>) -> impl FnMut(&SagaCall) -> Fault + Send {
    move |call| match step {
        Some(step) if call.op == Op::Action && call.step == step => {
            Fault::Reject(Refusal::precondition("REFUSED", "this step is refused by the test"))
        }
        _ => Fault::None,
    }
}
