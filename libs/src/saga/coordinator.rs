//! The coordinator: starts sagas, finds them again after a crash, and is asked about them. Each is driven by a task of its own.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use proto::saga::v1::{Saga, SagaPhase, SagaRecord, Step as StepView, StepRecord};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    definition::Definition,
    driver::{self, Driver, Local},
    machine::{Disobeyed, Input, Machine, Order, is_final},
    store,
    transport::Transport,
};
use crate::{
    journal::{Decided, Journal},
    refusal::Refusal,
    rpc::verdict::Op,
    time::timestamp,
};

/// How a coordinator behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The most sagas under way; past it new ones are refused.
    pub most_live: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { most_live: 100_000 }
    }
}

/// Coordinates the sagas of one database. Clones share it.
#[derive(Clone)]
pub struct Coordinator(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) journal: Journal,
    pub(super) transport: Box<dyn Transport>,
    pub(super) definitions: HashMap<&'static str, Arc<Definition>>,
    pub(super) live: Mutex<HashMap<String, Arc<Live>>>,
    pub(super) draining: watch::Sender<bool>,
    options: Options,
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coordinator")
            .field("definitions", &self.0.definitions.keys())
            .field("live", &self.0.live.lock().len())
            .finish_non_exhaustive()
    }
}

/// A saga under way, as others reach it.
pub(super) struct Live {
    pub(super) mailbox: mpsc::UnboundedSender<Ask>,
    pub(super) finished: watch::Sender<Option<Saga>>,
}

/// An operator's word on its way to a saga's driver.
pub(super) struct Ask {
    pub(super) actor: String,
    pub(super) reason: String,
    pub(super) order: Order,
    pub(super) answer: oneshot::Sender<Result<Saga, Disobeyed>>,
}

