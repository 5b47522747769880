//! Sagas that are steps of others: stored with the step's start, asked until they are done or undone, told when the one above ends.
//!
//! To the machine of the saga above, the one below is a participant that never loses anything: there is exactly one row of it for each
//! start of the step, and what became of it is read from there, however often and by whomever.

use std::{panic::AssertUnwindSafe, sync::Arc};

use bytes::Bytes;
use proto::saga::v1::{Saga, SagaPhase, StepKind};
use tokio::sync::oneshot;
use tonic::Code;

use super::{
    Coordinator, Driver, LOOK, PAUSE, Shared,
    admission::Admissions,
    driver::Start,
    live::{Mail, Unreachable},
};
use crate::{
    journal::Decided,
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{
        Definition,
        machine::{self, Attempt, Due, Input, Moment, Wish},
        record::{Record, is_final},
        reply::Ruling,
        store,
    },
};

/// The sagas that a transition of the one above begins, to be committed with it.
pub(super) fn births(shared: &Arc<Shared>, program: &Definition, above: &Record) -> Decided {
    let mut decided = Decided::default();
    for (step, definition) in program.sagas().filter(|(step, _)| above.unborn & (1 << step) != 0) {
        let mut record = born(program, step, definition, above, shared.now());
        decided.absorb(store::transition(&mut record).0);
        record.saved();
        decided.changes.extend(shared.birth(&record.saga.saga_id));
        let (shared, definition) = (Arc::clone(shared), Arc::clone(definition));
        decided.on_commit.push(Box::new(move || {
            // It came with the one above, which has its place.
            let admission = Admissions::admit_again(&shared.admissions);
            Driver::launch(shared, definition, record, admission, Start::Fresh);
        }));
    }
    decided
}

fn born(program: &Definition, step: usize, definition: &Arc<Definition>, above: &Record, now: i64) -> Record {
    let input = above.kept.steps[step].request.to_vec();
    let mut record = definition.plan.new_record(&above.saga.steps[step].sub_saga_id, input, now, 0);
    record.saga.parent_saga_id.clone_from(&above.saga.saga_id);
    record.saga.parent_step.clone_from(&above.saga.steps[step].name);
    let bound = program.plan.steps[step].kind == StepKind::Compensatable;
    #[cfg(test)]
    let bound = bound && !crate::saga::simulation::Mutant::StepNotBound.is_left_out();
    record.kept.bound = bound;
    record.kept.traceparent.clone_from(&above.kept.traceparent);
    record.kept.carried.clone_from(&above.kept.carried);
    record.saga.version = 1;
    begun(definition, &record, now).unwrap_or(record)
}

/// The saga with its first steps begun, if nothing is in the way. Else its own driver begins it: then what goes wrong is its own.
fn begun(definition: &Definition, record: &Record, now: i64) -> Option<Record> {
    let mut record = record.clone();
    record.saga.version = 0;
    let advance = || machine::advance(definition, &mut record, Input::Tick, Moment::at(now));
    let moved = std::panic::catch_unwind(AssertUnwindSafe(advance)).ok()?.ok()?;
    let clean = moved.local.is_none() && record.unborn == 0 && record.saga.phase() == SagaPhase::Forward;
    clean.then_some(record)
}

/// Waits until a step's saga is done or undone, and answers what that means to the step.
pub(super) async fn answered(shared: Arc<Shared>, below: Arc<Definition>, saga_id: String, due: Due) -> Attempt {
    let mut was_told = false;
    loop {
        match shared.loaded(&saga_id).await {
            Ok(Ok(record)) => {
                if let Some(attempt) = judge(&below, &record, due) {
                    return attempt;
                }
                // Its task tells of an end, and one that nobody has told to turn back may never come to any.
                if due.op == Op::Compensation && !machine::goes_back(&record) && !shared.withdraw(&record.saga).await {
                    continue;
                }
            }
            Err(refusal) if refusal.code == Code::NotFound => {
                tracing::error!(saga.id = saga_id, "a step's saga is not there");
                return attempt(due, Ruling::Conflict, Ok(Bytes::new()), refusal);
            }
            // Whether it is to be told to turn back nobody knows yet.
            Err(_) if due.op == Op::Compensation => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            // What can't be read is parked, and that was said once.
            Ok(Err(_)) | Err(_) => {}
        }
        // Told, and none the wiser: the database is out of reach, or another process has gone on with it.
        if was_told {
            tokio::time::sleep(LOOK).await;
        }
        was_told = shared.settled(&saga_id).await;
    }
}

