//! What happened becomes a transition, and is committed before anything follows from it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{Driver, End, Stopped};
use crate::{
    journal::{AggregateId, Cause, Decided, Entry, Loaded, Outcome, SubmitError},
    refusal::Refusal,
    rpc::cause::of_panic,
    saga::{
        coordinator::{
            PAUSE,
            admission::{self, Admissions},
            fence::{Decide, Found},
            locks,
            looks::Unread,
            sub_sagas,
        },
        machine::{self, Alert, Command, Input, Local, Moment},
        record::Record,
        store,
    },
};

/// Tries what needs the database until that is in reach, or once where somebody waits who can be told that it isn't.
macro_rules! patiently {
    ($tried:expr) => {
        patiently!(true, $tried)
    };
    ($patient:expr, $tried:expr) => {
        loop {
            match $tried.await {
                Err(Stopped::Unavailable) if $patient => tokio::time::sleep(PAUSE).await,
                Err(Stopped::Untold) => {}
                ended => break ended,
            }
        }
    };
}

impl Driver {
    /// Takes the saga on by what happened, and makes that durable, however long the database is out of reach.
    pub(super) async fn step(&mut self, mut input: Input) -> Result<(), Stopped> {
        while self.go_on(input, true).await? {
            input = Input::Tick;
        }
        Ok(())
    }

    /// Takes the saga on by what an operator asks for. Where the database is out of reach the saga is as if nobody had asked. True if what
    /// that held back may begin now.
    pub(super) async fn try_step(&mut self, command: Command) -> Result<bool, Stopped> {
        // With what the clock showed then: that it was put back since is to be found again.
        let (record, seen_micros) = (Box::new(self.record.clone()), self.seen_micros);
        let ended = self.go_on(Input::Operator(command), false).await;
        if let Err(Stopped::Unavailable) = ended {
            (self.record, self.seen_micros) = (*record, seen_micros);
        }
        ended
    }

    /// Takes the saga on by what happened alone, and waits for the database if it may. True if what that held back may begin now.
    async fn go_on(&mut self, mut input: Input, patient: bool) -> Result<bool, Stopped> {
        let mut asked = 0;
        loop {
            // From what is committed next on the record says no more that the clock was ahead.
            self.heed_clock();
            let now = self.shared.now();
            asked = match input {
                Input::LocalRefused { .. } => now.min(asked),
                _ => now,
            };
            let moment = Moment { asked, draining: self.is_draining(), ..Moment::at(now) };
            let Self { program, record, .. } = self;
            let advance = || machine::advance(program, record, input, moment);
            let moved = guarded(advance)?.map_err(Stopped::Refused)?;
            if let Some(alert) = moved.alert {
                self.alert(&alert);
            }
            if !moved.changed {
                return Ok(false);
            }
            match moved.local {
                None => return patiently!(patient, self.commit(Vec::new(), None)).map(|_| false),
                Some((local, before)) => match patiently!(patient, Box::pin(self.commit_with(local, &before)))? {
                    Ok(()) => return Ok(true),
                    Err(refusal) => {
                        if matches!(local, Local::Step(_) | Local::Ending) {
                            self.shared.heed_holder(&refusal);
                        }
                        self.record = *before;
                        input = Input::LocalRefused { local, refusal, roll: self.shared.roll() };
                    }
                },
            }
        }
    }

    /// Commits the record as it is, and how long calls are given by now, if the saga is still this process's.
    pub(super) async fn commit_anew(&mut self) -> Result<(), Stopped> {
        machine::keep_timeouts(&self.program.plan, &mut self.record);
        self.heed_clock();
        machine::renew(&mut self.record, self.shared.now());
        patiently!(self.commit(Vec::new(), None)).map(drop)
    }

    /// Stores a saga anew that is done as a step of another, where the database has lost that: until the one above has ended it has nothing
    /// to commit that would tell.
    pub(super) async fn commit_what_is_lost(&mut self) -> Result<(), Stopped> {
        let is_done = self.record.kept.awaits_parent;
        if is_done && self.shared.has_lost(&self.saga_id, self.record.saga.version).await {
            tracing::warn!(saga.id = &*self.saga_id, "stored anew: the database has lost how it went on");
            self.tells_all = true;
            return Box::pin(self.commit_anew()).await;
        }
        Ok(())
    }

    /// Looks whether the saga is still this process's, however long the database is out of reach.
    pub(super) async fn look_whose(&mut self) -> Result<(), Stopped> {
        patiently!(self.look_once())
    }

    /// The same, once.
    pub(super) async fn look_once(&mut self) -> Result<(), Stopped> {
        // As of before it is read: who takes the saga over does so after this.
        let now = self.shared.now();
        match self.shared.look_whose(&self.saga_id).await {
            Ok(Some(since)) if since == self.known.since => {
                self.known.micros = now;
                Ok(())
            }
            Ok(since) => Err(Stopped::End(End::Taken { mine_again: since.is_some() })),
            // Nothing is called any more, and the database may never be asked again.
            Err(Unread) if self.is_draining() => Err(Stopped::End(End::Leaving)),
            Err(Unread) => Err(Stopped::Unavailable),
        }
    }

