//! What a saga is made of: steps, their order, what undoes them. Checked when it is built, so that no illegal shape ever runs.
//!
//! Requests are built from the saga's input and the replies of earlier steps by typed, pure functions; a [`Handle`] names a
//! reply, so a definition that reads a reply of the wrong type doesn't compile.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;
use proto::saga::v1::{Reason, StepKind};
use sha2::{Digest as _, Sha256};

use crate::{
    journal::{AggregateId, Decided, Loaded},
    refusal::Refusal,
};

/// The most steps a saga may have.
pub const MOST_STEPS: usize = 64;

/// A method of a peer that a step may call. Generated from the peer's contract.
pub trait Operation: 'static {
    /// The peer, by its bare name such as `inventory`.
    const PEER: &'static str;
    /// The method's path, such as `/inventory.v1.InventoryCommandService/ReserveStock`.
    const PATH: &'static str;
    /// What it takes.
    type Request: Message + 'static;
    /// What it answers.
    type Reply: Message + Default + 'static;
}

/// An operation that another one undoes, as the contract declares.
pub trait Compensated: Operation {
    /// The one that undoes it.
    type Compensation: Operation;
}

/// Names a step's reply, so that later steps can read it.
#[derive(Debug)]
pub struct Handle<R> {
    step: usize,
    reply: PhantomData<fn() -> R>,
}

impl<R> Clone for Handle<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Handle<R> {}

/// What a step's request can't be built without. The saga that meets it waits for an operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Missing(pub String);

impl Missing {
    /// Something isn't there.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// The replies of the steps that are done.
#[derive(Clone, Copy, Debug)]
pub struct Replies<'a>(pub(super) &'a [Option<Bytes>]);

impl Replies<'_> {
    /// A step's reply.
    ///
    /// # Errors
    /// When the step isn't done, or was skipped, or its reply can't be read.
    pub fn get<R: Message + Default>(&self, handle: Handle<R>) -> Result<R, Missing> {
        let reply = self.0.get(handle.step).and_then(Option::as_ref);
        let reply = reply.ok_or_else(|| Missing(format!("step {} has no reply", handle.step)))?;
        R::decode(reply.clone())
            .map_err(|error| Missing(format!("the reply of step {} can't be read: {error}", handle.step)))
    }
}

/// What a compensation's request is built from.
#[derive(Debug)]
pub struct Undo<'a, I, R> {
    /// The saga's input.
    pub input: &'a I,
    /// The reply of the action that is undone; None when its outcome isn't known.
    pub reply: Option<R>,
    /// The replies of the steps that are done.
    pub replies: Replies<'a>,
    /// Why the saga turned back.
    pub reason: &'a Reason,
}

/// Work in the coordinator's own database, in the very transaction of the saga's transition.
pub struct LocalWork {
    /// The aggregates it sees and may change.
    pub aggregates: Vec<AggregateId>,
    /// The decision over them.
    pub decide: DecideLocally,
}

/// A decision over the aggregates that local work names.
pub type DecideLocally = Box<dyn FnOnce(&Loaded<'_>) -> Result<Decided, Refusal> + Send>;

impl fmt::Debug for LocalWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalWork").field("aggregates", &self.aggregates).finish_non_exhaustive()
    }
}

/// What requests are built from, in the form the engine keeps it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) input: &'a Bytes,
    pub(super) replies: &'a [Option<Bytes>],
    pub(super) reason: &'a Reason,
}