/// What a saga's state means to the step that it takes. None while that is open.
fn judge(below: &Definition, record: &Record, due: Due) -> Option<Attempt> {
    let (saga, phase) = (&record.saga, record.saga.phase());
    let reason = saga.reason.clone().unwrap_or_default();
    let refusal = |message: String| {
        let refusal = Refusal::new(Code::from(reason.code), reason.reason.clone(), message);
        refusal.with("sub_saga_id", &saga.saga_id)
    };
    let as_it_was = || {
        let message = format!("saga {} was closed as it was: say what became of it, by SkipStep", saga.saga_id);
        let closed = Refusal::precondition("SUB_SAGA_FORCE_CLOSED", message);
        attempt(due, Ruling::Conflict, Ok(Bytes::new()), closed)
    };
    #[cfg(test)]
    let phase = match due.op {
        Op::Compensation if crate::saga::simulation::Mutant::StepNotUndone.is_left_out() => SagaPhase::Compensated,
        _ => phase,
    };
    match (due.op, phase) {
        (_, SagaPhase::ForceClosed) | (Op::Compensation, SagaPhase::Completed) => Some(as_it_was()),
        (Op::Action, phase) if phase == SagaPhase::Completed || record.kept.awaits_parent => {
            let answer = std::panic::catch_unwind(AssertUnwindSafe(|| below.answer(record)));
            let answer =
                answer.unwrap_or_else(|_| Err(Refusal::precondition("ANSWER_PANICKED", "its answer panicked")));
            Some(attempt(due, Ruling::Done, answer, Refusal::internal()))
        }
        (Op::Action, SagaPhase::Compensated) => {
            let by = if reason.step.is_empty() { String::new() } else { format!("{}: ", reason.step) };
            Some(attempt(due, Ruling::Rejected, Ok(Bytes::new()), refusal(format!("{by}{}", reason.message))))
        }
        (Op::Compensation, SagaPhase::Compensated) => {
            Some(attempt(due, Ruling::Done, Ok(Bytes::new()), Refusal::internal()))
        }
        _ => None,
    }
}

fn attempt(due: Due, ruling: Ruling, reply: Result<Bytes, Refusal>, refusal: Refusal) -> Attempt {
    let Due { step, op } = due;
    match reply {
        Ok(reply) => Attempt { step, op, ruling: Some(ruling), reply, refusal, roll: 0.0 },
        // What it did stands, and can't be told: somebody must look.
        Err(refusal) => Attempt { step, op, ruling: Some(Ruling::Conflict), reply: Bytes::new(), refusal, roll: 0.0 },
    }
}

impl Shared {
    /// Has a step's saga turn back. False if its database takes no writes: nobody has told it then.
    async fn withdraw(self: &Arc<Self>, saga: &Saga) -> bool {
        let (actor, why) = (format!("saga {}", saga.parent_saga_id), "the saga that this one is a step of turns back");
        let told = Coordinator(Arc::clone(self)).steer(&saga.saga_id, Wish::Withdraw, &actor, why).await;
        let Err(Refusal { reason, .. }) = told else { return true };
        tracing::debug!(saga.id = saga.saga_id, %reason, "not told to turn back");
        let is_out = reason == "DATABASE_UNAVAILABLE";
        // A database that takes no writes says so at once, and is left alone as by whoever else waits for it.
        tokio::time::sleep(if is_out { PAUSE } else { LOOK }).await;
        !is_out
    }

    /// Waits until it may be worth to look at a saga again, and answers whether its task has told so.
    async fn settled(&self, saga_id: &str) -> bool {
        let (tell, told) = oneshot::channel();
        let posted = self.live.post(saga_id, Mail::Settled(tell));
        match posted {
            // It tells by dropping the other end, whether it is settled or goes away.
            Ok(()) => drop(told.await),
            Err(Unreachable::NotLive(_) | Unreachable::Parked(..)) => tokio::time::sleep(LOOK).await,
        }
        posted.is_ok()
    }

    /// Whether a server has taken over that had not come as far as a saga here. While that can't be read nobody knows.
    pub(super) async fn has_lost(&self, saga_id: &str, version: u64) -> bool {
        self.member.get().is_some() && store::is_behind(&self.journal, saga_id, version).await.unwrap_or_default()
    }

    /// The phase in which the saga above one has ended. None while it has not.
    ///
    /// # Errors
    /// When it can't be read.
    pub(super) async fn parent_end(&self, record: &Record) -> Result<Option<SagaPhase>, Refusal> {
        // What is no record is parked, and that was said once.
        let above = self.loaded(&record.saga.parent_saga_id).await?.map_err(|_| Refusal::internal())?;
        let phase = above.saga.phase();
        Ok(is_final(phase).then_some(phase))
    }
}

