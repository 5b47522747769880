//! Telling participants which sagas have ended, a while after: only then may they forget what they answered to them.
//!
//! The log says in order which sagas ended and when, so each participant has a place in it, up to which it was told: an aggregate of its own,
//! moved on once it has answered. Who is killed between the two tells it again, and so do several processes at once. Each is told by a loop
//! of its own: who is out is told later, and neither that one holds up anybody else nor who is slow, or has a long log to catch up with.
//!
//! After that nothing stops an action of such a saga any more but its age: every call says until when it counts, a day at most after the
//! transition that it was made on, and a participant begins nothing for one that is older. A driver whose last transition is too old for
//! that commits another one first, and learns if the saga has gone on without it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use opentelemetry::{KeyValue, metrics::Meter};
use parking_lot::Mutex;
use prost::Message as _;
use proto::saga::v1::{EndedStep, ForgetStepsRequest, StepState};
use tokio::time::Instant;
use tonic::{Status, metadata::MetadataMap};

use super::{Coordinator, RecoverError, Shared};
use crate::{
    journal::{Aggregate, AggregateId, Cause, Change, Decided, Entry, Loaded, SubmitError, sql},
    refusal::code_name,
    rpc::verdict::step_of_round,
    saga::{
        record::{Record, is_final},
        store, transport,
    },
};

/// The method that every participant serves.
const PATH: &str = "/saga.v1.BarrierService/ForgetSteps";
/// How long it may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How many steps a participant is told at once: as long as their names may be, it takes as much of a request at the least.
const MOST_TOLD: usize = 200;
/// How much of the log is looked through at a time.
const PAGE: i64 = 2_000;
/// How much longer somebody who tells rests than they tell, so that a long log doesn't get in anybody's way.
const REST: u32 = 3;
/// The longest such rest: what took longer was a database or a participant that was out.
const MOST_REST: Duration = Duration::from_secs(5);
/// The wait between two rounds: this part of the time that answers are kept, within bounds.
const PART: u32 = 100;
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
/// The longest that a call counts, and the part of the time that answers are kept. The rest is left to clocks that differ.
const COUNTS: Duration = Duration::from_secs(24 * 60 * 60);
const PART_THAT_COUNTS: u32 = 2;

/// The kind of the aggregate that says how far a participant was told. Its state is a position in the log, its version counts the changes.
const TOLD: &str = "saga_told";

/// How it stands with each participant.
#[derive(Clone, Debug, Default)]
pub(super) struct Telling {
    peers: Arc<Mutex<BTreeMap<&'static str, Standing>>>,
    /// Those for whom what they are to be told could not be read, or not kept, the last time.
    without_database: Arc<Mutex<BTreeSet<&'static str>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// Steps that it was told to forget by this process.
    steps: u64,
    /// For how long the first saga that it was not told of could have been forgotten.
    late_micros: i64,
    /// True since it could not be told.
    is_out: bool,
}

impl Telling {
    /// Has it observed by a meter.
    pub(super) fn observe(&self, meter: &Meter) {
        // The instruments live as long as their meter's provider; these handles are not needed.
        let telling = self.clone();
        let _forgotten = meter
            .u64_observable_counter("saga.forgotten")
            .with_unit("{step}")
            .with_description("Steps of ended sagas that this process has told their participants to forget.")
            .with_callback(move |observer| {
                for (peer, standing) in telling.peers.lock().iter() {
                    observer.observe(standing.steps, &[KeyValue::new("saga.peer", *peer)]);
                }
            })
            .build();
        let telling = self.clone();
        let _delay = meter
            .f64_observable_gauge("saga.forget.delay")
            .with_unit("s")
            .with_description("For how long a participant could have been told already which sagas have ended.")
            .with_callback(move |observer| {
                for (peer, standing) in telling.peers.lock().iter() {
                    let late = Duration::from_micros(u64::try_from(standing.late_micros).unwrap_or_default());
                    observer.observe(late.as_secs_f64(), &[KeyValue::new("saga.peer", *peer)]);
                }
            })
            .build();
    }

    fn told(&self, peer: &'static str, steps: usize, late_micros: i64) {
        let mut standings = self.peers.lock();
        let standing = standings.entry(peer).or_default();
        standing.steps += steps as u64;
        standing.late_micros = late_micros;
    }