type BuildRequest = Box<dyn Fn(Facts<'_>) -> Result<Bytes, Missing> + Send + Sync>;
type BuildUndo = Box<dyn Fn(Facts<'_>, Option<Bytes>) -> Result<Bytes, Missing> + Send + Sync>;
type BuildLocal = Box<dyn Fn(Facts<'_>) -> Result<LocalWork, Missing> + Send + Sync>;

/// A call that a step makes.
pub(super) struct Call<B> {
    pub(super) peer: &'static str,
    pub(super) path: &'static str,
    pub(super) build: B,
}

/// What a step does.
pub(super) enum Action {
    Remote(Call<BuildRequest>),
    Local(BuildLocal),
}

/// How attempts of a step follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// Before the second attempt.
    pub initial: Duration,
    /// Never longer.
    pub most: Duration,
    /// Each wait is this many times the one before.
    pub factor: f64,
    /// Up to this share of the wait is taken off by chance.
    pub jitter: f64,
    /// After this many attempts a step before the pivot turns the saga back. None never does.
    pub attempts: Option<u32>,
}

impl Default for Retry {
    fn default() -> Self {
        let (initial, most) = (Duration::from_millis(100), Duration::from_secs(10));
        Self { initial, most, factor: 2.0, jitter: 0.5, attempts: None }
    }
}

impl Retry {
    /// The wait after attempt `attempt` (from 1), `chance` being in 0..1.
    pub(super) fn wait(&self, attempt: u32, chance: f64) -> Duration {
        let exponent = i32::try_from(attempt.saturating_sub(1).min(64)).unwrap_or(64);
        let wait = self.initial.as_secs_f64() * self.factor.powi(exponent);
        Duration::from_secs_f64(wait.min(self.most.as_secs_f64()) * (1.0 - self.jitter * chance))
    }
}

/// One step.
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) kind: StepKind,
    /// The steps that must be done before it, as bits.
    pub(super) after: u64,
    pub(super) action: Action,
    pub(super) compensation: Option<Call<BuildUndo>>,
    pub(super) attempt_timeout: Duration,
    pub(super) retry: Retry,
    pub(super) trusted_codes: Vec<tonic::Code>,
}

impl Step {
    pub(super) fn participant(&self) -> &'static str {
        match &self.action {
            Action::Remote(call) => call.peer,
            Action::Local(_) => "local",
        }
    }
}

/// A checked definition.
pub struct Definition {
    pub(super) name: &'static str,
    pub(super) version: u32,
    pub(super) steps: Vec<Step>,
    pub(super) on_compensated: Option<BuildLocal>,
    pub(super) deadline: Option<Duration>,
    pub(super) hash: Bytes,
}

impl fmt::Debug for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<_> = self.steps.iter().map(|step| (step.name, step.kind)).collect();
        f.debug_struct("Definition").field("name", &self.name).field("steps", &steps).finish_non_exhaustive()
    }
}

/// Why a definition is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("saga {saga}: {what}")]
pub struct DefinitionError {
    saga: &'static str,
    what: String,
}

/// Builds a definition, a step at a time. A step follows the one before it unless [`after`](Self::after) says otherwise.
pub struct Builder<I> {
    definition: Definition,
    wrong: Option<String>,
    input: PhantomData<fn(I)>,
}

impl<I> fmt::Debug for Builder<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.definition.fmt(f)
    }
}

impl Definition {
    /// Begins a definition whose sagas start from an `I`. The name is stable for ever; the version grows with every change that a
    /// saga under way must not meet.
    #[must_use]
    pub fn builder<I: Message + Default + 'static>(name: &'static str, version: u32) -> Builder<I> {
        let (steps, on_compensated, deadline, hash) = (Vec::new(), None, None, Bytes::new());
        let definition = Self { name, version, steps, on_compensated, deadline, hash };
        Builder { definition, wrong: None, input: PhantomData }
    }

    /// The definition's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The peers that its steps call.
    pub fn peers(&self) -> impl Iterator<Item = &'static str> {
        let mut peers: Vec<_> = self.steps.iter().map(Step::participant).filter(|peer| *peer != "local").collect();
        peers.sort_unstable();
        peers.dedup();
        peers.into_iter()
    }

    /// All steps that `step` comes after, however far, as bits.
    pub(super) fn ancestors(&self, step: usize) -> u64 {
        let mut found = self.steps[step].after;
        loop {
            let next = (0..self.steps.len())
                .filter(|at| found & (1 << at) != 0)
                .fold(found, |found, at| found | self.steps[at].after);
            if next == found {
                return found;
            }
            found = next;
        }
    }
}

