//! Who takes sagas through their steps.
//!
//! One task a saga, apart from whoever started it. A task sleeps until something happens to its saga: a call ends, a wait is
//! over, an operator asks. What happened goes through the machine; what the machine makes of it is committed; only then do the
//! calls leave that the committed record asks for.
//!
//! In the order in which it happens: `start_at` makes the first record, to be committed; `Driver::launch` sets a task on it; that one waits
//! in `drive`, asks `machine::advance` what follows from what happened, and stores it in `driver/transition.rs`; a `Call` leaves; `judge`
//! says what its answer means; and the task hears of that.

mod admission;
mod alerts;
mod apart;
mod asker;
mod call;
mod closing;
mod driver;
mod fence;
mod live;
pub(super) mod locks;
mod looks;
mod ownership;
#[cfg(test)]
mod pages;
mod parked;
mod recovery;
#[cfg(test)]
mod replies;
mod spans;
mod steering;
mod sub_sagas;
mod sweep;

use std::{
    collections::{BTreeSet, HashSet},
    fmt, iter,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use opentelemetry::metrics::Meter;
use parking_lot::Mutex;
use prost::Message;
use proto::saga::v1::{CarriedEntry, LockPolicy, Saga, SagaPhase};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::sync::{Semaphore, oneshot};
use tonic::Code;

#[cfg(not(test))]
use tokio::spawn;

#[cfg(test)]
use super::simulation::process::spawn;

pub use self::recovery::RecoverError;
use self::{
    admission::{Admissions, bytes_of_new},
    alerts::Alerts,
    driver::{Driver, Start},
    live::{Live, Mail, Unreachable},
    looks::Looks,
    sweep::Telling,
};
use super::{
    Definition, DefinitionError, Transport,
    definitions::Definitions,
    ids,
    machine::{self, Input, Moment},
    metrics::Metrics,
    record::{Record, is_final},
    store::{self, Stored},
};
use crate::{
    cqrs::not_submitted,
    journal::{AggregateId, Decided, Journal, Loaded, Member, RefusedReads, SubmitError, sql},
    refusal::Refusal,
    rpc::{carried::CarriedKeys, verdict::is_name},
};

/// How a coordinator behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The most sagas under way, and with 8 KiB for each of them the most that they keep of messages; past it new ones are refused, and of
    /// what other processes leave only that is taken over for which those here wait. Each counts as what it keeps, and as four times its
    /// input at the least: what those under way come to keep beyond that goes past it. What the own work of another starts is never refused
    /// for it, however many that are.
    pub most_live: usize,
    /// The most calls under way; past it they wait their turn.
    pub most_calls: usize,
    /// The metadata that a saga takes over from the request which began it, or from the saga whose work did, and sends with every call.
    pub carried: CarriedKeys,
    /// How long after a saga's end its participants keep what they answered to it. The same for all that share a database.
    pub keep_answers: Duration,
    /// What the chance in waits begins with, so that a simulation can be repeated. None is another chance each time.
    pub seed: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        let keep_answers = Duration::from_secs(7 * 24 * 60 * 60);
        Self { most_live: 100_000, most_calls: 1024, carried: CarriedKeys::default(), keep_answers, seed: None }
    }
}

/// How often somebody who waits looks at a saga that another process drives.
const LOOK: Duration = Duration::from_millis(50);
/// How long to leave a database alone that is out of reach.
const PAUSE: Duration = Duration::from_millis(500);

/// The time, in microseconds since 1970.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Coordinates the sagas of one database. Clones share it.
#[derive(Clone)]
pub struct Coordinator(Arc<Shared>);

struct Shared {
    journal: Journal,
    /// This process among others, once it has entered; stays empty where there can't be others.
    member: OnceLock<Member>,
    transport: Box<dyn Transport>,
    definitions: Definitions,
    live: Live,
    /// Sagas that this process has claimed and that have no task yet.
    claimed: Mutex<BTreeSet<String>>,
    /// Sagas that hold a lock for which one here waits, as seen since the last beat.
    holders: Mutex<HashSet<String>>,
    looks: Looks,
    refused_reads: RefusedReads,
    alerts: Alerts,
    admissions: Arc<Admissions>,
    /// A turn for each call that may be under way.
    calls: Semaphore,
    draining: AtomicBool,
    /// True once this process counts as gone.
    left: AtomicBool,
    carried: CarriedKeys,
    keep_answers: Duration,
    telling: Telling,
    metrics: Metrics,
    clock: Clock,
    /// None is another chance each time.
    chance: Option<Mutex<StdRng>>,
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator")
            .field("definitions", &self.0.definitions.types())
            .field("live", &self.live())
            .finish_non_exhaustive()
    }
}