    /// Commits the record together with work of our own. The inner error is the work's refusal, and nothing is written then.
    async fn commit_with(&mut self, local: Local, before: &Record) -> Result<Result<(), Refusal>, Stopped> {
        let program = Arc::clone(&self.program);
        let work = match local {
            Local::Locks | Local::Queue => Ok(locks::work(local, &self.record)),
            Local::Step(_) | Local::Ending => guarded(|| program.local(local, before))?,
        };
        let work = match work {
            Ok(work) => work,
            Err(refusal) => return Ok(Err(refusal)),
        };
        // A server can look up none of the batch's rows where one can't be its: whoever is in it would be tried again for ever.
        if let Err(refusal) = work.aggregates.iter().try_for_each(AggregateId::check) {
            return Ok(Err(refusal));
        }
        let refused = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&refused);
        let is_own = matches!(local, Local::Step(_) | Local::Ending).then(|| Arc::clone(&self.shared.admissions));
        let decide = move |loaded: &Loaded<'_>, mut decided: Decided| {
            let _places = is_own.as_ref().map(Admissions::own_work);
            match (work.decide)(loaded) {
                Ok(work) => {
                    decided.absorb(work);
                    decided
                }
                Err(refusal) => {
                    *slot.lock() = Some(refusal);
                    Decided { rejected: true, ..Decided::default() }
                }
            }
        };
        let outcome = self.commit(work.aggregates, Some(Box::new(decide))).await?;
        let refusal = || refused.lock().take().unwrap_or_else(Refusal::internal);
        Ok(if outcome == Outcome::Rejected { Err(refusal()) } else { Ok(()) })
    }

    async fn commit(&mut self, mut aggregates: Vec<AggregateId>, with: Option<Beside>) -> Result<Outcome, Stopped> {
        if self.tells_all {
            self.record.tell_all_steps();
        }
        let (decided, size) = store::transition(&mut self.record);
        let kept = &self.record.kept;
        let mut cause = Cause { request: format!("saga/{}", self.saga_id), ..Cause::default() };
        cause.traceparent.clone_from(&kept.traceparent);
        if with.is_some() {
            // What such work starts takes it over.
            cause.carried = kept.carried.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
        }
        let decide: Decide = match with {
            None => Box::new(move |_| decided),
            Some(with) => Box::new(move |loaded| with(loaded, decided)),
        };
        let below = sub_sagas::below(&self.record);
        let decide = if below.is_empty() && self.record.unborn == 0 {
            decide
        } else {
            let shared = Arc::clone(&self.shared);
            let births = sub_sagas::births(&shared, &self.program, &self.record);
            Box::new(move |loaded: &Loaded<'_>| {
                let mut decided = decide(loaded);
                decided.absorb(births);
                decided.on_commit.push(Box::new(move || shared.wake(&below)));
                decided
            })
        };
        let decide = match locks::Release::of(&self.record) {
            None => decide,
            Some(release) => {
                aggregates.extend(release.names());
                let shared = Arc::clone(&self.shared);
                Box::new(move |loaded: &Loaded<'_>| release.decide(shared, loaded, decide))
            }
        };
        let fence = self.shared.fence(&self.saga_id, self.known.since, self.told);
        let decide = match fence.clone() {
            None => decide,
            Some(fence) => {
                aggregates.push(fence.owner.clone());
                fence.guard(decide)
            }
        };
        let entry = Entry { request: None, aggregates, cause, decide, size };
        let committed = self.shared.journal.submit_admitted(entry).await;
        match (committed, fence.map_or(Found::Mine, |fence| fence.found())) {
            (Ok(committed), Found::Mine) => {
                if committed.outcome != Outcome::Rejected {
                    self.record.saved();
                    self.admission.keeps(admission::bytes(&self.record));
                    self.tells_all = false;
                    self.own_time = true;
                }
                Ok(committed.outcome)
            }
            // What was called and decided since stands with others. Only here it is not known any more: it is told with this transition.
            (Ok(_), Found::Untold) => {
                self.told = self.shared.journal.losses().count();
                self.tells_all = true;
                Err(Stopped::Untold)
            }
            // It was another's in between, and nothing of what that one did is known here: it is read anew.
            (Ok(_), Found::Elsewhere { mine_again }) => Err(Stopped::End(End::Taken { mine_again })),
            (Err(SubmitError::Unavailable), _) => Err(Stopped::Unavailable),
            (Err(SubmitError::Closed), _) => Err(Stopped::End(End::Leaving)),
            (Err(error), _) => Err(Stopped::End(End::Parked(format!("its transition can't be stored: {error}")))),
        }
    }

    fn alert(&self, alert: &Alert) {
        let Some(times) = self.shared.alerts.count(self.program.name(), alert) else { return };
        let saga = &self.record.saga;
        tracing::error!(
            saga.id = &*self.saga_id,
            saga.r#type = saga.r#type,
            saga.phase = saga.phase().as_str_name(),
            saga.step = alert.step,
            last_error = alert.error,
            times,
            "{}",
            alert.what
        );
    }
}

/// What a local step adds to a transition.
type Beside = Box<dyn FnOnce(&Loaded<'_>, Decided) -> Decided + Send>;

/// Runs a definition's code. If it panics, its saga alone is parked.
fn guarded<T>(code: impl FnOnce() -> T) -> Result<T, Stopped> {
    catch_unwind(AssertUnwindSafe(code))
        .map_err(|panic| Stopped::End(End::Parked(format!("its definition panicked: {}", of_panic(&*panic)))))
}
