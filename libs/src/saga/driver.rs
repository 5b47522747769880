//! Drives one saga: takes in what comes, commits the next record, and only then lets the next operations leave.
//!
//! "Step k is done and step k+1 has started" is one commit, so a saga of N steps waits N+1 times for the disk.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use proto::saga::v1::{Reason, Saga, SagaPhase, SagaRecord};
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, metadata::MetadataMap};

use super::{
    coordinator::{Ask, Inner, now_micros},
    definition::{Action, Definition, Facts, LocalWork, Missing},
    machine::{Disobeyed, End, Input, Machine, is_final, reason_of},
    reply::{Next, Position, judge},
    store,
    transport::Attempt,
};
use crate::{
    journal::{Cause, Decided, Entry, Loaded, SubmitError},
    rpc::verdict::{Op, SagaCall},
    time::timestamp,
};

/// Work that is done in the transaction itself: a step's, or what ends a compensated saga.
pub(super) struct Local {
    step: Option<usize>,
    work: LocalWork,
}

/// What a running operation reports.
enum Report {
    /// An attempt came back.
    Back { step: usize, op: Op, attempt: u32, reply: Result<(Bytes, MetadataMap), Status> },
    /// A wait is over.
    Due { step: usize, op: Op, attempt: u32 },
}

pub(super) struct Driver {
    inner: Arc<Inner>,
    definition: Arc<Definition>,
    record: SagaRecord,
    asks: mpsc::UnboundedReceiver<Ask>,
    /// Attempts that have left.
    calls: FuturesUnordered<BoxFuture<'static, Report>>,
    /// Attempts that wait to leave.
    waits: FuturesUnordered<BoxFuture<'static, Report>>,
    /// Rung when an operator wants what waits to be sent at once.
    hurry: Arc<tokio::sync::Notify>,
}

/// Why a driver stops before its saga has ended. What is stored is where the next start goes on.
enum Stop {
    Draining,
    Journal(SubmitError),
}

impl Driver {
    pub(super) fn new(
        inner: Arc<Inner>,
        definition: Arc<Definition>,
        record: SagaRecord,
        asks: mpsc::UnboundedReceiver<Ask>,
    ) -> Self {
        let (calls, waits, hurry) = (FuturesUnordered::new(), FuturesUnordered::new(), Arc::default());
        Self { inner, definition, record, asks, calls, waits, hurry }
    }

    /// Drives until the saga has ended, and answers it; None when it stops before.
    pub(super) async fn run(mut self) -> Option<Saga> {
        match self.drive().await {
            Ok(()) => self.record.saga.take(),
            Err(Stop::Draining | Stop::Journal(SubmitError::Closed)) => None,
            Err(Stop::Journal(error)) => {
                tracing::error!(saga.id = self.saga_id(), %error, "a saga can't go on and is parked until the next start");
                None
            }
        }
    }

    async fn drive(&mut self) -> Result<(), Stop> {
        let mut draining = self.inner.draining.subscribe();
        // What was started and not settled: all of it after a crash, the first steps of a new saga.
        let under_way = self.under_way();
        self.go(under_way).await?;
        let mut deadline = self.deadline();
        while !self.is_final() {
            let input = tokio::select! {
                biased;
                Some(report) = self.calls.next() => self.read(report),
                Some(report) = self.waits.next() => self.read(report),
                Some(ask) = self.asks.recv() => {
                    self.obey(ask).await?;
                    continue;
                }
                () = &mut deadline => {
                    deadline = Box::pin(std::future::pending());
                    Some(Input::DeadlinePassed)
                }
                () = told(&mut draining), if self.calls.is_empty() => return Err(Stop::Draining),
            };
            if let Some(input) = input {
                // The machine disobeys only operators.
                let _ = self.take(input).await?;
            }
        }
        Ok(())
    }

    /// Takes in an operator's word.
    async fn obey(&mut self, ask: Ask) -> Result<(), Stop> {
        let Ask { actor, reason, order, answer } = ask;
        let resend = matches!(order, super::machine::Order::Retry | super::machine::Order::Resume);
        let was_stuck = self.phase() == SagaPhase::Stuck;
        let taken = self.take(Input::Operator { actor, reason, order }).await?;
        if taken.is_ok() && resend {
            self.hurry.notify_waiters();
            if was_stuck {
                let under_way = self.under_way();
                self.go(under_way).await?;
            }
        }
        // Whoever asked may have left.
        let _ = answer.send(taken.map(|()| self.record.saga.clone().unwrap_or_default()));
        Ok(())
    }

