//! Closing a parked saga by hand. Nobody drives it, so its task can't: it is closed in its place, on its stored record. Its definition, which
//! may be gone, has no say.

use std::sync::Arc;

use proto::saga::v1::Saga;

use super::{
    Coordinator, Shared, closed,
    fence::{Decide, Found},
    locks, not_driven, spawn, sub_sagas,
};
use crate::{
    cqrs::not_submitted,
    journal::{Cause, Entry, Loaded},
    refusal::Refusal,
    saga::{
        machine::{self, Command},
        record::{Record, is_final},
        store,
    },
};

impl Coordinator {
    /// Closes a saga as it is that is parked here, and why.
    pub(super) async fn close_parked(&self, saga_id: &str, why: String, command: Command) -> Result<Saga, Refusal> {
        let (shared, id) = (Arc::clone(&self.0), saga_id.to_owned());
        // A task of its own: whoever asks may leave, and until the end is committed nobody else may go on with the saga.
        let ended = spawn(async move { shared.close(&id, &why, &command).await });
        ended.await.unwrap_or_else(|_| Err(not_driven(saga_id)))
    }
}

impl Shared {
    async fn close(self: Arc<Self>, saga_id: &str, why: &str, command: &Command) -> Result<Saga, Refusal> {
        let Some(mut place) = self.live.reserve(saga_id) else { return Err(not_driven(saga_id)) };
        // What can't be closed is not claimed: it stays with whoever can go on with it. What is claimed may have gone on meanwhile.
        self.stored_or_told(saga_id).await?;
        let owned = self.own_parked(saga_id).await?;
        let mut record = self.stored_or_told(saga_id).await?;
        let ended = match owned {
            _ if is_final(record.saga.phase()) => Err(closed(saga_id)),
            // Another process has it by now: what was known here is of before.
            None => Err(not_driven(saga_id)),
            Some(since) => {
                machine::close_parked(&mut record, why, command, self.now());
                self.commit_end(&mut record, since).await?;
                tracing::warn!(saga.id = saga_id, actor = command.actor, why, "a parked saga is closed as it was");
                self.metrics.ended(&record.saga.r#type, record.saga.phase());
                Ok(record.saga)
            }
        };
        // Not before: what was claimed and not closed is looked at once more.
        self.claimed.lock().remove(saga_id);
        place.forget();
        ended
    }

    /// A saga as it is stored; where that can't be read, as its transitions tell of it.
    async fn stored_or_told(&self, saga_id: &str) -> Result<Record, Refusal> {
        if let Ok(record) = self.newest(saga_id).await? {
            return Ok(record);
        }
        store::told(&self.journal, saga_id).await.map_err(|error| error.refusal())?.map_err(|error| {
            let what = format!("neither the record of saga {saga_id} nor its events can be read: {error}");
            Refusal::precondition("SAGA_PARKED", format!("{what}; restore the database, then force-close it"))
        })
    }

    /// Makes a parked saga this process's, if it is not another's that is there, and answers how often its owner has changed by now.
    async fn own_parked(self: &Arc<Self>, saga_id: &str) -> Result<Option<u64>, Refusal> {
        let Some(member) = self.member.get() else { return Ok(Some(0)) };
        let gone = store::owner_gone(&self.journal, saga_id).await.map_err(|error| error.refusal())?;
        let me = member.name().as_bytes().to_vec();
        let claimed = self.claim(vec![saga_id.to_owned()], move |_, owner| {
            owner.state == me || gone.as_ref().is_some_and(|gone| *gone == owner.state)
        });
        if claimed.await?.is_empty() {
            return Ok(None);
        }
        self.known(saga_id).await.map(|known| Some(known.since))
    }

    /// Commits a record whose saga has just ended without a task, with all that the end of a saga brings.
    async fn commit_end(self: &Arc<Self>, record: &mut Record, since: u64) -> Result<(), Refusal> {
        let saga_id = record.saga.saga_id.clone();
        let (mut decided, size) = store::transition(record);
        let (shared, below) = (Arc::clone(self), sub_sagas::below(record));
        decided.on_commit.push(Box::new(move || shared.wake(&below)));
        let mut aggregates = Vec::new();
        let release = locks::Release::of(record);
        aggregates.extend(release.iter().flat_map(locks::Release::names));
        let fence = self.fence(&saga_id, since, self.journal.losses().count());
        aggregates.extend(fence.iter().map(|fence| fence.owner.clone()));
        let shared = Arc::clone(self);
        let decide = move |loaded: &Loaded<'_>| match release {
            None => decided,
            Some(release) => release.decide(shared, loaded, |_| decided),
        };
        let decide: Decide = match fence.clone() {
            None => Box::new(decide),
            Some(fence) => fence.guard(decide),
        };
        let traceparent = record.kept.traceparent.clone();
        let cause = Cause { request: format!("saga/{saga_id}"), traceparent, ..Cause::default() };
        let entry = Entry { request: None, aggregates, cause, decide, size };
        self.journal.submit_admitted(entry).await.map_err(not_submitted)?;
        if fence.is_some_and(|fence| fence.found() != Found::Mine) {
            return Err(not_driven(&saga_id));
        }
        record.saved();
        Ok(())
    }
}
