//! What operators may do to a saga. Each says who and why, and is written into the saga's history.
//!
//! Each may be answered UNAVAILABLE, DATABASE_UNAVAILABLE, where the database can't be reached or takes no writes: nothing was written
//! then, nor will be once it is back.

use std::time::Duration;

use proto::saga::v1::{Saga, Step};

use super::{
    Coordinator, Mail, asker::Asker, closed, is_final, live::Unreachable, not_driven, readable, tell_unreadable,
};
use crate::{
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{
        machine::{self, Command, Due, Settled, Wish},
        record::Record,
        store,
    },
};

impl Coordinator {
    /// Turns a saga back that has not started its pivot; one that is on its way back already is left alone.
    ///
    /// # Errors
    /// PAST_PIVOT, PART_OF_SAGA for one that is done as a step of another, SAGA_CLOSED, UNKNOWN_SAGA.
    pub async fn cancel(&self, saga_id: &str, actor: &str, reason: &str) -> Result<Saga, Refusal> {
        self.steer(saga_id, Wish::Cancel, actor, reason).await
    }

    /// Makes the calls that wait, now, and takes a STUCK or parked saga on from where it stopped.
    ///
    /// # Errors
    /// SAGA_CLOSED, UNKNOWN_SAGA.
    pub async fn retry(&self, saga_id: &str, actor: &str, reason: &str) -> Result<Saga, Refusal> {
        self.steer(saga_id, Wish::Retry, actor, reason).await
    }

    /// Takes one operation of a STUCK or paused saga for settled: `done` if it took effect, else it had none.
    ///
    /// # Errors
    /// NOT_STUCK, STEP_SETTLED, STEP_UNCERTAIN for a pivot that may yet take effect or a saga that goes on, STEP_UNDER_WAY,
    /// SAGA_NOT_DRIVEN where a call of it may be under way and another process drives it, UNKNOWN_STEP, SAGA_CLOSED, UNKNOWN_SAGA.
    pub async fn skip(
        &self,
        saga_id: &str,
        step: &str,
        op: Op,
        done: bool,
        actor: &str,
        reason: &str,
    ) -> Result<Saga, Refusal> {
        let settled = if done { Settled::Done } else { Settled::Rejected };
        self.steer(saga_id, Wish::Skip { step: step.to_owned(), op, settled }, actor, reason).await
    }

    /// Closes a STUCK, paused or parked saga as it is.
    ///
    /// # Errors
    /// NOT_STUCK, PART_OF_SAGA for one that is done as a step of another, SAGA_CLOSED, UNKNOWN_SAGA.
    pub async fn force_close(&self, saga_id: &str, actor: &str, reason: &str) -> Result<Saga, Refusal> {
        self.steer(saga_id, Wish::ForceClose, actor, reason).await
    }

    /// Lets a saga begin nothing and call nobody; calls under way come to their end. Another process that drove it until now may call for as
    /// long as a step's timeout yet.
    ///
    /// # Errors
    /// SAGA_CLOSED, UNKNOWN_SAGA.
    pub async fn pause(&self, saga_id: &str, actor: &str, reason: &str) -> Result<Saga, Refusal> {
        self.steer(saga_id, Wish::Pause, actor, reason).await
    }

    /// Lets a paused saga go on.
    ///
    /// # Errors
    /// SAGA_CLOSED, UNKNOWN_SAGA.
    pub async fn resume(&self, saga_id: &str, actor: &str, reason: &str) -> Result<Saga, Refusal> {
        self.steer(saga_id, Wish::Resume, actor, reason).await
    }

    pub(super) async fn steer(&self, saga_id: &str, wish: Wish, actor: &str, reason: &str) -> Result<Saga, Refusal> {
        let command = Command { wish, actor: actor.to_owned(), reason: reason.to_owned() };
        let (asker, asking) = Asker::new();
        let mail = Mail::Operator(command, asker);
        match self.0.live.post(saga_id, mail) {
            Ok(()) => {}
            Err(Unreachable::Parked(_, mail @ Mail::Operator(Command { wish: Wish::Retry, .. }, _))) => {
                self.revive(saga_id, mail).await?;
            }
            Err(Unreachable::Parked(why, Mail::Operator(command @ Command { wish: Wish::ForceClose, .. }, _))) => {
                return self.close_parked(saga_id, why, command).await;
            }
            Err(why) => {
                let stored = match self.0.loaded(saga_id).await? {
                    // It is parked, here or where it is driven.
                    Err(error) if matches!(why, Unreachable::Parked(..)) || self.0.member.get().is_some() => {
                        if !matches!(why, Unreachable::Parked(..)) {
                            tell_unreadable(saga_id, &error);
                        }
                        return Err(why.into_refusal(saga_id));
                    }
                    stored => readable(saga_id, stored)?,
                };
                if is_final(stored.saga.phase()) {
                    return Err(closed(saga_id));
                }
                match why {
                    // Another process may drive it: from now on it is this one, which can be asked.
                    Unreachable::NotLive(mail) if self.0.member.get().is_some() => {
                        if let Mail::Operator(Command { wish: Wish::Skip { step, op, settled }, .. }, _) = &mail {
                            machine::must_rest(&stored)?;
                            if may_be_called(&stored, step, *op, *settled) {
                                let gone = store::owner_gone(&self.0.journal, saga_id).await;
                                if gone.map_err(|error| error.refusal())?.is_none() {
                                    return Err(driven_elsewhere(saga_id));
                                }
                            }
                        }
                        self.seize(&stored, mail).await?;
                    }
                    why => return Err(why.into_refusal(saga_id)),
                }
            }
        }
        asking.answered().await.unwrap_or_else(|| Err(not_driven(saga_id)))
    }
}

/// Whether a call of a step may be under way that is to be settled by hand. Whoever took the saga over would have to wait for its end anew.
fn may_be_called(record: &Record, name: &str, op: Op, settled: Settled) -> bool {
    let waits =
        |step: &Step| step.name == name && step.sub_saga_id.is_empty() && !machine::is_undone(op, settled, step.kind());
    let step = record.saga.steps.iter().position(waits);
    step.is_some_and(|step| machine::may_be_called(record, Due { step, op }))
}

fn driven_elsewhere(saga_id: &str) -> Refusal {
    let message = format!(
        "another process drives saga {saga_id} and may be calling this step: ask that one, which is the one that PauseSaga asked last; \
         through a balancer, or if that one is gone, ask again"
    );
    Refusal::unavailable("SAGA_NOT_DRIVEN", message, Duration::from_secs(1)).with("saga_id", saga_id)
}