    /// Notes whether a participant could be told, and answers whether that is news.
    fn is_news(&self, peer: &'static str, is_out: bool) -> bool {
        let mut standings = self.peers.lock();
        let standing = standings.entry(peer).or_default();
        std::mem::replace(&mut standing.is_out, is_out) != is_out
    }

    /// Notes that what a participant is to be told could be read and kept.
    fn has_database(&self, peer: &'static str) {
        self.without_database.lock().remove(peer);
    }

    /// Notes that it could not, and answers whether that is news: it is the same for all of them.
    fn has_no_database(&self, peer: &'static str) -> bool {
        let mut without = self.without_database.lock();
        without.insert(peer) && without.len() == 1
    }
}

/// Why a participant was not told.
#[derive(Debug, thiserror::Error)]
enum Untold {
    /// It says so, or nothing.
    #[error("{0}")]
    Peer(#[from] Status),
    /// What it may forget can't be read here.
    #[error("{0}")]
    Unread(#[from] sql::Error),
    /// How far it was told can't be kept here.
    #[error("{0}")]
    Unkept(#[from] SubmitError),
}

/// How far a participant was told, and the aggregate that says so.
struct Place {
    id: AggregateId,
    before: Aggregate,
    position: i64,
}

impl Shared {
    /// How long a call counts after the transition that it was made on.
    pub(super) fn counts(&self) -> Duration {
        (self.keep_answers / PART_THAT_COUNTS).min(COUNTS)
    }

    /// The participants that have a barrier.
    fn barriers(&self) -> BTreeSet<&'static str> {
        let steps = self.definitions.iter().flat_map(|definition| definition.plan.steps.iter());
        steps.filter(|step| step.is_remote() && !step.options.plain).map(|step| step.participant).collect()
    }

    /// Tells a participant all that it may forget now, and answers how many steps that is.
    async fn tell_all(&self, peer: &'static str) -> Result<usize, Untold> {
        let mut told = 0;
        loop {
            let begin = Instant::now();
            let place = self.place(peer).await?;
            let ended_before = self.now().saturating_sub(micros(self.keep_answers));
            #[cfg(test)]
            let ended_before =
                if crate::saga::simulation::Mutant::SweptAtOnce.is_left_out() { self.now() } else { ended_before };
            let page = store::ended_after(&self.journal, place.position, ended_before, self.now(), PAGE).await?;
            let Some(first_micros) = page.first_micros else {
                self.telling.told(peer, 0, 0);
                return Ok(told);
            };
            self.telling.told(peer, 0, ended_before.saturating_sub(first_micros));
            let steps = self.steps(peer, &page.ended).await?;
            for steps in steps.chunks(MOST_TOLD) {
                self.send(peer, steps).await?;
                self.telling.told(peer, steps.len(), ended_before.saturating_sub(first_micros));
                told += steps.len();
            }
            self.move_on(place, page.position).await?;
            tokio::time::sleep((begin.elapsed() * REST).min(MOST_REST)).await;
        }
    }

    async fn place(&self, peer: &'static str) -> Result<Place, sql::Error> {
        let id = AggregateId::new(TOLD, peer);
        let before = self.journal.aggregate(&id).await?;
        let position = std::str::from_utf8(&before.state).ok().and_then(|text| text.parse().ok()).unwrap_or_default();
        Ok(Place { id, before, position })
    }

    /// What a participant may know of sagas that have ended.
    pub(super) async fn steps(&self, peer: &'static str, ended: &[String]) -> Result<Vec<EndedStep>, sql::Error> {
        let mut steps = Vec::new();
        let read = store::load_each(&self.journal, ended, |saga_id, stored| match stored {
            Ok(record) => steps.extend(called(&record, peer)),
            Err(error) => {
                tracing::warn!(saga.id = saga_id, peer, %error, "a saga can't be read: what is kept of it stays");
            }
        });
        read.await?;
        Ok(steps)
    }

    async fn send(&self, peer: &'static str, steps: &[EndedStep]) -> Result<(), Status> {
        let request = Bytes::from(ForgetStepsRequest { steps: steps.to_vec() }.encode_to_vec());
        let metadata = MetadataMap::new();
        let answer = self.transport.call(transport::Attempt { peer, path: PATH, request, metadata, timeout: TIMEOUT });
        let answer = tokio::time::timeout(TIMEOUT, answer).await;
        answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))).map(drop)
    }

    /// Remembers how far a participant was told, unless another process knows better.
    async fn move_on(&self, place: Place, position: i64) -> Result<(), SubmitError> {
        let Place { id, before, .. } = place;
        let aggregates = vec![id.clone()];
        let decide = move |loaded: &Loaded<'_>| {
            if loaded.aggregate(id.kind, &id.id).is_none_or(|now| now.version != before.version) {
                return Decided::default();
            }
            let state = Some(position.to_string().into());
            let change = Change { aggregate: id, state, version: before.version + 1, events: Vec::new() };
            Decided { changes: vec![change], ..Decided::default() }
        };
        let entry = Entry { request: None, aggregates, cause: Cause::default(), decide: Box::new(decide), size: 100 };
        self.journal.submit(entry).await.map(drop)
    }
}