    /// What a report means to the saga. None when it only leads to another attempt.
    fn read(&mut self, report: Report) -> Option<Input> {
        let (step, op, attempt, reply) = match report {
            Report::Due { step, op, attempt } => {
                self.send(step, op, attempt);
                return None;
            }
            Report::Back { step, op, attempt, reply } => (step, op, attempt, reply),
        };
        let definition = &self.definition.steps[step];
        let (kind, trusted_codes) = (definition.kind, definition.trusted_codes.as_slice());
        match judge(Position { step: definition.name, kind, op, trusted_codes }, reply) {
            Next::End(end) => Some(Input::Ended { step, op, attempt, end }),
            Next::Poll(after) => {
                self.wait(step, op, attempt, after);
                None
            }
            Next::Retry { error, at_least, alert } => {
                let (name, saga_id) = (definition.name, self.saga_id());
                if alert {
                    tracing::error!(saga.id = saga_id, saga.step = name, %error, "a participant refuses to talk to the saga");
                } else {
                    tracing::warn!(saga.id = saga_id, saga.step = name, attempt, %error, "an attempt failed");
                }
                let spent = definition.retry.attempts.is_some_and(|most| attempt >= most);
                let can_turn_back =
                    matches!(kind, proto::saga::v1::StepKind::Check | proto::saga::v1::StepKind::Compensatable);
                if op == Op::Action && spent && can_turn_back {
                    let end = End::GivenUp(reason_of(name, "ATTEMPTS_SPENT", &error));
                    return Some(Input::Ended { step, op, attempt, end });
                }
                let wait = definition.retry.wait(attempt, rand::random()).max(at_least);
                self.wait(step, op, attempt + 1, wait);
                let next_micros = now_micros() + i64::try_from(wait.as_micros()).unwrap_or_default();
                Some(Input::Failed { step, op, attempt, error, next_micros })
            }
        }
    }

    /// Lets the machine take something in, commits what it makes of it, and lets the started operations leave.
    async fn take(&mut self, input: Input) -> Result<Result<(), Disobeyed>, Stop> {
        let now = now_micros();
        let mut machine = Machine { definition: &self.definition, record: &mut self.record, now_micros: now };
        let starts = match machine.take(input) {
            Ok(starts) => starts,
            Err(disobeyed) => return Ok(Err(disobeyed)),
        };
        let starts = self.commit(starts, now).await?;
        self.go(starts.into_iter().map(|(step, op)| (step, op, 1)).collect()).await?;
        Ok(Ok(()))
    }

    /// Lets operations leave that are marked as started and durable; local ones are taken in a transaction of their own.
    async fn go(&mut self, mut starts: Vec<(usize, Op, u32)>) -> Result<(), Stop> {
        while !starts.is_empty() && !*self.inner.draining.borrow() {
            let mut locals = Vec::new();
            for (step, op, attempt) in starts.drain(..) {
                if is_local(&self.definition, step) {
                    locals.push((step, op));
                } else {
                    self.send(step, op, attempt);
                }
            }
            if !locals.is_empty() {
                let more = self.commit(locals, now_micros()).await?;
                starts.extend(more.into_iter().map(|(step, op)| (step, op, 1)));
            }
        }
        Ok(())
    }

