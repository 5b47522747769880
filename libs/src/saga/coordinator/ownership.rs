//! Who drives which saga, where several processes share a database.
//!
//! A saga is owned by the process that started it, until another takes it over: because the owner is gone, or because an operator
//! asks the other for something. The owner's name is an aggregate of its own, read in the transaction of every transition: a
//! transition by anybody else comes to nothing. So a process that was stopped, taken for dead and goes on writes nothing any more;
//! what it still calls finds the answer stored, or a tombstone. It calls for no longer than a step's timeout, unless it has looked that the
//! saga is its own: until then nobody settles that step by hand.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, atomic::Ordering},
};

use parking_lot::Mutex;

use super::{Coordinator, RecoverError, Shared, admission, call::Known, closed, live::Mail, not_driven};
use crate::{
    cqrs::not_submitted,
    journal::{Aggregate, AggregateId, Cause, Change, Decided, Entry, Loaded, Member},
    refusal::Refusal,
    saga::{
        ids,
        record::{Record, is_final},
        store::{self, Stored},
    },
};

/// How many sagas are taken over at a time.
const PAGE: i64 = 256;
/// Of how many sagas here, and of how many open ones, the owner is looked up after each beat. With more the look goes round.
const MOST_LOOKED_UP: usize = 4096;

impl Shared {
    /// What makes a new saga this process's.
    pub(super) fn birth(&self, saga_id: &str) -> Option<Change> {
        self.member.get().map(|member| store::owned_by(saga_id, member.name(), store::FIRST_OWNER))
    }

    /// What is known of a saga's owner, where it is this process by now. What is read of the saga after this is at least as new.
    pub(super) async fn known(&self, saga_id: &str) -> Result<Known, Refusal> {
        let Some(member) = self.member.get() else { return Ok(Known::default()) };
        let micros = self.now();
        let owned = store::owned(&self.journal, std::iter::once(saga_id), member.name()).await;
        let owned = owned.map_err(|error| {
            tracing::warn!(saga.id = saga_id, %error, "a saga's owner can't be read");
            error.refusal()
        })?;
        let since = owned.since.get(saga_id).copied().ok_or_else(|| not_driven(saga_id))?;
        Ok(Known { since, micros })
    }

    /// Makes this process the owner of those of the sagas whose owner is as `wanted` says, and answers which.
    ///
    /// What was claimed is remembered until it has a task: whoever asked may leave, and the claim holds all the same.
    pub(super) async fn claim(
        self: &Arc<Self>,
        saga_ids: Vec<String>,
        wanted: impl Fn(&str, &Aggregate) -> bool + Send + 'static,
    ) -> Result<Vec<String>, Refusal> {
        let Some(me) = self.member.get().map(|member| member.name().to_owned()) else { return Ok(Vec::new()) };
        let aggregates: Vec<AggregateId> = saga_ids.iter().map(|id| store::owner_of(id)).collect();
        let claimed = Arc::new(Mutex::new(Vec::new()));
        let (slot, shared) = (Arc::clone(&claimed), Arc::clone(self));
        let decide = move |loaded: &Loaded<'_>| {
            let mut decided = Decided::default();
            for id in saga_ids {
                let owner = store::owner_of(&id);
                let Some(before) = loaded.aggregate(owner.kind, &owner.id) else { continue };
                if wanted(&id, before) {
                    // What is ours stays as it is: a task that goes on from there must not lose it to ourselves.
                    if before.state != me.as_bytes() {
                        decided.changes.push(store::owned_by(&id, &me, before.version + 1));
                    }
                    slot.lock().push(id);
                }
            }
            let claimed = slot.lock().clone();
            decided.on_commit.push(Box::new(move || shared.claimed.lock().extend(claimed)));
            decided
        };
        let size = aggregates.len() * 200;
        let entry = Entry { request: None, aggregates, cause: Cause::default(), decide: Box::new(decide), size };
        self.journal.submit_admitted(entry).await.map_err(|error| {
            tracing::warn!(%error, "sagas can't be taken over now");
            not_submitted(error)
        })?;
        Ok(std::mem::take(&mut *claimed.lock()))
    }

    /// Leaves so many sagas to whoever has room for them.
    fn leave_orphans(&self, left: usize) {
        match (self.admissions.leave(left), left) {
            (0, 1..) => tracing::warn!(
                sagas = left,
                "there is no room here for sagas whose process is gone: each goes on where a place becomes free"
            ),
            (1.., 0) => tracing::info!("no saga whose process is gone waits for a place"),
            _ => {}
        }
    }
}