impl Coordinator {
    /// Tells participants again and again which of their answers they may forget, until this process is to end.
    ///
    /// # Errors
    /// None: who is out comes back.
    pub async fn sweep(self) -> Result<(), RecoverError> {
        let wait = (self.0.keep_answers / PART).clamp(SHORTEST, LONGEST);
        let tell_again = async |peer| {
            while !self.0.draining.load(Ordering::Acquire) {
                self.tell(peer).await;
                tokio::time::sleep(wait).await;
            }
        };
        join_all(self.0.barriers().into_iter().map(tell_again)).await;
        Ok(())
    }

    /// Tells participants once which of their answers they may forget: those to sagas that ended as long ago as
    /// [`Options::keep_answers`](super::Options::keep_answers). Answers how many steps they were told.
    pub async fn forget_ended(&self) -> usize {
        join_all(self.0.barriers().into_iter().map(|peer| self.tell(peer))).await.into_iter().sum()
    }

    /// Tells a participant once all that it may forget now, and says what is new about that.
    async fn tell(&self, peer: &'static str) -> usize {
        let telling = &self.0.telling;
        let told = self.0.tell_all(peer).await;
        if matches!(told, Ok(_) | Err(Untold::Peer(_))) {
            telling.has_database(peer);
        }
        match told {
            Ok(steps) => {
                telling.is_news(peer, false);
                if steps > 0 {
                    tracing::info!(peer, steps, "told what it may forget of sagas that have ended");
                }
                return steps;
            }
            Err(Untold::Peer(status)) => {
                if telling.is_news(peer, true) {
                    let (code, error) = (code_name(status.code()), status.message());
                    tracing::warn!(peer, code, error, "can't be told now what it may forget, but later");
                }
            }
            // This process ends.
            Err(Untold::Unkept(SubmitError::Closed)) => {}
            Err(error) => {
                if telling.has_no_database(peer) {
                    tracing::warn!(%error, "what participants may forget can't be read or kept now, but later");
                }
            }
        }
        0
    }
}

/// The steps of a saga that has ended for which a participant was called.
fn called(record: &Record, peer: &str) -> Vec<EndedStep> {
    // One that goes on under an id that was used before.
    if !is_final(record.saga.phase()) {
        return Vec::new();
    }
    let steps = record.saga.steps.iter().zip(&record.kept.steps);
    let its = steps.filter(|(step, _)| step.participant == peer && step.state() != StepState::Unspecified);
    let named = its.flat_map(|(step, kept)| {
        (1..=kept.refusals.saturating_add(1)).map(|round| step_of_round(&step.name, round).into_owned())
    });
    named.map(|step| EndedStep { saga_id: record.saga.saga_id.clone(), step }).collect()
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::Limits, rpc::verdict::LONGEST_NAME};

    #[test]
    fn what_is_told_at_once_is_a_request_that_any_participant_takes() {
        let name = "n".repeat(LONGEST_NAME);
        let longest = EndedStep { saga_id: name.clone(), step: step_of_round(&name, u32::MAX).into_owned() };
        let request = ForgetStepsRequest { steps: vec![longest; MOST_TOLD] };
        assert!(request.encoded_len() as u64 <= Limits::LEAST_REQUEST_BYTES, "{} bytes", request.encoded_len());
    }
}