    /// Commits the record with the requests of what starts frozen in it, doing local work in the same transaction. Answers what
    /// may leave now.
    async fn commit(&mut self, mut starts: Vec<(usize, Op)>, now: i64) -> Result<Vec<(usize, Op)>, Stop> {
        let locals = freeze(&self.definition, &mut self.record, &mut starts, now);
        let (record, definition) = (std::mem::take(&mut self.record), Arc::clone(&self.definition));
        let (give, given) = oneshot::channel();
        let aggregates = locals.iter().flat_map(|local| local.work.aggregates.clone()).collect();
        let cause = Cause {
            traceparent: record.traceparent.clone(),
            request: format!("saga/{}", record.saga.as_ref().map_or("", |saga| saga.saga_id.as_str())),
        };
        let size = record.input.len() + 1024;
        let decide = move |loaded: &Loaded<'_>| {
            let mut record = record;
            let mut decided = Decided::default();
            let mut starts = starts;
            for local in locals {
                let mut more = settle(&definition, &mut record, local, loaded, &mut decided);
                // A local step right behind this one has loaded nothing: it takes the next transaction.
                let later: Vec<_> = more.iter().copied().filter(|(step, _)| is_local(&definition, *step)).collect();
                freeze(&definition, &mut record, &mut more, loaded.now_micros());
                starts.extend(more.into_iter().chain(later));
            }
            advance(&mut record, loaded.now_micros());
            store::write(&record, &mut decided);
            let _ = give.send((record, starts));
            decided
        };
        let entry = Entry { request: None, aggregates, cause, decide: Box::new(decide), size };
        self.inner.journal.submit_admitted(entry).await.map_err(Stop::Journal)?;
        let (record, starts) = given.await.map_err(|_| Stop::Journal(SubmitError::Panicked))?;
        self.record = record;
        Ok(starts)
    }

    /// Every operation whose outcome is unknown, with the attempt that comes next.
    fn under_way(&mut self) -> Vec<(usize, Op, u32)> {
        let machine = Machine { definition: &self.definition, record: &mut self.record, now_micros: 0 };
        if machine.phase() == SagaPhase::Stuck {
            return Vec::new();
        }
        let under_way = machine.under_way();
        let attempts = |(step, op): (usize, Op)| {
            let view = self.record.saga.as_ref().and_then(|saga| saga.steps.get(step));
            let attempts = view.map_or(0, |view| match op {
                Op::Action => view.attempts,
                Op::Compensation => view.compensation_attempts,
            });
            (step, op, attempts + 1)
        };
        under_way.into_iter().map(attempts).collect()
    }

    fn send(&mut self, step: usize, op: Op, attempt: u32) {
        let definition = &self.definition.steps[step];
        let record = &self.record.steps[step];
        let (peer, path, request) = match (op, &definition.action, &definition.compensation) {
            (Op::Action, Action::Remote(call), _) => (call.peer, call.path, record.request.clone()),
            (Op::Compensation, _, Some(call)) => (call.peer, call.path, record.compensation_request.clone()),
            // `go` takes local work elsewhere, and nothing starts a compensation that isn't there.
            _ => return,
        };
        let mut metadata = MetadataMap::new();
        let call = SagaCall {
            saga_id: self.saga_id().to_owned(),
            saga_type: self.definition.name.to_owned(),
            step: definition.name.to_owned(),
            op,
            attempt,
            deadline_micros: self.record.deadline_micros,
        };
        call.write_to(&mut metadata);
        if let Ok(traceparent) = self.record.traceparent.parse() {
            metadata.insert("traceparent", traceparent);
        }
        let timeout = definition.attempt_timeout;
        let sent = self.inner.transport.call(Attempt { peer, path, request, metadata, timeout });
        self.calls.push(Box::pin(async move {
            let late = |_| Err(Status::deadline_exceeded("the attempt took too long"));
            let reply = tokio::time::timeout(timeout, sent).await.unwrap_or_else(late);
            Report::Back { step, op, attempt, reply }
        }));
    }

    fn wait(&mut self, step: usize, op: Op, attempt: u32, wait: Duration) {
        let hurry = Arc::clone(&self.hurry);
        self.waits.push(Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = hurry.notified() => {}
            }
            Report::Due { step, op, attempt }
        }));
    }

    /// Sleeps until the saga's deadline, or for ever when it has none.
    fn deadline(&self) -> BoxFuture<'static, ()> {
        match self.record.deadline_micros {
            0 => Box::pin(std::future::pending()),
            at => {
                let left = Duration::from_micros(at.saturating_sub(now_micros()).max(0).unsigned_abs());
                Box::pin(async move {
                    tokio::time::sleep(left).await;
                })
            }
        }
    }

    fn phase(&self) -> SagaPhase {
        self.record.saga.as_ref().map_or(SagaPhase::Unspecified, |saga| saga.phase())
    }

    fn is_final(&self) -> bool {
        is_final(self.phase())
    }

    fn saga_id(&self) -> &str {
        self.record.saga.as_ref().map_or("", |saga| saga.saga_id.as_str())
    }
}

/// Waits until the coordinator drains.
async fn told(draining: &mut tokio::sync::watch::Receiver<bool>) {
    // An error means that the coordinator is gone: as good as told.
    let _ = draining.wait_for(|draining| *draining).await;
}

