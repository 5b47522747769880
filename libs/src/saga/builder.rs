//! Building a definition, step by step, each with its types.

use std::{
    any::{TypeId, type_name},
    fmt,
    marker::PhantomData,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use prost::Message;
use proto::saga::v1::{LockPolicy, Reason, StepKind};

use super::{
    Compensated, Definition, DefinitionError, Fault, Handle, LocalWork, Operation, Replies, Retry, Undo,
    definition::{MakeEnding, MakeKeys, MakeRequest, StepCode, Types},
    plan::{Plan, StepOptions, StepPlan},
    record::Record,
    shape,
};
use crate::refusal::Refusal;

/// The participant of a local step, as it is shown.
const LOCAL: &str = "local";
/// The participant of a step that is a saga.
const SAGA: &str = "saga";

/// Builds a definition. Each step comes after the one added before it, unless [`after`](Self::after) says otherwise; options are
/// those of the step added last. Each is said once; [`build`](Self::build) refuses a second.
pub struct Builder<I> {
    plan: Plan,
    /// The names that each step comes after, where they were given.
    after: Vec<Option<Vec<String>>>,
    steps: Vec<StepCode>,
    ending: Option<MakeEnding>,
    keys: Option<MakeKeys>,
    answer: Option<MakeRequest>,
    types: Types,
    /// What each step that is a saga gives it and wants of it.
    sagas: Vec<(usize, Types)>,
    /// What was said so far, of the saga or of a step.
    said: Vec<(Option<usize>, &'static str)>,
    /// The first thing that was said wrong.
    fault: Option<Fault>,
    input: PhantomData<fn(I)>,
}

impl<I> fmt::Debug for Builder<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Builder").field(&self.plan).finish()
    }
}