impl Coordinator {
    /// Enters this process among those that share the database, if there can be others.
    pub(super) async fn join(&self) -> Result<bool, RecoverError> {
        let Some(member) = self.0.journal.join().await? else { return Ok(false) };
        tracing::info!(member = member.name(), "sharing the sagas");
        // One coordinator a process: a second would have a name of its own.
        let _ = self.0.member.set(member);
        Ok(true)
    }

    /// Says every few seconds that this process is there, and takes over the sagas of those that are not. Ends once this one has left,
    /// and at once where the database has one process.
    ///
    /// # Errors
    /// None: a database that is out of reach comes back.
    pub async fn share(self) -> Result<(), RecoverError> {
        let Some(member) = self.0.member.get() else { return Ok(()) };
        let (mut last, mut last_open, mut suspects) = (String::new(), String::new(), BTreeSet::new());
        loop {
            tokio::time::sleep(Member::BEAT).await;
            if self.0.left.load(Ordering::Acquire) {
                return Ok(());
            }
            if let Err(error) = member.beat().await {
                tracing::warn!(%error, "no word of the others, nor to them");
                continue;
            }
            // Until the last call has ended this process is there; it only takes up nothing new.
            if self.0.draining.load(Ordering::Acquire) {
                continue;
            }
            let shared = async {
                // What is in the way of the one is not in the way of the others.
                let let_go = self.let_go(member, &mut last).await;
                let taken_back = self.take_back(member, &mut last_open, &mut suspects).await;
                let adopted = self.adopt().await;
                let_go.and(taken_back).and(adopted)
            };
            match beating(&self.0, member, shared).await {
                Ok(0) => {}
                Ok(sagas) => tracing::info!(sagas, "taken over from a process that is gone"),
                Err(error) => tracing::warn!(%error, "no saga can be taken over, or let go of, now"),
            }
        }
    }

    /// Lets go of the sagas that another process has taken over, of a page of those that are here after `last`. A task finds that out
    /// with its next commit, but one whose saga is STUCK, paused or queued has none to make, and what is parked has no task at all: who
    /// waits for the end here would wait for ever.
    async fn let_go(&self, member: &Member, last: &mut String) -> Result<(), RecoverError> {
        let shared = &self.0;
        // Before the owners are read: what is here was this process's by then.
        let page = shared.live.owned_after(last, MOST_LOOKED_UP);
        last.clear();
        if let Some((saga_id, _)) = page.last().filter(|_| page.len() == MOST_LOOKED_UP) {
            last.push_str(saga_id);
        }
        let owned = store::owned(&shared.journal, page.iter().map(|(saga_id, _)| &**saga_id), member.name()).await?;
        for (saga_id, place) in page.iter().filter(|(saga_id, _)| owned.is_anothers(saga_id)) {
            shared.live.taken(saga_id, place);
        }
        Ok(())
    }

    /// Takes up, of a page of the open sagas after `last`, those that are this process's and have no place here. A server that takes over
    /// may have lost that one of them had ended, or that another process had it: then nobody drives it, and its owner is there.
    ///
    /// Only what the look before found so too, the `suspects`: one that is being begun, or taken up, has its place a moment later.
    async fn take_back(
        &self,
        member: &Member,
        last: &mut String,
        suspects: &mut BTreeSet<String>,
    ) -> Result<(), RecoverError> {
        let shared = &self.0;
        let mut page = store::open_after(&shared.journal, last, MOST_LOOKED_UP).await?;
        last.clear();
        if let Some(saga_id) = page.last().filter(|_| page.len() == MOST_LOOKED_UP) {
            last.push_str(saga_id);
        }
        page.extend(suspects.iter().cloned());
        page.sort_unstable();
        page.dedup();
        page.retain(|saga_id| !shared.live.contains(saga_id));
        let owned = store::owned(&shared.journal, page.iter().map(String::as_str), member.name()).await?;
        let claimed = shared.claimed.lock().clone();
        page.retain(|saga_id| {
            owned.since.contains_key(saga_id) && !claimed.contains(saga_id) && !shared.live.contains(saga_id)
        });
        let (lost, suspected): (Vec<_>, Vec<_>) = page.into_iter().partition(|saga_id| suspects.contains(saga_id));
        *suspects = suspected.into_iter().collect();
        if shared.draining.load(Ordering::Acquire) {
            return Ok(());
        }
        // What has ended since is found to have.
        let sagas = self.take_up_all(&lost).await?;
        if sagas > 0 {
            tracing::warn!(sagas, "driven once more: the database has lost how they went on");
        }
        Ok(())
    }