impl Coordinator {
    /// A coordinator over a journal that keeps [`TABLES`](super::TABLES). Of each type it starts sagas of the newest version;
    /// older versions take up the sagas that began under them. Call [`Coordinator::recover`] before anything else.
    ///
    /// # Errors
    /// [`Fault::Ambiguous`](super::Fault::Ambiguous) where two definitions of one name and version have other hashes.
    pub fn new(
        journal: Journal,
        definitions: impl IntoIterator<Item = Arc<Definition>>,
        transport: impl Transport,
        options: Options,
    ) -> Result<Self, DefinitionError> {
        Self::with_clock(journal, definitions, transport, options, Arc::new(system_clock))
    }

    /// A coordinator that is told the time, for tests.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_clock(
        journal: Journal,
        definitions: impl IntoIterator<Item = Arc<Definition>>,
        transport: impl Transport,
        options: Options,
        clock: Clock,
    ) -> Result<Self, DefinitionError> {
        Ok(Self(Arc::new(Shared {
            journal,
            member: OnceLock::new(),
            transport: Box::new(transport),
            definitions: Definitions::new(definitions)?,
            live: Live::default(),
            claimed: Mutex::default(),
            holders: Mutex::default(),
            looks: Looks::default(),
            refused_reads: RefusedReads::default(),
            alerts: Alerts::default(),
            admissions: Arc::new(Admissions::new(options.most_live)),
            calls: Semaphore::new(options.most_calls.clamp(1, Semaphore::MAX_PERMITS)),
            draining: AtomicBool::new(false),
            left: AtomicBool::new(false),
            carried: options.carried,
            keep_answers: options.keep_answers,
            telling: Telling::default(),
            metrics: Metrics::default(),
            clock,
            chance: options.seed.map(|seed| Mutex::new(StdRng::seed_from_u64(seed))),
        })))
    }

    /// What must be committed for a saga to start, now and in the trace that `loaded` tells of, to go beside the decision that wants it (see
    /// [`Decision::beside`](crate::cqrs::Decision::beside)). The first requests are frozen in it; once it is durable the saga is
    /// on its way, whoever leaves. If the decision comes to nothing, so does the saga.
    ///
    /// The id is the caller's to keep unique, for ever: make it the id of an aggregate that the same decision creates. The command's
    /// `request_id` then makes the start idempotent, and what has ended is not begun again; SAGA_EXISTS only tells of what is under way in
    /// this process. Participants answer what is called under an id that was used before as they answered then. One that several
    /// coordinators call knows a saga by its id alone, so there it must be unique among all of them: put the service's name before it.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, TOO_MANY_SAGAS with RetryInfo, or LOCK_QUEUE_FULL with that and the `holder`; UNAVAILABLE, SHUTTING_DOWN;
    /// ALREADY_EXISTS, SAGA_EXISTS while one of this id is under way, or one below one that had it; INVALID_ARGUMENT for an id that is
    /// none, that a step's saga could have, or that leaves the sagas below it no room for theirs, and for keys that can't be locked;
    /// ABORTED, SAGA_LOCKED with RetryInfo and the `holder` where the definition refuses rather than waits; what the first step's request
    /// is refused for; INTERNAL for a type that is not defined, and for an input of another message than its newest definition was built
    /// for, where the log names both. Nothing is written then.
    pub fn start<I: Message + 'static>(
        &self,
        saga_type: &str,
        saga_id: &str,
        input: &I,
        loaded: &Loaded<'_>,
    ) -> Result<Decided, Refusal> {
        self.start_at(saga_type, saga_id, input, loaded, 0)
    }

    /// Like [`start`](Self::start), but the saga waits SCHEDULED until `start_micros`, in microseconds since 1970.
    ///
    /// # Errors
    /// As there.
    pub fn start_at<I: Message + 'static>(
        &self,
        saga_type: &str,
        saga_id: &str,
        input: &I,
        loaded: &Loaded<'_>,
        start_micros: i64,
    ) -> Result<Decided, Refusal> {
        let (shared, now_micros) = (&self.0, loaded.now_micros());
        if shared.draining.load(Ordering::Acquire) {
            return Err(not_submitted(SubmitError::Closed));
        }
        let definition = Arc::clone(shared.definitions.starting_from::<I>(saga_type)?);
        let longest = ids::longest_above(&definition);
        if !is_name(saga_id, longest) {
            return Err(Refusal::invalid("saga_id", format!("must be 1 to {longest} visible ASCII characters")));
        }
        if let Some(step) = shared.definitions.iter().find_map(|definition| definition.step_of(saga_id)) {
            let message = format!("must not end as the ids of the sagas that are the step {step} of others");
            return Err(Refusal::invalid("saga_id", message));
        }
        // One of that id may have been closed as it was, and those below it go on.
        let below = ids::first_below(&definition, saga_id);
        let mut ids = iter::once(saga_id).chain(below.iter().map(String::as_str));
        if let Some(id) = ids.find(|id| shared.live.contains(id)) {
            return Err(Refusal::already_exists("SAGA_EXISTS", format!("saga {id} is under way")));
        }
        let input = input.encode_to_vec();
        let admission = Admissions::admit(&shared.admissions, bytes_of_new(input.len())).ok_or_else(|| {
            let message = "too many sagas are under way, or too large ones: try again";
            Refusal::exhausted("TOO_MANY_SAGAS", message, Duration::from_secs(1))
        })?;
        let mut record = definition.plan.new_record(saga_id, input, now_micros, start_micros);
        loaded.traceparent().clone_into(&mut record.kept.traceparent);
        record.kept.carried = shared.carried(loaded);
        record.saga.lock_keys = definition.lock_keys(record.kept.input.clone())?;
        let mut locks = Vec::new();
        if start_micros <= now_micros {
            locks = locks::at_start(&mut record, definition.plan.locks == LockPolicy::Refuse, loaded)?;
        }
        if !machine::asks_for_locks(&record) {
            machine::advance(&definition, &mut record, Input::Tick, Moment::at(now_micros))?;
        }
        if !matches!(record.saga.phase(), SagaPhase::Scheduled | SagaPhase::Forward) {
            // Its first step's request can't be made: nothing was done, and nothing needs a saga.
            let reason = record.saga.reason.unwrap_or_default();
            return Err(Refusal::new(Code::from(reason.code), reason.reason, reason.message));
        }
        record.saga.version = 1;
        let (mut decided, _) = store::transition(&mut record);
        decided.absorb(sub_sagas::births(shared, &definition, &record));
        record.saved();
        decided.changes.extend(shared.birth(saga_id));
        decided.changes.extend(locks);
        let shared = Arc::clone(shared);
        decided.on_commit.push(Box::new(move || Driver::launch(shared, definition, record, admission, Start::Fresh)));
        Ok(decided)
    }

    /// The aggregates that hold the locks of a saga that would start from this input. A decision whose command names them too takes
    /// the locks in its own transaction, or is refused in it; another one starts a saga that asks for them by itself.
    ///
    /// # Errors
    /// INTERNAL for a type that is not defined, or an input of another message, as for [`start`](Self::start); INVALID_ARGUMENT for keys
    /// that can't be locked.
    pub fn locks<I: Message + 'static>(&self, saga_type: &str, input: &I) -> Result<Vec<AggregateId>, Refusal> {
        let definition = self.0.definitions.starting_from::<I>(saga_type)?;
        Ok(locks::names(&definition.lock_keys(input.encode_to_vec().into())?))
    }

    /// Waits until a saga has ended, and answers it. Leave when you like: the saga goes on.
    ///
    /// # Errors
    /// NOT_FOUND, UNKNOWN_SAGA; FAILED_PRECONDITION, SAGA_PARKED; UNAVAILABLE when this coordinator doesn't drive it (any more).
    pub async fn finished(&self, saga_id: &str) -> Result<Saga, Refusal> {
        self.finished_by(saga_id).await.map(|(saga, _)| saga)
    }

    /// As [`finished`](Self::finished), and true if it was this process that ended the saga.
    ///
    /// # Errors
    /// Those of [`finished`](Self::finished).
    pub async fn finished_by(&self, saga_id: &str) -> Result<(Saga, bool), Refusal> {
        loop {
            let (answer, answered) = oneshot::channel();
            let parked = match self.0.live.post(saga_id, Mail::Finished(answer)) {
                Ok(()) => match answered.await {
                    Ok(saga) => return Ok((saga, true)),
                    // It was parked just now, or has another task.
                    Err(_) if self.0.live.contains(saga_id) => continue,
                    Err(_) => None,
                },
                Err(Unreachable::NotLive(_)) => None,
                Err(parked) => Some(parked),
            };
            match self.0.loaded(saga_id).await? {
                Ok(Record { saga, .. }) if is_final(saga.phase()) => return Ok((saga, false)),
                // Whoever drives it has it parked, and says so.
                Err(error) if parked.is_none() && self.0.member.get().is_some() => {
                    tell_unreadable(saga_id, &error);
                    return Err(not_driven(saga_id));
                }
                Err(error) if parked.is_none() => {
                    return readable(saga_id, Err(error)).map(|record| (record.saga, false));
                }
                _ => {}
            }
            if parked.is_some() {
                // Why is its operator's to know.
                let message = format!("saga {saga_id} is parked: it goes on once its operator has mended it");
                return Err(Refusal::precondition("SAGA_PARKED", message));
            }
            if self.0.member.get().is_none() || self.0.draining.load(Ordering::Acquire) {
                return Err(not_driven(saga_id));
            }
            // Another process may drive it, and does not know who waits here.
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Starts no new saga and no new step, lets calls that are under way end within `grace`, and leaves the rest as it is stored:
    /// the next start goes on from there. [`leave`](Self::leave) then tells the other processes.
    pub async fn drain(&self, grace: Duration) {
        self.0.draining.store(true, Ordering::Release);
        self.0.live.ring_all();
        let ended = tokio::time::timeout(grace, self.0.admissions.none_left());
        // Whoever shares the sagas may have been told to leave off already, or have yet to begin.
        let ended = match self.0.member.get() {
            Some(member) => ownership::beating(&self.0, member, ended).await,
            None => ended.await,
        };
        if ended.is_err() {
            tracing::info!(sagas = self.0.admissions.count(), "calls were cut off; the next start makes them again");
        }
    }

    /// Has the sagas observed by a meter: those driven here by phase, parked, ended, how long calls take, what is called
    /// again, and what participants were told to forget.
    pub fn observe(&self, meter: &Meter) {
        // The coordinator goes when its service does, whatever a meter remembers.
        let shared = Arc::downgrade(&self.0);
        let parked = move || shared.upgrade().map_or(0, |shared| shared.live.parked() as u64);
        let admissions = Arc::clone(&self.0.admissions);
        self.0.metrics.observe(meter, parked, move || admissions.orphans() as u64);
        self.0.telling.observe(meter);
    }

    /// The metadata that sagas take over from the requests which begin them. A command side must be told to take it: see
    /// [`CommandSide::carrying`](crate::cqrs::CommandSide::carrying).
    #[must_use]
    pub fn carries(&self) -> CarriedKeys {
        self.0.carried
    }

    /// How many sagas are under way here.
    #[must_use]
    pub fn live(&self) -> usize {
        self.0.live.driven()
    }
}

impl Shared {
    fn now(&self) -> i64 {
        (self.clock)()
    }

    /// The chance in a wait, 0 to 1.
    fn roll(&self) -> f64 {
        self.chance.as_ref().map_or_else(rand::random, |chance| chance.lock().random())
    }

    /// What goes with every call of a saga that is begun now.
    fn carried(&self, loaded: &Loaded<'_>) -> Vec<CarriedEntry> {
        let may = loaded.carried().iter().filter(|(key, _)| self.carried.contain(key));
        may.map(|(key, value)| CarriedEntry { key: key.clone(), value: value.clone() }).collect()
    }

    /// A saga as it is stored, to go on from there.
    async fn stored(&self, saga_id: &str) -> Result<Record, Refusal> {
        readable(saga_id, self.newest(saga_id).await?)
    }

    /// The same, or why its record is none.
    async fn newest(&self, saga_id: &str) -> Result<Stored, Refusal> {
        self.found(saga_id, store::load_newest(&self.journal, saga_id).await)
    }

    /// A saga as it is shown, or why its record is none. It may have gone on since.
    async fn loaded(&self, saga_id: &str) -> Result<Stored, Refusal> {
        match store::load(&self.journal, saga_id).await {
            // A standby may have yet to replay it.
            Ok(None) => self.newest(saga_id).await,
            read => self.found(saga_id, read),
        }
    }

    fn found(&self, saga_id: &str, read: Result<Option<Stored>, sql::Error>) -> Result<Stored, Refusal> {
        let read = read.map_err(|error| match error {
            // Of a primary that is out it is told elsewhere.
            sql::Error::Standby => error.refusal(),
            _ => self.refused_reads.refusal("a saga", &error, || tell_unreadable(saga_id, &error)),
        })?;
        read.ok_or_else(|| unknown(saga_id))
    }
}

pub(super) fn unknown(saga_id: &str) -> Refusal {
    Refusal::not_found("UNKNOWN_SAGA", format!("there is no saga {saga_id}")).with("saga_id", saga_id)
}

fn readable(saga_id: &str, stored: Stored) -> Result<Record, Refusal> {
    stored.map_err(|error| {
        tell_unreadable(saga_id, &error);
        Refusal::internal()
    })
}

fn tell_unreadable(saga_id: &str, error: &dyn std::fmt::Display) {
    tracing::error!(saga.id = saga_id, %error, "a saga can't be read");
}

fn not_driven(saga_id: &str) -> Refusal {
    let message = format!("saga {saga_id} is not driven here now: try again, or ask another process");
    Refusal::unavailable("SAGA_NOT_DRIVEN", message, Duration::from_secs(1)).with("saga_id", saga_id)
}

fn closed(saga_id: &str) -> Refusal {
    Refusal::precondition("SAGA_CLOSED", format!("saga {saga_id} has ended")).with("saga_id", saga_id)
}

fn system_clock() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