/// The sagas below one that has ended, which wait for that.
pub(super) fn below(record: &Record) -> Vec<String> {
    if !is_final(record.saga.phase()) {
        return Vec::new();
    }
    record.saga.steps.iter().map(|step| step.sub_saga_id.clone()).filter(|id| !id.is_empty()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use futures::future::BoxFuture;
    use proto::saga::v1::StepState;
    use tonic::{Status, metadata::MetadataMap};

    use super::*;
    use crate::{
        journal::{
            Journal, Table,
            simulated::{Begun, Database, Fate, Keys},
            sql::{Error, Record as Row, Value},
        },
        saga::{Operation, Options, Transport, coordinator::call::Known, transport},
    };

    /// Empty when it is opened, and then out of reach: it says so at once, as where nobody listens.
    #[derive(Debug, Default)]
    pub(in crate::saga::coordinator) struct Out(pub(in crate::saga::coordinator) AtomicUsize);

    impl Database for Out {
        fn execute(&self, _: &str, _: &[Value]) -> BoxFuture<'static, Result<(), Error>> {
            Box::pin(async { Err(Error::Closed) })
        }
        fn fetch(&self, _: &str, _: &[Value]) -> BoxFuture<'static, Result<Vec<Row>, Error>> {
            Box::pin(async { Ok(Vec::new()) })
        }
        fn fetch_keys(&self, _: &'static Table, _: &[Vec<Value>]) -> BoxFuture<'static, Result<Vec<Row>, Error>> {
            let reads = self.0.fetch_add(1, Ordering::Relaxed);
            assert!(reads < 1_000, "it is asked without a pause");
            Box::pin(async { Err(Error::Closed) })
        }
        fn begin(&self, _: Keys, _: Keys) -> BoxFuture<'static, Result<Begun, Error>> {
            Box::pin(async { Err(Error::Closed) })
        }
        fn fate(&self, _: u64) -> BoxFuture<'static, Result<Fate, Error>> {
            Box::pin(async { Err(Error::Closed) })
        }
        fn new_name(&self) -> String {
            "a".to_owned()
        }
        fn now_micros(&self) -> i64 {
            0
        }
    }

    struct Do;

    impl Operation for Do {
        const PEER: &'static str = "nobody";
        const PATH: &'static str = "/n.v1.N/Do";
        type Request = String;
        type Reply = String;
    }

    /// Who never answers.
    pub(in crate::saga::coordinator) struct Nobody;

    impl Transport for Nobody {
        fn call(&self, _: transport::Attempt) -> BoxFuture<'static, Result<(Bytes, MetadataMap), Status>> {
            Box::pin(std::future::pending())
        }
    }

    pub(in crate::saga::coordinator) async fn on(out: &Arc<Out>) -> (Arc<Shared>, Arc<Definition>) {
        let (journal, _committer) = Journal::simulated(Arc::<Out>::clone(out)).await.unwrap();
        let Coordinator(shared) = Coordinator::new(journal, [], Nobody, Options::default()).unwrap();
        let mut below = Definition::builder::<String>("below", 1);
        below.pivot::<Do>("do", |input, _| Ok(input.clone()));
        (shared, below.build().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_saga_that_waits_for_the_one_above_asks_again_where_that_could_not_be_read() {
        let out = Arc::new(Out::default());
        let (shared, below) = on(&out).await;
        let mut record = below.plan.new_record("s:do", Vec::new(), 0, 0);
        record.saga.parent_saga_id = "s".to_owned();
        record.saga.set_phase(SagaPhase::Forward);
        record.saga.steps[0].set_state(StepState::Done);
        (record.kept.bound, record.kept.awaits_parent) = (true, true);
        let mailbox = shared.live.enter(&"s:do".into()).unwrap();
        let start = Start::Again { mailbox, known: Known::default(), mail: None };
        let admission = Admissions::admit_again(&shared.admissions);
        Driver::launch(shared, below, record, admission, start);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let reads = out.0.load(Ordering::Relaxed);
        assert!((5..=11).contains(&reads), "{reads}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_saga_whose_place_is_taken_for_now_is_not_forgotten_when_it_is_given_up() {
        let (shared, below) = on(&Arc::new(Out::default())).await;
        let place = shared.live.reserve("s").unwrap();
        let record = below.plan.new_record("s", Vec::new(), 0, 0);
        let admission = Admissions::admit_again(&shared.admissions);
        Driver::launch(Arc::clone(&shared), below, record, admission, Start::Fresh);
        drop(place);
        assert!(!shared.live.contains("s") && shared.claimed.lock().contains("s"), "it is taken up with the next beat");
    }

    #[tokio::test(start_paused = true)]
    async fn a_saga_that_is_done_and_cannot_be_read_is_left_alone_between_two_looks() {
        let out = Arc::new(Out::default());
        let (shared, below) = on(&out).await;
        // Its task has nothing to wait for: it is done.
        let mailbox = shared.live.enter(&"s:step".into()).unwrap();
        tokio::spawn(async move {
            loop {
                mailbox.rung().await;
                drop(mailbox.take());
            }
        });
        let due = Due { step: 0, op: Op::Action };
        let answered = tokio::time::timeout(Duration::from_secs(5), answered(shared, below, "s:step".to_owned(), due));
        assert!(answered.await.is_err(), "nothing is known");
        let reads = out.0.load(Ordering::Relaxed);
        assert!((50..=101).contains(&reads), "{reads}");
    }
}