    /// Says that this process is gone, so that others need not wait to take over what it leaves.
    pub async fn leave(&self) {
        let Some(member) = self.0.member.get() else { return };
        self.0.left.store(true, Ordering::Release);
        if let Err(error) = member.leave().await {
            tracing::warn!(%error, "leaving unheard: others take over when the lease is over");
        }
    }

    /// Takes over the open sagas whose owner is gone, as far as there is room or somebody here waits for them, and answers how many. The
    /// others are left to another process, or to when there is room: until then no new saga is admitted in their stead.
    ///
    /// What has a place may wait for one that has none: for the saga above it, for one below, for one that holds its lock. With all places
    /// taken so they would wait for ever; so that one is taken over whether there is room or not.
    pub(super) async fn adopt(&self) -> Result<usize, RecoverError> {
        let shared = &self.0;
        // What was claimed and could not be read, or by somebody who left.
        let claimed: Vec<String> = shared.claimed.lock().iter().cloned().collect();
        let (mut last, mut adopted) = (String::new(), self.take_up_all(&claimed).await?);
        let (holders, mut above) = (std::mem::take(&mut *shared.holders.lock()), None);
        let (mut passed, mut left) = (HashSet::new(), 0);
        loop {
            if shared.draining.load(Ordering::Acquire) {
                return Ok(adopted);
            }
            let page = store::orphans_after(&shared.journal, &last, PAGE).await?;
            let Some((id, _)) = page.last() else {
                shared.live.keep_orphans(&passed);
                shared.leave_orphans(left);
                return Ok(adopted);
            };
            last.clone_from(id);
            // A claim that named one of these would be refused as a whole.
            let unread = store::owned(&shared.journal, page.iter().map(|(id, _)| &**id), "").await?.unread;
            let above = above.get_or_insert_with(|| shared.live.above());
            let (mut room, mut bytes) = (shared.admissions.room(), shared.admissions.free_bytes());
            // Sorted, so that they are taken up in one order: a simulation can be repeated.
            let mut wanted = BTreeMap::new();
            // For which there must be room, unless they come with the one above them: nobody here waits for them.
            let mut spare = HashSet::new();
            for (saga_id, owner) in page {
                let comes_with = |above: &str| wanted.contains_key(above) || shared.live.is_driven(above);
                if shared.live.contains(&saga_id) {
                    passed.insert(saga_id);
                } else if unread.contains(&saga_id) {
                    // Until its row is mended.
                } else {
                    let is_awaited = above.contains(&saga_id) || holders.contains(&saga_id);
                    if room == 0 && !is_awaited && !ids::above(&saga_id).is_some_and(comes_with) {
                        left += 1;
                        continue;
                    }
                    room = room.saturating_sub(1);
                    if !is_awaited {
                        spare.insert(saga_id.clone());
                    }
                    wanted.insert(saga_id, owner);
                }
            }
            let ids: Vec<String> = wanted.keys().cloned().collect();
            let look = |saga_id: String, stored: Stored| {
                let read = stored.map_err(|error| error.to_string());
                // The one above was read before.
                let comes_with = |above: &str| wanted.contains_key(above) || shared.live.is_driven(above);
                let is_spare = spare.contains(&saga_id) && !ids::above(&saga_id).is_some_and(comes_with);
                match read.and_then(|record| shared.definition_of(&record).map(|_| admission::bytes(&record))) {
                    Ok(_) if bytes == 0 && is_spare => {
                        wanted.remove(&saga_id);
                        left += 1;
                    }
                    Ok(its) => bytes = bytes.saturating_sub(its),
                    Err(why) => {
                        shared.pass_by(&saga_id, &why);
                        wanted.remove(&saga_id);
                        passed.insert(saga_id);
                    }
                }
            };
            store::load_each(&shared.journal, &ids, look).await?;
            let ids: Vec<String> = wanted.keys().cloned().collect();
            if ids.is_empty() {
                continue;
            }
            // Still that owner's: of two who claim it at once, one finds the other's name. And nothing for who is to end by now: it would
            // drive none, and keep them from others until it is gone.
            let at = Arc::clone(shared);
            let still = move |id: &str, owner: &Aggregate| {
                wanted.get(id) == Some(&owner.state) && !at.draining.load(Ordering::Acquire)
            };
            let Ok(claimed) = shared.claim(ids, still).await else { return Ok(adopted) };
            adopted += self.take_up_all(&claimed).await?;
        }
    }

