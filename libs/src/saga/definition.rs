//! A saga's definition as it was built: its plan, and the functions that make each step's request from what came before.

use std::{
    any::{TypeId, type_name},
    fmt,
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;

use super::{Builder, LocalWork, Replies, ids, machine::Local, plan::Plan, record::Record, shape};
use crate::refusal::Refusal;

pub(super) type MakeRequest = Box<dyn Fn(Replies<'_>) -> Result<Bytes, Refusal> + Send + Sync>;
pub(super) type MakeUndo = Box<dyn Fn(Replies<'_>, usize) -> Result<Bytes, Refusal> + Send + Sync>;
pub(super) type MakeLocal = Box<dyn Fn(Replies<'_>) -> Result<LocalWork, Refusal> + Send + Sync>;
pub(super) type MakeEnding = Box<dyn Fn(&Record) -> Result<LocalWork, Refusal> + Send + Sync>;
pub(super) type MakeKeys = Box<dyn Fn(Bytes) -> Result<Vec<String>, Refusal> + Send + Sync>;

/// The functions behind one step.
pub(super) enum StepCode {
    /// A participant takes it.
    Remote { request: MakeRequest, undo: Option<MakeUndo> },
    /// A saga of its own takes it, which starts from what the request makes.
    Saga { definition: Arc<Definition>, request: MakeRequest },
    /// The coordinator's own service takes it.
    Local(MakeLocal),
}

/// A saga's definition, checked when it was built.
///
/// ```
/// # use libs::saga::{Compensated, Definition, DefinitionError, LocalWork, Operation, Retry};
/// # macro_rules! operation { ($name:ident) => { struct $name; impl Operation for $name {
/// #     const PEER: &'static str = "peer"; const PATH: &'static str = "/p.v1.S/M";
/// #     type Request = String; type Reply = String; } } }
/// # operation!(ReserveStock); operation!(ReleaseStock); operation!(ChargeCustomer); operation!(RefundCharge);
/// # operation!(CreateShipment);
/// # impl Compensated for ReserveStock { type Compensation = ReleaseStock; }
/// # impl Compensated for ChargeCustomer { type Compensation = RefundCharge; }
/// # fn main() -> Result<(), DefinitionError> {
/// // What the saga is started with is any protobuf message; here it is a string, the order's id.
/// let mut saga = Definition::builder::<String>("place-order", 1);
/// let reserve = saga.compensatable::<ReserveStock>(
///     "reserve_inventory",
///     |order, _| Ok(order.clone()),
///     |undo| undo.input.clone(),
/// );
/// saga.compensatable::<ChargeCustomer>(
///     "charge_customer",
///     move |_, replies| replies.get(reserve), // what it costs
///     |undo| undo.input.clone(),
/// );
/// saga.retry(Retry { attempts: Some(20), ..Retry::default() }); // of the step added last
/// saga.pivot::<CreateShipment>("ship_order", |order, _| Ok(order.clone()));
/// saga.retriable_local("complete_order", |_, _| Ok(LocalWork::nothing()));
/// saga.on_compensated(|_, reason| { let _why = &reason.reason; Ok(LocalWork::nothing()) });
/// let place_order = saga.build()?;
/// assert_eq!(place_order.name(), "place-order");
/// # Ok(()) }
/// ```
pub struct Definition {
    pub(super) plan: Plan,
    pub(super) steps: Vec<StepCode>,
    pub(super) ending: Option<MakeEnding>,
    pub(super) keys: Option<MakeKeys>,
    /// What a saga that is another one's step answers. None answers an empty message.
    pub(super) answer: Option<MakeRequest>,
    pub(super) types: Types,
    /// What its sagas start from, for people.
    pub(super) input_name: &'static str,
}

/// What a definition's sagas start from, and what they answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Types {
    pub(super) input: TypeId,
    pub(super) answer: TypeId,
}

/// A saga that was to start from another message than its definition says.
#[derive(Debug, thiserror::Error)]
#[error("saga {saga} starts from {wanted}, and was to start from {given}")]
pub(super) struct OtherInput {
    saga: &'static str,
    wanted: &'static str,
    given: &'static str,
}

impl fmt::Debug for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Definition").field(&self.plan).finish()
    }
}

impl Definition {
    /// Begins a definition whose sagas start from an `I`. The name is the saga's type, stable for ever. The first version is 1; raise it
    /// when the [hash](Definition::hash) changes or a step's functions change their meaning, and keep the older definition with the
    /// coordinator until its sagas have ended.
    pub fn builder<I: Message + Default + 'static>(name: &'static str, version: u32) -> Builder<I> {
        Builder::new(name, version)
    }

    /// The saga's type.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.plan.name
    }

    /// The version.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.plan.version
    }

    /// What is pinned in each saga: a hash of the name, the version, the steps with their kinds, order and operations, whether work of our
    /// own ends a compensated saga, and the hashes of the sagas that are steps. So a definition changes with those below it. All else may
    /// change under open sagas: time-outs, deadlines, retries, trusted codes, locks, and whether there is a barrier, but that a participant
    /// gets one only once every saga has ended that called it without: it knows of none of those calls. The functions are not seen: raise the
    /// version when one changes its meaning.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.plan.hash
    }

    /// The peers that its steps call, and those that the sagas call which are its steps.
    pub fn peers(&self) -> impl Iterator<Item = &'static str> {
        let remote = self.plan.steps.iter().filter(|step| step.is_remote());
        let mut peers: Vec<_> = remote.map(|step| step.participant).collect();
        self.sagas().for_each(|(_, definition)| peers.extend(definition.peers().collect::<Vec<_>>()));
        peers.sort_unstable();
        peers.dedup();
        peers.into_iter()
    }

    /// Checks that its sagas start from an `I`: another message may read as one.
    pub(super) fn check_input<I: 'static>(&self) -> Result<(), OtherInput> {
        if self.types.input == TypeId::of::<I>() {
            return Ok(());
        }
        Err(OtherInput { saga: self.name(), wanted: self.input_name, given: type_name::<I>() })
    }

    /// The steps that sagas take, each with its definition.
    pub(super) fn sagas(&self) -> impl Iterator<Item = (usize, &Arc<Self>)> {
        self.steps.iter().enumerate().filter_map(|(at, step)| match step {
            StepCode::Saga { definition, .. } => Some((at, definition)),
            StepCode::Remote { .. } | StepCode::Local(_) => None,
        })
    }

    /// The step that is a saga and whose sagas have such ids.
    pub(super) fn step_of(&self, saga_id: &str) -> Option<&'static str> {
        self.sagas().map(|(step, _)| self.plan.steps[step].name).find(|step| ids::is_below(saga_id, step))
    }

    /// The definition, and those of the sagas that are its steps, near and far.
    pub(super) fn family(self: &Arc<Self>) -> Vec<Arc<Self>> {
        let below = self.sagas().flat_map(|(_, definition)| definition.family());
        std::iter::once(Arc::clone(self)).chain(below).collect()
    }

    /// What a saga answers to the one that it is a step of.
    pub(super) fn answer(&self, record: &Record) -> Result<Bytes, Refusal> {
        self.answer.as_ref().map_or_else(|| Ok(Bytes::new()), |answer| answer(Replies::of(&self.plan, record)))
    }

    /// Work of our own that a transition asks for.
    pub(super) fn local(&self, local: Local, record: &Record) -> Result<LocalWork, Refusal> {
        match (local, &self.ending) {
            (Local::Step(step), _) => match &self.steps[step] {
                StepCode::Local(work) => work(Replies::before(&self.plan, record, step)),
                StepCode::Remote { .. } | StepCode::Saga { .. } => Err(Refusal::internal()),
            },
            (Local::Ending, Some(ending)) => ending(record),
            (Local::Ending | Local::Locks | Local::Queue, _) => Ok(LocalWork::nothing()),
        }
    }

    /// The business keys that a saga locks which starts from this input, sorted, each once.
    pub(super) fn lock_keys(&self, input: Bytes) -> Result<Vec<String>, Refusal> {
        let Some(keys) = &self.keys else { return Ok(Vec::new()) };
        let mut keys = keys(input)?;
        keys.sort_unstable();
        keys.dedup();
        shape::check_keys(&keys)?;
        Ok(keys)
    }

    /// The bytes of a step's action.
    pub(super) fn request(&self, step: usize, record: &Record) -> Result<Bytes, Refusal> {
        match &self.steps[step] {
            StepCode::Remote { request, .. } | StepCode::Saga { request, .. } => {
                request(Replies::before(&self.plan, record, step))
            }
            StepCode::Local(_) => Err(Refusal::internal()),
        }
    }

    /// The bytes of a step's compensation.
    pub(super) fn compensation(&self, step: usize, record: &Record) -> Result<Bytes, Refusal> {
        match &self.steps[step] {
            StepCode::Remote { undo: Some(undo), .. } => undo(Replies::of(&self.plan, record), step),
            // It is told to turn back, which takes no words.
            StepCode::Saga { .. } => Ok(Bytes::new()),
            StepCode::Remote { undo: None, .. } | StepCode::Local(_) => Err(Refusal::internal()),
        }
    }
}