impl<I: Message + Default + 'static> Builder<I> {
    /// Adds a step that has no effect.
    pub fn check<O: Operation>(
        &mut self,
        name: &'static str,
        request: impl Fn(&I, Replies<'_>) -> Result<O::Request, Missing> + Send + Sync + 'static,
    ) -> Handle<O::Reply> {
        let action = remote::<I, O>(request);
        self.add(name, StepKind::Check, action, None)
    }

    /// Adds a step that its operation's declared compensation undoes.
    pub fn compensatable<O: Compensated>(
        &mut self,
        name: &'static str,
        request: impl Fn(&I, Replies<'_>) -> Result<O::Request, Missing> + Send + Sync + 'static,
        undo: impl Fn(Undo<'_, I, O::Reply>) -> <O::Compensation as Operation>::Request + Send + Sync + 'static,
    ) -> Handle<O::Reply> {
        let build: BuildUndo = Box::new(move |facts, reply| {
            let input = decode::<I>(facts.input)?;
            let reply = reply.map(|reply| decode::<O::Reply>(&reply)).transpose()?;
            let replies = Replies(facts.replies);
            Ok(undo(Undo { input: &input, reply, replies, reason: facts.reason }).encode_to_vec().into())
        });
        let (peer, path) = (<O::Compensation as Operation>::PEER, <O::Compensation as Operation>::PATH);
        let action = remote::<I, O>(request);
        self.add(name, StepKind::Compensatable, action, Some(Call { peer, path, build }))
    }

    /// Adds the point of no return.
    pub fn pivot<O: Operation>(
        &mut self,
        name: &'static str,
        request: impl Fn(&I, Replies<'_>) -> Result<O::Request, Missing> + Send + Sync + 'static,
    ) -> Handle<O::Reply> {
        let action = remote::<I, O>(request);
        self.add(name, StepKind::Pivot, action, None)
    }

    /// Adds a step after the pivot, which must succeed in the end.
    pub fn retriable<O: Operation>(
        &mut self,
        name: &'static str,
        request: impl Fn(&I, Replies<'_>) -> Result<O::Request, Missing> + Send + Sync + 'static,
    ) -> Handle<O::Reply> {
        let action = remote::<I, O>(request);
        self.add(name, StepKind::Retriable, action, None)
    }

    /// Adds a step after the pivot in the coordinator's own database: it is taken in the transaction that ends the step before.
    pub fn retriable_local(
        &mut self,
        name: &'static str,
        work: impl Fn(&I, Replies<'_>) -> Result<LocalWork, Missing> + Send + Sync + 'static,
    ) {
        let build: BuildLocal = Box::new(move |facts| work(&decode::<I>(facts.input)?, Replies(facts.replies)));
        let _: Handle<()> = self.add(name, StepKind::Retriable, Action::Local(build), None);
    }

    /// What happens in the coordinator's own database in the transaction that makes a saga COMPENSATED.
    pub fn on_compensated(&mut self, work: impl Fn(&I, &Reason) -> Result<LocalWork, Missing> + Send + Sync + 'static) {
        let build: BuildLocal = Box::new(move |facts| work(&decode::<I>(facts.input)?, facts.reason));
        self.definition.on_compensated = Some(build);
    }

    /// The step added last follows these instead of the one before it; none makes it a first step.
    pub fn after(&mut self, names: &[&str]) -> &mut Self {
        let mut mask = 0;
        for name in names {
            match self.definition.steps.iter().position(|step| step.name == *name) {
                Some(at) => mask |= 1 << at,
                None => self.wrong(format!("a step follows {name}, which is not defined before it")),
            }
        }
        if let Some(last) = self.definition.steps.last_mut() {
            last.after = mask;
        }
        self
    }

    /// How long one attempt of the step added last may take. The default is 5 s.
    pub fn attempt_timeout(&mut self, timeout: Duration) -> &mut Self {
        if let Some(last) = self.definition.steps.last_mut() {
            last.attempt_timeout = timeout;
        }
        self
    }

    /// How attempts of the step added last follow each other.
    pub fn retry(&mut self, retry: Retry) -> &mut Self {
        if let Some(last) = self.definition.steps.last_mut() {
            last.retry = retry;
        }
        self
    }

    /// Codes of the step added last that are a refusal even without a verdict: for participants without the barrier.
    pub fn trusted_codes(&mut self, codes: &[tonic::Code]) -> &mut Self {
        if let Some(last) = self.definition.steps.last_mut() {
            last.trusted_codes = codes.to_vec();
        }
        self
    }

    /// After this long a saga whose pivot has not started turns back.
    pub fn deadline(&mut self, deadline: Duration) -> &mut Self {
        self.definition.deadline = Some(deadline);
        self
    }

    /// Checks the shape.
    ///
    /// # Errors
    /// With a message that names the step.
    pub fn build(self) -> Result<Arc<Definition>, DefinitionError> {
        let Self { mut definition, wrong, .. } = self;
        let saga = definition.name;
        if let Some(what) = wrong.or_else(|| illegal(&definition)) {
            return Err(DefinitionError { saga, what });
        }
        definition.hash = hash(&definition);
        Ok(Arc::new(definition))
    }

    fn add<R>(
        &mut self,
        name: &'static str,
        kind: StepKind,
        action: Action,
        compensation: Option<Call<BuildUndo>>,
    ) -> Handle<R> {
        let steps = &mut self.definition.steps;
        let step = steps.len();
        let after = if (1..MOST_STEPS).contains(&step) { 1 << (step - 1) } else { 0 };
        let (attempt_timeout, retry, trusted_codes) = (Duration::from_secs(5), Retry::default(), Vec::new());
        steps.push(Step { name, kind, after, action, compensation, attempt_timeout, retry, trusted_codes });
        Handle { step, reply: PhantomData }
    }

    fn wrong(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }
}

fn remote<I: Message + Default + 'static, O: Operation>(
    request: impl Fn(&I, Replies<'_>) -> Result<O::Request, Missing> + Send + Sync + 'static,
) -> Action {
    let build: BuildRequest = Box::new(move |facts| {
        let request = request(&decode::<I>(facts.input)?, Replies(facts.replies))?;
        Ok(request.encode_to_vec().into())
    });
    Action::Remote(Call { peer: O::PEER, path: O::PATH, build })
}

fn decode<M: Message + Default>(bytes: &Bytes) -> Result<M, Missing> {
    M::decode(bytes.clone()).map_err(|error| Missing(format!("what is stored can't be read: {error}")))
}

/// Why a shape is illegal, naming the step. Cycles can't be written: a step follows earlier ones only.
fn illegal(definition: &Definition) -> Option<String> {
    let steps = &definition.steps;
    if steps.is_empty() {
        return Some("has no steps".to_owned());
    }
    if let Some(step) = steps.get(MOST_STEPS) {
        return Some(format!("{} is step {}, and {MOST_STEPS} are the most", step.name, MOST_STEPS + 1));
    }
    for (at, step) in steps.iter().enumerate() {
        if steps[..at].iter().any(|other| other.name == step.name) {
            return Some(format!("{} is there twice", step.name));
        }
        if step.attempt_timeout.is_zero() || step.retry.initial.is_zero() || step.retry.factor < 1.0 {
            return Some(format!("{} has an attempt time-out or a retry that never waits", step.name));
        }
    }
    let mut pivots = steps.iter().enumerate().filter(|(_, step)| step.kind == StepKind::Pivot);
    let pivot = pivots.next();
    if let (Some((_, first)), Some((_, second))) = (pivot, pivots.next()) {
        return Some(format!(
            "{} is a second pivot after {}: there is one point of no return",
            second.name, first.name
        ));
    }
    for (at, step) in steps.iter().enumerate() {
        let ancestors = definition.ancestors(at);
        match (step.kind, pivot) {
            (StepKind::Retriable, None) => return Some(format!("{} is retriable, and there is no pivot", step.name)),
            (StepKind::Retriable, Some((pivot, first))) if ancestors & (1 << pivot) == 0 => {
                return Some(format!("{} is retriable and doesn't follow the pivot {}", step.name, first.name));
            }
            (StepKind::Check | StepKind::Compensatable, Some((pivot, first)))
                if definition.ancestors(pivot) & (1 << at) == 0 =>
            {
                return Some(format!("{} can be undone and must come before the pivot {}", step.name, first.name));
            }
            _ => {}
        }
    }
    None
}

/// What a saga that is under way depends on: names, kinds, order and methods.
fn hash(definition: &Definition) -> Bytes {
    let mut hash = Sha256::new();
    hash.update(format!("{} {}", definition.name, definition.version));
    for step in &definition.steps {
        let action = match &step.action {
            Action::Remote(call) => call.path,
            Action::Local(_) => "local",
        };
        let compensation = step.compensation.as_ref().map_or("", |call| call.path);
        hash.update(format!("\n{} {:?} {:x} {action} {compensation}", step.name, step.kind, step.after));
    }
    Bytes::copy_from_slice(&hash.finalize()[..16])
}
