//! What the task of a saga is told, and what it answers.

use std::time::Duration;

use super::{Driver, End, Stopped};
use crate::{
    cqrs::not_submitted,
    journal::SubmitError,
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{
        coordinator::live::Mail,
        machine::{self, Command, Due, Input, Wish},
        plan::StepPlan,
    },
};

/// How long to wait for the end of a call of which nobody knows when that is.
const SECOND: Duration = Duration::from_secs(1);

impl Driver {
    pub(super) async fn read_mail(&mut self) -> Result<(), Stopped> {
        let mut mail = self.mailbox.take().into_iter();
        while let Some(first) = mail.next() {
            if let Err(stopped) = self.read(first).await {
                // What is left is answered by how the task ends.
                mail.for_each(|left| self.mailbox.post(left));
                return Err(stopped);
            }
        }
        Ok(())
    }

    async fn read(&mut self, mail: Mail) -> Result<(), Stopped> {
        match mail {
            // Those who have left meanwhile would gather for as long as the saga is open.
            Mail::Finished(answer) => {
                self.waiting.retain(|waiting| !waiting.is_closed());
                self.waiting.push(answer);
            }
            Mail::Settled(tell) => {
                self.above.retain(|above| !above.is_closed());
                self.above.push(tell);
                // It may have told that it is done, and the one above has read otherwise.
                self.commit_what_is_lost().await?;
            }
            Mail::Taken => return Err(Stopped::End(End::Taken { mine_again: false })),
            Mail::Woken => {
                self.ask_parent().await?;
                self.step(Input::Woken).await?;
            }
            Mail::Operator(command, mut asker) => {
                // Who has left, or was told that the database is out, may have decided otherwise since.
                if !asker.begin() {
                    return Ok(());
                }
                let goes_on = match self.obey(command.clone()).await {
                    Ok(goes_on) => {
                        asker.answer(Ok(self.record.saga.clone()));
                        goes_on
                    }
                    Err(Stopped::Refused(refusal)) => {
                        asker.answer(Err(refusal));
                        false
                    }
                    Err(Stopped::Unavailable) => {
                        asker.answer(Err(not_submitted(SubmitError::Unavailable)));
                        false
                    }
                    Err(stopped) => {
                        self.mailbox.post(Mail::Operator(command, asker));
                        return Err(stopped);
                    }
                };
                if goes_on {
                    self.step(Input::Tick).await?;
                }
            }
        }
        Ok(())
    }

    /// Does what an operator asks for, if the saga is still this process's. What changes nothing isn't committed, and only a commit would tell.
    /// Where the database is out of reach nothing is done, for whoever asks is told so. True if what that held back may begin now.
    async fn obey(&mut self, command: Command) -> Result<bool, Stopped> {
        if self.shared.member.get().is_some() {
            self.look_once().await?;
        }
        self.heed_clock();
        self.must_have_ended(&command).map_err(Stopped::Refused)?;
        Box::pin(self.try_step(command)).await
    }

    /// Refuses to have an operator settle what a call is under way for. It may have yet to leave, here or in the process that drove the saga
    /// before, and what they have found would not stay. An action that is undone for it is another matter; of an undoing its action's calls
    /// count as well: what it was to keep out, or to take back, might come after it was struck out.
    fn must_have_ended(&self, command: &Command) -> Result<(), Refusal> {
        let Wish::Skip { step: name, op, settled } = &command.wish else { return Ok(()) };
        // What goes on by itself is the machine's to refuse.
        let rests = machine::must_rest(&self.record).is_ok();
        let is_undone = |step: &StepPlan| machine::is_undone(*op, *settled, step.kind);
        let steps = &self.program.plan.steps;
        let step = steps.iter().position(|step| step.name == name && step.is_remote() && !is_undone(step));
        let Some(step) = step.filter(|_| rests) else { return Ok(()) };
        let (due, action) = (Due { step, op: *op }, Due { step, op: Op::Action });
        if self.in_flight.contains(due) {
            return Err(self.under_way("a call of this step is under way: ask again when it has ended", SECOND));
        }
        if self.in_flight.contains(action) {
            return Err(self.under_way("a call of its action is under way: ask again when it has ended", SECOND));
        }
        // What has come to its end since is the machine's to refuse.
        if !machine::may_be_called(&self.record, due) {
            return Ok(());
        }
        let kept = &self.record.kept.steps[step];
        let most = self.shared.others_may_call(machine::longest_timeout(&steps[step], kept));
        let earlier = self.earlier.as_ref().and_then(|earlier| earlier.rest(due, most));
        if let Some(rest) = earlier {
            return Err(self.may_come("a call of this step from before this process took the saga up", rest));
        }
        let late = kept.compensation_not_before_micros.saturating_sub(self.shared.now());
        match u64::try_from(late) {
            Ok(late) if late > 0 && *op == Op::Compensation => {
                Err(self.may_come("a call of its action, which no barrier stops,", Duration::from_micros(late)))
            }
            _ => Ok(()),
        }
    }

    fn may_come(&self, call: &str, rest: Duration) -> Refusal {
        let message = format!(
            "{call} may be under way for {:.1} s yet: ask again then, and find out only then what is true",
            rest.as_secs_f64()
        );
        self.under_way(&message, rest)
    }

    fn under_way(&self, message: &str, wait: Duration) -> Refusal {
        Refusal::unavailable("STEP_UNDER_WAY", message, wait).with("saga_id", &*self.saga_id)
    }
}