/// Why a coordinator can't take up its work.
#[derive(Debug, thiserror::Error)]
#[error("the sagas can't be read: {0}")]
pub struct RecoverError(#[from] sqlx::Error);

impl Coordinator {
    /// A coordinator over a journal that keeps [`TABLES`](super::TABLES).
    #[must_use]
    pub fn new(
        journal: Journal,
        definitions: impl IntoIterator<Item = Arc<Definition>>,
        transport: impl Transport,
        options: Options,
    ) -> Self {
        let definitions = definitions.into_iter().map(|definition| (definition.name, definition)).collect();
        let (draining, _) = watch::channel(false);
        let transport = Box::new(transport);
        Self(Arc::new(Inner { journal, transport, definitions, live: Mutex::default(), draining, options }))
    }

    /// What must be committed for a saga to start, to go beside the decision that wants it. The first requests are frozen in it;
    /// once it is durable the saga is on its way, whoever leaves.
    ///
    /// The id is the caller's to keep unique: make it the id of an aggregate that the same decision creates.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, TOO_MANY_SAGAS; UNAVAILABLE, SHUTTING_DOWN. Nothing is written then.
    pub fn start<I: Message>(
        &self,
        saga_type: &str,
        saga_id: &str,
        input: &I,
        now_micros: i64,
    ) -> Result<Decided, Refusal> {
        let Some(definition) = self.0.definitions.get(saga_type) else {
            tracing::error!(saga.r#type = saga_type, "no such saga is defined");
            return Err(Refusal::internal());
        };
        if *self.0.draining.borrow() {
            let message = "the service is shutting down: try again, another one answers";
            return Err(Refusal::unavailable("SHUTTING_DOWN", message, Duration::from_secs(1)));
        }
        if self.0.live.lock().len() >= self.0.options.most_live {
            let message = format!("{} sagas are under way: try again", self.0.options.most_live);
            return Err(Refusal::exhausted("TOO_MANY_SAGAS", message, Duration::from_secs(1)));
        }
        let mut record = fresh(definition, saga_id, input.encode_to_vec().into(), now_micros);
        let mut machine = Machine { definition, record: &mut record, now_micros };
        let mut starts = machine.take(Input::Begin).unwrap_or_default();
        // The driver finds what starts under way, local work included.
        driver::freeze(definition, &mut record, &mut starts, now_micros);
        driver::advance(&mut record, now_micros);

        let mut decided = Decided::default();
        store::write(&record, &mut decided);
        let (coordinator, definition) = (self.clone(), Arc::clone(definition));
        decided.on_commit.push(Box::new(move || coordinator.drive(definition, record)));
        Ok(decided)
    }

    /// Takes up every saga that has not ended. Operations whose outcome is unknown are sent again. Answers how many there are.
    ///
    /// A saga that can't be read, or whose definition is not the one it began under, is left as it is, reported, and the others go
    /// on.
    ///
    /// # Errors
    /// When the sagas can't be read at all.
    pub async fn recover(&self) -> Result<usize, RecoverError> {
        const PAGE: i64 = 1000;
        let (mut after, mut taken) = (String::new(), 0);
        loop {
            let page = store::open_after(&self.0.journal, &after, PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(taken) };
            after.clone_from(last);
            for (saga_id, stored) in page {
                let record = match stored {
                    Ok(record) => record,
                    Err(error) => {
                        tracing::error!(saga.id = saga_id, %error, "a saga can't be read and is parked");
                        continue;
                    }
                };
                let saga_type = record.saga.as_ref().map_or("", |saga| saga.r#type.as_str());
                match self.0.definitions.get(saga_type) {
                    Some(definition) if definition.hash == record.definition_hash => {
                        self.drive(Arc::clone(definition), record);
                        taken += 1;
                    }
                    _ => tracing::error!(
                        saga.id = saga_id,
                        saga.r#type = saga_type,
                        "a saga began under a definition that is not this one and is parked: bring that version back"
                    ),
                }
            }
        }
    }

    /// Waits until a saga has ended, and answers it.
    ///
    /// # Errors
    /// NOT_FOUND, UNKNOWN_SAGA; UNAVAILABLE when this coordinator doesn't drive it (any more).
    pub async fn finished(&self, saga_id: &str) -> Result<Saga, Refusal> {
        let live = self.0.live.lock().get(saga_id).cloned();
        if let Some(live) = live {
            let mut finished = live.finished.subscribe();
            drop(live);
            if let Ok(saga) = finished.wait_for(Option::is_some).await
                && let Some(saga) = saga.clone()
            {
                return Ok(saga);
            }
            return Err(not_driven(saga_id));
        }
        let saga = self.stored(saga_id).await?;
        if is_final(saga.phase()) { Ok(saga) } else { Err(not_driven(saga_id)) }
    }

    /// Turns a saga back.
    ///
    /// # Errors
    /// UNKNOWN_SAGA, PAST_PIVOT, SAGA_CLOSED.
    pub async fn cancel(&self, saga_id: &str, actor: &str, reason: &str) -> Result<Saga, Refusal> {
        self.order(saga_id, actor, reason, |_| Ok(Order::Cancel)).await
    }

    /// Sends now what waits; takes a STUCK saga back to where it came from.
    ///
    /// # Errors
    /// UNKNOWN_SAGA, SAGA_CLOSED.
    pub async fn retry(&self, saga_id: &str, actor: &str, reason: &str) -> Result<Saga, Refusal> {
        self.order(saga_id, actor, reason, |_| Ok(Order::Retry)).await
    }

    /// Settles an operation of a STUCK saga by a person's knowledge: it took effect, or it had none.
    ///
    /// # Errors
    /// UNKNOWN_SAGA, SAGA_CLOSED, NOT_STUCK, STEP_SETTLED; INVALID_ARGUMENT for a step that isn't there.
    pub async fn skip(
        &self,
        saga_id: &str,
        step: &str,
        op: Op,
        done: bool,
        actor: &str,
        reason: &str,
    ) -> Result<Saga, Refusal> {
        let find = |saga: &Saga| {
            let at = saga.steps.iter().position(|view| view.name == step);
            let step = at.ok_or_else(|| Refusal::invalid("step", "is not a step of this saga"))?;
            Ok(Order::Skip { step, op, done })
        };
        self.order(saga_id, actor, reason, find).await
    }

    /// Closes a STUCK saga as it is.
    ///
    /// # Errors
    /// UNKNOWN_SAGA, SAGA_CLOSED, NOT_STUCK.
    pub async fn force_close(&self, saga_id: &str, actor: &str, reason: &str) -> Result<Saga, Refusal> {
        self.order(saga_id, actor, reason, |_| Ok(Order::ForceClose)).await
    }

    /// Lets a saga start nothing more.
    ///
    /// # Errors
    /// UNKNOWN_SAGA, SAGA_CLOSED.
    pub async fn pause(&self, saga_id: &str, actor: &str, reason: &str) -> Result<Saga, Refusal> {
        self.order(saga_id, actor, reason, |_| Ok(Order::Pause)).await
    }

    /// Lets a paused saga go on.
    ///
    /// # Errors
    /// UNKNOWN_SAGA, SAGA_CLOSED.
    pub async fn resume(&self, saga_id: &str, actor: &str, reason: &str) -> Result<Saga, Refusal> {
        self.order(saga_id, actor, reason, |_| Ok(Order::Resume)).await
    }

    /// Starts no new saga and no new step, lets attempts that are under way end within `grace`, and leaves the rest as it is stored:
    /// the next start goes on from there.
    pub async fn drain(&self, grace: Duration) {
        self.0.draining.send_replace(true);
        let ended = async {
            loop {
                let live = self.0.live.lock().values().next().cloned();
                let Some(live) = live else { return };
                live.mailbox.closed().await;
                // Its task takes it off the list in a moment.
                tokio::task::yield_now().await;
            }
        };
        if tokio::time::timeout(grace, ended).await.is_err() {
            let left = self.0.live.lock().len();
            tracing::info!(sagas = left, "attempts were cut off; the next start sends them again");
        }
    }

    /// How many sagas are under way here.
    #[must_use]
    pub fn live(&self) -> usize {
        self.0.live.lock().len()
    }

    async fn order(
        &self,
        saga_id: &str,
        actor: &str,
        reason: &str,
        order: impl FnOnce(&Saga) -> Result<Order, Refusal>,
    ) -> Result<Saga, Refusal> {
        let saga = self.stored(saga_id).await?;
        let order = order(&saga)?;
        let live = self.0.live.lock().get(saga_id).cloned();
        let Some(live) = live else {
            return Err(if is_final(saga.phase()) {
                disobeyed(saga_id, Disobeyed::Closed)
            } else {
                not_driven(saga_id)
            });
        };
        let (answer, answered) = oneshot::channel();
        let ask = Ask { actor: actor.to_owned(), reason: reason.to_owned(), order, answer };
        let sent = live.mailbox.send(ask);
        drop(live);
        match (sent, answered.await) {
            (Ok(()), Ok(answer)) => answer.map_err(|why| disobeyed(saga_id, why)),
            // It ended between the look and the word.
            _ if is_final(self.stored(saga_id).await?.phase()) => Err(disobeyed(saga_id, Disobeyed::Closed)),
            _ => Err(not_driven(saga_id)),
        }
    }

    async fn stored(&self, saga_id: &str) -> Result<Saga, Refusal> {
        let stored = store::load(&self.0.journal, saga_id).await.map_err(|error| {
            tracing::error!(saga.id = saga_id, %error, "a saga can't be read");
            Refusal::internal()
        })?;
        match stored {
            Some(Ok(record)) => Ok(record.saga.unwrap_or_default()),
            Some(Err(_)) => Err(Refusal::internal()),
            None => {
                Err(Refusal::not_found("UNKNOWN_SAGA", format!("there is no saga {saga_id}")).with("saga_id", saga_id))
            }
        }
    }

    /// Gives a saga a task of its own.
    fn drive(&self, definition: Arc<Definition>, record: SagaRecord) {
        let saga_id = record.saga.as_ref().map(|saga| saga.saga_id.clone()).unwrap_or_default();
        let (mailbox, asks) = mpsc::unbounded_channel();
        let (finished, _) = watch::channel(None);
        let live = Arc::new(Live { mailbox, finished });
        self.0.live.lock().insert(saga_id.clone(), Arc::clone(&live));
        let driver = Driver::new(Arc::clone(&self.0), definition, record, asks);
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move {
            let ended = driver.run().await;
            if ended.is_some() {
                live.finished.send_replace(ended);
            }
            inner.live.lock().remove(&saga_id);
        });
    }
}

/// A record of a saga that has not begun.
fn fresh(definition: &Definition, saga_id: &str, input: Bytes, now_micros: i64) -> SagaRecord {
    let view = |step: &super::definition::Step| {
        let mut view =
            StepView { name: step.name.to_owned(), participant: step.participant().to_owned(), ..StepView::default() };
        view.set_kind(step.kind);
        view
    };
    let mut saga = Saga {
        saga_id: saga_id.to_owned(),
        r#type: definition.name.to_owned(),
        definition_version: definition.version,
        steps: definition.steps.iter().map(view).collect(),
        create_time: Some(timestamp(now_micros)),
        ..Saga::default()
    };
    saga.set_phase(SagaPhase::Scheduled);
    let deadline = definition.deadline.and_then(|deadline| i64::try_from(deadline.as_micros()).ok());
    SagaRecord {
        saga: Some(saga),
        input,
        steps: vec![StepRecord::default(); definition.steps.len()],
        definition_hash: definition.hash.clone(),
        deadline_micros: deadline.map_or(0, |deadline| now_micros.saturating_add(deadline)),
        ..SagaRecord::default()
    }
}

/// The wall clock, in microseconds since 1970.
pub(super) fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn not_driven(saga_id: &str) -> Refusal {
    let message = format!("saga {saga_id} is not driven here now: try again");
    Refusal::unavailable("SAGA_NOT_DRIVEN", message, Duration::from_secs(1)).with("saga_id", saga_id)
}

fn disobeyed(saga_id: &str, why: Disobeyed) -> Refusal {
    let (reason, message) = match why {
        Disobeyed::PastPivot => ("PAST_PIVOT", "its pivot has started: it can only go forward"),
        Disobeyed::Closed => ("SAGA_CLOSED", "it has ended"),
        Disobeyed::NotStuck => ("NOT_STUCK", "it is not STUCK: pause, retry or cancel it instead"),
        Disobeyed::Settled => ("STEP_SETTLED", "that operation is not under way"),
    };
    Refusal::precondition(reason, format!("saga {saga_id}: {message}")).with("saga_id", saga_id)
}

// The driver hands local work to the journal's thread.
const _: fn() = || {
    fn sendable<T: Send>() {}
    sendable::<Local>();
};