impl<I: Message + Default + 'static> Builder<I> {
    pub(super) fn new(name: &'static str, version: u32) -> Self {
        let plan = Plan {
            name,
            version,
            hash: [0; 32],
            steps: Vec::new(),
            deadline: None,
            has_ending: false,
            locks: LockPolicy::Unspecified,
        };
        Self {
            plan,
            after: Vec::new(),
            steps: Vec::new(),
            ending: None,
            keys: None,
            answer: None,
            types: Types { input: TypeId::of::<I>(), answer: TypeId::of::<()>() },
            sagas: Vec::new(),
            said: Vec::new(),
            fault: None,
            input: PhantomData,
        }
    }

    /// Adds a step without effect: it can be refused, and there is nothing to undo.
    pub fn check<O: Operation>(
        &mut self,
        name: &'static str,
        request: impl Fn(&I, Replies<'_>) -> Result<O::Request, Refusal> + Send + Sync + 'static,
    ) -> Handle<O::Reply> {
        self.remote::<O>(name, StepKind::Check, request)
    }

    /// Adds a step that its operation's declared compensation undoes.
    ///
    /// `request` makes the action's request from the input and the replies of the steps before; an error turns the saga back
    /// as if the participant had refused. `undo` makes the compensation's; it is asked when the action may have taken effect,
    /// known or not. Both are called at the action's participant: with a compensation of another one, `build` refuses the step.
    pub fn compensatable<O: Compensated>(
        &mut self,
        name: &'static str,
        request: impl Fn(&I, Replies<'_>) -> Result<O::Request, Refusal> + Send + Sync + 'static,
        undo: impl Fn(Undo<'_, I, O>) -> <O::Compensation as Operation>::Request + Send + Sync + 'static,
    ) -> Handle<O::Reply> {
        let handle = self.remote::<O>(name, StepKind::Compensatable, request);
        self.plan.steps[handle.step].compensation = O::Compensation::PATH;
        if O::Compensation::PEER != O::PEER {
            self.faulty(Fault::OtherPeer(name, O::PEER, O::Compensation::PEER));
        }
        if let StepCode::Remote { undo: slot, .. } = &mut self.steps[handle.step] {
            *slot = Some(Box::new(move |replies, step| {
                let input = input(replies.record)?;
                Ok(undo(Undo::new(&input, replies, step)?).encode_to_vec().into())
            }));
        }
        handle
    }

    /// Adds the point of no return: once it has started, the saga goes on until it is completed. If it is refused, the saga
    /// turns back. At most one.
    pub fn pivot<O: Operation>(
        &mut self,
        name: &'static str,
        request: impl Fn(&I, Replies<'_>) -> Result<O::Request, Refusal> + Send + Sync + 'static,
    ) -> Handle<O::Reply> {
        self.remote::<O>(name, StepKind::Pivot, request)
    }

    /// Adds a step after the pivot: it must succeed in the end, and is called until it does.
    pub fn retriable<O: Operation>(
        &mut self,
        name: &'static str,
        request: impl Fn(&I, Replies<'_>) -> Result<O::Request, Refusal> + Send + Sync + 'static,
    ) -> Handle<O::Reply> {
        self.remote::<O>(name, StepKind::Retriable, request)
    }

    /// Adds a step after the pivot that the coordinator's own service takes, in the transaction of the saga's transition.
    pub fn retriable_local(
        &mut self,
        name: &'static str,
        work: impl Fn(&I, Replies<'_>) -> Result<LocalWork, Refusal> + Send + Sync + 'static,
    ) {
        let work = move |replies: Replies<'_>| work(&input(replies.record)?, replies);
        let _: Handle<()> = self.add(name, StepKind::Retriable, (LOCAL, ""), StepCode::Local(Box::new(work)));
    }

    /// Adds a step that another saga takes, driven by the same coordinator, with a row and a history of its own. It starts with the
    /// step, in one transaction. Once its steps are done this step is done, with what it [`answer`](Self::answer)s; if it turns back,
    /// this step was refused.
    ///
    /// Until this saga has ended, the one below stays open: if this one turns back, so does the one below, done or not. That is why
    /// it must have no pivot.
    pub fn compensatable_saga<J: Message + 'static, R: Message + Default + 'static>(
        &mut self,
        name: &'static str,
        definition: &Arc<Definition>,
        input: impl Fn(&I, Replies<'_>) -> Result<J, Refusal> + Send + Sync + 'static,
    ) -> Handle<R> {
        self.saga(name, StepKind::Compensatable, definition, input)
    }

    /// Adds a point of no return that another saga takes. It may have a pivot. If it turns back, this one does.
    pub fn pivot_saga<J: Message + 'static, R: Message + Default + 'static>(
        &mut self,
        name: &'static str,
        definition: &Arc<Definition>,
        input: impl Fn(&I, Replies<'_>) -> Result<J, Refusal> + Send + Sync + 'static,
    ) -> Handle<R> {
        self.saga(name, StepKind::Pivot, definition, input)
    }

    /// Adds a step after the pivot that another saga takes. It may have a pivot. If it turns back, this one is STUCK; an operator who
    /// retries it begins the one below anew.
    pub fn retriable_saga<J: Message + 'static, R: Message + Default + 'static>(
        &mut self,
        name: &'static str,
        definition: &Arc<Definition>,
        input: impl Fn(&I, Replies<'_>) -> Result<J, Refusal> + Send + Sync + 'static,
    ) -> Handle<R> {
        self.saga(name, StepKind::Retriable, definition, input)
    }

    /// What the saga answers once its steps are done, where it is another one's step. Nothing unless said: an empty message.
    pub fn answer<R: Message + 'static>(
        &mut self,
        answer: impl Fn(&I, Replies<'_>) -> Result<R, Refusal> + Send + Sync + 'static,
    ) {
        self.once(None, "answer");
        self.types.answer = TypeId::of::<R>();
        self.answer = Some(made_by(answer));
    }

    /// What the coordinator's own service does when everything is undone, in the transaction that makes the saga COMPENSATED.
    pub fn on_compensated(&mut self, work: impl Fn(&I, &Reason) -> Result<LocalWork, Refusal> + Send + Sync + 'static) {
        self.once(None, "on_compensated");
        self.ending = Some(Box::new(move |record| work(&input(record)?, &record.why_back())));
    }

    /// How long a saga may take to its pivot; then it turns back. Participants refuse an action that comes later.
    pub fn deadline(&mut self, deadline: Duration) -> &mut Self {
        self.once(None, "deadline");
        self.plan.deadline = Some(deadline);
        self
    }

    /// Locks business keys, such as `customer/ada`, from before the saga's first call to its end, however it ends. Of two sagas
    /// that name a key, whatever their types, the later one waits SCHEDULED until the earlier one has ended. Who asks first is
    /// first; a saga takes all its keys at once, so no two wait for each other.
    ///
    /// At most 16 keys, each 1 to 256 bytes without control characters.
    pub fn lock<K: Into<String>>(&mut self, keys: impl Fn(&I) -> Vec<K> + Send + Sync + 'static) {
        self.locks(LockPolicy::Wait, keys);
    }

    /// Like [`lock`](Self::lock), but a saga that finds a key locked does not wait: it is refused, ABORTED, SAGA_LOCKED, with the
    /// saga that holds the key. Nothing is started then if the deciding command names the locks, see
    /// [`Coordinator::locks`](super::Coordinator::locks); else the saga turns back before its first call.
    pub fn lock_or_refuse<K: Into<String>>(&mut self, keys: impl Fn(&I) -> Vec<K> + Send + Sync + 'static) {
        self.locks(LockPolicy::Refuse, keys);
    }

    fn locks<K: Into<String>>(&mut self, policy: LockPolicy, keys: impl Fn(&I) -> Vec<K> + Send + Sync + 'static) {
        self.once(None, "lock or lock_or_refuse");
        self.plan.locks = policy;
        self.keys = Some(Box::new(move |input| Ok(keys(&decoded(input)?).into_iter().map(Into::into).collect())));
    }

    /// The step begins once these are done, rather than after the step added before it; none of them means at once. Steps with
    /// no order between them run side by side.
    pub fn after(&mut self, names: &[&str]) -> &mut Self {
        if let Some(last) = self.last("after") {
            self.after[last] = Some(names.iter().map(ToString::to_string).collect());
        }
        self
    }

    /// How long one call may take. 5 seconds unless said otherwise.
    pub fn attempt_timeout(&mut self, timeout: Duration) -> &mut Self {
        self.option("attempt_timeout", |options| options.attempt_timeout = timeout)
    }

    /// When a failed call is made again.
    pub fn retry(&mut self, retry: Retry) -> &mut Self {
        self.option("retry", |options| options.retry = retry)
    }

    /// How long the step may take, all its calls together; then the saga turns back. For Check and Compensatable steps.
    pub fn step_deadline(&mut self, deadline: Duration) -> &mut Self {
        self.option("step_deadline", |options| options.deadline = Some(deadline))
    }

    /// Codes that mean a refusal although the answer carries no verdict, for participants without our barrier: an OK needs none then,
    /// either. The step is undone all the same. For Check and Compensatable steps, and for the codes that handlers answer on purpose:
    /// INVALID_ARGUMENT, FAILED_PRECONDITION, NOT_FOUND, OUT_OF_RANGE, ALREADY_EXISTS.
    pub fn trusted_codes(&mut self, codes: &[tonic::Code]) -> &mut Self {
        self.option("trusted_codes", |options| options.trusted = codes.to_vec())
    }

    /// The participant has no barrier. Its OK needs no verdict. Nothing stops an action that comes after its compensation, so the undoing
    /// of a call with an unknown outcome waits until none can come any more.
    pub fn without_barrier(&mut self) -> &mut Self {
        self.option("without_barrier", |options| options.plain = true)
    }

    /// Checks the shape and makes the definition.
    ///
    /// # Errors
    /// When the shape breaks a rule, or something is said twice; the message names the step.
    pub fn build(self) -> Result<Arc<Definition>, DefinitionError> {
        let Self { mut plan, after, steps, ending, keys, answer, types, sagas, fault, .. } = self;
        if let Some(fault) = fault {
            return Err(DefinitionError { saga: plan.name, fault });
        }
        plan.has_ending = ending.is_some();
        shape::check(&mut plan, &after)?;
        for (at, types) in sagas {
            if let StepCode::Saga { definition, .. } = &steps[at] {
                let checked = shape::check_saga(&plan, &plan.steps[at], definition, types);
                checked.map_err(|fault| DefinitionError { saga: plan.name, fault })?;
            }
        }
        plan.hash = shape::hash(&plan);
        Ok(Arc::new(Definition { plan, steps, ending, keys, answer, types, input_name: type_name::<I>() }))
    }

    /// Notes what is wrong, to be told when the definition is built. The first counts.
    fn faulty(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }

    fn option(&mut self, name: &'static str, change: impl FnOnce(&mut StepOptions)) -> &mut Self {
        if let Some(last) = self.last(name) {
            change(&mut self.plan.steps[last].options);
        }
        self
    }

    /// The step added last, of which this is said.
    fn last(&mut self, what: &'static str) -> Option<usize> {
        let last = self.plan.steps.len().checked_sub(1);
        match last {
            Some(_) => self.once(last, what),
            None => self.faulty(Fault::Stray(what)),
        }
        last
    }

    /// Notes that this is said, of a step or of the saga. Said again it would take the place of what was said before.
    fn once(&mut self, step: Option<usize>, what: &'static str) {
        if self.said.contains(&(step, what)) {
            let of = step.map_or(self.plan.name, |step| self.plan.steps[step].name);
            self.faulty(Fault::SaidTwice(of, what));
        }
        self.said.push((step, what));
    }

    fn remote<O: Operation>(
        &mut self,
        name: &'static str,
        kind: StepKind,
        request: impl Fn(&I, Replies<'_>) -> Result<O::Request, Refusal> + Send + Sync + 'static,
    ) -> Handle<O::Reply> {
        self.add(name, kind, (O::PEER, O::PATH), StepCode::Remote { request: made_by(request), undo: None })
    }

    fn saga<J: Message + 'static, R: 'static>(
        &mut self,
        name: &'static str,
        kind: StepKind,
        definition: &Arc<Definition>,
        input: impl Fn(&I, Replies<'_>) -> Result<J, Refusal> + Send + Sync + 'static,
    ) -> Handle<R> {
        let code = StepCode::Saga { definition: Arc::clone(definition), request: made_by(input) };
        let handle = self.add(name, kind, (SAGA, definition.name()), code);
        self.plan.steps[handle.step].saga = Some(definition.hash());
        self.sagas.push((handle.step, Types { input: TypeId::of::<J>(), answer: TypeId::of::<R>() }));
        handle
    }

    fn add<R>(
        &mut self,
        name: &'static str,
        kind: StepKind,
        (participant, action): (&'static str, &'static str),
        code: StepCode,
    ) -> Handle<R> {
        let at = self.plan.steps.len();
        self.plan.steps.push(StepPlan {
            name,
            kind,
            after: 0,
            descendants: 0,
            participant,
            action,
            compensation: "",
            saga: None,
            options: StepOptions::default(),
        });
        self.after.push(None);
        self.steps.push(code);
        Handle::new((self.plan.name, self.plan.version), at)
    }
}

/// A message made from the input and the replies so far.
fn made_by<I: Message + Default, M: Message>(
    make: impl Fn(&I, Replies<'_>) -> Result<M, Refusal> + Send + Sync + 'static,
) -> MakeRequest {
    Box::new(move |replies| Ok(make(&input(replies.record)?, replies)?.encode_to_vec().into()))
}

/// What a saga was started with.
fn input<I: Message + Default>(record: &Record) -> Result<I, Refusal> {
    decoded(record.kept.input.clone())
}

fn decoded<I: Message + Default>(input: Bytes) -> Result<I, Refusal> {
    I::decode(input).map_err(|error| {
        Refusal::precondition("INPUT_UNREADABLE", format!("what the saga was started with can't be read: {error}"))
    })
}