    /// Takes a saga over from whoever drives it, because somebody here is asked about it, and has it hear that first. One that can't be
    /// driven here is left to whoever can.
    pub(super) async fn seize(&self, before: &Record, mail: Mail) -> Result<(), Refusal> {
        let saga_id = &before.saga.saga_id;
        let definition = self.0.definition_of(before).map_err(|why| {
            tracing::warn!(saga.id = saga_id, why, "asked about a saga that can't be driven here");
            not_driven(saga_id)
        })?;
        let Some(mut place) = self.0.live.reserve(saga_id) else {
            // Somebody here was quicker.
            return self.0.live.post(saga_id, mail).map_err(|why| why.into_refusal(saga_id));
        };
        // Who can't read it leaves it to whoever drives it.
        self.0.stored(saga_id).await?;
        self.0.claim(vec![saga_id.clone()], |_, _| true).await?;
        let known = self.0.known(saga_id).await?;
        let record = self.0.stored(saga_id).await?;
        self.0.claimed.lock().remove(saga_id);
        if is_final(record.saga.phase()) {
            place.forget();
            return Err(closed(saga_id));
        }
        self.0.take_up(definition, record, place, known, Some(mail));
        Ok(())
    }

    /// Drives sagas that this process owns since just now. They are read after the claim: the owner before may have moved them on.
    async fn take_up_all(&self, saga_ids: &[String]) -> Result<usize, RecoverError> {
        let mut taken = 0;
        let Some(member) = self.0.member.get().filter(|_| !saga_ids.is_empty()) else { return Ok(taken) };
        // What has a task needs none. What somebody else here is about to take up stays claimed, in case they leave.
        self.0.claimed.lock().retain(|saga_id| !self.0.live.is_driven(saga_id));
        let reserve = |saga_id: &String| Some((saga_id.clone(), self.0.live.reserve(saga_id)?));
        let mut places: BTreeMap<_, _> = saga_ids.iter().filter_map(reserve).collect();
        let saga_ids: Vec<String> = places.keys().cloned().collect();
        let micros = self.0.now();
        let owned = store::owned(&self.0.journal, saga_ids.iter().map(String::as_str), member.name()).await?;
        let take = |saga_id: String, stored: Stored| {
            let Some(mut place) = places.remove(&saga_id) else { return };
            self.0.claimed.lock().remove(&saga_id);
            // Another's by now.
            let Some(&since) = owned.since.get(&saga_id) else { return };
            let read = stored.map_err(|error| error.to_string());
            match read.and_then(|record| Ok((self.0.definition_of(&record)?, record))) {
                Ok((_, record)) if is_final(record.saga.phase()) => place.forget(),
                Ok((definition, record)) => {
                    self.0.take_up(definition, record, place, Known { since, micros }, None);
                    taken += 1;
                }
                Err(why) => self.0.park(&saga_id, why),
            }
        };
        store::load_each(&self.0.journal, &saga_ids, take).await?;
        Ok(taken)
    }
}

/// Does what may take long, and says meanwhile that this process is there: who has many sagas to take over is not gone.
pub(super) async fn beating<T>(shared: &Shared, member: &Member, work: impl Future<Output = T>) -> T {
    let beats = async {
        loop {
            tokio::time::sleep(Member::BEAT).await;
            if shared.left.load(Ordering::Acquire) {
                std::future::pending::<()>().await;
            }
            if let Err(error) = member.beat().await {
                tracing::warn!(%error, "no word to the others");
            }
        }
    };
    tokio::select! {
        // In this order, so that what happens at once happens in one order: a simulation can be repeated.
        biased;
        done = work => done,
        never = beats => never,
    }
}