/// Builds the requests of what starts, once and for all, and collects what is done in the transaction itself. What can't be built
/// makes the saga STUCK and is taken out of `starts`, as is local work.
pub(super) fn freeze(
    definition: &Definition,
    record: &mut SagaRecord,
    starts: &mut Vec<(usize, Op)>,
    now_micros: i64,
) -> Vec<Local> {
    let replies: Vec<Option<Bytes>> = record
        .steps
        .iter()
        .enumerate()
        .map(|(at, step)| {
            let view = record.saga.as_ref().and_then(|saga| saga.steps.get(at));
            let done = view.is_some_and(|view| view.action_duration.is_some());
            (done && step.may_have_run).then(|| step.reply.clone())
        })
        .collect();
    let reason = record.saga.as_ref().and_then(|saga| saga.reason.clone()).unwrap_or_default();
    let input = record.input.clone();
    let facts = Facts { input: &input, replies: &replies, reason: &reason };
    let mut locals = Vec::new();
    starts.retain(|&(at, op)| {
        let step = &definition.steps[at];
        let built = match (op, &step.action, &step.compensation) {
            (Op::Action, Action::Remote(call), _) => (call.build)(facts).map(|request| {
                record.steps[at].request = request;
                true
            }),
            (Op::Action, Action::Local(build), _) => build(facts).map(|work| {
                locals.push(Local { step: Some(at), work });
                false
            }),
            (Op::Compensation, _, Some(call)) => (call.build)(facts, replies[at].clone()).map(|request| {
                record.steps[at].compensation_request = request;
                true
            }),
            (Op::Compensation, _, None) => Ok(false),
        };
        built.unwrap_or_else(|Missing(what)| {
            puzzle(definition, record, at, op, &what, now_micros);
            false
        })
    });
    let phase = record.saga.as_ref().map(Saga::phase);
    if let (Some(SagaPhase::Compensated), Some(build)) = (phase, &definition.on_compensated) {
        match build(facts) {
            Ok(work) => locals.push(Local { step: None, work }),
            Err(Missing(what)) => stick_at_end(record, &what),
        }
    }
    locals
}

/// Does local work in the transaction at hand. Answers what it lets start.
fn settle(
    definition: &Definition,
    record: &mut SagaRecord,
    local: Local,
    loaded: &Loaded<'_>,
    decided: &mut Decided,
) -> Vec<(usize, Op)> {
    let now_micros = loaded.now_micros();
    let end = match ((local.work.decide)(loaded), local.step) {
        (Ok(work), _) => {
            decided.absorb(work);
            End::Done(Bytes::new())
        }
        (Err(refusal), Some(step)) => {
            let reason = reason_of(definition.steps[step].name, &refusal.reason, &refusal.message);
            End::Rejected(Reason { code: refusal.code.into(), ..reason })
        }
        (Err(refusal), None) => {
            stick_at_end(record, &refusal.message);
            return Vec::new();
        }
    };
    let Some(step) = local.step else { return Vec::new() };
    let mut machine = Machine { definition, record, now_micros };
    machine.take(Input::Ended { step, op: Op::Action, attempt: 1, end }).unwrap_or_default()
}

/// An operation whose request can't be built waits for an operator.
fn puzzle(definition: &Definition, record: &mut SagaRecord, step: usize, op: Op, what: &str, now_micros: i64) {
    let end = End::Puzzled(reason_of(definition.steps[step].name, "REQUEST_NOT_BUILT", what));
    let mut machine = Machine { definition, record, now_micros };
    // STUCK starts nothing.
    let _ = machine.take(Input::Ended { step, op, attempt: 0, end });
}

/// Everything is undone, and the last word could not be said: an operator's retry says it again.
fn stick_at_end(record: &mut SagaRecord, what: &str) {
    tracing::error!(error = what, "a compensated saga's last local work was refused");
    record.set_stuck_from(SagaPhase::Compensating);
    if let Some(saga) = &mut record.saga {
        saga.set_phase(SagaPhase::Stuck);
    }
}

/// Moves the record to its next version.
pub(super) fn advance(record: &mut SagaRecord, now_micros: i64) {
    if let Some(saga) = &mut record.saga {
        saga.version += 1;
        saga.update_time = Some(timestamp(now_micros));
    }
}

fn is_local(definition: &Definition, step: usize) -> bool {
    matches!(definition.steps[step].action, Action::Local(_))
}
