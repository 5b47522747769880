//! What the task of a saga is told, and what it answers.

use std::time::Duration;

use proto::saga::v1::{SagaPhase, StepKind};

use super::{Driver, End, Stopped};
use crate::{
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{
        coordinator::live::Mail,
        machine::{Command, Due, Input, Settled, Wish},
        plan::StepPlan,
    },
};

impl Driver {
    pub(super) async fn read_mail(&mut self) -> Result<(), Stopped> {
        for mail in self.mailbox.take() {
            match mail {
                // Those who have left meanwhile would gather for as long as the saga is open.
                Mail::Finished(answer) => {
                    self.waiting.retain(|waiting| !waiting.is_closed());
                    self.waiting.push(answer);
                }
                Mail::Settled(tell) => {
                    self.above.retain(|above| !above.is_closed());
                    self.above.push(tell);
                }
                Mail::Taken => return Err(Stopped::End(End::Taken { mine_again: false })),
                Mail::Woken => {
                    self.ask_parent().await?;
                    self.step(Input::Woken).await?;
                }
                Mail::Operator(command, answer) if self.is_under_way(&command) => {
                    let _ = answer.send(Err(under_way(&self.saga_id)));
                }
                Mail::Operator(command, answer) => {
                    let reply = match self.step(Input::Operator(command)).await {
                        Ok(()) => Ok(self.record.saga.clone()),
                        Err(Stopped::Refused(refusal)) => Err(refusal),
                        // Who asked hears that their question is lost.
                        Err(end) => return Err(end),
                    };
                    // Who asked may have left.
                    let _ = answer.send(reply);
                }
            }
        }
        Ok(())
    }

    /// Whether an operator would settle what a call is under way for. It may have yet to leave, and what they have found would not stay. What
    /// is undone for it is another matter.
    fn is_under_way(&self, command: &Command) -> bool {
        let Wish::Skip { step: name, op, settled } = &command.wish else { return false };
        let rests = self.record.saga.paused || self.record.saga.phase() == SagaPhase::Stuck;
        let is_undone =
            |step: &StepPlan| (*op, *settled, step.kind) == (Op::Action, Settled::Rejected, StepKind::Compensatable);
        let mut steps = self.program.plan.steps.iter();
        let step = steps.position(|step| step.name == name && step.is_remote() && !is_undone(step));
        rests && step.is_some_and(|step| self.in_flight.contains(Due { step, op: *op }))
    }
}

fn under_way(saga_id: &str) -> Refusal {
    let message = "a call of this step is under way: ask again when it has ended";
    Refusal::unavailable("STEP_UNDER_WAY", message, Duration::from_secs(1)).with("saga_id", saga_id)
}
